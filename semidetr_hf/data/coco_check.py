"""Everything that is wrong in a COCO json file, where the reader stops at the first entry that it refuses.

What is an error decides the reader itself: every entry is put before it alone, and its words are kept. Only ids that
occur twice, and boxes and categories that it drops or allows, are looked at here.
"""

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .coco import find_image_folder
from .coco_json import (
    MIN_BOX_SIZE,
    CocoAnnotation,
    CocoDocument,
    CocoImage,
    _parse,
    _read_annotations,
    _read_categories,
    _read_images,
    visible_box,
)
from .data_problems import CheckedSet, Fix, Role

MAX_OVERHANG = 0.5  # pixels; rounding to whole pixels moves an edge no further
MIN_BOXES_OF_CLASS = 5  # fewer are hardly learned, and no teacher finds such objects

Box = tuple[float, float, float, float]
ImageId = int | str


def check_coco_json(path: Path, image_folder: str | Path | None, role: Role) -> CheckedSet:
    """Find everything that is wrong in a COCO json file, without opening its images.

    Args:
        path: the file.
        image_folder: as for `CocoSource`.
        role: of unlabeled images the annotations are not looked at, as the reader does not.

    Returns:
        The set with its problems; `locate` is None if the images were not found.
    """
    status = path.stat()
    checked = CheckedSet(role=role, path=path, is_coco=True, stamp=(status.st_size, status.st_mtime_ns))
    try:
        content = _parse(path)
    except ValueError as error:
        checked.add_refusal("not_coco", error, "export it again as COCO json")
        return checked
    check_content(content, checked)
    if checked.images:
        _find_folder(image_folder, checked)
    return checked


def check_content(content: dict[str, Any], checked: CheckedSet) -> None:
    """Check images, categories and annotations; the set gets its images, categories, counts and problems."""
    needed = ("images", "annotations", "categories") if checked.labeled else ("images",)
    lists = {key: content[key] for key in needed if isinstance(content.get(key), list)}
    for key in needed:
        if key not in lists:
            advice = "a COCO file needs images, annotations and categories; export it again"
            checked.add("error", "missing_field", f'has no list "{key}"', advice)
    sizes = _check_images(lists["images"], checked) if "images" in lists else None
    names = _check_categories(content.get("categories", []), checked)
    annotations = lists.get("annotations", [])
    if "categories" not in lists:
        # The missing list is one problem, not one for every annotation.
        names = {entry.get("category_id"): "" for entry in annotations if _has_id(entry, "category_id")}
    if sizes is not None and "annotations" in lists:
        _check_annotations(annotations, sizes, names, checked)
        check_class_counts(checked)


def check_class_counts(checked: CheckedSet) -> None:
    """Look for classes that cannot be learned or measured, and for a set without any box."""
    counts = checked.class_counts
    if counts.total() == 0:
        value = f"{len(checked.images)} images, but not one usable box"
        checked.add("error", "no_boxes", value, "give it annotations")
        return
    for category_id, name in checked.categories.items():
        if counts[category_id] == 0:
            lost = "cannot be learned" if checked.role == "labeled" else "has no AP"
            value = f"no box of class {name!r} (id {category_id}), which {lost}"
            checked.add("warning", "class_without_boxes", value, "add boxes or remove the category from all sets")
        elif counts[category_id] < MIN_BOXES_OF_CLASS and checked.role == "labeled":
            value = f"only {counts[category_id]} boxes of class {name!r} (id {category_id})"
            checked.add("warning", "few_boxes", value, "label more of them, or expect a low AP")


def check_box(bbox: Box, size: tuple[int, int] | None, checked: CheckedSet, **where: Any) -> bool:
    """Check a box that the reader accepts against its image.

    Args:
        bbox: (x, y, width, height) in pixels.
        size: (height, width) of the image; None when unknown, then only left and top are compared.
        checked: gets the problem.
        where: what `CheckedSet.add` takes.

    Returns:
        Whether something of the box is left to train on.
    """
    x, y, box_width, box_height = bbox
    name = f"annotation {where['annotation_id']} has bbox=[{', '.join(f'{value:.10g}' for value in bbox)}]"
    image = "" if size is None else f" in an image of {size[1]}x{size[0]} pixels (width x height)"
    if visible_box(bbox, size) is None:
        narrow = box_width < MIN_BOX_SIZE or box_height < MIN_BOX_SIZE
        kind = "degenerate" if narrow else "outside"
        fault = f", narrower than {MIN_BOX_SIZE:g} pixel" if narrow else image
        advice = "it is no training target: correct or remove it"
        checked.add("warning", kind, name + fault, advice, fix="drop_annotation", **where)
        return False
    height, width = size if size is not None else (math.inf, math.inf)
    if max(-x, -y, x + box_width - width, y + box_height - height) > MAX_OVERHANG:
        advice = "it is clipped to the image: correct it if the size or the corners are wrong"
        checked.add("warning", "sticks_out", name + image, advice, fix="clip_box", **where)
    return True


