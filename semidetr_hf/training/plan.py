"""What a run is going to do, in lines to read before it begins."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from semidetr_hf.training.batch_scaling import BatchScaling
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.resources import MEGABYTE
from semidetr_hf.training.setup import Sources
from semidetr_hf.training.trial import Estimate, kinds_of_steps, sees_unlabeled


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs that are made, in their order.

    Attributes:
        asked: the configuration as it was given.
        config: of the main run, semi-supervised where there are unlabeled images, fitted to the batch.
        baseline: the supervised run to be made before it; None without one, or if it is complete already.
        baseline_folder: where the baseline is, or will be; None without one.
        sources: the images.
        scaling: how the settings were fitted to the batch.
        num_processes: of the run.
    """

    asked: TrainingConfig
    config: TrainingConfig
    baseline: TrainingConfig | None
    baseline_folder: Path | None
    sources: Sources
    scaling: BatchScaling
    num_processes: int

    @property
    def is_semi_supervised(self) -> bool:
        """Whether the main run sees unlabeled images."""
        return sees_unlabeled(self.config, self.sources)

    @property
    def runs(self) -> list[TrainingConfig]:
        """All runs, in their order."""
        return [self.config] if self.baseline is None else [self.baseline, self.config]

    def describe(self, estimate: Estimate | None) -> str:
        """Return the plan as lines of text.

        Args:
            estimate: what a few steps took; None if it was not measured.
        """
        entries = [("data", self._data()), *self._runs()]
        entries += [("batch", self._batch()), ("learning rate", self._rates())]
        if self.is_semi_supervised:
            entries.append(("pseudo-labels", self._thresholds()))
        entries += [("evaluation", self._evaluation()), ("written to", self._places())]
        entries.append(("estimate", "not measured" if estimate is None else self._estimate(estimate)))
        lines = (
            textwrap.fill(text, 110, initial_indent=f"  {name:14}", subsequent_indent=" " * 16, break_on_hyphens=False)
            for name, text in entries
        )
        return "\n".join(["The plan", *lines])

    def _data(self) -> str:
        labeled, unlabeled, val = self.sources
        text = f"{len(labeled)} labeled images with {labeled.num_boxes} boxes of {len(labeled.category_names)} classes"
        text += f", {len(unlabeled)} unlabeled ones" if self.is_semi_supervised and unlabeled is not None else ""
        return f"{text}, {len(val)} to evaluate on" if val is not None else f"{text}, none to evaluate on"

    def _runs(self) -> list[tuple[str, str]]:
        if not self.is_semi_supervised:
            return [("training", f"supervised alone, {self._stages(self.config)}")]
        semi = f"semi-supervised, {self._stages(self.config)}"
        if self.baseline_folder is None:
            return [("baseline", "none, so it is not known what the unlabeled images are worth"), ("training", semi)]
        if self.config.recipe.warm_start:
            semi += "; it starts from the best network of the baseline, so it has had more steps in all"
        first = f"reused, {self.baseline_folder}"
        if self.baseline is not None:
            first = f"supervised, {self._stages(self.baseline)}, on the same labels"
        return [("baseline", first), ("training", semi)]

    def _stages(self, config: TrainingConfig) -> str:
        kinds = kinds_of_steps(config, has_unlabeled=sees_unlabeled(config, self.sources))
        stages = ", then ".join(f"{len(steps)} on {kind}" for kind, steps in kinds.items())
        return f"{config.schedule.num_steps} steps ({stages})"

    def _batch(self) -> str:
        data, run = self.config.data, self.config.run
        own = f"{data.labeled_batch_size} labeled"
        own += f" + {data.unlabeled_batch_size} unlabeled" if self.is_semi_supervised else ""
        return (
            f"{own} images x {run.gradient_accumulation_steps} batches a step x {self.num_processes} processes "
            f"= {self.scaling.images_per_step} images a step"
        )

    def _rates(self) -> str:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        text = (
            f"{optimizer.learning_rate:.3g} (backbone x {optimizer.backbone_lr_factor:g}, {optimizer.lr_schedule}), "
            f"momentum of the teacher {schedule.ema_momentum:.6g}"
        )
        return text if self.scaling.factor == 1 else f"{text}; fitted to {self.scaling.factor:.3g} times the batch"

    def _thresholds(self) -> str:
        rules = self.config.pseudo_labels
        text = f"score of at least {rules.score_threshold:g}"
        text += " and above mean + deviation of the image" if rules.mean_std_filter else ""
        if rules.class_thresholds == "adaptive":
            text = f"every class as often as on labeled images, score of at least {rules.lowest_threshold:g}"
        text += f"; unlabeled images mixed ({rules.mixing})" if rules.mixing != "none" else ""
        return f"{text}; of boxes that overlap by more than {rules.nms_iou:g} the best"

    def _evaluation(self) -> str:
        run, recipe = self.config.run, self.config.recipe
        if self.sources.val is None:
            return (
                "none, so no network can be chosen, and whether unlabeled images helped is not known; give --val, or "
                "--val_fraction 0.2 to hold out a fifth of the labeled images"
            )
        text = f"every {run.eval_every} steps, of {' and '.join(run.evaluated_networks)}"
        patience = recipe.early_stopping_patience
        return f"{text}; the run ends after {patience} of them without a better AP" if patience else text

    def _places(self) -> str:
        folder = Path(self.config.run.output_dir)
        text = f"{folder} (best network: {folder / 'best'}"
        return f"{text}, baseline: {self.baseline_folder})" if self.baseline is not None else f"{text})"

    def _estimate(self, estimate: Estimate) -> str:
        times = [estimate.run_seconds(run, self.sources, num_processes=self.num_processes) for run in self.runs]
        parts = f" ({' + '.join(map(_duration, times))})" if len(times) > 1 else ""
        steps = ", ".join(f"{kind}: {seconds:.2g} s" for kind, seconds in estimate.step_seconds.items())
        kind = "memory of the GPU" if estimate.on_cuda else "memory of the process"
        memory = f"{estimate.memory_bytes / MEGABYTE:,.0f} MB {kind}"
        return f"about {_duration(sum(times))}{parts}, {memory}; from a few trial steps ({steps})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
