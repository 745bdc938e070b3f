"""Box average precision and recall as COCO defines them.

Source: pycocotools, the evaluation of the COCO data set; Semi-DETR (arXiv 2307.08095) reports its AP. Where
faster-coco-eval is installed, its reimplementation in C++ counts instead; the numbers are the same, up to the last
bit.

Nothing of this package is imported here: `evaluate` copies the file beside the metric that needs it.
"""

import contextlib
import io
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

try:
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None
try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ModuleNotFoundError as error:
    if faster_coco_eval is None:
        raise ModuleNotFoundError(f"{error}; detections are scored by it: pip install pycocotools") from error

logger = logging.getLogger(__name__)

ImageId = int | str


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The twelve COCO numbers and those of every class, all from 0 to 1; nan where there is nothing to find.

    Attributes:
        ap: mean over the IoU thresholds 0.5, 0.55 .. 0.95 and the classes.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of objects below 32 x 32 pixels.
        ap_medium: of objects from there to 96 x 96 pixels.
        ap_large: of objects above that.
        ar1: recall with one detection per image.
        ar10: recall with ten.
        ar100: recall with `max_detections`, by default 100.
        ar_small: the same, of small objects.
        ar_medium: the same, of medium objects.
        ar_large: the same, of large objects.
        per_class: category name -> AP.
        per_class_ap50: category name -> AP at IoU 0.5.
        per_class_boxes: category name -> number of boxes to find, crowds left out.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    per_class_ap50: dict[str, float] = field(default_factory=dict)
    per_class_boxes: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, those of classes nested; None stands for nan, which JSON cannot hold."""
        return {
            name: {key: none_if_nan(number) for key, number in value.items()}
            if isinstance(value, dict)
            else none_if_nan(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DetectionMetrics":
        """Return the metrics that `to_dict` was called on."""
        numbers: dict[str, Any] = {
            name: {key: _nan_if_none(number) for key, number in value.items()}
            if isinstance(value, dict)
            else _nan_if_none(value)
            for name, value in values.items()
        }
        return cls(**numbers)

    def to_text(self) -> str:
        """Return two tables, of the twelve numbers and of the classes, as lines for a terminal."""
        totals = {name: value for name, value in asdict(self).items() if not name.startswith("per_class")}
        lines = ["all classes", *(f"  {name:24} {in_words(value)}" for name, value in totals.items())]
        return "\n".join(
            [*lines, "", class_table({"AP": self.per_class, "AP50": self.per_class_ap50}, self.per_class_boxes)]
        )


def class_table(columns: Mapping[str, Mapping[str, float]], num_boxes: Mapping[str, int]) -> str:
    """Return the numbers of every class as lines for a terminal.

    Args:
        columns: title -> category name -> number from 0 to 1, nan where there is nothing to find; the titles have the
            same categories.
        num_boxes: category name -> number of boxes to find.
    """
    names = list(num_boxes)
    width = max([24, *map(len, names)])
    lines = [f"{'per class':{width + 2}} {''.join(f'{title:>8}' for title in columns)}{'boxes':>9}"]
    for name in names:
        numbers = [column[name] for column in columns.values()]
        found = "".join(f"{number:8.4f}" for number in numbers)
        if all(map(math.isnan, numbers)):
            found = f"{'no boxes':>{8 * len(numbers)}}"
        lines.append(f"  {name:{width}} {found}{num_boxes[name]:9}")
    return "\n".join(lines)


def in_words(value: float) -> str:
    """Return a number from 0 to 1 with four digits, or what nan means."""
    return "no boxes" if math.isnan(value) else f"{value:.4f}"


def coco_metrics(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], *, max_detections: int = 100
) -> DetectionMetrics:
    """Score detections against a COCO dict.

    Args:
        ground_truth: COCO dict with `images`, `annotations` and `categories`; image ids may be numbers or text.
        detections: dicts with `image_id`, `category_id` (those of `ground_truth`), `bbox` (x, y, width, height in
            pixels of the original image) and `score`; may be empty.
        max_detections: how many of the best detections of an image and class count, above 10.

    Raises:
        ValueError: if a detection or annotation has an image or category id that is not listed, or if `max_detections`
            is not above 10.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections={max_detections}: must be above 10, the second largest number COCO looks at")
    check_ids(ground_truth, detections)
    # pycocotools needs numbers as image ids and takes annotation id 0 for "not matched", so both are renumbered.
    numbers = {image["id"]: number for number, image in enumerate(ground_truth["images"], start=1)}
    images = [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]]
    index, score = _scorer()
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (
            _indexed(index(), images, boxes, ground_truth["categories"], numbers)
            for boxes in (ground_truth["annotations"], detections)
        )
        evaluator = score(truth, found, iouType="bbox")
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return _summarize(evaluator, ground_truth)


