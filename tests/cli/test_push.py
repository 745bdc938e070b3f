from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bad_inputs.folders import detector

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor, hub
from semidetr_hf.cli import main
from semidetr_hf.training.saved_detectors import save_detector

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A detector as a training saves it, with the code."""
    plain = detector(tmp_path_factory.mktemp("plain"))
    folder = tmp_path_factory.mktemp("saved") / "best"
    processor = SemiDetrImageProcessor.from_pretrained(plain)
    save_detector(SemiDetrForObjectDetection.from_pretrained(plain), processor, folder)
    (folder / "notes.txt").write_text("not for the Hub")
    return folder


class RecordingApi:
    """Stands in for the Hub: keeps what it is asked for."""

    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_a_dry_run_lists_files_and_needs_neither_token_nor_network(saved: Path, monkeypatch, capsys: Capture) -> None:
    monkeypatch.setattr(hub, "HfApi", None)
    monkeypatch.setattr(hub, "get_token", None)
    assert main(["push", str(saved), "me/mushrooms", "--dry-run"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[-1] for line in out.splitlines()[:-1]]
    assert names == sorted(names)
    assert {"config.json", "preprocessor_config.json", "model.safetensors", "modeling_semidetr.py"} <= set(names)
    assert "notes.txt" not in names
    total = sum(path.stat().st_size for path in saved.iterdir() if path.name != "notes.txt")
    assert out.splitlines()[-1].strip() == f"{total:,} bytes in {len(names)} files would go to me/mushrooms"


def test_what_is_listed_is_uploaded(saved: Path, monkeypatch, capsys: Capture) -> None:
    monkeypatch.setattr(RecordingApi, "calls", [])
    monkeypatch.setattr(hub, "HfApi", RecordingApi)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    assert main(["push", str(saved), "mushrooms", "--private", "--message", "First"]) == 0
    (_, created), (_, uploaded) = RecordingApi.calls
    assert created == {"repo_id": "mushrooms", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["commit_message"]) == ("me/mushrooms", "First")
    assert uploaded["allow_patterns"] == [path.name for path in hub.files_to_push(saved)]
    assert "me/mushrooms" in capsys.readouterr().out


def test_without_a_token_the_way_to_one_is_told(saved: Path, monkeypatch, capsys: Capture) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert main(["push", str(saved), "mushrooms"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "hf auth login" in line


def test_a_hub_that_cannot_be_reached_is_one_line(saved: Path, monkeypatch, capsys: Capture) -> None:
    # Nothing listens on this port of our own machine.
    unreachable = hub.HfApi(endpoint="http://127.0.0.1:9", token="token")
    monkeypatch.setattr(hub, "HfApi", lambda: unreachable)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    assert main(["push", str(saved), "me/mushrooms"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "me/mushrooms: not uploaded (" in line
    assert "check network, token and name" in line


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no folder with the config.json of a saved detector"),
        ("model.safetensors", "has no weights"),
        ("modeling_semidetr.py", "names the code modeling_semidetr.py, which is not there"),
    ],
)
def test_an_incomplete_folder_is_refused(
    saved: Path, tmp_path: Path, capsys: Capture, missing: str, message: str
) -> None:
    for path in saved.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["push", str(tmp_path), "mushrooms", "--dry-run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert message in line


def test_a_detector_without_code_and_a_wrong_name_are_refused(tmp_path: Path, saved: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    for arguments, message in (([str(tmp_path), "x"], "names no code"), ([str(saved), "my model"], "'my model'")):
        assert main(["push", *arguments, "--dry-run"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line
