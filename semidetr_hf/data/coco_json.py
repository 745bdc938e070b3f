"""A COCO json file is read and checked; what is left is the little that training and evaluation need.

Every complaint is one line: the file, the id, the bad value, the way out.
"""

import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

MIN_BOX_SIZE = 1.0  # pixels, after clipping; the released code drops narrower boxes as well


class CocoImage(NamedTuple):
    """One entry of `images`; `size` is (height, width) in pixels, None when the file does not say."""

    image_id: int | str
    file_name: str
    size: tuple[int, int] | None


class CocoAnnotation(NamedTuple):
    """One entry of `annotations`; `bbox` is (x, y, width, height) in pixels, `usable` = a box to train on."""

    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    usable: bool


@dataclass(frozen=True, kw_only=True)
class CocoDocument:
    """The checked content of one file.

    Attributes:
        images: in the order of the file.
        categories: category id -> name, by ascending id.
        annotations: image id -> its annotations, in the order of the file; images without any are absent.
        dropped: why and how often an annotation is no box to train on.
    """

    images: list[CocoImage]
    categories: dict[int, str]
    annotations: dict[int | str, list[CocoAnnotation]]
    dropped: Counter[str] = field(default_factory=Counter)


def read_coco_json(path: Path, *, labeled: bool = True) -> CocoDocument:
    """Read and check a COCO json file.

    Args:
        path: the file.
        labeled: False to leave the annotations unread; `annotations` and `categories` may then be missing, as they are
            in COCO's file of unlabeled images.

    Returns:
        The checked content.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not json, lacks a key, lists no image, or any entry is wrong; names the entry.
    """
    return checked_document(path, _parse(path), labeled=labeled)


def checked_document(path: Path, content: dict[str, Any], *, labeled: bool = True) -> CocoDocument:
    """Check the content of a COCO json, or what was read elsewhere and put into the same form.

    Args:
        path: of the file or data set, with which every complaint begins.
        content: the lists `images`, `annotations` and `categories`.
        labeled: as in `read_coco_json`.

    Raises:
        ValueError: as in `read_coco_json`.
    """
    for key in ("images", "annotations", "categories") if labeled else ("images",):
        if not isinstance(content.get(key), list):
            raise ValueError(f'{path}: has no list "{key}"; a COCO file needs images, annotations and categories')
    images = _read_images(path, content["images"])
    # Files without boxes may say `null` as well.
    categories = _read_categories(path, content.get("categories") or [])
    document = CocoDocument(images=images, categories=categories, annotations={})
    if labeled:
        _read_annotations(path, content["annotations"], document)
    return document


def visible_box(
    bbox: tuple[float, float, float, float], size: tuple[int, int] | None
) -> tuple[float, float, float, float] | None:
    """Clip a box to the image; None if less than one pixel of its width or height is left.

    Args:
        bbox: (x, y, width, height) in pixels.
        size: (height, width) of the image, None to clip at the top and left only.

    Returns:
        xyxy in pixels, or None.
    """
    height, width = size if size is not None else (math.inf, math.inf)
    x, y, box_width, box_height = bbox
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + box_width, float(width)), min(y + box_height, float(height))
    # Width and height are compared as written where nothing was clipped: (0.1 + 1.0) - 0.1 is less than 1.
    visible_width = box_width if x1 == x and x2 == x + box_width else x2 - x1
    visible_height = box_height if y1 == y and y2 == y + box_height else y2 - y1
    if visible_width < MIN_BOX_SIZE or visible_height < MIN_BOX_SIZE:
        return None
    return x1, y1, x2, y2


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such COCO json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: brackets nested deeper than Python can follow.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file ({error}); export it again as COCO json, in UTF-8") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the json holds a {type(content).__name__}, a COCO file is an object with images")
    return content


