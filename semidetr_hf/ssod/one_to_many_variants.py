"""Other ways to choose the queries of a box, as the paper's ablation compares them with its own.

All are called like `OneToManyAssigner` and scale their soft targets in the same way, so that only the choice of
queries differs. As there, a query whose metric score^alpha * IoU^beta is 0 is background.

Source: the ablation of assignment strategies in Semi-DETR (arXiv 2307.08095); the strategies are those of Faster
R-CNN (arXiv 1506.01497), ATSS (arXiv 1912.02424) and SimOTA (YOLOX, arXiv 2107.08430). The stages of the released
Semi-DETR code know only its own assigner, so these follow their own papers: the boxes predicted by the queries take
the place of anchors, and distances are measured in normalised coordinates, since a query knows no image size.

Legend: P prediction sets (decoder layers and encoder), B images, Q queries, C labels, M the largest number of boxes of
an image.
"""

import torch
from torch import Tensor

from semidetr_hf.model.box_ops import cxcywh_to_xyxy
from semidetr_hf.model.matching import PaddedTargets

from .one_to_many import Alignment, Assignment, assign_candidates, check_exponents, measure_alignment


class MaxIoUAssigner:
    """Assign every query to the box that it overlaps most, if it overlaps it enough.

    Every box also gets the query that overlaps it most, however little, even if that query overlaps another box more;
    all such queries if several overlap it equally. If several boxes have the same best query, the one that it overlaps
    most gets it.

    Args:
        threshold: least IoU. One value parts positives from background: queries in between are not ignored.
        alpha: exponent of the score in the soft target.
        beta: exponent of the IoU in the soft target.

    Raises:
        ValueError: if an argument is out of range.

    Source: Faster R-CNN (arXiv 1506.01497), labels of its region proposal network; the single threshold is that of its
    second stage.
    """

    def __init__(self, *, threshold: float = 0.5, alpha: float = 1.0, beta: float = 6.0):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be an IoU above 0 and at most 1, got {threshold}")
        check_exponents(alpha, beta)
        self.threshold = threshold
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Assignment:
        """See `OneToManyAssigner.__call__`."""
        alignment = measure_alignment(
            scores, boxes, class_labels=class_labels, targets=targets, alpha=self.alpha, beta=self.beta
        )
        best_query = alignment.iou == alignment.iou.amax(2, keepdim=True)
        # Overlaps are at most 1: a box's best query prefers that box to all that it merely overlaps.
        preference = alignment.iou + 2.0 * best_query
        return assign_candidates(best_query | (alignment.iou >= self.threshold), preference, alignment)


class ATSSAssigner:
    """Assign to every box the queries near its center whose overlap stands out among them.

    Of the `top_k` queries with the nearest centers those answer the box whose IoU reaches the mean plus the standard
    deviation of these `top_k` and whose center lies inside the box. A query wanted by several boxes goes to the one
    that it overlaps most. Queries have no pyramid levels, so there is one set of candidates per box.

    Args:
        top_k: candidates per box; all queries when there are fewer.
        alpha: exponent of the score in the soft target.
        beta: exponent of the IoU in the soft target.

    Raises:
        ValueError: if an argument is out of range.

    Source: ATSS (arXiv 1912.02424), algorithm 1.
    """

    def __init__(self, *, top_k: int = 9, alpha: float = 1.0, beta: float = 6.0):
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}: every box needs a candidate")
        check_exponents(alpha, beta)
        self.top_k = top_k
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Assignment:
        """See `OneToManyAssigner.__call__`."""
        alignment = measure_alignment(
            scores, boxes, class_labels=class_labels, targets=targets, alpha=self.alpha, beta=self.beta
        )
        offset = boxes.float()[..., :, None, :2] - targets.boxes.float()[None, :, None, :, :2]
        count = min(self.top_k, boxes.shape[2])
        nearest = offset.norm(dim=-1).topk(count, dim=2, largest=False).indices  # (P, B, top_k, M)
        overlap = alignment.iou.gather(2, nearest)
        mean = overlap.mean(2, keepdim=True)
        # Unbiased; written out because `std` has no value for one candidate, whose own IoU is the bar here.
        deviation = ((overlap - mean).square().sum(2, keepdim=True) / max(count - 1, 1)).sqrt()
        candidate = torch.zeros_like(alignment.iou, dtype=torch.bool).scatter(2, nearest, overlap >= mean + deviation)
        return assign_candidates(candidate & _has_center_inside(boxes, targets), alignment.iou, alignment)


