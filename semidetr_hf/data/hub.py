"""The reader of data sets of the library `datasets`: from the Hub, a saved folder, parquet files or an ImageFolder.

Source: the columns are those of detection data sets on the Hub, such as cppe-5: `image`, and `objects` with `bbox`,
`category` and, where they are known, `area` and `iscrowd`; beside them `image_id`, `width` and `height`.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import datasets

from .category_ids import read_category_ids
from .coco import CocoSource
from .coco_json import checked_document
from .images import ImageFile, PackedImage, stored_size
from .progress import with_bar
from .sources import Part, has_metadata

logger = logging.getLogger(__name__)

BboxFormat = Literal["xywh", "xyxy", "xywh_relative", "xyxy_relative", "cxcywh_relative"]

# Names under which data sets of the Hub keep the same thing, the first is that of cppe-5.
BBOX_NAMES = ("bbox", "bboxes", "boxes", "box")
CATEGORY_NAMES = ("category", "categories", "category_id", "label", "labels", "class", "class_id")
CROWD_NAMES = ("iscrowd", "is_crowd")
SPLIT_NAMES: dict[Part, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid", "dev")}

_BATCH = 1000  # rows that are read at once


class HubSource(CocoSource):
    """Images and boxes of a `datasets` data set, with everything a `CocoSource` offers.

    Pictures stay where they are, in the mapped files of the data set, until they are asked for. The ids of the images
    are those of the column `image_id`, or the numbers of the rows. Category ids are those of the `ClassLabel`, plain
    numbers as they are, or for plain names from 1 in alphabetical order; a `category_ids.json` in a saved folder gives
    others.

    Args:
        path: an id `owner/name` of the Hub; or a folder written by `save_to_disk`; or a `.parquet` file, or a folder
            with such files; or an ImageFolder, that is images with `metadata.jsonl`, `.csv` or `.parquet`.
        split: of the data set; None for that of `part`, or the only one.
        part: what the images are for: "train" takes the split train, "val" the split validation.
        labeled: False to leave the boxes unread.
        bbox_format: of the column: corner and size or two corners, in pixels or, `_relative`, as shares of the image;
            "cxcywh_relative" is YOLO's.
        categories: category id -> name that plain names stand for; None for those that occur.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a column is missing, or a row is wrong; names row, field and value.
        ConnectionError: if the Hub cannot be reached, or has no such data set.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        part: Part = "train",
        labeled: bool = True,
        bbox_format: BboxFormat = "xywh",
        categories: Mapping[int, str] | None = None,
    ) -> None:
        if bbox_format not in get_args(BboxFormat):
            raise ValueError(f"bbox_format={bbox_format!r}: must be one of {', '.join(get_args(BboxFormat))}")
        self.json_path = Path(path)  # with which the messages of CocoSource begin
        table = _only_split(str(path), open_data_set(str(path), split), part)
        self.name = f"{self.json_path.name} {table.split or split or ''}".strip()
        self.image_folder = self.json_path
        self._pictures = _Pictures(str(path), table)
        content = read_rows(
            self.json_path, table, self._pictures, labeled=labeled, bbox_format=bbox_format, categories=categories
        )
        self._adopt(checked_document(self.json_path, content, labeled=labeled), labeled)
        self._row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}

    def path(self, index: int) -> ImageFile:
        """Return where one image is: its file, or its row."""
        return self._pictures[self._row_of[self._images[index].image_id]]


class _Pictures:
    """The images of a data set, which are read one by one."""

    def __init__(self, name: str, table: datasets.Dataset) -> None:
        self._name = name
        if "image" not in table.column_names:
            raise ValueError(f"{name}: has no column 'image', only {', '.join(table.column_names)}; rename one")
        try:
            encoded = table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
            flat = encoded.flatten()
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{name}: the column 'image' holds {table.features['image']}, no images; cast it to datasets.Image"
            ) from error
        self._rows = encoded
        # Asked of the columns, since the rows hold the bytes of all images.
        self.file_names = [path or "" for path in flat["image.path"]]
        self._has_bytes = [not is_null for is_null in flat.data.column("image.bytes").is_null().to_pylist()]

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, row: int) -> ImageFile:
        file_name = self.file_names[row]
        if not self._has_bytes[row] and file_name:
            return Path(file_name)

        def read() -> bytes:
            content = self._rows[row]["image"]
            if content is None or content["bytes"] is None:
                raise OSError("the row has no image")
            return bytes(content["bytes"])

        return PackedImage(f"{self._name} row {row}{f' ({file_name})' if file_name else ''}", file_name, read)


