"""What watches over a run: steps that are not finite, a teacher that unlearns, settings that cannot work.

All decisions follow from numbers that are the same on every process, so all processes decide alike; only the main one
reports.
"""

import logging
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from semidetr_hf.structures import Stage
from semidetr_hf.training.config import TrainingConfig

logger = logging.getLogger(__name__)

# A teacher below this AP has nothing to lose: noise of the first evaluations is no collapse.
MIN_AP = 0.02
# Likewise with fewer pseudo-labels per image than this.
MIN_PSEUDO_LABELS = 0.2
# Pseudo-labels are counted over so many images at least, and of so many counts in a row the median is looked at: few
# images may show few objects.
MIN_IMAGES = 500
COUNTS = 3
# Steps without any pseudo-label until advice is given.
PATIENCE = 500
# Share of the time spent waiting for data that is worth advice, and the steps until it is judged.
MAX_WAITING = 0.4
WAITING_AFTER = 100


@dataclass
class SkippedSteps:
    """Counts steps that were left out because a number was not finite.

    Attributes:
        limit: so many in a row are allowed.
        in_a_row: up to now.
        total: of the run.
    """

    limit: int
    in_a_row: int = 0
    total: int = 0

    def made(self) -> None:
        """Count a step that was made."""
        self.in_a_row = 0

    def skipped(self, step: int, trouble: str) -> str:
        """Count a step that was left out, and return the warning.

        Args:
            step: its number.
            trouble: what was not finite, with images.

        Raises:
            FloatingPointError: beyond the limit.
        """
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row > self.limit:
            raise FloatingPointError(
                f"step {step}: not finite are the {trouble}; that makes {self.in_a_row} steps in a row, more than "
                f"max_skipped_steps={self.limit}. The networks are as they were before them: begin a new run from "
                "the saved student (init_from) with a lower learning_rate or max_grad_norm, without these images, or "
                "with mixed_precision=no"
            )
        return f"step {step} skipped, not finite are the {trouble} ({self.in_a_row} in a row, {self.limit} allowed)"


@dataclass
class TeacherWatch:
    """Notices a teacher that unlearns: its AP, or the number of its pseudo-labels, falls away within a stage.

    In the other stage the numbers are others: without duplicates a box has one prediction, which scores higher.

    Attributes:
        min_ap_share: the AP may fall to this share of the best one; 0 = to anything.
        min_pseudo_label_share: likewise the number of pseudo-labels per image.
        stage: of the numbers below.
        best_ap: of the teacher.
        most_pseudo_labels: per image, the highest median of counts in a row.
        counts: of pseudo-labels per image, the last ones in a row.
        num_images: since the last of them.
        num_pseudo_labels: on these images.
    """

    min_ap_share: float
    min_pseudo_label_share: float
    stage: str | None = None
    best_ap: float = 0.0
    most_pseudo_labels: float = 0.0
    counts: list[float] = field(default_factory=list)
    num_images: int = 0
    num_pseudo_labels: float = 0.0

    def see_ap(self, ap: float, stage: Stage) -> str | None:
        """Take note of an evaluation of the teacher; return what is wrong, or None."""
        self._enter(stage)
        self.best_ap = max(self.best_ap, ap)
        if self.best_ap >= MIN_AP and ap < self.min_ap_share * self.best_ap:
            return f"the AP of the teacher fell from {self.best_ap:.3f} to {ap:.3f}"
        return None

    def see_pseudo_labels(self, per_image: float, num_images: int, stage: Stage) -> str | None:
        """Take note of the pseudo-labels of a log interval; return what is wrong, or None.

        Args:
            per_image: mean over the images.
            num_images: of all processes.
            stage: of the last step.
        """
        self._enter(stage)
        self.num_images += num_images
        self.num_pseudo_labels += num_images * per_image
        if self.num_images < MIN_IMAGES:
            return None
        self.counts = [*self.counts[1 - COUNTS :], self.num_pseudo_labels / self.num_images]
        self.num_images, self.num_pseudo_labels = 0, 0.0
        if len(self.counts) < COUNTS:
            return None
        now = median(self.counts)
        self.most_pseudo_labels = max(self.most_pseudo_labels, now)
        if self.most_pseudo_labels < MIN_PSEUDO_LABELS or now >= self.min_pseudo_label_share * self.most_pseudo_labels:
            return None
        return f"pseudo-labels of an image fell from {self.most_pseudo_labels:.2f} to {now:.2f}"

    def forget(self) -> None:
        """Begin anew, after the networks have changed."""
        self.stage, self.best_ap, self.most_pseudo_labels = None, 0.0, 0.0
        self.counts, self.num_images, self.num_pseudo_labels = [], 0, 0.0

    def _enter(self, stage: Stage) -> None:
        if stage.value != self.stage:
            self.forget()
            self.stage = stage.value


