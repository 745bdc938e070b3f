"""The Pascal VOC reader: XML files, one per image, become a source like that of a COCO json.

Semi-DETR is also evaluated on VOC: VOC07 trainval is labeled, VOC12 trainval unlabeled, VOC07 test the measure.

Source: the conversion script of Semi-DETR's released code writes COCO files from VOC. As there, difficult objects are
crowds (no training targets, neither hit nor miss in the evaluation) and the twenty categories have the ids 0 to 19.
Unlike there, boxes reach to the outer edge of their last pixel, and other categories can be read as well.
"""

import json
import logging
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

from .category_ids import read_category_ids
from .coco import CocoSource
from .coco_json import CocoAnnotation, CocoDocument, CocoImage, visible_box
from .folder import FolderSource
from .splits import open_whole

logger = logging.getLogger(__name__)

VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
DEFAULT_SET = "trainval"

_CLASS_WISE = re.compile(r"\S+\s+(-1|0|1)\s*")  # a line of dog_trainval.txt

Corners = Literal["exact", "released", "written"]
Categories = Sequence[str] | Mapping[int, str]


class VocSource(CocoSource):
    """Images and boxes of Pascal VOC's XML files, with everything a `CocoSource` offers.

    The id of an image is the path of its XML file without suffix, such as "000005"; its picture has the same name.
    If only VOC's names occur, the categories are all twenty in VOC's order with the ids 0 to 19; otherwise those that
    occur, sorted by name, with the ids from 1. In a VOC folder the XML files outside the image set count too, so that
    all sets agree, and a `category_ids.json` gives others. Two folders need not agree: give one of them the
    `categories` of the other.

    Convention: VOC counts pixels from 1 and includes the last one, so xmin 1 and xmax 3 are the three pixels between
    the edges 0 and 3. Labeling tools (labelImg, for one) write edges counted from 0 into the same fields.

    Args:
        path: an image set `VOC2007/ImageSets/Main/test.txt`; or a VOC folder with `Annotations`, of which trainval is
            read, or every XML file if it has no image sets; or a folder of XML files, searched with its sub-folders.
        image_folder: of the pictures; None for `JPEGImages` of a VOC folder, or beside the XML files.
        labeled: False to leave the XML files unread; there are then no categories.
        corners: how a box becomes edges. "exact": (xmin-1, ymin-1, xmax, ymax), the default for VOC folders.
            "written": the four values as they are, the default for other folders. "released": all minus 1, cut to
            whole pixels, as the released code does; its boxes end a pixel too early.
        categories: class label i is the i-th of these; names alone get the ids from 1. None for those that occur.

    Raises:
        FileNotFoundError: if a file, folder or picture is missing; an unknown image set is told the known ones.
        ValueError: if a file is wrong (names file, field and value), lists an image twice or none, or shows what is
            not among the `categories`.
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        *,
        labeled: bool = True,
        corners: Corners | None = None,
        categories: Categories | None = None,
    ) -> None:
        if corners is not None and corners not in get_args(Corners):
            raise ValueError(f"corners={corners!r}: must be one of {', '.join(get_args(Corners))}")
        layout = _find_layout(Path(path), image_folder)
        self.json_path = layout.path  # with which the messages of CocoSource begin
        self.name = layout.name
        self.image_folder = layout.images
        given = None if categories is None else with_ids(categories)
        if given is None and layout.path != layout.annotations:
            given = read_category_ids(layout.annotations.parent)
        document = _read_voc(layout, corners or layout.corners, labeled, given)
        self._adopt(document, labeled)


class _Layout(NamedTuple):
    """Where everything is; `image_ids` are those of the image set, or of all XML files."""

    path: Path
    name: str
    annotations: Path
    images: Path
    image_ids: list[str]
    corners: Corners


class _VocObject(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as written
    is_difficult: bool


class _VocRecord(NamedTuple):
    size: tuple[int, int]  # height, width
    objects: list[_VocObject]


def is_voc_folder(folder: Path) -> bool:
    """Whether a folder is built like VOC2007: it has image sets, or XML files in `Annotations`."""
    return (folder / "ImageSets" / "Main").is_dir() or any((folder / "Annotations").glob("*.xml"))


def has_xml_files(folder: Path) -> bool:
    """Whether there is an XML file in a folder or below."""
    return any(folder.rglob("*.xml"))


def voc_to_coco_json(
    voc_folder: str | Path,
    image_set: str | None,
    output_json: str | Path,
    *,
    image_folder: str | Path | None = None,
    corners: Corners | None = None,
) -> Path:
    """Write the boxes of an image set as a COCO json, for tools that do not read VOC.

    Args:
        voc_folder: such as `VOCdevkit/VOC2007`, or a folder of XML files.
        image_set: "train", "val", "trainval", "test" or another that the folder has; None for what `VocSource` reads.
        output_json: the file, replaced if it exists. Its images are numbered from 1 and their names start in the
            folder of the pictures; written into the VOC folder, it is opened without telling that folder.
        image_folder: see `VocSource`.
        corners: see `VocSource`.

    Returns:
        The path of the json.

    Raises:
        FileNotFoundError, ValueError: as `VocSource` does.
    """
    folder = Path(voc_folder)
    path = folder if image_set is None else _set_path(folder, image_set)
    content = VocSource(path, image_folder, corners=corners).coco_ground_truth()
    # Most readers of COCO files expect numbers.
    numbers = {image["id"]: number for number, image in enumerate(content["images"], start=1)}
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = numbers[annotation["image_id"]]
    with open_whole(output_json) as file:
        json.dump(content, file)
    return Path(output_json)


# ---- Which images


def _find_layout(path: Path, image_folder: str | Path | None) -> _Layout:
    if path.suffix.lower() == ".txt":
        if path.parent.parent.name != "ImageSets":
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file; a VOC image set is wanted, or what else has boxes")
            raise ValueError(f"{path}: a list of images must be a VOC image set, such as VOC2007/ImageSets/Main/x.txt")
        folder = path.parent.parent.parent
        name = f"{folder.resolve().name} {path.stem}"
        image_ids = _read_image_set(path)
    else:
        folder, name = path, path.resolve().name
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; expected a VOC folder, or one with XML files")
        if (path / "ImageSets" / "Main").is_dir():
            logger.info("%s: reading its image set %s", path, DEFAULT_SET)
            return _find_layout(_set_path(path, DEFAULT_SET), image_folder)
        if not is_voc_folder(path):
            return _Layout(path, name, path, Path(image_folder or path), _all_xml_ids(path), "written")
        image_ids = _all_xml_ids(path / "Annotations")
    images = folder / "JPEGImages" if image_folder is None else Path(image_folder)
    return _Layout(path, name, folder / "Annotations", images, image_ids, "exact")


def _set_path(folder: Path, image_set: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{image_set}.txt"


def _read_image_set(path: Path) -> list[str]:
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise FileNotFoundError(f"{path}: no such image set; there are: {', '.join(known) or 'none'}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error}); write one image name per line") from error
    if lines and all(_CLASS_WISE.fullmatch(line) for line in lines):
        raise ValueError(f"{path}: says of each image whether it shows one class; give a set such as trainval.txt")
    image_ids: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        image_id = line.strip()
        if image_id in image_ids:
            raise ValueError(f"{path}: line {number} repeats {image_id!r} of line {image_ids[image_id]}; remove one")
        if image_id:
            image_ids[image_id] = number
    if not image_ids:
        raise ValueError(f"{path}: lists no image; write one image name per line, or give another image set")
    return list(image_ids)


def _xml_ids(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.xml"))


def _all_xml_ids(folder: Path) -> list[str]:
    image_ids = _xml_ids(folder)
    if not image_ids:
        raise ValueError(f"{folder}: no .xml file in it or below; give a folder with Pascal VOC's XML files")
    return image_ids


def _find_pictures(layout: _Layout) -> list[tuple[str, str]]:
    """Return the id of every image and its file name, which begins in the folder of the pictures."""
    if not layout.images.is_dir():
        raise FileNotFoundError(
            f"{layout.path}: its pictures are not in {layout.images}, no such folder; give image_folder"
        )
    files: dict[str, list[str]] = {}
    for file_name in FolderSource(layout.images).image_ids:
        files.setdefault(str(PurePosixPath(file_name).with_suffix("")), []).append(file_name)
    missing = [image_id for image_id in layout.image_ids if image_id not in files]
    if missing:
        raise FileNotFoundError(
            f"{layout.path}: no picture named {missing[0]!r} in {layout.images}, nor {len(missing) - 1} more of its "
            f"{len(layout.image_ids)} images; restore it, remove its entry, or give image_folder"
        )
    for image_id in layout.image_ids:
        if len(files[image_id]) > 1:
            raise ValueError(f"{layout.images}: {' and '.join(files[image_id])} are both named {image_id!r}; keep one")
    left_out = len(files) - len(layout.image_ids)
    if layout.path == layout.annotations and left_out:
        logger.info("%s: %d pictures without an XML file are left out", layout.path, left_out)
    return [(image_id, files[image_id][0]) for image_id in layout.image_ids]


# ---- What is on them


def _read_voc(layout: _Layout, corners: Corners, labeled: bool, categories: dict[int, str] | None) -> CocoDocument:
    if not labeled:
        images = [CocoImage(image_id, file_name, None) for image_id, file_name in _find_pictures(layout)]
        return CocoDocument(images=images, categories={}, annotations={})
    records = {image_id: _read_record(layout.annotations / f"{image_id}.xml") for image_id in layout.image_ids}
    if categories is None:
        categories = _categories_that_occur(layout, records)
    images = [CocoImage(image_id, name, records[image_id].size) for image_id, name in _find_pictures(layout)]
    document = CocoDocument(images=images, categories=categories, annotations={})
    id_of = {name: category_id for category_id, name in categories.items()}
    for image_id, record in records.items():
        for item in record.objects:
            if item.name not in id_of:
                raise ValueError(
                    f"{layout.annotations / f'{image_id}.xml'}: shows {item.name!r}, but the categories to find are "
                    f"{', '.join(id_of)}; correct the name or remove the object"
                )
            annotation = _to_annotation(item, id_of[item.name], record.size, corners, document)
            document.annotations.setdefault(image_id, []).append(annotation)
    return document


def with_ids(categories: Categories) -> dict[int, str]:
    """Return category id -> name; names alone get the ids from 1."""
    names = list(categories.values() if isinstance(categories, Mapping) else categories)
    if isinstance(categories, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"categories={categories!r}: must be one or more names, each once, or such a mapping of ids")
    return dict(categories) if isinstance(categories, Mapping) else dict(enumerate(names, start=1))


def _categories_that_occur(layout: _Layout, records: Mapping[str, _VocRecord]) -> dict[int, str]:
    names = {item.name for record in records.values() for item in record.objects}
    if layout.path != layout.annotations:
        names |= _names_outside(layout)
    return dict(enumerate(VOC_NAMES)) if names.issubset(VOC_NAMES) else dict(enumerate(sorted(names), start=1))


def _names_outside(layout: _Layout) -> set[str]:
    """Return the category names of the XML files that are not in the image set."""
    names = set()
    for image_id in set(_xml_ids(layout.annotations)).difference(layout.image_ids):
        path = layout.annotations / f"{image_id}.xml"
        names |= {_text(path, "an object", element, "name") for element in _read_xml(path).findall("object")}
    return names


def _to_annotation(
    item: _VocObject, category_id: int, size: tuple[int, int], corners: Corners, document: CocoDocument
) -> CocoAnnotation:
    """Convert one object; count it in the document if it is none to train on."""
    bbox = _to_bbox(item.corners, corners)
    reason = "outside the image or smaller than one pixel" if visible_box(bbox, size) is None else None
    if item.is_difficult:
        reason = "difficult"
    if reason is not None:
        document.dropped[reason] += 1
    return CocoAnnotation(
        category_id=category_id,
        bbox=bbox,
        area=bbox[2] * bbox[3],
        is_crowd=item.is_difficult,
        usable=reason is None,
    )


def _to_bbox(written: tuple[float, float, float, float], corners: Corners) -> tuple[float, float, float, float]:
    """Return (x, y, width, height) in pixels; see the convention of `VocSource`."""
    x1, y1, x2, y2 = written
    if corners == "released":
        x1, y1, x2, y2 = (float(int(value) - 1) for value in written)
    elif corners == "exact":
        # A 0 has no meaning where pixels count from 1, but occurs; the edge of the image is all it can be.
        x1, y1 = max(x1 - 1, 0.0), max(y1 - 1, 0.0)
    return x1, y1, x2 - x1, y2 - y1


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document type declarations, which can make a small file expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(
            f"it declares a document type {name!r}, which Pascal VOC files do not; remove the declaration"
        )


def _read_xml(path: Path) -> ElementTree.Element:
    # Of a name that no disk can hold Path.is_file raises instead of denying it.
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such annotation file; restore it, or remove the name from the image set")
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: not a readable XML file ({error}); export it again as Pascal VOC") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: holds <{root.tag}>, a Pascal VOC file holds <annotation>; remove or replace it")
    return root


def _read_record(path: Path) -> _VocRecord:
    root = _read_xml(path)
    size = root.find("size")
    if size is None:
        raise ValueError(f"{path}: has no <size>; write width and height of the picture in pixels")
    sides = [_number(path, "<size>", size, tag) for tag in ("height", "width")]
    if any(side < 1 or side != int(side) for side in sides):
        raise ValueError(f"{path}: <size> has height={sides[0]:g}, width={sides[1]:g}; write whole pixels from 1")
    elements = enumerate(root.findall("object"), start=1)
    return _VocRecord((int(sides[0]), int(sides[1])), [_read_object(path, place, item) for place, item in elements])


def _read_object(path: Path, place: int, element: ElementTree.Element) -> _VocObject:
    name = _text(path, f"object {place}", element, "name")
    # Whatever the name is, a complaint is one line.
    where = f"object {place} ({' '.join(name.split())})"
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"{path}: {where} has no <bndbox>; add its box or remove it")
    x1, y1, x2, y2 = (_number(path, where, box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise ValueError(
            f"{path}: {where} has xmin={x1:g}, ymin={y1:g}, xmax={x2:g}, ymax={y2:g}; a maximum is below its minimum"
        )
    difficult = "0" if element.find("difficult") is None else _text(path, where, element, "difficult")
    if difficult not in ("0", "1"):
        raise ValueError(f"{path}: {where} has difficult={difficult!r}; write 0 or 1")
    return _VocObject(name, (x1, y1, x2, y2), difficult == "1")


def _text(path: Path, where: str, element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"{path}: {where} has no <{tag}>, or an empty one; fill it in")
    return text


def _number(path: Path, where: str, element: ElementTree.Element, tag: str) -> float:
    text = _text(path, where, element, tag)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: {where} has {tag}={text!r}; write a finite number of pixels")
    return value
