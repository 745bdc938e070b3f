"""One-to-many assignment and its loss: in the first stage several queries answer the same box.

The assigner takes, for every box, the queries that are best at class and place together; each of them learns a soft
target that says how good it is among them. The criterion gives the same names as the one-to-one criterion, so that a
change of stage changes nothing else.

Source: Semi-DETR (arXiv 2307.08095), the first stage of its stage-wise hybrid matching; the measure of alignment is
that of TOOD (arXiv 2108.07755). The released code differs in three places: it needs at least as many queries as it
takes per box, here all queries are candidates when there are fewer; it takes the cross entropy of probabilities and
bounds their logarithms, here it is taken of logits; it goes through the images one by one. Overlaps are measured in
normalised instead of pixel boxes, which changes no ratio of areas.

Legend: P prediction sets (decoder layers and encoder), B images, Q queries, C labels, G boxes of one image,
M the largest G, at least 1.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidetr_hf.model.box_ops import cxcywh_to_xyxy, generalized_iou, iou
from semidetr_hf.model.criterion import (
    DetectorPredictions,
    SetCriterion,
    StackedPredictions,
    average_count,
    name_losses,
    stack_predictions,
    zero_if_finite,
)
from semidetr_hf.model.matching import PaddedTargets, pad_targets

# Areas are fractions of the image: one pixel of a megapixel is 1e-6, so the bound that suits pixels is too big here.
_SMALLEST_UNION = 1e-12
# The released code adds the same to the largest metric of a box before it divides by it.
_METRIC_EPS = 1e-7


@dataclass(frozen=True)
class Assignment:
    """Which box every query answers, and how well.

    Attributes:
        target_index: (P, B, Q) int64, box of that image; -1 = background.
        quality: (P, B, Q) float32 in [0, 1], the soft target of the class; 0 for background.
        iou: (P, B, Q) float32, overlap with the assigned box; 0 for background.
    """

    target_index: Tensor
    quality: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Alignment:
    """How well every query fits every box; both are 0 where there is no box but padding.

    Attributes:
        metric: (P, B, Q, M) float32, score^alpha * IoU^beta.
        iou: (P, B, Q, M) float32.
    """

    metric: Tensor
    iou: Tensor


class Assigner(Protocol):
    """Anything that assigns queries to boxes as `OneToManyAssigner` does."""

    def __call__(self, scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Assignment:
        """See `OneToManyAssigner.__call__`."""


def measure_alignment(
    scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets, alpha: float, beta: float
) -> Alignment:
    """Return how well every query fits every box in class and place.

    Args:
        scores: (P, B, Q, C) sigmoid probabilities.
        boxes: (P, B, Q, 4) cxcywh normalised.
        class_labels: (P, B, M) int64, labels per prediction set.
        targets: the boxes.
        alpha: exponent of the score of the box's label.
        beta: exponent of the IoU.

    Source: TOOD (arXiv 2108.07755).
    """
    index = class_labels[:, :, None].expand(-1, -1, scores.shape[2], -1)  # (P, B, Q, M)
    overlap = iou(
        cxcywh_to_xyxy(boxes.float())[..., :, None, :],
        cxcywh_to_xyxy(targets.boxes.float())[None, :, None],
        eps=_SMALLEST_UNION,
    )
    metric = scores.float().gather(-1, index) ** alpha * overlap**beta
    counts = torch.tensor(targets.counts, dtype=torch.int64).to(overlap.device, non_blocking=True)
    is_box = torch.arange(overlap.shape[-1], device=overlap.device) < counts[:, None]  # (B, M)
    is_box = is_box[None, :, None]
    return Alignment(metric=metric.where(is_box, 0.0), iou=overlap.where(is_box, 0.0))


def assign_candidates(candidate: Tensor, preference: Tensor, alignment: Alignment) -> Assignment:
    """Leave every query at most one box and give it a soft target.

    The soft target is the metric, scaled so that the best query of a box gets the largest IoU that the box has among
    its queries. Candidates of metric 0 become background, and with them all columns of padding.

    Args:
        candidate: (P, B, Q, M) bool.
        preference: (P, B, Q, M) float; a query that is candidate for several boxes goes to the one with the largest.
        alignment: of the same queries and boxes.
    """
    candidate = candidate & (alignment.metric > 0)
    assigned = candidate.any(-1)  # (P, B, Q)
    index = preference.masked_fill(~candidate, float("-inf")).argmax(-1)
    metric = alignment.metric.gather(-1, index[..., None]).squeeze(-1).where(assigned, 0.0)
    overlap = alignment.iou.gather(-1, index[..., None]).squeeze(-1).where(assigned, 0.0)
    # Background adds zeros to whichever box, which changes no maximum.
    best = metric.new_zeros(candidate.shape[:2] + candidate.shape[3:])  # (P, B, M)
    best_metric = best.scatter_reduce(2, index, metric, "amax").gather(2, index)
    best_overlap = best.scatter_reduce(2, index, overlap, "amax").gather(2, index)
    return Assignment(
        target_index=index.where(assigned, -1),
        quality=metric / (best_metric + _METRIC_EPS) * best_overlap,
        iou=overlap,
    )


class OneToManyAssigner:
    """Assign to every box the queries that fit it best in class and place together.

    Args:
        top_k: candidates per box; all queries when there are fewer.
        alpha: exponent of the score.
        beta: exponent of the IoU; above 0, so that a query that does not touch a box never answers it.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, *, top_k: int = 13, alpha: float = 1.0, beta: float = 6.0):
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}: every box needs a candidate")
        check_exponents(alpha, beta)
        self.top_k = top_k
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Assignment:
        """Assign the queries of every prediction set and image.

        There is no least overlap: a box that is predicted badly gets bad queries, with small soft targets; a box that
        no query touches gets none. A query wanted by several boxes goes to the one that it overlaps most.

        Args:
            scores: (P, B, Q, C) sigmoid probabilities.
            boxes: (P, B, Q, 4) cxcywh normalised.
            class_labels: (P, B, M) int64, labels per prediction set (the encoder may be class-agnostic).
            targets: the boxes; padding is never assigned, and neither are queries whose score or overlap is NaN.
        """
        alignment = measure_alignment(
            scores, boxes, class_labels=class_labels, targets=targets, alpha=self.alpha, beta=self.beta
        )
        metric = alignment.metric
        best = metric.topk(min(self.top_k, metric.shape[2]), dim=2).indices  # (P, B, top_k, M)
        candidate = torch.zeros_like(metric, dtype=torch.bool).scatter(2, best, True)
        return assign_candidates(candidate, alignment.iou, alignment)


