"""Which detections on labeled images are right, by the rule of COCO's evaluation at one overlap.

Source: pycocotools does the matching. The detections of a class take the boxes of their image in descending order of
score, each box once, so that a duplicate is wrong; those that lie on crowds or ignored boxes do not count.

Legend: N detections of all images.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semidetr_hf.labeling.detection import DetectedImage
from semidetr_hf.training.evaluation import EvaluationSource


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Detections and whether each is right; row i of every field is the same one.

    Attributes:
        scores: (N,) float64, from 0 to 1.
        labels: (N,) int64, class labels of the detector.
        right: (N,) bool.
        images: (N,) int64, the place of its image among those that were judged.
        num_objects: for every class label, how many boxes could have been found.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    right: NDArray[np.bool_]
    images: NDArray[np.int64]
    num_objects: tuple[int, ...]


def judge(
    images: Sequence[DetectedImage],
    source: EvaluationSource,
    category_ids: Sequence[int],
    *,
    iou_threshold: float = 0.5,
) -> Judged:
    """Compare what was found with the boxes of a labeled source.

    Args:
        images: of the source; its other images do not count.
        source: read with its labels.
        category_ids: the id in the source of class label i of the detector, at place i.
        iou_threshold: smallest overlap of a match, above 0 and at most 1.

    Raises:
        ValueError: if none of the images has a box, or `iou_threshold` is out of range.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold={iou_threshold}: must be above 0 and at most 1")
    number_of = {image.image_id: number for number, image in enumerate(images)}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    true = [
        {**box, "image_id": number_of[box["image_id"]], "category_id": label_of[box["category_id"]]}
        for box in source.coco_ground_truth()["annotations"]
        if box["image_id"] in number_of
    ]
    if not true:
        raise ValueError(f"none of the {len(images)} labeled images has a box; without boxes nothing can be judged")
    found = [row for number, image in enumerate(images) for row in _coco_rows(image, number)]
    matched, ignored = _match(true, found, len(images), len(category_ids), iou_threshold)
    counted = [row for row, is_ignored in zip(found, ignored, strict=True) if not is_ignored]
    objects = [box["category_id"] for box in true if not box["iscrowd"]]
    return Judged(
        scores=np.array([row["score"] for row in counted], dtype=np.float64),
        labels=np.array([row["category_id"] for row in counted], dtype=np.int64),
        right=matched[~ignored],
        images=np.array([row["image_id"] for row in counted], dtype=np.int64),
        num_objects=tuple(objects.count(label) for label in range(len(category_ids))),
    )


def _coco_rows(image: DetectedImage, number: int) -> list[dict[str, Any]]:
    boxes = image.found.boxes_xyxy.double()
    boxes_xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    labels, scores = image.found.class_labels.tolist(), image.found.scores.tolist()
    return [
        {"image_id": number, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes_xywh, scores, strict=True)
    ]


def _match(
    true: list[dict[str, Any]], found: list[dict[str, Any]], num_images: int, num_labels: int, iou_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, per row of `found`, whether it matches a box and whether it must not count."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(*(_indexed(rows, num_images, num_labels) for rows in (true, found)), iouType="bbox")
        evaluator.params.iouThrs = np.array([iou_threshold])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, np.inf]], ["all"]
        evaluator.params.maxDets = [max(len(found), 1)]
        evaluator.evaluate()
    matched, ignored = np.zeros(len(found), dtype=bool), np.zeros(len(found), dtype=bool)
    for entry in evaluator.evalImgs:
        if entry is not None:
            rows = np.array(entry["dtIds"], dtype=np.int64) - 1
            matched[rows] = entry["dtMatches"][0] > 0
            ignored[rows] = entry["dtIgnore"][0]
    return matched, ignored


def _indexed(rows: list[dict[str, Any]], num_images: int, num_labels: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(num_images)],
        "categories": [{"id": label} for label in range(num_labels)],
        # pycocotools takes the id 0 for "not matched".
        "annotations": [
            {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": number}
            for number, row in enumerate(rows, start=1)
        ],
    }
    coco.createIndex()
    return coco
