"""Whether a run begins or goes on: what is in its output folder, and whether a checkpoint is one of this very run."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from semidetr_hf.data.sources import Source
from semidetr_hf.training.checkpoints import Checkpoint, RunCheckpoints, read_checkpoint
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import flatten
from semidetr_hf.training.processes import digest, on_any_process, on_main_process
from semidetr_hf.training.run_config import RunConfig

logger = logging.getLogger(__name__)

# What a run writes into its output folder.
OUTPUTS = (
    "baseline.json",
    "best",
    "checkpoints",
    "config.yaml",
    "costs.jsonl",
    "data.json",
    "log.jsonl",
    "pseudo_labels.jsonl",
    "resources.jsonl",
    "result.json",
    "student",
    "teacher",
    "trackers",
)
# Says which process is training into the folder.
CLAIM_FILE = ".running.json"
# Fields that change neither what is trained nor what is logged of it, or that are compared in another way below.
_FREE = {
    "data.labeled",
    "data.labeled_images",
    "data.unlabeled",
    "data.unlabeled_images",
    "data.val",
    "data.val_images",
    "data.val_fraction",
    "data.num_workers",
    "run.gradient_checkpointing",
    "model.init_from",
    "model.backbone_weights",
    "schedule.num_steps",
    "schedule.one_to_many_fraction",
    "schedule.one_to_many_steps",
    "run.output_dir",
    "run.resume",
    "run.overwrite",
    "run.save_every",
    "run.keep_checkpoints",
    "run.log_every",
    "run.eval_every",
    "run.trackers",
    "run.push_to_hub",
    "run.hub_model_id",
    "run.hub_private_repo",
    "run.cpu",
}


def settings_of(
    config: TrainingConfig,
    teacher_format: torch.dtype | None,
    *,
    labeled: Source,
    unlabeled: Source | None,
    val: Source | None,
) -> dict[str, Any]:
    """Return what decides about a run, by name, as plain values.

    `auto` is no such value: with `teacher_format`, what it means on this machine takes its place.

    Two sessions with equal settings are parts of the same run, and so are two processes. The folders of images may
    have been moved; the images are compared by their ids and numbers of boxes.
    """
    fields = flatten(config.to_dict())
    settings: dict[str, Any] = {
        name: value
        for name, value in fields.items()
        if name not in _FREE and not name.startswith(("health.", "recipe."))
    }
    settings["run.teacher_precision"] = "same" if teacher_format is None else str(teacher_format)
    # The number of steps may be raised later, where nothing that was done depends on it.
    settings["steps of the first stage (one_to_many_steps)"] = config.schedule.first_stage_steps
    if config.optimizer.lr_schedule == "cosine":
        settings["schedule.num_steps"] = config.schedule.num_steps
    for role, source in (("labeled", labeled), ("unlabeled", unlabeled), ("validation", val)):
        content = None if source is None else (len(source), source.class_counts, digest(list(source.image_ids)))
        settings[f"the {role} images"] = repr(content)
    return settings


def require_same_run(checkpoint: Checkpoint, settings: dict[str, Any], *, num_steps: int) -> None:
    """Refuse a checkpoint of other settings, or of more steps than are wanted.

    Raises:
        ValueError: names what differs, with both values.
    """
    if checkpoint.step > num_steps:
        raise ValueError(
            f"{checkpoint.folder}: has made {checkpoint.step} steps, more than num_steps={num_steps}; raise it, or "
            "resume from an earlier checkpoint"
        )
    theirs = checkpoint.state["settings"]
    differing = [
        f"{name} was {theirs.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted(theirs.keys() | settings.keys())
        if theirs.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"{checkpoint.folder}: a checkpoint of another run: {'; '.join(differing)}. Use the settings of its "
            "config.yaml, or begin a new run from its networks (init_from)"
        )


def prepare_output_folder(run: RunConfig, checkpoints: RunCheckpoints, accelerator: Accelerator) -> Checkpoint | None:
    """Return the checkpoint from which the run goes on, None if it begins.

    Without `overwrite` nothing of an earlier run is deleted: if there is no checkpoint to go on from, what has to make
    room is moved into a folder `earlier_1`, `earlier_2`, ...

    Args:
        run: `resume` and `overwrite` decide.
        checkpoints: those in the output folder.
        accelerator: the main process looks, the others learn what it found.

    Raises:
        FileExistsError: if there is an earlier run and nothing was said about it, or if another process of this
            machine is training into the folder.
        FileNotFoundError, ValueError: if the checkpoint that was asked for is missing or torn.
    """

    def choose() -> Checkpoint | None:
        _require_unclaimed(Path(run.output_dir))
        return _choose(run, checkpoints)

    return on_main_process(accelerator, choose)


def _choose(run: RunConfig, checkpoints: RunCheckpoints) -> Checkpoint | None:
    folder = Path(run.output_dir)
    require_unoccupied(run, checkpoints)
    occupied = _occupied(folder)
    if run.resume not in (None, "auto"):
        checkpoint = read_checkpoint(Path(run.resume))
        if checkpoint.folder.resolve().parent != checkpoints.folder.resolve() and occupied:
            raise FileExistsError(
                f"{folder}: holds another run than the one of resume={run.resume!r}; give another --output_dir"
            )
        return checkpoint
    newest = checkpoints.newest() if run.resume == "auto" else None
    if newest is not None:
        logger.info("going on from %s, after %d steps", newest.folder, newest.step)
        return newest
    if run.resume == "auto":
        logger.info("%s: no checkpoint to go on from, the run begins", folder)
    if occupied and run.overwrite:
        for name in occupied:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    elif occupied:
        _set_aside(folder, occupied)
    return None


def require_unoccupied(run: RunConfig, checkpoints: RunCheckpoints) -> None:
    """Refuse an output folder with an earlier run that is neither resumed nor to be overwritten.

    Raises:
        FileExistsError: names what is there, and the ways out.
    """
    folder = Path(run.output_dir)
    occupied = _occupied(folder)
    if run.resume is None and occupied and not run.overwrite:
        newest = checkpoints.newest()
        steps = f" of {newest.step} steps" if newest is not None else ""
        raise FileExistsError(
            f"{folder}: holds a run{steps} ({', '.join(occupied)}); give --resume auto to go on with it, --overwrite "
            "to replace it, or another --output_dir"
        )


def _occupied(folder: Path) -> list[str]:
    return [name for name in OUTPUTS if (folder / name).exists()]


@contextmanager
def claimed(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Say in a folder that this process trains into it; all processes must enter.

    Raises:
        OSError: if another process does not see what the main one writes there: its part of checkpoints would be lost.
    """
    claim = folder / CLAIM_FILE
    if accelerator.is_main_process:
        # The number alone may be that of another process by the time it is read.
        content = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        claim.write_text(json.dumps(content), encoding="utf-8")
    accelerator.wait_for_everyone()
    if on_any_process(accelerator, not claim.exists()):
        raise OSError(f"{folder}: not all processes see this folder; give an output_dir on a disk that they share")
    try:
        yield
    finally:
        if accelerator.is_main_process:
            claim.unlink(missing_ok=True)


