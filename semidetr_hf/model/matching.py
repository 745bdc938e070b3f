"""Hungarian matching: exactly one prediction for every box, at the least total cost.

The cost of all decoder layers and images is computed at once and moved to the CPU in one transfer; only the assignment
itself runs per image, in scipy.

Source: DETR (arXiv 2005.12872), section 3.1; costs of Deformable DETR (arXiv 2010.04159) and official DINO.

Legend: P prediction sets (decoder layers and encoder), B images, Q queries, C labels, G boxes of one image,
M the largest G, at least 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .box_ops import cxcywh_to_xyxy, generalized_iou

# Above every cost of numbers, which are a few thousand at most, and small enough to be added up.
_WORST = 1e9


@dataclass(frozen=True)
class PaddedTargets:
    """Targets of a batch in one tensor, padded with zeros to the largest number of boxes, at least one.

    Attributes:
        class_labels: (B, M) int64.
        boxes: (B, M, 4) float32, cxcywh normalised.
        counts: number of real boxes of each image.
    """

    class_labels: Tensor
    boxes: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Matches:
    """Pairs of prediction and box; all four are (K,) int64.

    Attributes:
        set_index: which prediction set, 0..P-1.
        image_index: which image, 0..B-1.
        query_index: which query, 0..Q-1.
        target_index: which box of that image.
    """

    set_index: Tensor
    image_index: Tensor
    query_index: Tensor
    target_index: Tensor


def pad_targets(targets: list[dict[str, Tensor]], device: torch.device) -> PaddedTargets:
    """Stack the targets of a batch, where they are, and move them to `device` together.

    Source of the fields: `labels` of transformers' detectors.
    """
    counts = [len(target["class_labels"]) for target in targets]
    home = targets[0]["boxes"].device if targets else device
    labels = torch.zeros((len(targets), max(counts, default=1) or 1), dtype=torch.int64, device=home)
    boxes = torch.zeros((*labels.shape, 4), dtype=torch.float32, device=home)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        labels[i, :count] = target["class_labels"]
        boxes[i, :count] = target["boxes"].float()
    return PaddedTargets(
        class_labels=labels.to(device, non_blocking=True), boxes=boxes.to(device, non_blocking=True), counts=counts
    )


def focal_cost(probabilities: Tensor, *, alpha: float, gamma: float, eps: float) -> Tensor:
    """Return the focal cost of calling something with probability (...) the right class, in the shape given."""
    positive = -alpha * (1 - probabilities) ** gamma * (probabilities + eps).log()
    negative = -(1 - alpha) * probabilities**gamma * (1 - probabilities + eps).log()
    return positive - negative


class HungarianMatcher:
    """Match predictions to boxes one to one.

    Args:
        class_cost: weight of the focal cost.
        bbox_cost: weight of the L1 distance of normalised cxcywh boxes.
        giou_cost: weight of the generalised IoU, which lowers the cost.
        alpha: focal balance.
        gamma: focal exponent.
        eps: added inside the logarithms (1e-8 in official DINO, 1e-12 in the released Semi-DETR code).
    """

    def __init__(
        self,
        *,
        class_cost: float,
        bbox_cost: float,
        giou_cost: float,
        alpha: float = 0.25,
        gamma: float = 2.0,
        eps: float = 1e-8,
    ):
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.alpha = alpha
        self.gamma = gamma
        self.eps = eps

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, *, class_labels: Tensor, target_boxes: Tensor) -> Tensor:
        """Return the cost of every pair, in float32; costs may be negative.

        Args:
            logits: (P, B, Q, C).
            boxes: (P, B, Q, 4) cxcywh normalised.
            class_labels: (P, B, M) int64.
            target_boxes: (B, M, 4) cxcywh normalised.

        Returns:
            (P, B, Q, M).
        """
        boxes, target_boxes = boxes.float(), target_boxes.float()
        index = class_labels[:, :, None].expand(-1, -1, logits.shape[2], -1)  # (P, B, Q, M)
        # Only the columns of labels that occur are needed: focal cost after the gather costs M, not C, per query.
        probabilities = logits.float().gather(-1, index).sigmoid()
        class_cost = focal_cost(probabilities, alpha=self.alpha, gamma=self.gamma, eps=self.eps)
        l1_cost = torch.cdist(boxes, target_boxes[None], p=1)
        giou = generalized_iou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(target_boxes)[None, :, None])
        return self.class_cost * class_cost + self.bbox_cost * l1_cost - self.giou_cost * giou

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, *, class_labels: Tensor, targets: PaddedTargets) -> Matches:
        """Match every prediction set of every image.

        Args:
            logits: (P, B, Q, C).
            boxes: (P, B, Q, 4) cxcywh normalised.
            class_labels: (P, B, M) int64, labels per prediction set (the encoder may be class-agnostic).
            targets: the boxes.

        Returns:
            min(Q, G) pairs for every prediction set and image, queries ascending. Predictions that are not finite are
            matched last: an error would leave other processes waiting, and what is computed of them tells.
        """
        cost = self.cost(logits, boxes, class_labels=class_labels, target_boxes=targets.boxes).cpu()
        costs = cost.nan_to_num(nan=_WORST, posinf=_WORST, neginf=_WORST).numpy()
        parts: list[np.ndarray] = [np.zeros((4, 0), dtype=np.int64)]
        for p in range(len(costs)):
            for b, count in enumerate(targets.counts):
                queries, boxes_of_image = linear_sum_assignment(costs[p, b, :, :count])
                parts.append(np.stack([np.full_like(queries, p), np.full_like(queries, b), queries, boxes_of_image]))
        index = torch.from_numpy(np.concatenate(parts, axis=1)).to(logits.device, non_blocking=True)
        return Matches(*index)
