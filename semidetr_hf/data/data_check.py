"""The data check before training: everything that is wrong with the labeled, unlabeled and validation images.

Training stops at the first error of a file and opens a sample of the images; this check goes on and opens all of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .coco import CocoSource
from .coco_check import check_coco_json, check_content
from .coco_json import CocoImage
from .data_problems import CheckedSet, DataReport, Role
from .picture_check import Place, check_pictures, path_of
from .sources import Found, Source, find_reader, open_source
from .voc import _find_layout, _find_pictures, _read_record

if TYPE_CHECKING:
    from .hub import BboxFormat

MAX_WORKERS = 32


def check_data(
    labeled: str | Path,
    labeled_images: str | Path | None = None,
    *,
    unlabeled: str | Path | None = None,
    unlabeled_images: str | Path | None = None,
    val: str | Path | None = None,
    val_images: str | Path | None = None,
    bbox_format: "BboxFormat" = "xywh",
    workers: int | None = None,
    progress: bool = False,
) -> DataReport:
    """Check the images and boxes of a run, against themselves and each other.

    Every set is what training takes, see `open_source`. Of a COCO json every entry is checked, of label
    files every line, of XML files every file up to its first error, of a `datasets` data set all up to the first row
    that is refused; all images are opened.

    The same picture (see `picture_check.digest_of`) in training and validation is an error: training would start, but
    its metric would be measured on what the detector was trained on, which no later step can notice or mend. That an
    unlabeled image is also a labeled one only wastes a step. Pictures of one color are equal to each other, too.

    Args:
        labeled: images with boxes.
        labeled_images: folder of its images; None to look around it.
        unlabeled: images without boxes.
        unlabeled_images: likewise.
        val: images with boxes to evaluate on.
        val_images: likewise.
        bbox_format: of data sets, see `HubSource`.
        workers: threads that open images; None for one per processor.
        progress: whether to show a bar on a terminal.

    Returns:
        The checked sets with their problems. If none is an error, training starts with these sets.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ValueError: if a path is nothing that training takes, images are given for no set, or `workers` is below 1.
        OSError: if a json cannot be read.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: must be 1 or more, or left out for one per processor")
    for role, path, images in (("unlabeled", unlabeled, unlabeled_images), ("val", val, val_images)):
        if path is None and images is not None:
            raise ValueError(f"{role}_images={str(images)!r} is of no use without {role}; give both")
    sets = [_check_set("labeled", labeled, labeled_images, bbox_format=bbox_format)]
    if unlabeled is not None:
        sets.append(_check_set("unlabeled", unlabeled, unlabeled_images))
    if val is not None:
        # XML files list no categories, and those of the validation images may lack one that was labeled.
        sets.append(_check_set("val", val, val_images, sets[0].categories, bbox_format=bbox_format))
        _compare_categories(sets[0], sets[-1])
    groups = check_pictures(sets, workers=workers or min(os.cpu_count() or 1, MAX_WORKERS), progress=progress)
    for checked in sets:
        if checked.num_usable == 0 and checked.images:
            value = f"not one of its {len(checked.images)} images can be used"
            checked.add("error", "none_readable", value, "see the first of them; is it the right image folder?")
    for group in groups:
        _note_equal(group, sets)
    return DataReport(sets)


def _check_set(
    role: Role,
    path: str | Path,
    image_folder: str | Path | None,
    categories: Mapping[int, str] | None = None,
    *,
    bbox_format: "BboxFormat" = "xywh",
) -> CheckedSet:
    checked = CheckedSet(role=role, path=Path(path))
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"{image_folder}: no such folder; {role}_images must hold the images of {path}")
    found = find_reader(path, labeled=checked.labeled)
    if found.reader == "coco":
        return check_coco_json(Path(found.path), image_folder, role)

    def open_it() -> Source:
        return open_source(
            path,
            image_folder,
            labeled=checked.labeled,
            part="val" if role == "val" else "train",
            categories=categories or None,
            bbox_format=bbox_format,
        )

    match found.reader:
        case "voc":
            if not os.path.exists(found.path):
                open_it()  # refuses it: a wrong argument, not a problem of the data
            _check_source(open_it, checked, "invalid_xml", lambda: _check_every_xml_file(image_folder, checked))
        case "yolo":
            _check_source(open_it, checked, "invalid_yolo", lambda: _check_every_label_file(found, checked))
        case "datasets":
            _check_source(open_it, checked, "invalid_data_set", lambda: None)
        case "list" | "tar" | "folder":
            source = open_it()
            checked.images = [CocoImage(image_id, str(image_id), None) for image_id in source.image_ids]
            checked.locate = source.path
    return checked


