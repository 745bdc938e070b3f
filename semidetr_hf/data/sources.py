"""What a source of images offers, and the one door through which a path becomes a source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .coco import CocoSource
from .folder import FolderSource
from .images import Sample


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


def open_source(path: str | Path, image_folder: str | Path | None = None, *, labeled: bool = True) -> Source:
    """Open a COCO json file or a bare folder of images.

    Args:
        path: a COCO `.json` file, or a folder that is searched for images with its sub-folders.
        image_folder: where the file names of a json start; None to look around the json. Not for folders.
        labeled: False when the boxes are not wanted: a json then needs neither annotations nor categories.

    Returns:
        A `CocoSource` or a `FolderSource`.

    Raises:
        FileNotFoundError: if there is nothing at `path`, or the images of a json are not found.
        ValueError: if `path` is neither a json nor a folder, its content is wrong, or a folder is opened as labeled.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected a COCO .json file or a folder of images")
    if path.is_dir():
        return _open_folder(path, image_folder, labeled)
    if path.suffix.lower() == ".json":
        return CocoSource(path, image_folder, labeled=labeled)
    raise ValueError(f"{path}: a {path.suffix or 'suffixless'} file; accepted are a COCO .json or a folder of images")


def _open_folder(path: Path, image_folder: str | Path | None, labeled: bool) -> FolderSource:
    if image_folder is not None:
        raise ValueError(f"{path}: already a folder of images; image_folder={str(image_folder)!r} only fits a .json")
    if labeled:
        raise ValueError(f"{path}: a bare folder has no boxes; give a COCO .json, or use the folder as unlabeled data")
    return FolderSource(path)