class SimOTAAssigner:
    """Assign to every box the cheapest queries inside it, more of them the better the box is predicted.

    A box gets as many queries as the IoUs of its `candidates` best overlapping queries sum to, rounded down, at least
    one. Only queries whose center lies inside the box take part; YOLOX merely makes the others very expensive. A
    query wanted by several boxes goes to the one that it costs least.

    Args:
        candidates: how many IoUs are summed; all when there are fewer queries.
        iou_weight: weight of the cost of place against the cost of class.
        alpha: exponent of the score in the soft target.
        beta: exponent of the IoU in the soft target.

    Raises:
        ValueError: if an argument is out of range.

    Source: YOLOX (arXiv 2107.08430), "SimOTA".
    """

    def __init__(self, *, candidates: int = 10, iou_weight: float = 3.0, alpha: float = 1.0, beta: float = 6.0):
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}: every box needs one")
        check_exponents(alpha, beta)
        self.candidates = candidates
        self.iou_weight = iou_weight
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Assignment:
        """See `OneToManyAssigner.__call__`."""
        alignment = measure_alignment(
            scores, boxes, class_labels=class_labels, targets=targets, alpha=self.alpha, beta=self.beta
        )
        inside = _has_center_inside(boxes, targets)
        cost = self.cost(scores, class_labels, alignment).masked_fill(~inside, float("inf"))
        count = min(self.candidates, boxes.shape[2])
        overlap = alignment.iou.where(inside, 0.0).topk(count, dim=2).values
        wanted = overlap.sum(2, keepdim=True).int().clamp(min=1)  # (P, B, 1, M)
        cheapest = cost.topk(count, dim=2, largest=False).indices  # (P, B, count, M), cheapest first
        rank = torch.arange(count, device=cost.device)[:, None]
        candidate = torch.zeros_like(inside).scatter(2, cheapest, rank < wanted)
        return assign_candidates(candidate & inside, -cost, alignment)

    def cost(self, scores: Tensor, class_labels: Tensor, alignment: Alignment) -> Tensor:
        """Return the (P, B, Q, M) float32 cost: binary cross entropy over all labels, and minus the logarithm of IoU.

        Args:
            scores: (P, B, Q, C) sigmoid probabilities.
            class_labels: (P, B, M) int64.
            alignment: of the same queries and boxes.
        """
        scores = scores.float()
        # The bound of torch's binary cross entropy of probabilities: a wrong score of 0 or 1 costs 100, not infinity.
        wrong = -(1 - scores).log().clamp(min=-100)  # (P, B, Q, C), the cost if the label is not the box's
        right = -scores.log().clamp(min=-100)
        index = class_labels[:, :, None].expand(-1, -1, scores.shape[2], -1)  # (P, B, Q, M)
        class_cost = wrong.sum(-1, keepdim=True) + (right - wrong).gather(-1, index)
        return class_cost - self.iou_weight * (alignment.iou + 1e-8).log()


def _has_center_inside(boxes: Tensor, targets: PaddedTargets) -> Tensor:
    """Return (P, B, Q, M) bool: the center of a (P, B, Q, 4) cxcywh box lies strictly inside a target."""
    center = boxes.float()[..., :, None, :2]
    corners = cxcywh_to_xyxy(targets.boxes.float())[None, :, None]  # (1, B, 1, M, 4)
    return ((center > corners[..., :2]) & (center < corners[..., 2:])).all(-1)
