"""The kept network on the validation images: its classes, curves and confusions, its best and worst images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.metrics.coco_detection.coco_metrics import coco_metrics
from semidetr_hf.report.charts import LineChart, Series, line_chart
from semidetr_hf.report.pictures import Picture, detection_picture
from semidetr_hf.report.scoring import (
    RECALLS,
    THRESHOLDS,
    ClassCurve,
    ImageBoxes,
    compare_boxes,
    confusion_matrices,
    f1_scores,
    match,
    precision_curves,
)
from semidetr_hf.training.evaluation import detect_all
from semidetr_hf.training.saved_detectors import load_detector

MAX_CLASSES = 20  # of the table of confusions: those with the most boxes
BACKGROUND = "background"


@dataclass(frozen=True)
class ClassRow:
    """One class: its AP, None where the validation images have no box of it, and how many boxes of it there are."""

    name: str
    ap: float | None
    ap50: float | None
    num_labeled: int
    num_val: int


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """What was taken for what, at every threshold of `THRESHOLDS`.

    Attributes:
        names: of rows and columns; the last is the background.
        matrices: per threshold the counts, row = true class, column = detected class.
        f1: per threshold, of all classes together.
        chosen: place of the threshold with the highest F1.
        num_hidden: classes with fewer boxes, which are left out.
    """

    names: list[str]
    matrices: list[list[list[int]]]
    f1: list[float]
    chosen: int
    num_hidden: int


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """What the kept network finds on the validation images.

    Attributes:
        ap: mean over the classes.
        num_images: that could be read.
        classes: the best one first, those without a box last.
        precision: precision over recall, the first line the mean over classes, then a line per class; None where no
            class has a box.
        confusions: and the score threshold with the highest F1, at which images are shown.
        best: images of the highest F1, the one with the most boxes first among equal ones.
        worst: images of the lowest F1, the one with the most errors first among equal ones.
    """

    ap: float | None
    num_images: int
    classes: list[ClassRow]
    precision: LineChart | None
    confusions: Confusions
    best: list[Picture]
    worst: list[Picture]


def score_kept(
    folder: Path,
    val: CocoSource,
    labeled: CocoSource,
    *,
    accelerator: Accelerator,
    batch_size: int,
    num_pictures: int,
    progress: bool,
) -> KeptScores:
    """Evaluate a saved detector and look at its detections; in one process.

    Args:
        folder: of the detector.
        val: images to evaluate on.
        labeled: images that it was trained on, whose boxes are counted.
        accelerator: says which process this is, and on which device the detector runs.
        batch_size: images per process and forward pass.
        num_pictures: how many of the best and of the worst images are shown.
        progress: whether to show progress bars.

    Raises:
        FileNotFoundError: if there is no detector in the folder.
        ValueError: if the detector cannot be loaded or no image can be read.
    """
    model, processor = load_detector("best", folder)
    model.to(accelerator.device)
    detections, truth = detect_all(
        model,
        processor,
        val,
        batch_size=batch_size,
        accelerator=accelerator,
        desc="evaluate the kept network",
        progress=progress,
    )
    metrics = coco_metrics(truth, detections)
    names = list(val.category_names)
    images = compare_boxes(truth, detections)
    confusions = _confusions(names, confusion_matrices(images, len(names), progress=progress))
    threshold = THRESHOLDS[confusions.chosen]
    best, worst = _best_and_worst(images, threshold, num_pictures)
    classes = [
        ClassRow(name, _known(metrics.per_class[name]), _known(metrics.per_class_ap50[name]), count, num_val)
        for name, count, num_val in zip(names, labeled.class_counts, val.class_counts, strict=True)
    ]
    return KeptScores(
        ap=_known(metrics.ap),
        num_images=len(images),
        classes=sorted(classes, key=lambda row: (row.ap is None, -(row.ap or 0.0))),
        precision=_precision_chart(precision_curves(truth, detections)),
        confusions=confusions,
        best=[detection_picture(val, image, match(image, threshold), names) for image in best],
        worst=[detection_picture(val, image, match(image, threshold), names) for image in worst],
    )


def _best_and_worst(
    images: Sequence[ImageBoxes], threshold: float, count: int
) -> tuple[list[ImageBoxes], list[ImageBoxes]]:
    """Return the images of the highest and of the lowest F1, none of them twice."""
    scored = [(image, matches) for image in images if (matches := match(image, threshold)).f1 is not None]
    # Of equally good ones that with more boxes says more, of equally bad ones that with more errors.
    scored.sort(key=lambda pair: (pair[1].f1, len(pair[1].right), -len(pair[1].counted) - len(pair[0].truth)))
    count = min(count, len(scored) // 2)
    ordered = [image for image, _ in scored]
    return ordered[::-1][:count], ordered[:count]


def _confusions(names: list[str], counts: np.ndarray) -> Confusions:
    f1 = f1_scores(counts)
    num_boxes = counts[0, :-1].sum(axis=1)  # the same at every threshold
    shown = sorted(np.argsort(-num_boxes, kind="stable")[:MAX_CLASSES].tolist())
    kept = [*shown, len(names)]
    return Confusions(
        names=[*(names[label] for label in shown), BACKGROUND],
        matrices=counts[:, kept][:, :, kept].tolist(),
        f1=f1.tolist(),
        chosen=int(f1.argmax()),
        num_hidden=len(names) - len(shown),
    )


def _precision_chart(curves: Sequence[ClassCurve]) -> LineChart | None:
    if not curves:
        return None
    mean = np.mean([curve.precision for curve in curves], axis=0).tolist()
    lines = [("mean of all classes", float(np.mean(mean)), mean)]
    lines += [(curve.name, curve.ap50, curve.precision) for curve in curves]
    series = [
        Series(f"{name} (AP50 {ap50:.3f})", list(zip(RECALLS, precision, strict=True)), int(number > 0), number == 0)
        for number, (name, ap50, precision) in enumerate(lines)
    ]
    return line_chart(
        "Precision over recall at IoU 0.5", series, x_label="recall", x_range=(0.0, 1.0), y_range=(0.0, 1.0)
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