def _check_source(
    open_it: Callable[[], Source], checked: CheckedSet, kind: str, look_closer: Callable[[], None]
) -> None:
    """Fill a set from its source; of one that is refused, `look_closer` notes every problem rather than the first."""
    try:
        source = open_it()
    except (FileNotFoundError, ValueError) as error:
        look_closer()
        if not checked.problems:
            checked.add_refusal(kind, error, "correct it")
        return
    if not isinstance(source, CocoSource):
        raise ValueError(f"{checked.path}: expected a source with boxes")
    content = source.coco_ground_truth()
    checked.locate = source.path
    numbers: Counter[int | str] = Counter()
    for entry in content["annotations"]:
        # An object of such a file has no id; it is known by its number in the file.
        numbers[entry["image_id"]] += 1
        entry["id"] = f"object {numbers[entry['image_id']]} of {entry['image_id']}"
    check_content(content, checked)


def _check_every_label_file(found: Found, checked: CheckedSet) -> None:
    from .yolo import find_yaml, read_yolo

    key = found.split or ("val" if checked.role == "val" else "train")
    try:
        complaints = read_yolo(find_yaml(found.path), key, labeled=checked.labeled).complaints
    except (FileNotFoundError, ValueError):
        return  # the source was refused with the same words
    for complaint in complaints:
        error = ValueError(complaint.message)
        checked.add_refusal(complaint.kind, error, "correct it", file=complaint.file, image_id=complaint.image_id)


def _check_every_xml_file(image_folder: str | Path | None, checked: CheckedSet) -> None:
    try:
        layout = _find_layout(checked.path, image_folder)
    except (FileNotFoundError, ValueError) as error:
        checked.add_refusal("invalid_xml", error, "correct it")
        return
    for image_id in layout.image_ids if checked.labeled else ():
        file = layout.annotations / f"{image_id}.xml"
        try:
            _read_record(file)
        except (FileNotFoundError, ValueError) as error:
            checked.add_refusal("invalid_xml", error, "correct it", file=file, image_id=image_id)
    try:
        _find_pictures(layout)
    except (FileNotFoundError, ValueError) as error:
        checked.add_refusal("missing_file", error, "give the image folder")


def _compare_categories(labeled: CheckedSet, val: CheckedSet) -> None:
    ours, theirs = labeled.categories, val.categories
    # A set that was refused as a whole has none.
    if not ours or not theirs:
        return
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            value = (
                f"category id {key} is {ours.get(key, 'missing')!r} in labeled but {theirs.get(key, 'missing')!r} here"
            )
            val.add("error", "category_mismatch", value, "write the same categories into both")


def _note_equal(group: Sequence[Place], sets: Sequence[CheckedSet]) -> None:
    """Note one picture that is there several times, at every place but the first that is entitled to it."""
    first: dict[Role, Place] = {}
    for place in group:
        first.setdefault(sets[place.set_index].role, place)
    for place in group:
        role = sets[place.set_index].role
        if role != "val" and "val" in first:
            advice = "remove it from training, or the metric is measured on what was trained on"
            _note_copy("leak", place, first["val"], advice, sets)
        if first[role] != place:
            advice = "keep one of them, unless it is meant to count twice"
            _note_copy("duplicate_content", place, first[role], advice, sets)
        if role == "unlabeled" and "labeled" in first:
            advice = "remove it from the unlabeled images: its boxes are known"
            _note_copy("also_labeled", place, first["labeled"], advice, sets)


def _note_copy(kind: str, place: Place, original: Place, advice: str, sets: Sequence[CheckedSet]) -> None:
    checked, other = sets[place.set_index], sets[original.set_index]
    image = other.images[original.image_index]
    same_json = checked.path.resolve() == other.path.resolve()
    checked.add(
        "error" if kind == "leak" else "warning",
        kind,
        f"same pixels as {other.role} image {image.image_id!r}, {path_of(other, original.image_index)}",
        advice,
        file=path_of(checked, place.image_index),
        image_id=checked.images[place.image_index].image_id,
        # Of a json that is used twice the images would also be gone from validation.
        fix="drop_image" if kind == "leak" and not same_json else None,
        place=checked.places[place.image_index] if checked.places else None,
    )