def check_ids(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    """Refuse image and category ids that the COCO dict does not list; arguments as in `coco_metrics`.

    Raises:
        ValueError: names the first of them.
    """
    for name, listed in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[listed]}
        for what, entries in (("detections", detections), ("annotations", ground_truth["annotations"])):
            unknown = sorted({entry[name] for entry in entries} - known, key=str)
            if unknown:
                raise ValueError(
                    f"{what} have {name} {unknown[0]!r}, which is not among the {len(known)} {listed} of the ground "
                    f"truth; {len(unknown)} such ids in all"
                )


def _scorer() -> tuple[type[Any], type[Any]]:
    """Return the classes that hold boxes and that score them; both packages offer the same two."""
    if faster_coco_eval is None:
        logger.debug("scoring with pycocotools; faster-coco-eval is not installed")
        return COCO, COCOeval
    logger.debug("scoring with faster-coco-eval %s", faster_coco_eval.__version__)
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _indexed(
    coco: Any,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    numbers: dict[ImageId, int],
) -> Any:
    coco.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [
            {
                "area": annotation["bbox"][2] * annotation["bbox"][3],
                "iscrowd": 0,
                **annotation,
                "id": number,
                "image_id": numbers[annotation["image_id"]],
            }
            for number, annotation in enumerate(annotations, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _summarize(evaluator: Any, ground_truth: dict[str, Any]) -> DetectionMetrics:
    # T IoU thresholds, R recall thresholds, K classes, A area ranges (all, small, medium, large), M detection limits
    precision = evaluator.eval["precision"]  # (T, R, K, A, M), -1 where there is nothing to find
    recall = evaluator.eval["recall"]  # (T, K, A, M), the same
    at_50, at_75 = (np.isclose(evaluator.params.iouThrs, threshold) for threshold in (0.5, 0.75))
    name_of = {category["id"]: category["name"] for category in ground_truth["categories"]}
    rows = {name_of[category_id]: row for row, category_id in enumerate(evaluator.params.catIds)}
    return DetectionMetrics(
        ap=_mean(precision[..., 0, 2]),
        ap50=_mean(precision[at_50, ..., 0, 2]),
        ap75=_mean(precision[at_75, ..., 0, 2]),
        ap_small=_mean(precision[..., 1, 2]),
        ap_medium=_mean(precision[..., 2, 2]),
        ap_large=_mean(precision[..., 3, 2]),
        ar1=_mean(recall[..., 0, 0]),
        ar10=_mean(recall[..., 0, 1]),
        ar100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
        per_class={name: _mean(precision[:, :, row, 0, 2]) for name, row in rows.items()},
        per_class_ap50={name: _mean(precision[at_50, :, row, 0, 2]) for name, row in rows.items()},
        per_class_boxes=boxes_per_class(ground_truth),
    )


def boxes_per_class(ground_truth: Mapping[str, Any]) -> dict[str, int]:
    """Return how many boxes of every category of a COCO dict are to be found, by name; crowds are not."""
    counts = Counter(box["category_id"] for box in ground_truth["annotations"] if not box.get("iscrowd"))
    return {category["name"]: counts[category["id"]] for category in ground_truth["categories"]}


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def none_if_nan(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return None if math.isnan(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value