def _find_folder(image_folder: str | Path | None, checked: CheckedSet) -> None:
    try:
        folder = find_image_folder(checked.path, checked.images, image_folder)
    except (FileNotFoundError, ValueError) as error:
        if image_folder is None:
            checked.add_refusal("image_folder", error, "give the image folder")
            return
        # The folder is known, so every missing file can be named.
        folder = Path(image_folder)
    checked.locate = lambda index: folder / checked.images[index].file_name


def _check_images(entries: list[Any], checked: CheckedSet) -> dict[ImageId, tuple[int, int] | None]:
    """Return the size of every image that annotations may belong to."""
    if not entries:
        checked.add("error", "no_images", '"images" is empty', "a source needs at least one image")
    first: dict[ImageId, Any] = {}
    sizes: dict[ImageId, tuple[int, int] | None] = {}
    for place, entry in enumerate(entries):
        where: dict[str, Any] = {"place": place, "fix": "drop_image"}
        if not _has_id(entry, "id"):
            found = f"has id={entry.get('id')!r}" if isinstance(entry, dict) else f"is {entry!r}"
            advice = 'give every image an integer or string "id"'
            checked.add("error", "missing_field", f'entry {place} of "images" {found}', advice, **where)
            continue
        image_id = where["image_id"] = entry["id"]
        if image_id in first:
            _add_repeated(
                "error", "duplicate_image_id", f"image id {image_id!r}", entry == first[image_id], where, checked
            )
            continue
        first[image_id], sizes[image_id] = entry, None
        try:
            [image] = _read_images(checked.path, [entry])
        except ValueError as error:
            named = isinstance(entry.get("file_name"), str) and entry["file_name"]
            kind = "invalid_size" if named else "missing_field"
            checked.add_refusal(kind, error, "correct or remove the entry", **where)
            continue
        sizes[image_id] = image.size
        checked.images.append(image)
        checked.places.append(place)
    _check_missing_sizes(checked)
    return sizes


def _check_missing_sizes(checked: CheckedSet) -> None:
    without = [image.image_id for image in checked.images if image.size is None]
    # Only a json may have sizes of its own; of other formats they are those of the pictures, or always there.
    if without and checked.labeled and checked.is_coco:
        value = f"{len(without)} of {len(checked.images)} images lack width or height, the first is {without[0]!r}"
        advice = "add them: without, a picture that was resized after labeling goes unnoticed"
        checked.add("warning", "missing_size", value, advice, fix="fill_in_size")


def _check_categories(entries: Any, checked: CheckedSet) -> dict[int, str]:
    """Return the categories that annotations may refer to, also those that the reader refuses."""
    if not isinstance(entries, list):
        if not checked.labeled and entries:
            advice = "leave the key out, or write a list"
            checked.add("error", "invalid_category", f'"categories" is {entries!r}', advice)
        return {}
    first: dict[int, Any] = {}
    for place, entry in enumerate(entries):
        try:
            [(category_id, name)] = _read_categories(checked.path, [entry]).items()
        except ValueError as error:
            checked.add_refusal("invalid_category", error, "correct the entry")
            if _has_id(entry, "id"):
                first.setdefault(entry["id"], entry)
            continue
        if category_id in first:
            where: dict[str, Any] = {"place": place, "fix": "drop_category"}
            same = entry == first[category_id]
            _add_repeated("error", "duplicate_category_id", f"category id {category_id}", same, where, checked)
            continue
        first[category_id] = entry
        checked.categories[category_id] = name
    checked.categories = dict(sorted(checked.categories.items()))
    for name, count in Counter(checked.categories.values()).items():
        if count > 1:
            value = f"{count} categories are named {name!r}"
            checked.add("warning", "duplicate_category_name", value, "give every category its own name")
    return dict.fromkeys(first, "")


