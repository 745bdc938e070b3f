"""The upload of a folder into a repository of the Hub, in one commit: what stands there is whole at any time."""

import logging
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

logger = logging.getLogger(__name__)

# What the HTTP library of the Hub's client raises, whichever it is in its version; a failed connection is no OSError.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
# Beside them: RuntimeError around an error of a large file, ValueError for an answer that is none.
_UPLOAD_ERRORS = (_HTTP_ERROR, OSError, RuntimeError, ValueError)
_WAYS_OUT = {
    400: "correct what it says",
    401: "the token is not valid: run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: run `hf auth login` with one that may",
    404: "correct the name of the repository, or give a token that sees it",
    409: "somebody else changed the repository at the same time: push again",
    429: "too many requests: wait some minutes and push again",
}
_WAY_OUT = "check the network and push again: what is there already is not sent twice"


def require_token() -> None:
    """Refuse to begin what needs a token of the Hub where there is none.

    Raises:
        PermissionError: if this machine has no token.
    """
    if get_token() is None:
        raise PermissionError("no token of the Hub on this machine; run `hf auth login`, or set HF_TOKEN")


def push(folder: str | Path, repo_id: str, *, private: bool = False, message: str = "Upload detector") -> str:
    """Upload all files of a folder but hidden ones; the repository is made if there is none.

    Files of the repository that are not in the folder stay. Nothing is sent twice, and there is no commit if nothing
    has changed.

    Args:
        folder: such as `write_bundle` writes it.
        repo_id: `name` or `owner/name`.
        private: whether a repository that is made now is private.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError: if `repo_id` is none.
        PermissionError: if this machine has no token.
        ConnectionError: if the Hub cannot be reached or refuses; names the repository and the way out.
    """
    validate_repo_id(repo_id)
    require_token()
    folder, api = Path(folder), HfApi()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.split("/"))
    ]
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(address.repo_id, operations, commit_message=message)
    except _UPLOAD_ERRORS as error:
        raise ConnectionError(f"{repo_id}: not uploaded ({_reason(error)}); {_way_out(error)}") from error
    return str(address)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those behind it, the outermost first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found


def _reason(error: BaseException) -> str:
    """Return what the last of the errors says, in one line, without number of the request and link to a glossary."""
    last = _causes(error)[-1]
    said = re.sub(r"\(Request ID: [^)]*\)|For more information check: \S+", "", str(last))
    lines = [line.strip() for line in said.splitlines()]
    return " ".join(line for line in lines if line) or type(last).__name__


def _way_out(error: BaseException) -> str:
    responses = [getattr(cause, "response", None) for cause in _causes(error)]
    statuses = [response.status_code for response in responses if response is not None]
    return _WAYS_OUT.get(statuses[0], _WAY_OUT) if statuses else _WAY_OUT
