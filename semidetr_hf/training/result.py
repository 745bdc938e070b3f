"""What a training run, and the comparison of a semi-supervised with a supervised one, end with."""

from dataclasses import asdict, dataclass, field
from typing import Any

from semidetr_hf.training.evaluation import DetectionMetrics
from semidetr_hf.training.networks import BestNetwork


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run ends with.

    Attributes:
        student: metrics of the student at the last evaluation, None without one.
        teacher: the same of the teacher.
        best: what is in `best/`, None without validation images.
        num_unreadable: training images that were drawn but could not be read; others were taken instead.
        seconds: wall-clock time of the run, earlier sessions included.
        step: number of optimizer steps made.
        stopped_by: name of the signal that ended it before its last step, None if it is complete.
        stopped_early: whether it is complete before its last step, since its networks did not become better.
    """

    student: DetectionMetrics | None
    teacher: DetectionMetrics | None
    best: BestNetwork | None
    num_unreadable: int
    seconds: float
    step: int
    stopped_by: str | None
    stopped_early: bool = False


@dataclass(frozen=True, kw_only=True)
class NetworkScore:
    """The best evaluation of a network.

    Attributes:
        network: "student" or "teacher" (the averaged network, in a supervised run too).
        step: optimizer steps made by then.
        ap: mean over the IoU thresholds 0.5, 0.55 .. 0.95 and the classes, from 0 to 1.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
    """

    network: str
    step: int
    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """What a run and its supervised baseline end with.

    Attributes:
        scores: best evaluation of `supervised`, `student` and `teacher`, as far as they were evaluated.
        kept: which of the three is in `best/`; None without validation images, or if the run is not complete.
        best_folder: where it is; without validation images the averaged network at the last step.
        gain: AP of the better of student and teacher over that of `supervised`; None without the two.
        reasons: why there may be no gain; empty if there is one.
        run_folder: of the run that was made last, which is the baseline if that was stopped.
        step: number of optimizer steps that this run made.
        seconds: wall-clock time of run and baseline, earlier sessions included, without that of a reused baseline.
        num_unreadable: training images that were drawn but could not be read; others were taken instead.
        stopped_by: name of the signal that ended run or baseline before its last step, None if both are complete.
    """

    scores: dict[str, NetworkScore] = field(default_factory=dict)
    kept: str | None = None
    best_folder: str | None = None
    gain: float | None = None
    reasons: list[str] = field(default_factory=list)
    run_folder: str
    step: int
    seconds: float
    num_unreadable: int
    stopped_by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in `result.json`."""
        return asdict(self)

    def table(self) -> str:
        """Return the scores as lines of text, with what was kept and, without a gain, why that may be."""
        if self.stopped_by is not None:
            return (
                f"stopped by {self.stopped_by} after {self.step} steps of the run in {self.run_folder}; "
                "--resume auto goes on from there"
            )
        lines = []
        if self.scores:
            lines = [f"{'best evaluation of':28} {'AP':>6} {'AP50':>6} {'AP75':>6} {'step':>8}"]
        for name, score in self.scores.items():
            name = f"{name}, {score.network}" if name == "supervised" else name
            lines.append(f"{name:28} {score.ap:6.3f} {score.ap50:6.3f} {score.ap75:6.3f} {score.step:8}")
        if self.gain is not None:
            lines.append(f"{'gain over supervised':28} {self.gain:+6.3f}")
        if self.kept is not None:
            lines.append(f"kept: {self.kept}, in {self.best_folder}")
            lines.append("(chosen by these numbers, so expect a little less on new images)")
        elif self.best_folder is not None:
            lines.append(f"no validation images, so nothing was compared: the averaged network is {self.best_folder}")
            lines.append("(--val gives such images; --val_fraction 0.2 holds out a fifth of the labeled ones)")
        if self.gain is not None and self.gain <= 0:
            lines.append("The unlabeled images did not help. It may be that:")
            lines += [f"  - {reason}" for reason in self.reasons]
        lines.append(f"{self.seconds:.0f} seconds, {self.num_unreadable} unreadable images skipped")
        return "\n".join(lines)
