"""What can be seen of a semi-supervised run when the labels of the unlabeled images are known after all.

Used on data sets whose unlabeled part is labeled in truth, such as the embedded digits or COCO-partial. Nothing here
changes the training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import Source
from semidetr_hf.ssod.label_mining import ThresholdRule, fit_cost_mixture, gather_costs
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import PseudoLabels, UnlabeledBatch
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.pseudo_label_quality import (
    HiddenLabels,
    QualityCounts,
    count_matches,
    hidden_labels,
    is_correct,
)


class Instruments:
    """Compares the pseudo-labels of every step with the hidden labels; each process sees its own images.

    The folder receives `pseudo_labels.jsonl`, one line per step with the counts of every set, and `costs.jsonl`, the
    matching costs and their mixture at every `record_costs_every`-th step.

    Args:
        hidden: the true boxes by image id.
        folder: where the main process writes; None to write nothing.
        rule: rule of the cost threshold.
        record_costs_every: steps between two lines of `costs.jsonl`.
        start: number of the step to begin with; lines of later ones are removed.
    """

    def __init__(
        self,
        hidden: HiddenLabels,
        folder: Path | None,
        *,
        rule: ThresholdRule,
        record_costs_every: int,
        start: int = 0,
    ) -> None:
        self.hidden = hidden
        self.rule: ThresholdRule = rule
        self.record_costs_every = record_costs_every
        self._steps = None if folder is None else _open_log(folder / "pseudo_labels.jsonl", start)
        self._costs = None if folder is None else _open_log(folder / "costs.jsonl", start)
        self._sums: dict[str, QualityCounts] = {}

    def observe(self, step: int, losses: StepLosses, unlabeled: UnlabeledBatch) -> None:
        """Count how many pseudo-labels of a step are right.

        Args:
            step: number of the optimizer step, 0-based.
            losses: what the objective returned.
            unlabeled: the images it returned it for.
        """
        sets: dict[str, list[PseudoLabels]] = {"candidates": losses.candidates, "confident": losses.confident}
        if losses.mined:
            sets["mined"] = losses.mined
        counts = {
            name: count_matches(labels, unlabeled.strong, unlabeled.image_ids, self.hidden)
            for name, labels in sets.items()
        }
        for name, count in counts.items():
            self._sums[name] = self._sums[name] + count if name in self._sums else count
        if self._steps is not None:
            self._steps.append({"step": step, **{name: vars(count) for name, count in counts.items()}})
        if losses.costs and step % self.record_costs_every == 0:
            self._record_costs(step, losses, unlabeled)

    def compute(self) -> dict[str, float]:
        """Return precision, recall and mean IoU of every set since the last call; what is undefined is left out."""
        row = {
            f"quality/{name}_{kind}": value
            for name, count in self._sums.items()
            for kind, value in (
                ("precision", count.precision),
                ("recall", count.recall),
                ("mean_iou", count.mean_iou),
            )
            if value is not None
        }
        self._sums.clear()
        return row

    def state(self) -> dict[str, dict[str, float]]:
        """Return the counts since the last `compute` as plain numbers."""
        return {name: dict(vars(count)) for name, count in self._sums.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `state` returned."""
        self._sums = {name: QualityCounts(**count) for name, count in state.items()}

    def _record_costs(self, step: int, losses: StepLosses, unlabeled: UnlabeledBatch) -> None:
        # Every process takes part in gathering; what is right is known of the own images only.
        mixture = fit_cost_mixture(gather_costs(losses.costs), rule=self.rule)
        if self._costs is None:
            return
        correct = is_correct(losses.candidates, unlabeled.strong, unlabeled.image_ids, self.hidden)
        pairs = [
            (float(cost), bool(right))
            for costs, rights in zip(losses.costs, correct, strict=True)
            for cost, right in zip(costs.tolist(), rights.tolist(), strict=True)
            if cost != float("inf")
        ]
        fitted: Mapping[str, Any] = dict.fromkeys(("weights", "means", "variances"))
        if mixture is not None:
            fitted = {"weights": mixture.weights, "means": mixture.means, "variances": mixture.variances}
        threshold = losses.cost_threshold
        self._costs.append(
            {
                "step": step,
                "costs": [cost for cost, _ in pairs],
                "correct": [right for _, right in pairs],
                **fitted,
                "threshold": None if threshold == -float("inf") else threshold,
            }
        )


def _open_log(path: Path, start: int) -> JsonlLog:
    log = JsonlLog(path)
    log.cut_after(start - 1)
    return log


def build_instruments(config: TrainingConfig, unlabeled: Source, folder: Path | None, *, start: int) -> Instruments:
    """Return the instruments of a run.

    Args:
        config: of the run.
        unlabeled: images whose labels are known after all.
        folder: where the main process writes; None to write nothing.
        start: number of the step to begin with.

    Raises:
        ValueError: if the images have no labels.
    """
    if not isinstance(unlabeled, CocoSource) or unlabeled.num_boxes == 0:
        raise ValueError("instruments=True: the unlabeled images have no labels; use label_fraction, or leave it out")
    return Instruments(
        hidden_labels(unlabeled),
        folder,
        rule=config.consistency.cost_threshold,
        record_costs_every=config.run.log_every,
        start=start,
    )
