"""Detections on the validation images looked at in detail: precision and recall, confusions, one image at a time.

Precision-recall curves are those of COCO's evaluation (pycocotools). It compares boxes of the same class only; what is
taken for what, and which images are good or bad, is counted here, at an IoU of 0.5 and above a score threshold.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm.auto import tqdm

IOU = 0.5
THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))
RECALLS = tuple(round(0.01 * number, 2) for number in range(101))  # where COCO reads off the precision

Detections = Sequence[dict[str, Any]]
ImageId = int | str


@dataclass(frozen=True, kw_only=True)
class ImageBoxes:
    """The boxes of one image and what was detected there.

    Attributes:
        image_id: of the source.
        truth: (G, 4) float64 xywh in pixels, without crowds.
        truth_labels: (G,) int64.
        found: (N, 4) float64 xywh, those above the lowest of `THRESHOLDS`.
        found_labels: (N,) int64.
        scores: (N,) float64.
        pairs: indices (found, truth) of boxes with an IoU of at least 0.5, in the order in which they are matched:
            same class before other class, then by descending IoU.
        in_crowd: (N,) bool, detections that lie on a crowd and are neither right nor wrong if they match nothing.
    """

    image_id: ImageId
    truth: np.ndarray
    truth_labels: np.ndarray
    found: np.ndarray
    found_labels: np.ndarray
    scores: np.ndarray
    pairs: list[tuple[int, int]]
    in_crowd: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """Which boxes of an image belong together above a score threshold.

    Attributes:
        counted: indices of the detections that count: above the threshold, matched or on no crowd.
        truth_of: detection -> the box it was matched with; each box at most once.
        right: detections that were matched with a box of their class.
        f1: 2 * right / (detections + boxes); None for an image with neither.
    """

    counted: list[int]
    truth_of: dict[int, int]
    right: set[int]
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class ClassCurve:
    """Precision of one class at the recalls `RECALLS`; AP50 is its mean."""

    name: str
    precision: list[float]

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return float(np.mean(self.precision))


def precision_curves(ground_truth: dict[str, Any], detections: Detections) -> list[ClassCurve]:
    """Return the precision-recall curve of every class at IoU 0.5, in the order of the category ids.

    Args:
        ground_truth: COCO dict of the images that were evaluated.
        detections: COCO result list.

    Returns:
        One curve per class; a class without a box in the images has none.
    """
    # pycocotools needs numbers as image ids and takes annotation id 0 for "not matched".
    numbers = {image["id"]: number for number, image in enumerate(ground_truth["images"], start=1)}
    images = [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]]
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for boxes in (ground_truth["annotations"], detections):
            side = COCO()
            annotations = [
                {
                    "area": box["bbox"][2] * box["bbox"][3],
                    "iscrowd": 0,
                    **box,
                    "id": number,
                    "image_id": numbers[box["image_id"]],
                }
                for number, box in enumerate(boxes, start=1)
            ]
            side.dataset = {"images": images, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, iouType="bbox")
        evaluator.params.iouThrs = np.array([IOU])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][0, :, :, 0, -1]  # (recalls, classes), -1 for classes without a box
    return [
        ClassCurve(name=category["name"], precision=precision[:, row].tolist())
        for row, category in enumerate(categories)
        if precision[0, row] >= 0
    ]


def compare_boxes(ground_truth: dict[str, Any], detections: Detections) -> list[ImageBoxes]:
    """Return, per image, boxes and detections with the pairs of them that overlap enough to be matched.

    Args:
        ground_truth: COCO dict of the images that were evaluated.
        detections: COCO result list.
    """
    categories = sorted(category["id"] for category in ground_truth["categories"])
    label_of = {category_id: label for label, category_id in enumerate(categories)}
    truth_of, found_of = defaultdict(list), defaultdict(list)
    for annotation in ground_truth["annotations"]:
        truth_of[annotation["image_id"]].append(annotation)
    for detection in detections:
        if detection["score"] >= THRESHOLDS[0]:
            found_of[detection["image_id"]].append(detection)
    return [
        _compare(image["id"], truth_of[image["id"]], found_of[image["id"]], label_of)
        for image in ground_truth["images"]
    ]


def _compare(image_id: ImageId, truth: Detections, found: Detections, label_of: dict[int, int]) -> ImageBoxes:
    crowds = _boxes([box for box in truth if box.get("iscrowd")])
    truth = [box for box in truth if not box.get("iscrowd")]
    boxes, found_boxes = _boxes(truth), _boxes(found)
    labels, found_labels = _labels(truth, label_of), _labels(found, label_of)
    overlaps = _overlaps(found_boxes, boxes, are_crowds=False)  # (N, G)
    rows, columns = np.nonzero(overlaps >= IOU)
    is_other = found_labels[rows] != labels[columns]
    order = np.lexsort((-overlaps[rows, columns], is_other))
    return ImageBoxes(
        image_id=image_id,
        truth=boxes,
        truth_labels=labels,
        found=found_boxes,
        found_labels=found_labels,
        scores=np.array([box["score"] for box in found], dtype=float),
        pairs=list(zip(rows[order].tolist(), columns[order].tolist(), strict=True)),
        in_crowd=np.any(_overlaps(found_boxes, crowds, are_crowds=True) >= IOU, axis=1),
    )


def match(image: ImageBoxes, threshold: float) -> ImageMatches:
    """Match the detections of an image that score at least a threshold with its boxes, one to one.

    Args:
        image: from `compare_boxes`.
        threshold: of the score, one of `THRESHOLDS`.
    """
    truth_of: dict[int, int] = {}
    taken: set[int] = set()
    for found, truth in image.pairs:
        if image.scores[found] >= threshold and found not in truth_of and truth not in taken:
            truth_of[found] = truth
            taken.add(truth)
    counted = [
        found
        for found in np.flatnonzero(image.scores >= threshold).tolist()
        if found in truth_of or not image.in_crowd[found]
    ]
    right = {found for found, truth in truth_of.items() if image.found_labels[found] == image.truth_labels[truth]}
    total = len(counted) + len(image.truth)
    return ImageMatches(counted=counted, truth_of=truth_of, right=right, f1=2 * len(right) / total if total else None)


def confusion_matrices(images: Sequence[ImageBoxes], num_classes: int, *, progress: bool = False) -> np.ndarray:
    """Count what was taken for what at every score threshold.

    Args:
        images: from `compare_boxes`.
        num_classes: K.
        progress: whether to show a bar.

    Returns:
        (T, K+1, K+1) int64 with a matrix per entry of `THRESHOLDS`: row = true class, column = detected class. The
        last row counts detections where nothing is, the last column boxes that were not found.
    """
    counts = np.zeros((len(THRESHOLDS), num_classes + 1, num_classes + 1), dtype=np.int64)
    for image in tqdm(images, desc="confusions", disable=not progress, leave=False):
        for row, threshold in enumerate(THRESHOLDS):
            matches = match(image, threshold)
            for found in matches.counted:
                truth = matches.truth_of.get(found)
                true_label = num_classes if truth is None else image.truth_labels[truth]
                counts[row, true_label, image.found_labels[found]] += 1
            missed = set(range(len(image.truth))) - set(matches.truth_of.values())
            for truth in missed:
                counts[row, image.truth_labels[truth], num_classes] += 1
    return counts


def f1_scores(confusions: np.ndarray) -> np.ndarray:
    """Return (T,) the F1 of all detections together at every threshold; 0 without boxes and detections.

    Args:
        confusions: (T, K+1, K+1), from `confusion_matrices`.
    """
    right = np.trace(confusions[:, :-1, :-1], axis1=1, axis2=2)
    total = confusions[:, :-1, :].sum(axis=(1, 2)) + confusions[:, :, :-1].sum(axis=(1, 2))
    return 2 * right / np.maximum(total, 1)


def _boxes(entries: Detections) -> np.ndarray:
    return np.array([entry["bbox"] for entry in entries], dtype=float).reshape(-1, 4)


def _labels(entries: Detections, label_of: dict[int, int]) -> np.ndarray:
    return np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int64)


def _overlaps(found: np.ndarray, others: np.ndarray, *, are_crowds: bool) -> np.ndarray:
    """Return (N, M) IoU of boxes xywh; with a crowd the share of the detection that lies on it."""
    if not len(found) or not len(others):
        return np.zeros((len(found), len(others)))
    return np.asarray(mask.iou(found, others, [int(are_crowds)] * len(others)))
