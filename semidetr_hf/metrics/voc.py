"""Average precision at IoU 0.5 as Pascal VOC defines it.

It differs from COCO's AP50: a detection is compared with the one box of its class that it overlaps most, even if a
better scored detection has that box already; every detection counts, not only the best hundred of an image; and the
area is that under the curve itself, not under its values at 101 points of recall.

Source: Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, section 4.2, and the devkits of
VOC2007 (eleven points of recall) and of VOC2010 and later (the area under the curve).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from .coco_detection.coco_metrics import boxes_per_class, check_ids, class_table, in_words, none_if_nan

Interpolation = Literal["area", "11-point"]
Average = Callable[[np.ndarray, np.ndarray], float]  # of recall and interpolated precision, (N,) each
IOU_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class VocMetrics:
    """AP at IoU 0.5 from 0 to 1; nan where there is nothing to find.

    Attributes:
        ap50: mean over the classes that have boxes.
        per_class_ap50: category name -> AP.
        per_class_boxes: category name -> number of boxes to find, difficult ones left out.
    """

    ap50: float
    per_class_ap50: dict[str, float]
    per_class_boxes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, those of classes nested; None stands for nan, which JSON cannot hold."""
        per_class = {name: none_if_nan(value) for name, value in self.per_class_ap50.items()}
        return {**asdict(self), "ap50": none_if_nan(self.ap50), "per_class_ap50": per_class}

    def to_text(self) -> str:
        """Return the mean and a table of the classes as lines for a terminal."""
        table = class_table({"AP50": self.per_class_ap50}, self.per_class_boxes)
        return f"all classes, by the rules of Pascal VOC\n  {'ap50':24} {in_words(self.ap50)}\n\n{table}"


def voc_metrics(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], *, interpolation: Interpolation = "area"
) -> VocMetrics:
    """Score detections against the boxes of a COCO dict by the rules of Pascal VOC.

    Args:
        ground_truth: COCO dict with `images`, `annotations` and `categories`. Boxes with `iscrowd` 1 are VOC's
            difficult ones, as `VocSource` has them: neither hit nor miss.
        detections: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height in pixels of the original image)
            and `score`; may be empty. Of equal scores the first counts as the better.
        interpolation: "area" under the curve, as in VOC2010 and later, or "11-point", the mean at recall 0, 0.1 .. 1,
            as in VOC2007.

    Convention: boxes reach to the outer edge of their last pixel, so no pixel is added to a width.

    Raises:
        ValueError: if a detection or annotation has an image or category id that is not listed, or `interpolation` is
            unknown.
    """
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation={interpolation!r}: must be one of {', '.join(get_args(Interpolation))}")
    check_ids(ground_truth, detections)
    average = _area if interpolation == "area" else _eleven_points
    found, boxes = _by_category(detections), _by_category(ground_truth["annotations"])
    num_boxes = boxes_per_class(ground_truth)
    per_class = {}
    for category in ground_truth["categories"]:
        hits = _hits(found[category["id"]], boxes[category["id"]])
        per_class[category["name"]] = _average_precision(hits, num_boxes[category["name"]], average)
    known = [value for value in per_class.values() if not math.isnan(value)]
    return VocMetrics(
        ap50=sum(known) / len(known) if known else math.nan, per_class_ap50=per_class, per_class_boxes=num_boxes
    )


def _by_category(entries: Sequence[Mapping[str, Any]]) -> defaultdict[int, list[Mapping[str, Any]]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["category_id"]].append(entry)
    return groups


def _hits(detections: list[Mapping[str, Any]], boxes: list[Mapping[str, Any]]) -> np.ndarray:
    """Return (N,) bool, best score first: whether a detection is right; those of difficult boxes are left out."""
    of_image = defaultdict(list)
    for box in boxes:
        of_image[box["image_id"]].append(box)
    corners = {image_id: _to_corners(items) for image_id, items in of_image.items()}
    taken: set[tuple[Any, int]] = set()
    hits = []
    for detection in sorted(detections, key=lambda detection: -detection["score"]):
        image_id = detection["image_id"]
        best, overlap = 0, -math.inf
        if image_id in corners:
            overlaps = _ious(_to_corners([detection])[0], corners[image_id])
            best, overlap = int(overlaps.argmax()), float(overlaps.max())
        if overlap < IOU_THRESHOLD:
            hits.append(False)
        elif not of_image[image_id][best].get("iscrowd"):
            hits.append((image_id, best) not in taken)
            taken.add((image_id, best))
    return np.array(hits, dtype=bool)


def _to_corners(items: list[Mapping[str, Any]]) -> np.ndarray:
    xywh = np.array([item["bbox"] for item in items], dtype=float)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)  # (N, 4)


def _ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of one box (4,) with others (N, 4), all xyxy; 0 where neither has an area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _average_precision(hits: np.ndarray, num_boxes: int, average: Average) -> float:
    if num_boxes == 0:
        return math.nan
    num_right = hits.cumsum()
    recall, precision = num_right / num_boxes, num_right / np.arange(1, len(hits) + 1)
    # Interpolated: the best precision at this recall or beyond.
    return average(recall, np.maximum.accumulate(precision[::-1])[::-1])


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    return float((np.diff(recall, prepend=0) * precision).sum())


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # A recall of 3 / 10 must reach the point 0.3, whichever way the two were rounded.
    places = [np.flatnonzero(recall >= point / 10 - 1e-9) for point in range(11)]
    return sum(float(precision[place[0]]) for place in places if len(place)) / 11
