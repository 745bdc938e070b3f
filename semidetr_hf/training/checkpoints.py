"""Saved detectors: a folder that any program of transformers loads, never half of one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor


def save_detector(network: SemiDetrForObjectDetection, processor: SemiDetrImageProcessor, folder: Path) -> None:
    """Write a detector and its processor; the folder is complete or, after a crash between two renames, set aside.

    The next save puts back what such a crash has set aside.

    Args:
        network: its weights and configuration are written, and the code that loads them.
        processor: how images are prepared, and whether duplicates are removed.
        folder: replaced as a whole; hidden folders beside it are used meanwhile.
    """
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    previous = folder.with_name(f".{folder.name}-previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    network.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    unfinished.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def reading_detector(name: str, folder: str | Path) -> Iterator[None]:
    """Name the folder in what transformers raises while it loads a detector from there.

    Args:
        name: field or flag that the folder comes from, for the message.
        folder: of a saved detector.

    Raises:
        FileNotFoundError: if there is no config.json in the folder.
        ValueError: if configuration and weights do not fit together, or one is wrong or missing. What the library
            raises for that is not always one, and not always says which file it read.
    """
    where = f"{name}={str(folder)!r}"
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{where}: no folder with the config.json of a saved detector")
    try:
        yield
    except (StrictDataclassError, SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: {error}; give the folder of a whole saved detector") from error
