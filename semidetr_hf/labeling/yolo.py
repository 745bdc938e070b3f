"""Pseudo-labels as a YOLO data set: a data.yaml, images, and a text file of boxes for each.

Source: the layout is that of Ultralytics' documentation; the confidence behind a box is how its predictions are saved.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml
from tqdm.auto import tqdm

from semidetr_hf.data.category_ids import write_category_ids
from semidetr_hf.labeling.coco import label_rows
from semidetr_hf.labeling.image_files import place_image, ranked_name
from semidetr_hf.labeling.labels import LabeledImage

DECIMALS = 8  # of the size of an image: a thousandth of a pixel of the largest ones


def write_yolo(
    folder: Path,
    images: Sequence[LabeledImage],
    files: Sequence[Path],
    categories: dict[int, str],
    *,
    confidence: bool,
    progress: bool,
) -> None:
    """Write a folder that `open_source` reads as labeled data, as long as it is written without confidences.

    File names begin with the rank of the image, so that every program lists the most uncertain one first.

    Args:
        folder: to write to; must not exist.
        images: in this order.
        files: of the images; the folder gets hard links to them, or copies where there can be none.
        categories: category id -> name, for class label i at place i; classes are numbered by their place.
        progress: whether to show a bar.
        confidence: whether the score is written behind every box, as a sixth number. Programs that train on such files
            do not all take it; `open_source` does not.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for rank, (image, file) in enumerate(
        tqdm(
            zip(images, files, strict=True), total=len(images), desc="YOLO files", unit="image", disable=not progress
        ),
        start=1,
    ):
        name = ranked_name(rank, file)
        place_image(file, folder / "images" / name)
        lines = _lines(image, confidence)
        (folder / "labels" / name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    names = dict(enumerate(categories.values()))
    text = yaml.safe_dump({"train": "images", "names": names}, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    write_category_ids(folder, categories)


def _lines(image: LabeledImage, confidence: bool) -> list[str]:
    height, width = image.detected.size
    lines = []
    for label, score, (x, y, box_width, box_height) in label_rows(image):
        shares = ((x + box_width / 2) / width, (y + box_height / 2) / height, box_width / width, box_height / height)
        numbers = [*shares, score] if confidence else shares
        lines.append(" ".join([str(label), *(f"{number:.{DECIMALS}f}" for number in numbers)]) + "\n")
    return lines
