"""A saved detector as a repository of the Hub: its weights, settings and the code that loads them, nothing else."""

import fnmatch
import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

# What the HTTP library of the Hub's client raises, whichever it is in its version; a failed connection is no OSError.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
# What a program of transformers reads, and the card; logs, checkpoints and hidden files of a run stay at home.
PUSHED = ("README.md", "config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")


def files_to_push(folder: str | Path) -> list[Path]:
    """Return the files of a saved detector that belong into its repository, sorted by name.

    Raises:
        FileNotFoundError: if there is no config.json, no weights, or not the code that the config.json names.
        ValueError: if the config.json names no code: `trust_remote_code=True` would find nothing.
    """
    folder = Path(folder)
    files = sorted(
        path for path in folder.glob("*") if path.is_file() and any(fnmatch.fnmatch(path.name, p) for p in PUSHED)
    )
    names = {path.name for path in files}
    if "config.json" not in names:
        raise FileNotFoundError(f"{folder}: no folder with the config.json of a saved detector; give best/ of a run")
    if not any(name.endswith(".safetensors") for name in names):
        raise FileNotFoundError(f"{folder}: has no weights (.safetensors); give the folder of a whole saved detector")
    code = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map")
    if not code:
        raise ValueError(
            f"{folder}/config.json: names no code (auto_map), so that only machines with this package could load it; "
            "save the detector again with training.saved_detectors.save_detector"
        )
    needed = {f"{reference.rpartition('--')[2].partition('.')[0]}.py" for reference in code.values()}
    if missing := sorted(needed - names):
        raise FileNotFoundError(
            f"{folder}: its config.json names the code {missing[0]}, which is not there; restore it"
        )
    return files


def push(folder: str | Path, repo_id: str, *, private: bool = False, message: str = "Upload detector") -> str:
    """Upload a saved detector; the repository is made if there is none.

    Anyone can then load it with `AutoModelForObjectDetection.from_pretrained(repo_id, trust_remote_code=True)`.

    Args:
        folder: of the detector.
        repo_id: `name` or `owner/name`.
        private: whether a repository that is made now is private.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError, ValueError: as `files_to_push`, or if `repo_id` is none.
        PermissionError: if this machine has no token.
        ConnectionError: if the Hub cannot be reached or refuses.
    """
    files = files_to_push(folder)
    validate_repo_id(repo_id)
    if get_token() is None:
        raise PermissionError("no token of the Hub on this machine; run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            allow_patterns=[path.name for path in files],
            commit_message=message,
        )
    except (_HTTP_ERROR, OSError) as error:
        reason = str(error).strip().splitlines()
        raise ConnectionError(
            f"{repo_id}: not uploaded ({reason[0] if reason else type(error).__name__}); check network, token and "
            "name, then push again: what is there already is not sent twice"
        ) from error
    return str(address)
