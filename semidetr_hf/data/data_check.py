"""The data check before training: everything that is wrong with the labeled, unlabeled and validation images.

Training stops at the first error of a file and opens a sample of the images; this check goes on and opens all of them.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from .coco import CocoSource
from .coco_check import check_coco_json, check_content
from .coco_json import CocoImage
from .data_problems import CheckedSet, DataReport, Role
from .folder import FolderSource
from .picture_check import Place, check_pictures, path_of
from .sources import _is_read_as_xml, open_source
from .voc import _find_layout, _find_pictures, _read_record

MAX_WORKERS = 32


def check_data(
    labeled: str | Path,
    labeled_images: str | Path | None = None,
    *,
    unlabeled: str | Path | None = None,
    unlabeled_images: str | Path | None = None,
    val: str | Path | None = None,
    val_images: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> DataReport:
    """Check the images and boxes of a run, against themselves and each other.

    Every set is what training takes, see `open_source`. Of a COCO json every entry is checked, of XML files every file
    up to its first error; all images are opened.

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
    sets = [_check_set("labeled", labeled, labeled_images)]
    if unlabeled is not None:
        sets.append(_check_set("unlabeled", unlabeled, unlabeled_images))
    if val is not None:
        # XML files list no categories, and those of the validation images may lack one that was labeled.
        sets.append(_check_set("val", val, val_images, sets[0].categories))
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
    role: Role, path: str | Path, image_folder: str | Path | None, categories: Mapping[int, str] | None = None
) -> CheckedSet:
    path = Path(path)
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"{image_folder}: no such folder; {role}_images must hold the images of {path}")
    if path.suffix.lower() == ".json" and path.is_file():
        return check_coco_json(path, image_folder, role)
    checked = CheckedSet(role=role, path=path)
    is_xml = path.is_file() and path.suffix.lower() == ".txt"
    if is_xml or (path.is_dir() and _is_read_as_xml(path, checked.labeled)):
        _check_xml(image_folder, categories, checked)
        return checked
    source = open_source(path, image_folder, labeled=checked.labeled)
    if isinstance(source, FolderSource):
        checked.images = [CocoImage(image_id, image_id, None) for image_id in source.image_ids]
        checked.folder = source.folder
    return checked


def _check_xml(image_folder: str | Path | None, categories: Mapping[int, str] | None, checked: CheckedSet) -> None:
    """Fill a set from XML files; if they are refused, with one problem for every file that has an error."""
    try:
        source = open_source(checked.path, image_folder, labeled=checked.labeled, categories=categories or None)
    except (FileNotFoundError, ValueError) as error:
        _check_every_xml_file(image_folder, checked)
        if not checked.problems:
            checked.add_refusal("invalid_xml", error, "correct it")
        return
    if not isinstance(source, CocoSource):
        raise ValueError(f"{checked.path}: expected a VOC image set or folder")
    content = source.coco_ground_truth()
    checked.folder = source.image_folder
    numbers: Counter[int | str] = Counter()
    for entry in content["annotations"]:
        # An object of an XML file has no id; it is known by its number in the file.
        numbers[entry["image_id"]] += 1
        entry["id"] = f"object {numbers[entry['image_id']]} of {entry['image_id']}"
    check_content(content, checked)


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
