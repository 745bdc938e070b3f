"""From the teacher's predictions to pseudo-labels in the student's view.

In the order of a step: duplicates are suppressed, candidates selected per image, mapped to the strong view, and the
confident ones kept as targets.

Source: Semi-DETR (arXiv 2307.08095), and the released code. Its standard deviation of a single score is not a
number, so a lone detection is lost whatever its score; here it is kept. Two more differences are arguments: it keeps
boxes that leave the strong view, with zero size (`min_box_size`), and takes confident labels only of what passed the
mean + deviation filter (`always_keep`).

Legend: Q queries, C labels, G boxes of one image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semidetr_hf.geometry import apply_to_boxes, clip_boxes, compose, has_visible_area, invert
from semidetr_hf.model.box_ops import class_wise_nms, cxcywh_to_xyxy, xyxy_to_cxcywh
from semidetr_hf.structures import PseudoLabels, Target, View


def suppress_duplicates(
    logits: Tensor,
    boxes: Tensor,
    *,
    image_size: tuple[int, int],
    iou_threshold: float,
    min_score: float,
    max_detections: int,
) -> PseudoLabels:
    """Turn the predictions for one image into detections by class-wise non-maximum suppression.

    Args:
        logits: (Q, C) of the last decoder layer.
        boxes: (Q, 4) cxcywh normalised.
        image_size: unpadded (height, width) in pixels.
        iou_threshold: of two boxes of a class that overlap more, the lower-scored is dropped.
        min_score: every (query, class) pair above it takes part.
        max_detections: the best so many are returned.

    Returns:
        Detections, best first, boxes in pixels within the image.
    """
    height, width = image_size
    pixels = cxcywh_to_xyxy(boxes.float()) * boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    kept, labels, scores = class_wise_nms(
        clip_boxes(pixels, image_size),
        logits.float().sigmoid(),
        iou_threshold=iou_threshold,
        min_score=min_score,
        max_detections=max_detections,
    )
    return PseudoLabels(boxes_xyxy=kept, class_labels=labels, scores=scores)


def select_candidates(
    detections: PseudoLabels, *, mean_std_filter: bool, always_keep: Tensor | None = None
) -> PseudoLabels:
    """Keep the detections of one image that stand out from the rest, and drop empty boxes.

    Args:
        detections: of the teacher on the weak view.
        mean_std_filter: keep scores of at least mean + standard deviation (unbiased) of the image; with one detection
            the deviation counts as 0.
        always_keep: (C,) keep scores of at least this, that of their class, in any case. Without it an image with two
            detections of different scores loses both, however sure they are (released code); None for none.
    """
    keep = torch.ones_like(detections.scores, dtype=torch.bool)
    if mean_std_filter and len(detections):
        scores = detections.scores
        deviation = scores.std() if len(scores) > 1 else scores.new_zeros(())
        keep = scores >= scores.mean() + deviation
        if always_keep is not None:
            keep |= scores >= always_keep[detections.class_labels]
    return detections[keep & has_visible_area(detections.boxes_xyxy)]


@dataclass(frozen=True)
class CandidatePair:
    """Candidates of one image in both views: row i of `weak` and row i of `strong` are the same object."""

    weak: PseudoLabels
    strong: PseudoLabels

    def __len__(self) -> int:
        return len(self.strong)

    def __getitem__(self, keep: Tensor) -> "CandidatePair":
        """Return the rows chosen by a (G,) bool mask or an index tensor, in both views."""
        return CandidatePair(self.weak[keep], self.strong[keep])


def project_to_view(
    candidates: list[PseudoLabels], weak: View, strong: View, *, min_box_size: float | None
) -> list[CandidatePair]:
    """Map the boxes of every image from its weak to its strong view.

    Args:
        candidates: per image, boxes in pixels of the weak view.
        weak: where the boxes were found.
        strong: where they are wanted; row i shows the same original as row i of `weak`.
        min_box_size: boxes whose clipped width or height is not above this many pixels are dropped, from both views;
            None keeps all, even those that the strong view does not show (released code).

    Returns:
        Per image, the candidates in both views, in the same order.
    """
    projected = []
    for i, labels in enumerate(candidates):
        to_strong = compose(invert(weak.homographies[i]), strong.homographies[i])
        height, width = strong.image_sizes[i].tolist()
        boxes = apply_to_boxes(to_strong.to(labels.boxes_xyxy), labels.boxes_xyxy)
        boxes = clip_boxes(boxes, (height, width))
        moved = PseudoLabels(boxes_xyxy=boxes, class_labels=labels.class_labels, scores=labels.scores)
        pair = CandidatePair(labels, moved)
        projected.append(pair if min_box_size is None else pair[has_visible_area(boxes, min_box_size)])
    return projected


def find_confident(candidates: list[CandidatePair], thresholds: Tensor) -> list[Tensor]:
    """Return, per image, a (G,) bool mask of the scores of at least the threshold: few, but mostly right.

    Args:
        candidates: per image.
        thresholds: (C,) float, of each class.
    """
    return [pair.strong.scores >= thresholds[pair.strong.class_labels] for pair in candidates]


def to_targets(pseudo_labels: list[PseudoLabels], view: View) -> list[Target]:
    """Turn pseudo-labels in pixels of a view into targets of the detector, normalised by the unpadded view."""
    targets: list[Target] = []
    for labels, (height, width) in zip(pseudo_labels, view.image_sizes.tolist(), strict=True):
        size = labels.boxes_xyxy.new_tensor([width, height, width, height])
        targets.append({"class_labels": labels.class_labels, "boxes": xyxy_to_cxcywh(labels.boxes_xyxy / size)})
    return targets
