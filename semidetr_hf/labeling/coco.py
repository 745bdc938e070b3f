"""Pseudo-labels as a COCO json, and the list of images in the order in which to look at them."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semidetr_hf.data.splits import open_whole
from semidetr_hf.labeling.labels import LabeledImage

DECIMALS = 3  # of a pixel

RANKING_COLUMNS = ("rank", "image_id", "file", "uncertainty_bits", "labels", "lowest_score", "considered")


def write_coco(
    path: Path,
    images: Sequence[LabeledImage],
    files: Sequence[Path],
    categories: dict[int, str],
    *,
    start: Path,
    info: dict[str, Any],
) -> None:
    """Write a COCO json that `open_source` reads as labeled data.

    Beyond what COCO has, images carry `uncertainty` (bits) and annotations `score` (0 to 1); readers of labels, this
    package's among them, pass over both.

    Args:
        path: the file to write.
        images: in this order.
        files: of the images, absolute.
        categories: category id -> name, for class label i at place i.
        start: folder from which the file names lead to the images: that of the json, in the end.
        info: what it says about itself.
    """
    ids = list(categories)
    annotations: list[dict[str, Any]] = []
    for image in images:
        for label, score, bbox in label_rows(image):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.detected.image_id,
                    "category_id": ids[label],
                    "bbox": [round(value, DECIMALS) for value in bbox],
                    "area": round(bbox[2] * bbox[3], DECIMALS),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    content = {
        "info": info,
        "images": [
            {
                "id": image.detected.image_id,
                "file_name": _from(start, file),
                "height": image.detected.size[0],
                "width": image.detected.size[1],
                "uncertainty": image.uncertainty,
            }
            for image, file in zip(images, files, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
    }
    with open_whole(path) as file:
        json.dump(content, file, ensure_ascii=False)
        file.write("\n")


def write_ranking(path: Path, images: Sequence[LabeledImage], files: Sequence[Path]) -> None:
    """Write a csv with one line per image, in the order given."""
    with open_whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RANKING_COLUMNS)
        for rank, (image, place) in enumerate(zip(images, files, strict=True), start=1):
            lowest = f"{image.labels.scores.min().item():.4f}" if len(image.labels) else ""
            counts = [len(image.labels), lowest, len(image.considered)]
            writer.writerow([rank, image.detected.image_id, place, f"{image.uncertainty:.4f}", *counts])


def label_rows(image: LabeledImage) -> list[tuple[int, float, list[float]]]:
    """Return class label, score and box (x, y, width, height in pixels) of every label of an image."""
    corners = image.labels.boxes_xyxy.double().tolist()
    scores, labels = image.labels.scores.double().tolist(), image.labels.class_labels.tolist()
    return [
        (label, score, [x1, y1, x2 - x1, y2 - y1])
        for label, score, (x1, y1, x2, y2) in zip(labels, scores, corners, strict=True)
    ]


def _from(start: Path, file: Path) -> str:
    try:
        return Path(os.path.relpath(file, start)).as_posix()
    except ValueError:  # another drive of Windows
        return file.as_posix()