def _require_unclaimed(folder: Path) -> None:
    try:
        claim = json.loads((folder / CLAIM_FILE).read_text(encoding="utf-8"))
        if claim["host"] != socket.gethostname() or claim["pid"] == os.getpid():
            return  # of another machine it cannot be told whether it is still at work
        running = psutil.Process(claim["pid"]).create_time() == claim["started"]
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return  # nobody is, or not any more
    if running:
        raise FileExistsError(f"{folder}: process {claim['pid']} is training into it; wait for it, or end it")


def set_later_aside(checkpoints: RunCheckpoints, step: int, accelerator: Accelerator) -> None:
    """Move checkpoints of later steps, from which nobody goes on, out of the way of those that will be written.

    They are torn ones, or those that were there when the run was taken up from an earlier one. They would count as
    the newest, so that those of this session were removed in their stead.

    Args:
        checkpoints: of the run.
        step: number of steps made by the checkpoint from which it goes on.
        accelerator: the main process moves them.
    """
    output_dir = checkpoints.folder.parent
    # The newest first: interrupted meanwhile, the run has logs at least up to what is the newest then.
    later = [folder for folder in reversed(checkpoints.folders()) if folder > checkpoints.path_of(step)]
    if later and accelerator.is_main_process:
        _set_aside(output_dir, [str(folder.relative_to(output_dir)) for folder in later])


def _set_aside(folder: Path, names: list[str]) -> None:
    number = 1
    while (folder / f"earlier_{number}").exists():
        number += 1
    aside = folder / f"earlier_{number}"
    aside.mkdir()
    for name in names:
        (aside / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(aside / name)
    logger.warning("%s: what was in the folder (%s) is now in %s", folder, ", ".join(names), aside)
