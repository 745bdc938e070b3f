"""Checkpoints of a whole run, from which it goes on as if nothing had happened.

A checkpoint is a folder `step_00000400` with what `Accelerator.save_state` writes (student and projector, optimizer,
learning-rate scheduler, loss scaler, random generators of every process), `teacher.safetensors`, and `run.json`, where
everything else stands in plain text. It has another name until it is complete. A torn one, such as a partial copy, is
told by the sizes of its files.
"""

import hashlib
import json
import logging
import os
import pickle
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch.optim.lr_scheduler import LRScheduler

from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.training.processes import gather_from_all
from semidetr_hf.training.saved_detectors import writing

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
TEACHER_FILE = "teacher.safetensors"
_PREFIX = "step_"
# What torch, safetensors and pickle raise on files that hold something else.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        folder: where it is.
        state: what `run.json` holds; `step` is the number of steps made.
    """

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps made."""
        return self.state["step"]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint after a look at the names and sizes of its files.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is not complete; names the file.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint of a run, its {RUN_FILE} is missing")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        sizes = state["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the {RUN_FILE} of a checkpoint ({error})") from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise ValueError(f"{folder / name}: {found or 'no'} of {size} bytes are there, the checkpoint is torn")
    return Checkpoint(folder, state)


class RunCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; need not exist yet.
        keep: how many of the newest ones stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def path_of(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.folder / f"{_PREFIX}{step:08d}"

    def folders(self) -> list[Path]:
        """Return the folders of all checkpoints, oldest first."""
        # Nothing else: a copy that somebody made beside them is not one of the run.
        found = self.folder.glob(f"{_PREFIX}*")
        return sorted(path for path in found if re.fullmatch(rf"{_PREFIX}\d{{8,}}", path.name) and path.is_dir())

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, None without one; say which are passed over."""
        for unfinished in sorted(self.folder.glob(f".{_PREFIX}*")):
            logger.warning("%s: passed over, the run was interrupted while it was written", unfinished)
        for folder in reversed(self.folders()):
            try:
                return read_checkpoint(folder)
            except (OSError, ValueError) as error:
                logger.warning("passed over a checkpoint: %s", error)
        return None

    def of_step(self, step: int | None) -> Checkpoint | None:
        """Return the checkpoint of a step, None if there is none that is complete."""
        folder = self.path_of(step or 0)
        try:
            return read_checkpoint(folder) if folder.is_dir() else None
        except (OSError, ValueError) as error:
            logger.warning("passed over a checkpoint: %s", error)
            return None

    def save(
        self,
        accelerator: Accelerator,
        teacher: EMATeacher,
        *,
        state: dict[str, Any],
        own_state: dict[str, Any],
        best_step: int | None,
    ) -> None:
        """Write a checkpoint under another name, rename it, and remove those that need not be kept.

        Args:
            accelerator: its `save_state` writes networks, optimizer and random generators.
            teacher: weights and number of updates.
            state: plain values, `step` among them; the same on every process.
            own_state: plain values of this process alone.
            best_step: the checkpoint of this step stays.

        Raises:
            OSError: if it cannot be written; names the folder, the reason, and the checkpoint that stays.
        """
        target = self.path_of(state["step"])
        unfinished = target.with_name(f".{target.name}-unfinished")
        main = accelerator.is_main_process
        processes = gather_from_all(accelerator, {**own_state, "random": _random_digest()})
        with self._writing(target, unfinished):
            if main:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if main:
                save_model(teacher, str(unfinished / TEACHER_FILE))
                self._complete(unfinished, target, {**state, "processes": processes})
                self._remove_old(best_step)
        accelerator.wait_for_everyone()

    @contextmanager
    def _writing(self, target: Path, unfinished: Path) -> Iterator[None]:
        kept = self.folders()
        advice = f"{kept[-1]} is intact" if kept else "there is no earlier one"
        try:
            with writing(target, f"{advice}; make room or correct the folder, and go on with --resume auto"):
                yield
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)  # what is left of it may be what fills the disk
            raise

    def _complete(self, unfinished: Path, target: Path, state: dict[str, Any]) -> None:
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        state["files"] = {path.relative_to(unfinished).as_posix(): path.stat().st_size for path in files}
        text = json.dumps(state, indent=1)
        (unfinished / RUN_FILE).write_text(text + "\n", encoding="utf-8")
        for path in [*files, unfinished / RUN_FILE]:
            # Otherwise a power failure may leave the new name with empty files behind it.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():  # written before the run was taken back, or resumed from an earlier one
            shutil.rmtree(target)
        unfinished.rename(target)

    def _remove_old(self, best_step: int | None) -> None:
        for folder in self.folders()[: -self.keep]:
            if folder != self.path_of(best_step or 0):
                # Renamed first: a removal that is interrupted must not leave a torn checkpoint under its name.
                doomed = folder.with_name(f".{folder.name}-removed")
                folder.rename(doomed)
                shutil.rmtree(doomed)
        for remains in self.folder.glob(f".{_PREFIX}*"):
            shutil.rmtree(remains)


def restore(checkpoint: Checkpoint, accelerator: Accelerator, teacher: EMATeacher) -> dict[str, Any]:
    """Put everything that a checkpoint holds back into its place.

    Args:
        checkpoint: of a run with the same settings.
        accelerator: with the same objects prepared as when it was saved.
        teacher: gets its weights and number of updates.

    Returns:
        The plain values of this process alone.

    Raises:
        ValueError: if a file does not fit or cannot be read, or if it was written by another number of processes.
    """
    folder, processes = checkpoint.folder, checkpoint.state["processes"]
    if len(processes) != accelerator.num_processes:
        raise ValueError(
            f"{folder}: written by {len(processes)} processes, but this run has {accelerator.num_processes}; start "
            f"{len(processes)}, or a new run from its networks (init_from)"
        )
    own = processes[accelerator.process_index]
    try:
        accelerator.load_state(str(folder))
        load_model(teacher, str(folder / TEACHER_FILE))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: this checkpoint cannot be read ({reason}); with the folder deleted, --resume auto takes the "
            "one before"
        ) from error
    if own["random"] != _random_digest():
        # Accelerate goes on without a word where it cannot read them.
        raise ValueError(
            f"{folder}: the random generators were not restored; another version of torch or numpy, or "
            "another number of visible GPUs?"
        )
    return own


def roll_back(
    checkpoint: Checkpoint,
    accelerator: Accelerator,
    teacher: EMATeacher,
    *,
    optimizer: AcceleratedOptimizer,
    scheduler: LRScheduler,
) -> None:
    """Take networks, moments of the optimizer and random generators back; the learning rate goes on.

    Args:
        checkpoint: of this run.
        accelerator: of the run.
        teacher: of the run.
        optimizer: prepared.
        scheduler: keeps the step at which it is.

    Raises:
        ValueError: as `restore`.
    """
    present = scheduler.state_dict()
    restore(checkpoint, accelerator, teacher)
    scheduler.load_state_dict(present)
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _random_digest() -> str:
    sums = hashlib.sha256(repr((random.getstate(), np.random.get_state(legacy=True))).encode())
    for state in [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]:
        sums.update(state.numpy().tobytes())
    return sums.hexdigest()[:16]
