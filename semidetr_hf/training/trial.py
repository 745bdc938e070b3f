"""A few steps of every kind on networks that are thrown away, to tell how long a run takes and how much memory."""

import copy
import gc
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm.auto import tqdm

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.evaluation import evaluate
from semidetr_hf.training.processes import gather_from_all
from semidetr_hf.training.setup import Sources, build_image_processor, build_schedule
from semidetr_hf.training.trainer import SemiDetrTrainer

# The first step of a kind is slower: memory is reserved, kernels are chosen, workers start.
WARM_UP, TIMED = 1, 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a few steps took; the real run has other images, and writes checkpoints besides.

    Attributes:
        step_seconds: of an optimizer step, by kind (see `kinds_of_steps`).
        image_seconds: of the evaluation of one image by one network, on one process; None without validation images.
        memory_bytes: highest so far, of tensors on CUDA, otherwise resident in memory; of the process that has most.
        on_cuda: which of the two.
    """

    step_seconds: dict[str, float]
    image_seconds: float | None
    memory_bytes: int
    on_cuda: bool

    def run_seconds(self, config: TrainingConfig, sources: Sources, *, num_processes: int) -> float:
        """Return how long a run takes, evaluations included.

        Args:
            config: of the run; the kinds of its steps were measured.
            sources: its images.
            num_processes: evaluate in parallel.
        """
        kinds = kinds_of_steps(config, has_unlabeled=sees_unlabeled(config, sources))
        seconds = sum(len(steps) * self.step_seconds[kind] for kind, steps in kinds.items())
        if self.image_seconds is not None and sources.val is not None:
            evaluations = -(-config.schedule.num_steps // config.run.eval_every) * len(config.run.evaluated_networks)
            seconds += evaluations * len(sources.val) / num_processes * self.image_seconds
        return seconds


def kinds_of_steps(config: TrainingConfig, *, has_unlabeled: bool) -> dict[str, range]:
    """Return the steps of a run by what is done in them, in their order: `labeled, one-to-many` and the like."""
    schedule, num_steps = build_schedule(config), config.schedule.num_steps
    burn_in = config.schedule.burn_in_steps if has_unlabeled else num_steps
    ends = sorted({0, min(burn_in, num_steps), config.schedule.first_stage_steps, num_steps})
    kinds = {}
    for first, end in zip(ends, ends[1:], strict=False):
        images = "labeled and unlabeled" if has_unlabeled and schedule.uses_unlabeled(first) else "labeled"
        kinds[f"{images}, {schedule.stage_at(first).value.replace('_', '-')}"] = range(first, end)
    return kinds


def try_steps(runs: list[TrainingConfig], model: SemiDetrForObjectDetection, sources: Sources) -> Estimate:
    """Make a few steps of every kind that occurs in some runs; nothing of it stays but what was measured.

    All processes must call it.

    Args:
        runs: of the same data and batches; those without weight on unlabeled images are supervised.
        model: what they start from; stays as it is.
        sources: the images, which were checked.

    Raises:
        RuntimeError: if memory does not suffice.
        ValueError, OSError: as the run itself, which would find out later.
    """
    known: list[str] = []
    measured: list[dict[str, Any]] = []
    on_cuda = False
    for run in runs:
        kinds = kinds_of_steps(run, has_unlabeled=sees_unlabeled(run, sources))
        new = {kind: steps[0] for kind, steps in kinds.items() if kind not in known}
        if new:
            trial = _build_trial(run, model, sources)
            on_cuda = trial.accelerator.device.type == "cuda"
            own = _measure(trial, new, None if measured else sources.val)
            measured += gather_from_all(trial.accelerator, own)
            trial.accelerator.free_memory()
            del trial
            _give_back_memory()
        known += new
    times = [row["evaluation"] for row in measured if row["evaluation"] is not None]
    return Estimate(
        step_seconds={kind: max(row["steps"].get(kind, 0.0) for row in measured) for kind in known},
        image_seconds=max(times, default=None),
        memory_bytes=max(row["memory"] for row in measured),
        on_cuda=on_cuda,
    )


def sees_unlabeled(config: TrainingConfig, sources: Sources) -> bool:
    """Return whether a run has unlabeled images and gives them weight."""
    return sources.unlabeled is not None and config.schedule.unsupervised_weight > 0


def _build_trial(config: TrainingConfig, model: SemiDetrForObjectDetection, sources: Sources) -> SemiDetrTrainer:
    schedule, labeled = config.schedule, sources.labeled
    config = replace(
        config,
        # Enough batches for short runs, too; the stages stay where they are.
        schedule=replace(schedule, num_steps=schedule.num_steps + 100, one_to_many_steps=schedule.first_stage_steps),
        # As many pseudo-labels as boxes, which a network that is not trained would not find.
        pseudo_labels=replace(
            config.pseudo_labels,
            score_threshold=0.0,
            class_thresholds="fixed",
            min_score=0.0,
            mean_std_filter=False,
            max_detections=math.ceil(labeled.num_boxes / len(labeled)),
        ),
        run=replace(
            config.run,
            output_dir=str(Path(config.run.output_dir) / "trial"),  # into which nothing is written
            resume=None,
            overwrite=False,
            instruments=False,
            trackers=[],
        ),
    )
    return SemiDetrTrainer(
        config, copy.deepcopy(model), build_image_processor(config), **sources._asdict(), check_data=False
    )


def _measure(trial: SemiDetrTrainer, first_steps: dict[str, int], val: CocoSource | None) -> dict[str, Any]:
    """Return seconds of a step by kind, of the evaluation of an image, and memory, as this process saw them."""
    device, on_cuda = trial.accelerator.device, trial.accelerator.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds, memory = {}, 0
    bar = tqdm(total=len(first_steps) * (WARM_UP + TIMED), desc="trial steps", disable=not trial.main, leave=False)
    for kind, step in first_steps.items():
        for number in range(WARM_UP + TIMED):
            if number == WARM_UP:
                started = _now(device)
            trial.step = step
            trial.train_step()
            bar.update()
            memory = max(memory, psutil.Process().memory_info().rss)
        seconds[kind] = (_now(device) - started) / TIMED
    bar.close()
    evaluation = None if val is None else _time_evaluation(trial, val)
    memory = torch.cuda.max_memory_reserved(device) if on_cuda else memory
    return {"steps": seconds, "evaluation": evaluation, "memory": memory}


def _time_evaluation(trial: SemiDetrTrainer, val: CocoSource) -> float:
    """Return the seconds that an image takes on one process."""
    batch_size = trial.config.data.labeled_batch_size
    few = val.subset(val.image_ids[: batch_size * trial.accelerator.num_processes])
    started = _now(trial.accelerator.device)
    evaluate(
        trial.teacher.detector,
        trial.networks.processor(with_nms=False),
        few,
        batch_size=batch_size,
        accelerator=trial.accelerator,
        desc="trial evaluation",
    )
    return (_now(trial.accelerator.device) - started) / min(batch_size, len(few))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _give_back_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
