"""What a training run ends with."""

from dataclasses import dataclass

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
    """

    student: DetectionMetrics | None
    teacher: DetectionMetrics | None
    best: BestNetwork | None
    num_unreadable: int
    seconds: float
    step: int
    stopped_by: str | None
