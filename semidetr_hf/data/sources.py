"""What a source of images offers, and the one door through which a path becomes a source."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from .coco import CocoSource
from .folder import FolderSource
from .images import Sample, ViewSize
from .voc import Categories, Corners, VocSource, has_xml_files, is_voc_folder

ACCEPTED = "a COCO .json, a VOC image set (.txt) or folder, a folder of images with or without XML files"


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

    def path(self, index: int) -> Path:
        """Return the file of one image."""
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


def open_source(
    path: str | Path,
    image_folder: str | Path | None = None,
    *,
    labeled: bool = True,
    corners: Corners | None = None,
    categories: Categories | None = None,
) -> Source:
    """Open a COCO json file, Pascal VOC's XML files or a bare folder of images.

    Args:
        path: a COCO `.json` file; or a VOC image set, such as `VOC2007/ImageSets/Main/test.txt`; or a VOC folder, such
            as `VOC2007`, for its trainval images; or a folder of images with XML files beside them, as labelImg writes
            them; or, for unlabeled data, a folder of images. Folders of images are searched with their sub-folders.
        image_folder: of the pictures of a json or of XML files; None to look around the json, in `JPEGImages` of the
            VOC folder, or beside the XML files.
        labeled: False when the boxes are not wanted: a json then needs neither annotations nor categories, XML files
            are not read, and of a folder every image is taken (of a VOC folder those of the image set).
        corners: how the boxes of XML files become edges, see `VocSource`; other sources ignore it.
        categories: what XML files may show, see `VocSource`; ignored by a json, which lists its own.

    Returns:
        A `CocoSource`, of which a `VocSource` is one, or a `FolderSource`.

    Raises:
        FileNotFoundError: if there is nothing at `path`, or the images of a json or an image set are not found.
        ValueError: if `path` is none of these, its content is wrong, or a bare folder is opened as labeled.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt" or (path.is_dir() and _is_read_as_xml(path, labeled)):
        return VocSource(path, image_folder, labeled=labeled, corners=corners, categories=categories)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected {ACCEPTED}")
    if path.is_dir():
        return _open_bare_folder(path, image_folder, labeled)
    if path.suffix.lower() == ".json":
        return CocoSource(path, image_folder, labeled=labeled)
    raise ValueError(f"{path}: a {path.suffix or 'suffixless'} file; accepted are {ACCEPTED}")


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


def _open_bare_folder(path: Path, image_folder: str | Path | None, labeled: bool) -> FolderSource:
    if image_folder is not None:
        raise ValueError(
            f"{path}: already a folder of images; image_folder={str(image_folder)!r} only fits a .json or XML files"
        )
    if labeled:
        raise ValueError(
            f"{path}: a bare folder has no boxes; give a COCO .json or a folder with Pascal VOC's XML files, "
            "or use the folder as unlabeled data"
        )
    return FolderSource(path)
