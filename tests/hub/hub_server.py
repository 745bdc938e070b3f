"""A Hub on this machine: what huggingface_hub asks for to create, upload, commit and download, over real HTTP.

Written after the client's own code (huggingface_hub 2.4). Failures are asked for with `fail`, and happen to the next
requests that fit.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import _http

TOKEN = "hf_localSecretOfTheTests"
CUT = 0  # in place of a status: the connection breaks off without an answer
_CARD = re.compile(r"^\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


@dataclass
class Repository:
    """Files by path, and what came when."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()


@dataclass
class Hub:
    """The state behind the server.

    Attributes:
        endpoint: address of the server.
        requests: method and path of every request, in order.
        stored: large files that were uploaded, by sha256.
        answering: cleared, every request waits until it is set again.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    failures: list[tuple[re.Pattern[str], int, int]] = field(default_factory=list)
    answering: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, request: str, status: int, *, times: int = 1) -> None:
        """Answer the next requests whose `METHOD /path` holds the pattern with a status; `CUT` breaks off."""
        self.failures.append((re.compile(request), status, times))

    def failure_of(self, request: str) -> int | None:
        with self.lock:
            self.requests.append(request)
            for number, (pattern, status, times) in enumerate(self.failures):
                if pattern.search(request):
                    self.failures[number : number + 1] = [(pattern, status, times - 1)] if times > 1 else []
                    return status
        return None


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a new Hub on a free port of this machine."""
    hub = Hub()
    hub.answering.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def as_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Let this process take a new Hub for the real one, with a token that it knows, and no waits between tries."""
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the environment says of the real one
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another program
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _seconds: None, time=time.time))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def card_errors(content: str) -> list[str]:
    """Return what is wrong with the metadata of a card, as far as the Hub says how it wants it."""
    block = _CARD.match(content)
    if block is None:
        return ["there is no metadata"]
    try:
        data = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    lists = {"tags": str, "datasets": str, "widget": dict, "model-index": dict}
    errors = [
        f"{key} must be text" for key in ("license", "pipeline_tag", "library_name") if type(data.get(key)) is not str
    ]
    errors += [
        f"{key} must be a list"
        for key, kind in lists.items()
        if key in data and not (isinstance(data[key], list) and all(isinstance(item, kind) for item in data[key]))
    ]
    base = data.get("base_model", "a/b")
    errors += [] if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else [f"base_model {base!r} is no id"]
    for model in data.get("model-index", []):
        for result in model["results"]:
            errors += [] if {"task", "dataset", "metrics"} <= result.keys() else ["a result lacks a part"]
            errors += [f"{m['name']} is no number" for m in result["metrics"] if not isinstance(m["value"], float)]
    return errors


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.answering.wait()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.hub.failure_of(f"{self.command} {path}")
        if status == CUT:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif status is not None:
            self._answer({"error": f"made to fail with {status}"}, status=status)
        elif self.command in ("POST", "PUT"):
            self._write(path, body)
        else:
            self._read(path)

    def _answer(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ---- Writing

    def _write(self, path: str, body: bytes) -> None:
        if path.startswith("/lfs/"):  # addresses of uploads carry their own permission
            if hashlib.sha256(body).hexdigest() != path[5:]:
                self._answer({"error": "other content than was announced"}, status=400)
                return
            self.hub.stored[path[5:]] = body
            self._answer(b"")
        elif path == "/api/validate-yaml":
            errors = [{"message": text} for text in card_errors(json.loads(body)["content"])]
            self._answer({"errors": errors, "warnings": []}, status=400 if errors else 200)
        elif not self._is_known:
            self._answer({"error": "Invalid username or password."}, status=401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            self._change(found[1], found[2], body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._begin_uploads(json.loads(body)["objects"])
        else:
            self._answer({"error": f"no such address {path}"}, status=404)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        exists = repo_id in self.hub.repositories
        if not exists:
            self.hub.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        url = f"{self.hub.endpoint}/{repo_id}"
        self._answer({"url": url, "name": repo_id}, status=409 if exists else 200)

    def _change(self, repo_id: str, what: str, body: bytes) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._answer({"error": "not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif what == "preupload":
            files = json.loads(body)["files"]
            self._answer({"files": [self._upload_mode(repository, file["path"]) for file in files]})
        else:
            self._commit(repo_id, repository, [json.loads(line) for line in body.splitlines()])

    def _upload_mode(self, repository: Repository, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith((".safetensors", ".png")) else "regular"
        content = repository.files.get(path)
        return {"path": path, "uploadMode": mode, "shouldIgnore": False} | (
            {} if content is None else {"oid": _oid(content, mode)}
        )

    def _begin_uploads(self, objects: list[dict[str, Any]]) -> None:
        for item in objects:
            if item["oid"] not in self.hub.stored:
                item["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        header, files = lines[0]["value"], [(line["key"], line["value"]) for line in lines[1:]]
        missing = [value["path"] for key, value in files if key == "lfsFile" and value["oid"] not in self.hub.stored]
        if missing:
            self._answer({"error": f"{missing[0]} was not uploaded"}, status=400)
            return
        for key, value in files:
            is_large = key == "lfsFile"
            content = self.hub.stored[value["oid"]] if is_large else base64.b64decode(value["content"])
            repository.files[value["path"]] = content
        repository.commits.append({"message": header["summary"], "paths": [value["path"] for _, value in files]})
        url = f"{self.hub.endpoint}/{repo_id}/commit/{repository.sha}"
        self._answer({"success": True, "commitOid": repository.sha, "commitUrl": url})

    # ---- Reading

    def _read(self, path: str) -> None:
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:/(resolve|tree|revision)/([^/]+)(?:/(.*))?)?", path)
        repository = self.hub.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not self._is_known):
            self._answer({"error": "not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif found[2] == "resolve":
            self._download(repository, found[4])
        elif found[2] == "tree":
            files = repository.files.items()
            self._answer([{"type": "file", "path": p, "size": len(c), "oid": _oid(c, "regular")} for p, c in files])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            self._answer({"id": found[1], "sha": repository.sha, "siblings": siblings, "private": repository.private})

    def _download(self, repository: Repository, path: str) -> None:
        headers = {"X-Repo-Commit": repository.sha}
        content = repository.files.get(path)
        if content is None:
            self._answer({"error": "no such file"}, status=404, headers=headers | {"X-Error-Code": "EntryNotFound"})
            return
        self._answer(content, headers=headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})


def _oid(content: bytes, mode: str) -> str:
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
