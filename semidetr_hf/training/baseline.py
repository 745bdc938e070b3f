"""The supervised run that a semi-supervised one is compared with, and from whose networks it may start."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from semidetr_hf.data.splits import open_whole
from semidetr_hf.training.config import ConsistencyConfig, DataConfig, PseudoLabelConfig, TrainingConfig
from semidetr_hf.training.precision import teacher_dtype
from semidetr_hf.training.processes import fingerprint
from semidetr_hf.training.resuming import settings_of
from semidetr_hf.training.setup import Sources

FOLDER = "supervised"  # in the output folder of the semi-supervised run
# Says that a baseline is complete, and of which settings; written last.
COMPLETE_FILE = "baseline.json"
VAL_IMAGES = "the validation images"  # as `settings_of` names them

logger = logging.getLogger(__name__)


def supervised_baseline(config: TrainingConfig, output_dir: str | Path) -> TrainingConfig:
    """Return the same run as plain supervised training of the detector: one-to-one, on the labeled images alone.

    What concerns unlabeled images has its default, so that it decides about no baseline.
    """
    return replace(
        config,
        data=replace(config.data, unlabeled_batch_size=DataConfig.unlabeled_batch_size),
        schedule=replace(config.schedule, burn_in_steps=0, unsupervised_weight=0.0, one_to_many_steps=0),
        pseudo_labels=PseudoLabelConfig(),
        consistency=ConsistencyConfig(consistency_weight=0.0),
        recipe=replace(config.recipe, baseline="none", warm_start=False),
        run=replace(config.run, output_dir=str(output_dir), instruments=False, push_to_hub=False, hub_model_id=None),
    )


def start_from(config: TrainingConfig, detector: str | Path, *, steps_done: int) -> TrainingConfig:
    """Return what is left of a run after its first steps, begun from a detector that has made them.

    First stage, burn-in and drops of the learning rate lose the steps that are done.

    Args:
        config: of the whole run.
        detector: folder of a saved detector.
        steps_done: fewer than the run has.

    Raises:
        ValueError: if all drops of the learning rate lie within these steps.
    """
    schedule, optimizer = config.schedule, config.optimizer
    drops = [step - steps_done for step in optimizer.lr_drop_steps if step > steps_done]
    if optimizer.lr_drop_steps and not drops:
        raise ValueError(
            f"lr_drop_steps={optimizer.lr_drop_steps}: all within the {steps_done} steps that are left out; give "
            "later ones, or another lr_schedule"
        )
    num_steps = schedule.num_steps - steps_done
    return replace(
        config,
        model=replace(config.model, init_from=str(detector), backbone=None, backbone_weights="random"),
        optimizer=replace(optimizer, lr_drop_steps=drops, warmup_steps=min(optimizer.warmup_steps, num_steps - 1)),
        schedule=replace(
            schedule,
            num_steps=num_steps,
            burn_in_steps=max(0, schedule.burn_in_steps - steps_done),
            one_to_many_steps=max(0, schedule.first_stage_steps - steps_done),
        ),
    )


def baseline_settings(
    config: TrainingConfig, model: nn.Module, sources: Sources, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what decides about the outcome of a baseline, by name, as plain values.

    Args:
        config: of the baseline.
        model: what it starts from.
        sources: of the run; unlabeled images are none of the baseline.
        accelerator: of the run.
    """
    teacher_format = teacher_dtype(config.run, accelerator.device)
    return {
        **settings_of(config, teacher_format, labeled=sources.labeled, unlabeled=None, val=sources.val),
        "the weights of the model": fingerprint(model),
        "the number of processes": accelerator.num_processes,
        "schedule.num_steps": config.schedule.num_steps,
        "run.eval_every": config.run.eval_every,
        "recipe.early_stopping_patience": config.recipe.early_stopping_patience,
    }


def mark_complete(folder: Path, settings: dict[str, Any]) -> None:
    """Write down that a baseline is complete.

    Raises:
        OSError: if the file cannot be written.
    """
    with open_whole(folder / COMPLETE_FILE) as file:
        file.write(json.dumps(settings, indent=1) + "\n")


def is_reusable(folder: Path, settings: dict[str, Any], *, best: str) -> bool:
    """Return whether there is a complete baseline of these very settings.

    Args:
        folder: where it would be.
        settings: as `baseline_settings` returned them.
        best: name of the folder with its best network.

    Raises:
        ValueError: if the file that says so is not JSON; names it.
    """
    return (folder / best / "config.json").is_file() and _differing(folder, settings) == []


def require_comparable(folder: Path, settings: dict[str, Any], *, best: str) -> None:
    """Check a baseline that was asked for by its folder; warn of what else is different in it.

    Args:
        folder: of a complete supervised run.
        settings: as `baseline_settings` returned them.
        best: name of the folder with its best network.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it was evaluated on other images, or the file that says so is not JSON.
    """
    differing = _differing(folder, settings)
    if differing is None or not (folder / best / "config.json").is_file():
        raise FileNotFoundError(
            f"baseline={str(folder)!r}: no complete supervised run, with {COMPLETE_FILE} and {best}/; give the folder "
            f"`{FOLDER}` of an earlier run, or `train`"
        )
    for text in differing:
        if text.startswith(VAL_IMAGES):
            raise ValueError(
                f"baseline={str(folder)!r}: evaluated on other images, so its AP says nothing here; give `train`, or "
                "the same val"
            )
    if differing:
        logger.warning("baseline=%r is of other settings: %s", str(folder), "; ".join(differing))


def _differing(folder: Path, settings: dict[str, Any]) -> list[str] | None:
    """Return in what a complete baseline differs from the one that is wanted; None if there is no complete one."""
    path = folder / COMPLETE_FILE
    if not path.is_file():
        return None
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(theirs.keys() | settings.keys())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the file of a complete baseline ({error}); delete it, or its folder") from error
    ours = json.loads(json.dumps(settings))  # as the file has them
    return [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]
