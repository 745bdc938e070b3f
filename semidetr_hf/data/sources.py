"""What a source of images offers, and the one door through which a path becomes a source.

Readers whose libraries not every install has are imported when they are needed.
"""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from .coco import CocoSource
from .file_list import FileListSource
from .folder import FolderSource, holds_image
from .images import ImageFile, Sample, ViewSize
from .tar_shards import TarSource, is_shards
from .voc import Categories, Corners, VocSource, has_xml_files, is_voc_folder, with_ids

if TYPE_CHECKING:
    from .hub import BboxFormat

Reader = Literal["coco", "voc", "yolo", "datasets", "list", "tar", "folder"]
Part = Literal["train", "val"]

ACCEPTED = (
    "a COCO .json, a YOLO .yaml, a VOC image set (.txt) or folder, a data set of the library datasets (folder, "
    ".parquet, or id OWNER/NAME of the Hub), a folder of images with or without XML files, or, for unlabeled images, "
    "a .txt list or .tar files"
)


class Source(Protocol):
    """A sized, indexable collection of images with boxes; a source of unlabeled images has no boxes."""

    @property
    def name(self) -> str:
        """Short, for messages and logs."""
        ...

    @property
    def category_names(self) -> tuple[str, ...]:
        """The name of class label i at place i; empty for a bare folder."""
        ...

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The category id of the original data set of class label i at place i; empty for a bare folder."""
        ...

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many boxes class label i has at place i, known without opening an image; empty for a bare folder."""
        ...

    @property
    def num_boxes(self) -> int:
        """The sum of `class_counts`."""
        ...

    @property
    def image_ids(self) -> Sequence[int | str]:
        """The id of every image, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def path(self, index: int) -> ImageFile:
        """Return where one image is: its file, or its place in an archive or a table."""
        ...


@runtime_checkable
class ViewSource(Protocol):
    """What a source offers besides, that views may be made faster; every source that `open_source` returns does.

    Of one that does not, every image is read as a whole and its size from the header of its file.
    """

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        """Return the image at `index` with no more pixels than the largest view of it needs."""
        ...

    def image_size(self, index: int) -> tuple[int, int] | None:
        """Return (height, width) of the whole image without decoding it, None if it is unreadable."""
        ...


class Found(NamedTuple):
    """What a path turned out to be; `split` is what was asked for behind a colon, such as `test` in data.yaml:test."""

    reader: Reader
    path: str
    split: str | None = None


def open_source(
    path: str | Path,
    image_folder: str | Path | None = None,
    *,
    labeled: bool = True,
    part: Part = "train",
    corners: Corners | None = None,
    categories: Categories | None = None,
    bbox_format: "BboxFormat" = "xywh",
) -> Source:
    """Open images with or without boxes, in any of the formats.

    Args:
        path: a COCO `.json`; a YOLO `.yaml`; a VOC image set, such as `VOC2007/ImageSets/Main/test.txt`, or a VOC
            folder, such as `VOC2007`, for its trainval images; a folder of images with XML files beside them, as
            labelImg writes them; a data set of the library `datasets`, see `HubSource`; or, for unlabeled data, a
            folder of images, a `.txt` list of them, or `.tar` files. Folders of images are searched with their
            sub-folders. Which images of a YOLO file or a data set may be told behind a colon: `data.yaml:test`.
        image_folder: of the pictures of a json or of XML files; None to look around the json, in `JPEGImages` of the
            VOC folder, or beside the XML files.
        labeled: False when the boxes are not wanted: a json then needs neither annotations nor categories, XML and
            label files are not read, and of a folder every image is taken (of a VOC folder those of the image set).
        part: what the images are for, where the path leaves it open: the key `train` or `val` of a YOLO file, the
            split train or validation of a data set.
        corners: how the boxes of XML files become edges, see `VocSource`; other sources ignore it.
        categories: what XML files or a data set with plain names may show, see `VocSource`; ignored by sources that
            list their own.
        bbox_format: of the boxes of a data set, see `HubSource`; other sources ignore it.

    Returns:
        A `CocoSource`, of which those of VOC, YOLO and `datasets` are kinds, or an `UnlabeledSource`.

    Raises:
        FileNotFoundError: if there is nothing at `path`, or the images of a json or an image set are not found.
        ValueError: if `path` is none of these, its content is wrong, or what has no boxes is opened as labeled,
            or the library of a format is not installed.
        ConnectionError: if `path` can only be an id of the Hub, which cannot be reached or has no such data set.
    """
    found = find_reader(path, labeled=labeled)
    if found.reader not in ("coco", "voc") and image_folder is not None:
        raise ValueError(
            f"{path}: says itself where its images are; image_folder={str(image_folder)!r} only fits a .json or XML "
            "files"
        )
    match found.reader:
        case "coco":
            return CocoSource(found.path, image_folder, labeled=labeled)
        case "voc":
            return VocSource(found.path, image_folder, labeled=labeled, corners=corners, categories=categories)
        case "yolo":
            from .yolo import YoloSource

            return YoloSource(found.path, key=found.split, part=part, labeled=labeled)
        case "datasets":
            if find_spec("datasets") is None:
                raise ValueError(f"{path}: is read with the library datasets; pip install 'semidetr-hf[train]'")
            from .hub import HubSource

            return HubSource(
                found.path,
                split=found.split,
                part=part,
                labeled=labeled,
                bbox_format=bbox_format,
                categories=None if categories is None else with_ids(categories),
            )
        case "list":
            return FileListSource(found.path)
        case "tar":
            return TarSource(found.path)
        case "folder":
            return FolderSource(found.path)


def find_reader(path: str | Path, *, labeled: bool) -> Found:
    """Tell what a path is, without reading it.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if `path` is nothing that is accepted, or has no boxes and is to be labeled.
    """
    text, split = _split_off(str(path))
    suffix = Path(text).suffix.lower()
    if suffix in (".yaml", ".yml"):
        return Found("yolo", text, split)
    if suffix == ".parquet" or _is_hub_id(text):
        return Found("datasets", text, split)
    if suffix == ".txt":
        is_image_set = labeled or Path(text).parent.parent.name == "ImageSets"
        return Found("voc" if is_image_set else "list", text)
    if is_shards(text):
        _require_unlabeled(path, "tar files have", labeled)
        return Found("tar", text)
    if Path(text).is_dir():
        return _find_folder_reader(Path(text), split, labeled)
    if not Path(text).exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected {ACCEPTED}")
    if suffix == ".json":
        return Found("coco", text)
    raise ValueError(f"{path}: a {suffix or 'suffixless'} file; accepted are {ACCEPTED}")


def _split_off(text: str) -> tuple[str, str | None]:
    """Divide `data.yaml:test` at the colon; a file or folder may have one in its name."""
    head, colon, split = text.rpartition(":")
    takes_split = Path(head).suffix.lower() in (".yaml", ".yml", ".parquet") or os.path.isdir(head) or _is_hub_id(head)
    if colon and takes_split and re.fullmatch(r"[\w.-]+", split) and not os.path.exists(text):
        return head, split
    return text, None


def _is_hub_id(text: str) -> bool:
    """Whether a text is an id `owner/name` of the Hub rather than a path: nothing here begins like that."""
    is_file_name = Path(text).suffix.lower() in (".json", ".txt", ".tar")
    looks_so = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return bool(looks_so) and not is_file_name and not os.path.exists(text.partition("/")[0])


def _find_folder_reader(path: Path, split: str | None, labeled: bool) -> Found:
    if _is_read_as_xml(path, labeled):
        return Found("voc", str(path))
    if (labeled or split is not None) and (path / "data.yaml").is_file():
        return Found("yolo", str(path), split)
    # Without boxes an ImageFolder is a folder of images.
    if _is_saved_data_set(path) or ((labeled or split is not None) and has_metadata(path)):
        return Found("datasets", str(path), split)
    if split is not None:
        raise ValueError(f"{path}: has no splits, so :{split} cannot be one; leave it out")
    _require_unlabeled(path, "a bare folder has", labeled)
    return Found("tar" if any(path.glob("*.tar")) and not holds_image(path) else "folder", str(path))


def _require_unlabeled(path: str | Path, what_has: str, labeled: bool) -> None:
    if labeled:
        raise ValueError(
            f"{path}: {what_has} no boxes; give a COCO .json, a YOLO .yaml, a folder with Pascal VOC's XML files or a "
            "data set, or use it as unlabeled data"
        )


def _is_saved_data_set(folder: Path) -> bool:
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(folder.glob("*.parquet")) or any((folder / "data").glob("*.parquet"))


def has_metadata(folder: Path) -> bool:
    """Whether a folder is an ImageFolder with metadata: in itself, or in the folders of its splits."""
    names = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
    return any(any(folder.glob(name)) or any(folder.glob(f"*/{name}")) for name in names)


def _is_read_as_xml(path: Path, labeled: bool) -> bool:
    if is_voc_folder(path):
        return True
    # Asking the disk about each of half a million files takes seconds; the folder itself tells which are links.
    with os.scandir(path) as entries:
        folders = sorted(e.name for e in entries if (os.path.isdir(e) if e.is_symlink() else e.is_dir()))
    if voc_folders := [name for name in folders if is_voc_folder(path / name)]:
        # Opened as a bare folder it would also yield the pictures of VOC's segmentation masks.
        raise ValueError(f"{path}: holds the VOC folders {', '.join(voc_folders)}; give one of them or an image set")
    return labeled and has_xml_files(path)
