"""Box formats and overlaps.

Convention: `_xyxy` are the two corners (x1, y1, x2, y2), `_cxcywh` centre, width and height; x to the right, y down.
All functions work in any unit, pixels or fractions of the image, as long as both arguments use the same.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert (..., 4) boxes from centre and size to corners."""
    return box_convert(boxes_cxcywh, in_fmt="cxcywh", out_fmt="xyxy")


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to centre and size."""
    return box_convert(boxes_xyxy, in_fmt="xyxy", out_fmt="cxcywh")


def inverse_sigmoid(values: Tensor, eps: float) -> Tensor:
    """Return the logit of values in [0, 1], both sides bounded by `eps`.

    Official DINO uses eps = 1e-3, the released Semi-DETR code 1e-5. The upper bound of 1 on each side stands for the
    reference's clamp to [0, 1]: a chain of two clamps cannot be exported to ONNX, nor one with a float and an integer.
    """
    return torch.log(values.clamp(min=eps, max=1.0) / (1 - values).clamp(min=eps, max=1.0))


def _intersection_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return areas of intersection and union of boxes whose leading dimensions broadcast."""
    # Coordinate by coordinate: of all pairs, loops over the last dimension of boxes would be two numbers long.
    (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) = a_xyxy.unbind(-1), b_xyxy.unbind(-1)
    width = (torch.minimum(a_right, b_right) - torch.maximum(a_left, b_left)).clamp(min=0)
    height = (torch.minimum(a_bottom, b_bottom) - torch.maximum(a_top, b_top)).clamp(min=0)
    intersection = width * height
    area_a = (a_right - a_left) * (a_bottom - a_top)
    area_b = (b_right - b_left) * (b_bottom - b_top)
    return intersection, area_a + area_b - intersection


def iou(a_xyxy: Tensor, b_xyxy: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return intersection over union of boxes that correspond to each other.

    Args:
        a_xyxy: (..., 4); for all pairs pass `a[:, None]` and `b[None]`.
        b_xyxy: (..., 4), broadcast against `a_xyxy`.
        eps: the smallest denominator; two empty boxes have IoU 0.

    Returns:
        (...) in [0, 1].
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=eps)


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return the generalised IoU of boxes that correspond to each other.

    Unlike torchvision's it accepts degenerate boxes, which an untrained network predicts, and does not raise.

    Args:
        a_xyxy: (..., 4); for all pairs pass `a[:, None]` and `b[None]`.
        b_xyxy: (..., 4), broadcast against `a_xyxy`.
        eps: the smallest denominator of both fractions (1e-6 in official DINO and the released Semi-DETR code).

    Returns:
        (...) in [-1, 1].

    Source: Generalized Intersection over Union (arXiv 1902.09630), algorithm 1.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) = a_xyxy.unbind(-1), b_xyxy.unbind(-1)
    hull_width = (torch.maximum(a_right, b_right) - torch.minimum(a_left, b_left)).clamp(min=0)
    hull_height = (torch.maximum(a_bottom, b_bottom) - torch.minimum(a_top, b_top)).clamp(min=0)
    hull_area = hull_width * hull_height
    return intersection / union.clamp(min=eps) - (hull_area - union) / hull_area.clamp(min=eps)


def class_wise_nms(
    boxes_xyxy: Tensor, scores: Tensor, *, iou_threshold: float, min_score: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the predictions for one image into detections without duplicates.

    Every (query, label) pair scores on its own, so one query may become detections of several labels.

    Args:
        boxes_xyxy: (Q, 4) in any unit, already clipped.
        scores: (Q, C) probabilities.
        iou_threshold: of two boxes of a label that overlap more, the lower-scored is dropped.
        min_score: every pair above it takes part.
        max_detections: the best so many are returned.

    Returns:
        Boxes (N, 4), labels (N,) int64 and scores (N,), best first.

    Source: the released code of Semi-DETR (IoU 0.6, scores above 0.01, 300 detections).
    """
    query, label = (scores > min_score).nonzero(as_tuple=True)
    boxes, kept_scores = boxes_xyxy[query], scores[query, label]
    keep = batched_nms(boxes, kept_scores, label, iou_threshold)[:max_detections]
    return boxes[keep], label[keep], kept_scores[keep]
