"""The losses of one training step, from top to bottom.

One module with one forward, because of data-parallel training: gradients are synchronized only for what runs inside
the forward of the wrapped module, and only once per forward.

Source: Semi-DETR (arXiv 2307.08095), the training framework.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.model.criterion import average_num_boxes
from semidetr_hf.model.outputs import EncodedImages
from semidetr_hf.ssod.pseudo_labels import keep_confident, project_to_view, select_candidates, to_targets
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import PseudoLabels, SemiBatch, Target


@dataclass(frozen=True, kw_only=True)
class PseudoLabelRules:
    """Which detections of the teacher become targets.

    Attributes:
        score_threshold: smallest score (0.4 in the paper).
        mean_std_filter: also ask for mean + standard deviation of the image's scores.
        nms_iou: two boxes of a class that overlap more are duplicates.
        min_score: smallest score before duplicates are removed.
        max_detections: most detections of one image.
        min_box_size: smallest width and height of a pseudo-label in the strong view, in pixels.
    """

    score_threshold: float = 0.4
    mean_std_filter: bool = True
    nms_iou: float = 0.6
    min_score: float = 0.01
    max_detections: int = 300
    min_box_size: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What one step returns.

    Attributes:
        supervised: unweighted losses on labeled images, names beginning with "sup_".
        pseudo: unweighted losses on unlabeled images, names beginning with "pseudo_"; empty without unlabeled images.
        confident: the pseudo-labels that were used as targets, per image, in the strong view.
    """

    supervised: dict[str, Tensor]
    pseudo: dict[str, Tensor]
    confident: list[PseudoLabels]


class SemiDetrObjective(nn.Module):
    """The losses of a step; owns the student, not the teacher.

    Args:
        student: the network that is trained.
        rules: which detections of the teacher become targets.
    """

    def __init__(self, student: SemiDetrForObjectDetection, rules: PseudoLabelRules):
        super().__init__()
        self.student = student
        self.rules = rules

    def forward(self, batch: SemiBatch, teacher: EMATeacher) -> StepLosses:
        """Return the losses of one batch.

        Args:
            batch: without unlabeled images only the supervised losses are computed.
            teacher: labels the weak views.
        """
        rules, labeled, unlabeled = self.rules, batch.labeled, batch.unlabeled
        labeled_features = self.student.encode(labeled.view.pixel_values, labeled.view.pixel_mask)
        supervised = _named("sup", self.detection_losses(labeled_features, labeled.targets))
        if unlabeled is None:
            return StepLosses(supervised=supervised, pseudo={}, confident=[])

        weak, strong = unlabeled.weak, unlabeled.strong
        teacher_features = teacher.encode(weak)
        detections = teacher.detect(
            teacher_features,
            weak,
            iou_threshold=rules.nms_iou,
            min_score=rules.min_score,
            max_detections=rules.max_detections,
        )
        candidates = [select_candidates(d, mean_std_filter=rules.mean_std_filter) for d in detections]
        candidates = project_to_view(candidates, weak, strong, min_box_size=rules.min_box_size)
        student_features = self.student.encode(strong.pixel_values, strong.pixel_mask)
        confident = keep_confident(candidates, rules.score_threshold)
        pseudo = _named("pseudo", self.detection_losses(student_features, to_targets(confident, strong)))
        return StepLosses(supervised=supervised, pseudo=pseudo, confident=confident)

    def detection_losses(self, encoded: EncodedImages, targets: list[Target]) -> dict[str, Tensor]:
        """Decode encoded images, with denoising queries, and compare with the targets; names as in `SetCriterion`."""
        # The detector knows nothing of this package's types, and a TypedDict is no dict to a type checker.
        labels = cast("list[dict[str, Tensor]]", targets)
        denoising = self.student.denoising_queries(labels)
        predictions, _ = self.student.decode(encoded, denoising)
        return self.student.criterion(predictions, labels, average_num_boxes(labels, self.student.device))


def _named(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": loss for name, loss in losses.items()}
