"""The files of a review, in a folder that is complete or not there."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semidetr_hf.data.sources import Source
from semidetr_hf.data.splits import open_whole
from semidetr_hf.labeling.coco import write_coco, write_ranking
from semidetr_hf.labeling.image_files import unpack_images
from semidetr_hf.labeling.label_studio import write_label_studio, write_labeling_setup
from semidetr_hf.labeling.labels import LabeledImage
from semidetr_hf.labeling.review import Review, ReviewConfig
from semidetr_hf.labeling.yolo import write_yolo
from semidetr_hf.visualization import detection_sheet


def require_free(folder: Path) -> None:
    """Check that a folder does not exist or is empty.

    Raises:
        FileExistsError: if there is something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is no empty folder; give another place, or remove it")


def write_review_folder(review: Review, source: Source, config: ReviewConfig) -> None:
    """Write what `write_review` says is in its folder.

    Args:
        review: what to write, and where.
        source: of the images.
        config: says in which formats.

    Raises:
        OSError: if something cannot be written; nothing is left then.
        ValueError: if an image is not below the root for Label Studio.
    """
    with whole_folder(review.folder) as folder:
        _write_files(folder, review, source, config)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder to write to, which gets its name when everything is written and goes away otherwise.

    Args:
        folder: what it is called in the end; must not exist or be empty.

    Raises:
        OSError: if it cannot be made.
    """
    partial = folder.parent.resolve() / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(folder: Path, review: Review, source: Source, config: ReviewConfig) -> None:
    final = review.folder.parent.resolve() / review.folder.name
    files = unpack_images(review.images, source, folder)
    # What was unpacked is not yet where it will be found.
    found_at = [final / file.relative_to(folder) if file.is_relative_to(folder) else file for file in files]
    names = list(review.categories.values())
    if "coco" in config.formats:
        info = {"description": f"pseudo-labels of {review.model}"}
        write_coco(folder / "labels.json", review.images, found_at, review.categories, start=final, info=info)
    if "label-studio" in config.formats:
        write_label_studio(
            folder / "label_studio.json",
            review.images,
            found_at,
            names,
            model_version=review.model,
            prefix=config.label_studio_prefix,
            root=config.label_studio_root,
        )
        write_labeling_setup(folder / "label_studio_setup.xml", names)
    if "yolo" in config.formats:
        write_yolo(
            folder / "yolo",
            review.images,
            files,
            review.categories,
            confidence=config.yolo_confidence,
            progress=config.progress,
        )
    write_ranking(folder / "ranking.csv", review.images, found_at)
    if config.sheet:
        _write_sheet(folder / "most_uncertain.png", review.images[: config.sheet], source, names)
    with open_whole(folder / "review.json") as file:
        json.dump(review.to_dict(), file, ensure_ascii=False, indent=2)
        file.write("\n")


def _write_sheet(path: Path, images: Sequence[LabeledImage], source: Source, names: Sequence[str]) -> None:
    """Draw the labels on the left, and on the right everything that might be one, with scores."""
    detection_sheet(
        [source[image.detected.index].image for image in images],
        [
            {"boxes": found.boxes_xyxy, "labels": found.class_labels, "scores": found.scores}
            for found in (image.considered for image in images)
        ],
        [{"boxes": image.labels.boxes_xyxy, "labels": image.labels.class_labels} for image in images],
        names,
        path,
    )