def _check_annotations(
    entries: list[Any], sizes: dict[ImageId, tuple[int, int] | None], names: dict[int, str], checked: CheckedSet
) -> None:
    first: dict[ImageId, Any] = {}
    for place, entry in enumerate(entries):
        where: dict[str, Any] = {"place": place}
        if not isinstance(entry, dict):
            value = f'entry {place} of "annotations" is {entry!r}, not an object'
            checked.add("error", "invalid_annotation", value, "remove it", fix="drop_annotation", **where)
            continue
        where |= {"image_id": entry.get("image_id"), "annotation_id": entry.get("id", f"at place {place}")}
        if _has_id(entry, "id") and first.setdefault(entry["id"], entry) is not entry:
            same = entry == first[entry["id"]]
            repeated = where | {"fix": "drop_annotation"}
            _add_repeated(
                "warning", "duplicate_annotation_id", f"annotation id {entry['id']!r}", same, repeated, checked
            )
        try:
            annotation = _read_alone(entry, where["annotation_id"], sizes, names, checked)
        except ValueError as error:
            kind = _refused_kind(entry, sizes, names)
            fix: Fix = "drop_area" if kind == "invalid_area" else "drop_annotation"
            checked.add_refusal(kind, error, "correct or remove it", fix=fix, **where)
            if kind != "invalid_area":
                continue
            annotation = _read_alone(entry | {"area": None}, where["annotation_id"], sizes, names, checked)
        _check_usable(annotation, sizes[entry["image_id"]], checked, **where)


def _read_alone(
    entry: dict[str, Any],
    annotation_id: Any,
    sizes: dict[ImageId, tuple[int, int] | None],
    names: dict[int, str],
    checked: CheckedSet,
) -> CocoAnnotation:
    """Put one annotation before the reader.

    Raises:
        ValueError: if the reader refuses it.
    """
    image_id = entry.get("image_id")
    images = [CocoImage(image_id, "", sizes[image_id])] if _has_id(entry, "image_id") and image_id in sizes else []
    document = CocoDocument(images=images, categories=names, annotations={})
    _read_annotations(checked.path, [entry | {"id": annotation_id}], document)
    return document.annotations[entry["image_id"]][0]


def _check_usable(annotation: CocoAnnotation, size: tuple[int, int] | None, checked: CheckedSet, **where: Any) -> None:
    """Check and count a box that is neither a crowd nor ignored."""
    # The reader marks what it drops; of crowds and ignored boxes nobody wants to hear.
    if annotation.is_crowd:
        return
    if size is None:
        waiting = checked.unsized.setdefault(where["image_id"], [])
        waiting.append((where["place"], where["annotation_id"], annotation.bbox))
    else:
        check_box(annotation.bbox, size, checked, **where)
    checked.class_counts[annotation.category_id] += annotation.usable


def _refused_kind(entry: dict[str, Any], sizes: dict[ImageId, Any], names: dict[int, str]) -> str:
    if not _has_id(entry, "image_id") or entry["image_id"] not in sizes:
        return "orphan_annotation"
    if not isinstance(entry.get("category_id"), int) or entry["category_id"] not in names:
        return "unknown_category"
    bbox = entry.get("bbox")
    if bbox is None:
        return "missing_field"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        return "invalid_box"
    # Compared, since isfinite fails on whole numbers that no float can hold.
    if not all(abs(value) <= sys.float_info.max for value in bbox):
        return "not_finite"
    return "degenerate" if min(bbox[2:]) < 0 else "invalid_area"


def _add_repeated(severity: Any, kind: str, name: str, same: bool, where: dict[str, Any], checked: CheckedSet) -> None:
    entries = "two entries that are the same" if same else "two different entries"
    advice = "remove one of them" if same else "give each an id of its own; which of them is right only you can tell"
    where["fix"] = where["fix"] if same else None
    checked.add(severity, kind, f"{name} has {entries}", advice, **where)


def _has_id(entry: Any, key: str) -> bool:
    """Whether an entry has an id as the reader takes it: an integer or a string."""
    return isinstance(entry, dict) and isinstance(entry.get(key), int | str)
