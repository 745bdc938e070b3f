"""A detector named by a folder, or by its id on the Hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def detector_folder(model: str | Path) -> Path:
    """Return the folder of a saved detector; of one on the Hub that in the cache, after a download if need be.

    Args:
        model: a folder, or an id such as `owner/name` where there is no such folder. No code is downloaded.

    Raises:
        ConnectionError: if an id is not on the Hub, or the Hub cannot be reached and the cache does not have it.
    """
    name = str(model)
    if Path(model).exists() or len(Path(model).parts) != 2 or name.startswith((".", "/", "~")):
        return Path(model)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"model={name!r}: no such folder, and not to be had from the Hub ({reason}); give the folder "
            "of a saved detector"
        ) from error
