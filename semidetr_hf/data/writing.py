"""Images with boxes, from any source, are written as a COCO json, a YOLO or a VOC folder, or a `datasets` folder.

What is read back has the same boxes, class names and category ids, in the same order of images, so that splits and
metrics are the same. What a format cannot hold is counted.
"""

import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_args
from xml.etree import ElementTree

import yaml
from PIL import Image

from .category_ids import write_category_ids
from .coco import CocoSource
from .coco_json import MIN_BOX_SIZE
from .folder import is_image_name
from .images import BROKEN_FILE_ERRORS, EXIF_ORIENTATION, ImageFile, PackedImage, is_missing, stored_size
from .progress import with_bar
from .splits import open_whole
from .yolo import MAX_SHARE, label_path

Format = Literal["coco", "yolo", "voc", "datasets"]
Images = Literal["copy", "link", "keep"]

Box = tuple[float, float, float, float]


VOC_DECIMALS = 9  # of a pixel; more would only write the errors of adding 1

# What a format cannot hold. Boxes with one of the first three reasons are not written.
CROWDS = "crowds and ignored boxes are left out: the format cannot mark them"
NARROW = "boxes narrower than one pixel are left out: the format counts whole pixels"
FAR_OUTSIDE = "boxes far outside their image are left out: the format holds shares of it"
CUT = "boxes are cut at the left or upper edge of the image: the format counts pixels from there"
AREAS = "areas, such as those of masks, are replaced by width times height: the format has none"
TURNED = "images have boxes drawn on the stored picture, which EXIF turns: the boxes are turned with it"
NUMBERED = "images have text for an id: they are numbered instead"


class Item(NamedTuple):
    """One image as it is written: its id, its file, the name it gets, (height, width) if known, its annotations."""

    image_id: int | str
    file: ImageFile
    name: str
    size: tuple[int, int] | None
    annotations: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        path: what `open_source` takes to read it.
        num_images: of the set.
        num_boxes: that were written, crowds among them.
        lost: what the format cannot hold -> how often.
    """

    path: str
    num_images: int
    num_boxes: int
    lost: Counter[str]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every format is written from, and what gets lost on the way."""

    items: list[Item]
    categories: dict[int, str]
    folder: Path
    images: Images
    split: str
    lost: Counter[str]

    def each(self) -> Iterator[Item]:
        yield from with_bar(self.items, len(self.items), "writing images")


def write_source(
    source: CocoSource, output: str | Path, to: Format, *, images: Images = "copy", split: str = "train"
) -> Written:
    """Write the images and boxes of a source in another format.

    The pictures are copied as they are, never encoded again. Of the annotations only boxes, classes, areas and crowds
    are written; masks and keypoints are not. The folder appears under its name when it is complete.

    Args:
        source: as `open_source` returns it.
        output: the new folder.
        to: "coco" = `annotations.json` and `images`; "yolo" = `data.yaml`, `images` and `labels`; "voc" =
            `JPEGImages`, `Annotations` and an image set; "datasets" = what `save_to_disk` writes, pictures included.
        images: "copy"; "link" for hard links, where both are on one disk; or "keep" to leave the pictures where they
            are, which only a COCO json can.
        split: name of the image set, of the key of the yaml, or of the split.

    Raises:
        FileExistsError: if `output` is there already.
        FileNotFoundError: if a picture is missing.
        ValueError: if an argument is wrong, or categories cannot be told apart by their names.
        OSError: if something cannot be written, as on a full disk, or a picture cannot be read where it has to be.
    """
    output = Path(output)
    if to not in get_args(Format) or images not in get_args(Images):
        raise ValueError(f"to={to!r}, images={images!r}: must be of {get_args(Format)} and of {get_args(Images)}")
    if not split.isidentifier():
        raise ValueError(f"split={split!r}: must be a plain word such as train or val")
    items = _items(source)
    if images == "keep" and (to != "coco" or any(isinstance(item.file, PackedImage) for item in items)):
        raise ValueError(f"images='keep', to={to!r}: only a COCO json can refer to other places, and only to files")
    missing = next((item.file for item in items if is_missing(item.file)), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{missing}: the image file does not exist; semidetr validate lists all that are wrong"
        )
    write = {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc, "datasets": _write_datasets}[to]
    categories = dict(zip(source.category_ids, source.category_names, strict=True))
    with _whole_folder(output) as folder:
        lost: Counter[str] = Counter()
        job = _Job(items=items, categories=categories, folder=folder, images=images, split=split, lost=lost)
        path = f"{output}{write(job)}"
    num_boxes = sum(len(item.annotations) for item in items) - lost[CROWDS] - lost[NARROW] - lost[FAR_OUTSIDE]
    return Written(path=path, num_images=len(items), num_boxes=num_boxes, lost=+lost)