def _read_images(path: Path, entries: list[Any]) -> list[CocoImage]:
    if not entries:
        raise ValueError(f'{path}: "images" is empty; a source needs at least one image')
    images: dict[int | str, CocoImage] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise ValueError(f'{path}: entry {place} of "images" has no integer or string "id"; add one')
        image_id, file_name = entry["id"], entry.get("file_name")
        if image_id in images:
            raise ValueError(f"{path}: image id {image_id!r} occurs twice; give every image its own id")
        if not isinstance(file_name, str) or not file_name:
            raise ValueError(f"{path}: image {image_id!r} has file_name={file_name!r}; write the name of its file")
        images[image_id] = CocoImage(image_id, file_name, _image_size(path, entry))
    return list(images.values())


def _image_size(path: Path, entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        return None
    for value in (height, width):
        if not _is_number(value) or value != int(value) or value < 1:
            raise ValueError(
                f"{path}: image {entry['id']!r} has width={width!r}, height={height!r}; write whole pixels"
            )
    return int(height), int(width)


def _read_categories(path: Path, entries: Any) -> dict[int, str]:
    if not isinstance(entries, list):
        raise ValueError(f'{path}: "categories" is {entries!r}; leave the key out, or write a list')
    names: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise ValueError(f'{path}: category {entry!r} needs an integer "id" and a string "name"')
        if entry["id"] in names:
            raise ValueError(f"{path}: category id {entry['id']} occurs twice; give every category its own id")
        names[entry["id"]] = entry["name"]
    return dict(sorted(names.items()))


def _read_annotations(path: Path, entries: list[Any], document: CocoDocument) -> None:
    sizes = {image.image_id: image.size for image in document.images}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f'{path}: entry {place} of "annotations" is {entry!r}, not an object; remove it')
        # Whatever the id is, the complaint is one line.
        name = f"annotation {' '.join(str(entry.get('id', f'at place {place}')).splitlines())}"
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image_id, int | str) or image_id not in sizes:
            raise ValueError(f'{path}: {name} has image_id={image_id!r}, not in "images"; add the image or remove it')
        if not isinstance(category_id, int) or category_id not in document.categories:
            raise ValueError(f'{path}: {name} has category_id={category_id!r}, not in "categories"; add or correct it')
        bbox = _checked_bbox(path, name, entry.get("bbox"))
        reason = _reason_to_drop(entry, bbox, sizes[image_id])
        if reason is not None:
            document.dropped[reason] += 1
        area = _checked_area(path, name, entry.get("area"))
        annotation = CocoAnnotation(
            category_id=category_id,
            bbox=bbox,
            area=bbox[2] * bbox[3] if area is None else area,
            # An evaluator that knows no "ignore" treats a crowd the same way: neither hit nor miss.
            is_crowd=bool(entry.get("iscrowd")) or bool(entry.get("ignore")),
            usable=reason is None,
        )
        document.annotations.setdefault(image_id, []).append(annotation)


def _checked_bbox(path: Path, name: str, bbox: Any) -> tuple[float, float, float, float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise ValueError(
            f"{path}: {name} has bbox={bbox!r}; write four finite numbers [x, y, width, height] in pixels"
        )
    x, y, width, height = (float(value) for value in bbox)
    if width < 0 or height < 0:
        raise ValueError(
            f"{path}: {name} has bbox={bbox!r} of negative size; write [x, y, width, height], not corners"
        )
    return x, y, width, height


def _checked_area(path: Path, name: str, area: Any) -> float | None:
    if area is None:
        return None
    if not _is_number(area) or area < 0:
        raise ValueError(f"{path}: {name} has area={area!r}; write square pixels or leave it out")
    return float(area)


def _reason_to_drop(
    entry: dict[str, Any], bbox: tuple[float, float, float, float], size: tuple[int, int] | None
) -> str | None:
    if entry.get("ignore"):
        return "ignored"
    if entry.get("iscrowd"):
        return "crowd"
    if visible_box(bbox, size) is None:
        return "outside the image or smaller than one pixel"
    return None


def _is_number(value: Any) -> bool:
    # Compared instead of asked with isfinite, which fails on whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