def open_data_set(name: str, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    """Open a data set, or one of its splits, with the reader that fits what is there.

    Raises:
        FileNotFoundError: if there is nothing, here or in the cache.
        ValueError: if a file is broken, or the split is unknown.
        ConnectionError: if the Hub cannot be reached, or has no such data set.
    """
    path = Path(name)
    try:
        with _quiet_libraries():
            if path.is_dir() and not any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
                kind = "imagefolder" if has_metadata(path) else "parquet"
                opened = datasets.load_dataset(kind, data_dir=name)
            elif path.is_dir():
                opened = datasets.load_from_disk(name)
            elif path.suffix.lower() == ".parquet":
                if not path.is_file():
                    raise FileNotFoundError(f"{name}: no such parquet file")
                opened = datasets.load_dataset("parquet", data_files=name)
            else:
                logger.warning("%s: there is no such path here; asking the Hub for a data set of that name", name)
                opened = datasets.load_dataset(name)
    except ConnectionError as error:
        raise ConnectionError(
            f"{name}: no such file or folder, and the Hub cannot be reached for a data set of that name "
            f"({_one_line(error)}); correct the path, or go online once to fill the cache"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ConnectionError(
            f"{name}: no such file or folder, and no data set of the Hub ({_one_line(error)}); correct the name"
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{name}: cannot be read as a data set ({_one_line(cause)}); write it again") from error
    if split is None:
        return opened
    known = list(opened) if isinstance(opened, datasets.DatasetDict) else [str(opened.split)]
    if split not in known:
        raise ValueError(f"{name}: has no split {split!r}; there are: {', '.join(known)}")
    return opened[split] if isinstance(opened, datasets.DatasetDict) else opened


def save_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], names: list[str], folder: Path, *, split: str, text_ids: bool
) -> None:
    """Write images and objects as a folder that `HubSource` and `datasets.load_from_disk` open.

    Args:
        rows: gives the rows one by one, with the columns of cppe-5; pictures as bytes, boxes as corner and size in
            pixels, `category` as the place in `names`.
        names: of the categories.
        folder: is there; for a while it holds everything twice.
        split: its name.
        text_ids: whether `image_id` is text rather than a number.
    """
    item = {
        "id": datasets.Value("int64"),
        "area": datasets.Value("float64"),
        "bbox": datasets.List(datasets.Value("float64"), length=4),
        "category": datasets.ClassLabel(names=names),
        "iscrowd": datasets.Value("bool"),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string" if text_ids else "int64"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": datasets.List(item),
        }
    )
    with _without_bars(), tempfile.TemporaryDirectory(dir=folder) as cache:
        # A fingerprint of its own: that of the function would be made of everything it refers to.
        table = datasets.Dataset.from_generator(
            rows, features=features, cache_dir=cache, split=datasets.NamedSplit(split), fingerprint=uuid4().hex
        )
        datasets.DatasetDict({split: table}).save_to_disk(str(folder))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Leave progress to the bar of the rows."""
    were_on = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def _only_split(name: str, opened: datasets.Dataset | datasets.DatasetDict, part: Part) -> datasets.Dataset:
    if isinstance(opened, datasets.Dataset):
        return opened
    known = list(opened)
    fitting = known if len(known) == 1 else [split for split in SPLIT_NAMES[part] if split in known]
    if not fitting:
        raise ValueError(f"{name}: has the splits {', '.join(known)}; choose one as {name}:{known[0]}")
    return opened[fitting[0]]


# ---- Rows


def read_rows(
    path: Path,
    table: datasets.Dataset,
    pictures: "_Pictures",
    *,
    labeled: bool,
    bbox_format: BboxFormat,
    categories: Mapping[int, str] | None,
) -> dict[str, list[Any]]:
    """Return what the rows say in the form of a COCO json; ids of annotations name row and object.

    Raises:
        ValueError: if a column is missing, or the objects of a row are none.
    """
    wanted = [
        name for name in ("image_id", "width", "height", *(["objects"] if labeled else [])) if name in table.features
    ]
    if labeled and "objects" not in wanted:
        raise ValueError(
            f"{path}: has no column 'objects', only {', '.join(table.column_names)}; give it boxes, or use it as "
            "unlabeled data"
        )
    is_relative = labeled and bbox_format.endswith("_relative")
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for row, values in enumerate(with_bar(_rows(table, wanted), len(table), "reading rows")):
        size = _size(values, pictures[row] if is_relative else None)
        image_id = values.get("image_id", row)
        images.append({"id": image_id, "file_name": pictures.file_names[row] or f"row {row}", **size})
        if labeled:
            for number, entry in enumerate(_objects(path, row, values["objects"]), start=1):
                where = f"object {number} of row {row}"
                objects.append(_annotation(where, image_id, entry, size, bbox_format))
    content: dict[str, list[Any]] = {"images": images, "annotations": objects, "categories": []}
    if labeled:
        _number_categories(path, table, content, categories)
    return content


def _rows(table: datasets.Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(len(table)))
        return
    for batch in table.select_columns(columns).iter(batch_size=_BATCH):
        for place in range(len(batch[columns[0]])):
            yield {name: batch[name][place] for name in columns}


def _size(values: dict[str, Any], picture: ImageFile | None) -> dict[str, int]:
    if values.get("width") is not None and values.get("height") is not None:
        return {"width": values["width"], "height": values["height"]}
    size = None if picture is None else stored_size(picture)
    return {} if size is None else {"width": size[1], "height": size[0]}


def _objects(path: Path, row: int, objects: Any) -> list[dict[str, Any]]:
    """Return one dict for every object, whichever way the column holds them; csv files hold json."""
    if isinstance(objects, str):
        try:
            objects = json.loads(objects)
        except ValueError as error:
            raise ValueError(
                f"{path}: row {row} has objects={objects[:80]!r}, no json ({error}); correct it"
            ) from error
    if objects is None:
        return []
    if isinstance(objects, dict):
        columns = {name: values for name, values in objects.items() if isinstance(values, list)}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: row {row} has objects of different numbers {lengths}; give each field as many")
        objects = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise ValueError(f"{path}: row {row} has objects={str(objects)[:80]}; give bbox and category of each")
    return objects


def _annotation(
    where: str, image_id: Any, entry: dict[str, Any], size: dict[str, int], bbox_format: BboxFormat
) -> dict[str, Any]:
    values = {"id": where, "image_id": image_id, "category_id": _first(entry, CATEGORY_NAMES)}
    values["bbox"] = _to_xywh(_first(entry, BBOX_NAMES), size, bbox_format)
    if entry.get("area") is not None:
        values["area"] = entry["area"]
    return values | {"iscrowd": int(bool(_first(entry, CROWD_NAMES)))}


def _first(entry: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _to_xywh(bbox: Any, size: dict[str, int], bbox_format: BboxFormat) -> Any:
    """Return (x, y, width, height) in pixels; what is no box stays as it is, to be complained about."""
    if bbox_format == "xywh" or not isinstance(bbox, list) or len(bbox) != 4 or None in bbox:
        return bbox
    if bbox_format.endswith("_relative"):
        if not size:
            return None
        sides = (size["width"], size["height"]) * 2
        bbox = [value * side for value, side in zip(bbox, sides, strict=True)]
    a, b, c, d = bbox
    if bbox_format.startswith("xyxy"):
        return [a, b, c - a, d - b]
    return [a - c / 2, b - d / 2, c, d] if bbox_format.startswith("cxcywh") else [a, b, c, d]


def _number_categories(
    path: Path, table: datasets.Dataset, content: dict[str, list[Any]], categories: Mapping[int, str] | None
) -> None:
    """Write the list of categories, and the ids of names into the annotations."""
    names = _class_label_names(table.features["objects"])
    found = {entry["category_id"] for entry in content["annotations"]}
    listed = read_category_ids(path, names)
    if names is None and found and all(isinstance(value, str) for value in found):
        chosen = listed or dict(categories or enumerate(sorted(found), start=1))
        to_id: dict[Any, int] = {name: category_id for category_id, name in chosen.items()}
    elif names is None:
        # Bare numbers are ids; a missing class is complained about when the entries are checked.
        chosen = listed or {value: str(value) for value in sorted(value for value in found if type(value) is int)}
        to_id = {value: value for value in chosen}
    else:
        chosen = listed or dict(enumerate(names))
        id_of = {name: category_id for category_id, name in chosen.items()}
        to_id = {number: id_of[name] for number, name in enumerate(names)}
    content["categories"] = [{"id": category_id, "name": name} for category_id, name in chosen.items()]
    for entry in content["annotations"]:
        entry["category_id"] = to_id.get(entry["category_id"], entry["category_id"])


def _class_label_names(feature: Any) -> list[str] | None:
    """Return the names of the ClassLabel of the objects; None if the classes are numbers or names."""
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if isinstance(feature, dict):
        inner = next((feature[name] for name in CATEGORY_NAMES if name in feature), None)
    else:
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return None if inner is None else _class_label_names(inner)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep libraries from reporting each try and each broken file: what fails ends in one message of ours."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