@dataclass
class Advice:
    """Says once what settings are likely to be wrong.

    Attributes:
        score_threshold: of pseudo-labels.
        num_workers: of the loaders.
        given: names of the advice that was given.
        steps_without: steps in a row without a pseudo-label.
    """

    score_threshold: float
    num_workers: int
    given: list[str] = field(default_factory=list)
    steps_without: int = 0

    def on_pseudo_labels(self, per_image: float | None, steps: int) -> str | None:
        """Return advice if there has been no pseudo-label for long.

        Args:
            per_image: mean over the steps, None if they saw no unlabeled image.
            steps: since the last call.
        """
        self.steps_without = self.steps_without + steps if per_image == 0 else 0
        if self.steps_without < PATIENCE:
            return None
        return self._once(
            "no_pseudo_labels",
            f"no pseudo-label above {self.score_threshold} in {self.steps_without} steps: the unlabeled images teach "
            "nothing but background. Lengthen burn_in_steps until the teacher finds something, lower score_threshold, "
            "or start from a trained detector (init_from)",
        )

    def on_teacher(self, ap: float) -> str | None:
        """Return advice if the teacher that is to label images from now on finds next to nothing."""
        if ap >= MIN_AP:
            return None
        return self._once(
            "weak_teacher",
            f"the teacher begins to label images with an AP of {ap:.3f}: it will teach its mistakes. Lengthen "
            "burn_in_steps, or start from a trained detector (init_from)",
        )

    def on_waiting(self, share: float, step: int) -> str | None:
        """Return advice if the training mostly waits for images."""
        if step < WAITING_AFTER or share < MAX_WAITING:
            return None
        return self._once(
            "slow_data",
            f"{share:.0%} of the time is spent waiting for images: raise num_workers={self.num_workers}, or store "
            "smaller images",
        )

    def _once(self, name: str, text: str) -> str | None:
        if name in self.given:
            return None
        self.given.append(name)
        return text


@dataclass
class Health:
    """The three of them, with what a checkpoint keeps of them.

    Attributes:
        steps: that were left out.
        teacher: whether it unlearns.
        advice: given once.
        rollbacks: how often the networks were taken back.
        supervised_only: whether the run goes on without unlabeled images.
    """

    steps: SkippedSteps
    teacher: TeacherWatch
    advice: Advice
    rollbacks: int = 0
    supervised_only: bool = False

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint; limits and thresholds are those of the configuration."""
        parts = {part: {name: getattr(getattr(self, part), name) for name in names} for part, names in _KEPT.items()}
        return {"rollbacks": self.rollbacks, "supervised_only": self.supervised_only, **parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.rollbacks, self.supervised_only = state["rollbacks"], state["supervised_only"]
        for part, names in _KEPT.items():
            for name in names:
                setattr(getattr(self, part), name, state[part][name])


# What has happened in a run, by part of its health.
_KEPT = {
    "steps": ("in_a_row", "total"),
    "teacher": ("stage", "best_ap", "most_pseudo_labels", "counts", "num_images", "num_pseudo_labels"),
    "advice": ("given", "steps_without"),
}


def build_health(config: TrainingConfig) -> Health:
    """Return what watches over a run."""
    rules = config.health
    return Health(
        SkippedSteps(rules.max_skipped_steps),
        TeacherWatch(rules.collapse_ap, rules.collapse_pseudo_labels),
        Advice(config.pseudo_labels.score_threshold, config.data.num_workers),
    )
