"""Saved detectors: a folder that any program of transformers loads, never half of one, and checked when it is read.

Loaded are only weights that are all there, fit, and are numbers; no code in a file runs.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging as transformers_logging

from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor


def save_detector(network: SemiDetrForObjectDetection, processor: SemiDetrImageProcessor, folder: Path) -> None:
    """Write a detector and its processor; the folder is complete or, after a crash between two renames, set aside.

    The next save puts back what such a crash has set aside.

    Args:
        network: its weights and configuration are written, and the code that loads them.
        processor: how images are prepared, and whether duplicates are removed.
        folder: replaced as a whole; hidden folders beside it are used meanwhile.

    Raises:
        OSError: if it cannot be written; names the folder. What stood there before stays.
    """
    with _replacing(folder) as unfinished:
        network.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)


def copy_detector(source: Path, folder: Path) -> None:
    """Copy a saved detector as it is, in the way in which `save_detector` writes one.

    Args:
        source: folder of a saved detector.
        folder: replaced as a whole.

    Raises:
        OSError: if it cannot be read or written; names the folder. What stood there before stays.
    """
    with _replacing(folder) as unfinished:
        shutil.copytree(source, unfinished)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    previous = folder.with_name(f".{folder.name}-previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(folder, "make room or correct the folder"):
        yield unfinished
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


# torch.save has no error of its own for a full disk; what it says depends on how far it came.
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "iostream", "open file", "Parent directory")


@contextmanager
def writing(target: Path, advice: str) -> Iterator[None]:
    """Turn what the libraries raise when they cannot write into one error that names the place and the way out.

    Args:
        target: what is being written.
        advice: the way out.

    Raises:
        OSError: if the disk is full, the folder gone or closed, and the like.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_CANNOT_WRITE):
            raise
        place = next((folder for folder in target.absolute().parents if folder.exists()), None)
        free = f", {shutil.disk_usage(place).free / 2**20:.0f} MB are free there" if place is not None else ""
        reason = " ".join(str(error).split())
        raise OSError(f"{target}: cannot be written ({reason}{free}); {advice}") from error


def load_detector(name: str, folder: str | Path) -> tuple[Any, Any]:
    """Load any detector of transformers, and its image processor.

    Args:
        name: field or flag that the folder comes from, for messages.
        folder: of a saved detector, with its weights as .safetensors: other formats can hold code.

    Returns:
        The detector, in evaluation mode, and the image processor.

    Raises:
        FileNotFoundError: if there is no config.json in the folder.
        ValueError: if a file is missing or broken, or they do not fit together; one line that names the folder.
    """
    with reading_quietly(name, folder):
        model, report = AutoModelForObjectDetection.from_pretrained(
            folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
        require_whole(model, report)
        processor = AutoImageProcessor.from_pretrained(folder)
        ids = getattr(model.config, "category_ids", None)
        if ids is not None and len(ids) != model.config.num_labels:
            raise ValueError(f"config.json has category_ids={ids} for {model.config.num_labels} labels")
    return model.eval(), processor


@contextmanager
def reading_quietly(name: str, folder: str | Path) -> Iterator[None]:
    """Do what `reading_detector` does, without the tables of names and the bar that transformers prints."""
    level, had_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with reading_detector(name, folder):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bar:
            transformers_logging.enable_progress_bar()


def require_whole(model: nn.Module, report: dict[str, Any], *, may_differ: tuple[str, ...] = ()) -> list[str]:
    """Check a detector that was loaded with `ignore_mismatched_sizes` and `output_loading_info`.

    Args:
        model: as loaded.
        report: what `from_pretrained` returned with it.
        may_differ: beginnings of the names of tensors that may be of another shape, as with other classes.

    Returns:
        The names of these tensors, which are new; sorted.

    Raises:
        ValueError: if other tensors are of another shape, or any is missing or not finite; names the first.
    """
    shapes = {name: shapes for name, *shapes in report["mismatched_keys"]}
    misfits = sorted(name for name in shapes if not name.startswith(may_differ))
    if misfits:
        stored, expected = (tuple(shape) for shape in shapes[misfits[0]])
        raise ValueError(
            f"the weights do not fit the config.json beside them: {misfits[0]} is {stored} in the file and "
            f"{expected} in the model, like {len(misfits) - 1} more"
        )
    # The counters of batch norms, which some libraries do not store, are of no use to frozen ones.
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("num_batches_tracked"))
    if missing:
        raise ValueError(
            f"the weights do not fit the config.json beside them, or are not there: {missing[0]} and "
            f"{len(missing) - 1} more are missing"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"the weights are not finite: {name} holds nan or infinity, as after a training that broke"
            )
    return sorted(shapes)