# ---- What all formats need


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Give a hidden folder beside the wanted one, which gets its name when everything is written."""
    if output.exists():
        raise FileExistsError(f"{output}: is there already; remove it, or give another output")
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _items(source: CocoSource) -> list[Item]:
    content = source.coco_ground_truth()
    annotations: dict[int | str, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        annotations.setdefault(entry["image_id"], []).append(entry)
    items, taken = [], set()
    for index, entry in enumerate(content["images"]):
        file = source.path(index)
        name = _plain_name(entry["file_name"], file)
        stem, number = name.with_suffix(""), 1
        # Formats with a file of boxes for each image tell a.jpg and a.png apart no better than their names alone.
        while stem in taken:
            number += 1
            stem = name.with_name(f"{name.stem}-{number}")
        taken.add(stem)
        size = (entry["height"], entry["width"]) if "height" in entry else None
        of_image = annotations.get(entry["id"], [])
        items.append(Item(entry["id"], file, stem.with_name(stem.name + name.suffix).as_posix(), size, of_image))
    return items


def _plain_name(file_name: str, file: ImageFile) -> PurePosixPath:
    """Return where an image goes below the folder of images: as it was, without what would lead out of it."""
    path = PurePosixPath(file_name)
    parts = [" ".join(part.split()) for part in path.parts]
    if path.is_absolute() or ".." in parts:
        parts = parts[-1:]
    if len(parts) > 1 and parts[0] == "images":
        parts = parts[1:]
    name = PurePosixPath(*parts)
    # A list of names cannot hold one that ends in a space.
    name = name.with_name(name.stem.strip() + name.suffix)
    if isinstance(file, PackedImage) and not is_image_name(name.name):
        with Image.open(io.BytesIO(file.read())) as stored:
            return name.with_name(f"{name.name}.{str(stored.format).lower()}")
    return name


def _place(file: ImageFile, target: Path, images: Images) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file, PackedImage):
        target.write_bytes(file.read())
    elif images == "link":
        try:
            os.link(os.path.realpath(file), target)
        except OSError as error:
            raise OSError(f"{file}: cannot be linked to {target.name} ({error.strerror}); copy the images") from error
    else:
        shutil.copyfile(file, target)


def _needed_size(item: Item) -> tuple[int, int]:
    size = item.size or stored_size(item.file)
    if size is None:
        raise OSError(f"{item.file}: the picture cannot be read, and its size is needed; replace or remove it")
    return size


def _without(annotations: list[dict[str, Any]], reason: str, lost: Counter[str], is_lost: Any) -> list[dict[str, Any]]:
    kept = [entry for entry in annotations if not is_lost(entry)]
    lost[reason] += len(annotations) - len(kept)
    return kept


def _count_areas(annotations: list[dict[str, Any]], lost: Counter[str]) -> None:
    lost[AREAS] += sum(not math.isclose(e["area"], e["bbox"][2] * e["bbox"][3], abs_tol=1e-3) for e in annotations)


# ---- The formats; each returns what is to be opened, as a text behind the folder


def _write_coco(job: _Job) -> str:
    is_numbered = not all(isinstance(item.image_id, int) for item in job.items)
    job.lost[NUMBERED] += len(job.items) if is_numbered else 0
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number, item in enumerate(job.each(), start=1):
        image_id = number if is_numbered else item.image_id
        name = item.name
        if job.images == "keep":
            name = Path(os.path.relpath(os.path.realpath(str(item.file)), os.path.realpath(job.folder))).as_posix()
        else:
            _place(item.file, job.folder / "images" / name, job.images)
        size = {} if item.size is None else {"height": item.size[0], "width": item.size[1]}
        content["images"].append({"id": image_id, "file_name": name, **size})
        content["annotations"] += [entry | {"image_id": image_id} for entry in item.annotations]
    content["categories"] = [{"id": category_id, "name": name} for category_id, name in job.categories.items()]
    with open_whole(job.folder / "annotations.json") as file:
        json.dump(content, file, ensure_ascii=False)
    return "/annotations.json"


def _write_yolo(job: _Job) -> str:
    numbers = {category_id: number for number, category_id in enumerate(job.categories)}
    write_category_ids(job.folder, job.categories)
    for item in job.each():
        name = Path("images", item.name)
        _place(item.file, job.folder / name, job.images)
        labels = job.folder / label_path(name)
        labels.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{numbers[category]} {' '.join(map(repr, shares))}" for category, shares in _yolo_boxes(item, job.lost)
        ]
        labels.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with open_whole(job.folder / f"{job.split}.txt") as file:
        file.writelines(f"./images/{item.name}\n" for item in job.items)
    with open_whole(job.folder / "data.yaml") as file:
        values = {job.split: f"{job.split}.txt", "names": dict(enumerate(job.categories.values()))}
        yaml.safe_dump(values, file, allow_unicode=True, sort_keys=False)
    return "/data.yaml" if job.split in ("train", "val") else f"/data.yaml:{job.split}"


def _yolo_boxes(item: Item, lost: Counter[str]) -> Iterator[tuple[int, list[float]]]:
    """Yield category id and center, width and height as shares of the upright picture."""
    annotations = _without(item.annotations, CROWDS, lost, lambda entry: entry["iscrowd"])
    if not annotations:
        return
    _count_areas(annotations, lost)
    height, width = _needed_size(item)
    orientation = _ignored_orientation(item.file, (height, width))
    lost[TURNED] += orientation != 1
    for entry in annotations:
        x, y, box_width, box_height = entry["bbox"]
        shares = [(x + box_width / 2) / width, (y + box_height / 2) / height, box_width / width, box_height / height]
        shares = _turned(shares, orientation)
        if max(map(abs, shares)) > MAX_SHARE:
            lost[FAR_OUTSIDE] += 1
        else:
            yield entry["category_id"], shares


def _ignored_orientation(file: ImageFile, size: tuple[int, int]) -> int:
    """Return the EXIF orientation of a picture whose boxes were drawn as if it had none, else 1."""
    try:
        with Image.open(io.BytesIO(file.read()) if isinstance(file, PackedImage) else file) as stored:
            orientation = int(stored.getexif().get(EXIF_ORIENTATION, 1))
            is_turned = orientation in (5, 6, 7, 8) and stored.width != stored.height
            return orientation if is_turned and size == (stored.height, stored.width) else 1
    except BROKEN_FILE_ERRORS:
        return 1  # the picture is copied as it is; whoever reads it complains


def _turned(shares: list[float], orientation: int) -> list[float]:
    """Turn a box of shares (center, width, height) as EXIF turns a picture on its side."""
    x, y, width, height = shares
    center = {5: (y, x), 6: (1 - y, x), 7: (1 - y, 1 - x), 8: (y, 1 - x)}.get(orientation)
    return shares if center is None else [*center, height, width]


def _write_voc(job: _Job) -> str:
    write_category_ids(job.folder, job.categories)
    for item in job.each():
        if not is_image_name(item.name):
            raise ValueError(
                f"{item.file}: VOC pictures are known by their suffix, this is none of an image; rename it"
            )
        _place(item.file, job.folder / "JPEGImages" / item.name, job.images)
        xml = (job.folder / "Annotations" / item.name).with_suffix(".xml")
        xml.parent.mkdir(parents=True, exist_ok=True)
        annotation = ElementTree.ElementTree(_voc_annotation(item, job))
        ElementTree.indent(annotation)
        annotation.write(xml, encoding="utf-8", xml_declaration=True)
    image_set = Path("ImageSets", "Main", f"{job.split}.txt")
    with open_whole(job.folder / image_set) as file:
        file.writelines(f"{PurePosixPath(item.name).with_suffix('')}\n" for item in job.items)
    return f"/{image_set.as_posix()}"


def _voc_annotation(item: Item, job: _Job) -> ElementTree.Element:
    height, width = _needed_size(item)
    root = ElementTree.Element("annotation")
    _add(root, "filename", item.name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)

    def is_narrow(entry: dict[str, Any]) -> bool:
        return min(entry["bbox"][2:]) < MIN_BOX_SIZE

    annotations = _without(item.annotations, NARROW, job.lost, is_narrow)
    _count_areas(annotations, job.lost)
    for entry in annotations:
        x, y, box_width, box_height = entry["bbox"]
        job.lost[CUT] += min(x, y) < 0
        element = ElementTree.SubElement(root, "object")
        _add(element, "name", job.categories[entry["category_id"]])
        _add(element, "difficult", entry["iscrowd"])
        box = ElementTree.SubElement(element, "bndbox")
        # Pixels count from 1 and the last one belongs to the box; see the convention of `VocSource`.
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + box_width, "ymax": y + box_height}
        for tag, value in corners.items():
            _add(box, tag, repr(round(value, VOC_DECIMALS)))
    return root


def _add(parent: ElementTree.Element, tag: str, value: Any) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)


def _write_datasets(job: _Job) -> str:
    from .hub import save_rows

    write_category_ids(job.folder, job.categories)
    numbers = {category_id: number for number, category_id in enumerate(job.categories)}
    is_text = not all(isinstance(item.image_id, int) for item in job.items)

    def rows() -> Iterator[dict[str, Any]]:
        for item in job.each():
            content = item.file.read() if isinstance(item.file, PackedImage) else item.file.read_bytes()
            yield {
                "image": {"bytes": content, "path": item.name},
                "image_id": str(item.image_id) if is_text else item.image_id,
                "width": None if item.size is None else item.size[1],
                "height": None if item.size is None else item.size[0],
                "objects": [
                    {
                        "id": entry["id"],
                        "area": entry["area"],
                        "bbox": entry["bbox"],
                        "category": numbers[entry["category_id"]],
                        "iscrowd": bool(entry["iscrowd"]),
                    }
                    for entry in item.annotations
                ],
            }

    save_rows(rows, list(job.categories.values()), job.folder, split=job.split, text_ids=is_text)
    return "" if job.split in ("train", "val", "validation") else f":{job.split}"