def check_exponents(alpha: float, beta: float) -> None:
    """Raise a ValueError unless `alpha` is at least 0 and `beta` above 0."""
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}: a negative exponent prefers low scores")
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}: otherwise queries answer boxes that they do not touch")


def task_aligned_focal_loss(logits: Tensor, quality: Tensor, *, gamma: float) -> Tensor:
    """Return |quality - p|^gamma times the binary cross entropy of every entry, in float32.

    Args:
        logits: (...).
        quality: (...) in [0, 1], the soft target: 0 where the class is wrong.
        gamma: exponent that lowers the loss of entries near their target.

    Source: Semi-DETR (arXiv 2307.08095), its one-to-many classification loss, after TOOD (arXiv 2108.07755).
    """
    logits, quality = logits.float(), quality.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).abs() ** gamma * cross_entropy


class OneToManyCriterion(nn.Module):
    """One-to-many criterion; denoising queries keep their one fixed box and the focal loss.

    Args:
        assigner: finds the box of every query.
        one_to_one: says which layers count and how encoder proposals are labeled; gives the denoising losses.
        gamma: exponent of the classification loss.
    """

    def __init__(self, assigner: Assigner, one_to_one: SetCriterion, *, gamma: float = 2.0):
        super().__init__()
        self.assigner = assigner
        self.one_to_one = one_to_one
        self.gamma = gamma

    def forward(
        self, predictions: DetectorPredictions, targets: list[dict[str, Tensor]], num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Compare predictions with boxes.

        Args:
            predictions: of all layers.
            targets: per image `class_labels` (G,) int64 and `boxes` (G, 4) cxcywh normalised; G may be 0.
            num_boxes: normaliser of the denoising losses, see `average_num_boxes`. The other losses are divided by
                the sum of the soft targets of their prediction set.

        Returns:
            Unweighted () float32 losses, the same names as `SetCriterion.forward` gives.
        """
        padded = pad_targets(targets, predictions.logits.device)
        stacked = stack_predictions(
            predictions,
            padded,
            class_agnostic_encoder=self.one_to_one.class_agnostic_encoder,
            auxiliary=self.one_to_one.auxiliary,
        )
        assignment = self.assigner(
            stacked.logits.detach().sigmoid(),
            stacked.boxes.detach(),
            class_labels=stacked.class_labels,
            targets=padded,
        )
        losses = self._losses(stacked, assignment, padded)
        losses["loss_ce"] = losses["loss_ce"] + zero_if_finite(stacked)
        return losses | self.one_to_one.denoising_losses(predictions, padded, num_boxes=num_boxes)

    def _losses(
        self, predictions: StackedPredictions, assignment: Assignment, targets: PaddedTargets
    ) -> dict[str, Tensor]:
        """Return three losses per prediction set.

        Queries that answer no box take part with weight 0: to pick out the others would make the host wait.
        """
        logits, boxes = predictions.logits, predictions.boxes
        # Reduced over processes also when nothing is assigned here: the others wait for it.
        total_quality = average_count(assignment.quality.sum(dim=(1, 2)))  # (P,)
        assigned, quality = assignment.target_index >= 0, assignment.quality  # (P, B, Q)
        index = assignment.target_index.clamp(min=0)
        labels = predictions.class_labels.gather(2, index)
        soft_target = torch.zeros_like(logits).scatter(3, labels[..., None], quality[..., None])
        class_loss = task_aligned_focal_loss(logits, soft_target, gamma=self.gamma).sum(dim=(1, 2, 3))

        # Any two equal boxes that have an area.
        wanted = targets.boxes.expand(len(logits), -1, -1, -1).gather(2, index[..., None].expand(-1, -1, -1, 4))
        wanted, predicted = (tensor.where(assigned[..., None], 0.5) for tensor in (wanted, boxes))  # (P, B, Q, 4)
        l1 = F.l1_loss(predicted, wanted, reduction="none").sum(-1) * quality
        giou = (1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))) * quality
        totals = {
            "loss_ce": class_loss / total_quality,
            "loss_bbox": l1.sum(dim=(1, 2)) / total_quality,
            "loss_giou": giou.sum(dim=(1, 2)) / total_quality,
        }
        return name_losses(totals, predictions.suffixes)
