"""Images without boxes: what their sources share, and a bare folder of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch

from .images import ImageFile, Sample, ViewSize, load_for_view, stored_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class UnlabeledSource(ABC):
    """Images without boxes; a subclass sets `name` and `image_ids` and says where each image is."""

    category_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    class_counts: tuple[int, ...] = ()
    num_boxes: int = 0
    name: str
    image_ids: list[str]

    @abstractmethod
    def path(self, index: int) -> ImageFile:
        """Return where one image is."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one image with (0, 4) boxes.

        Raises:
            UnreadableImageError: if the file is missing or broken.
        """
        return self.read_for_view(index, None)

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        """Return the same, of a large JPEG file no more pixels than its views need.

        Args:
            index: of the image.
            largest_view: the largest that will be made of it; None for the whole picture.

        Raises:
            UnreadableImageError: if the file is missing or broken.
        """
        image, reduction = load_for_view(self.path(index), None, largest_view)
        return Sample(
            image=image,
            boxes_xyxy=torch.zeros((0, 4), dtype=torch.float32),
            class_labels=torch.zeros((0,), dtype=torch.int64),
            image_id=self.image_ids[index],
            file_name=self.image_ids[index],
            reduction=reduction,
        )

    def image_size(self, index: int) -> tuple[int, int] | None:
        """Return (height, width) from the header of the file, None if that cannot be read."""
        return stored_size(self.path(index))


class FolderSource(UnlabeledSource):
    """Every image below a folder, in the order of the relative paths, without boxes.

    Args:
        folder: searched with all its sub-folders for jpg, jpeg, png, bmp, webp, tif and tiff files, in any case.

    Raises:
        ValueError: if it is not a folder or holds no image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: not a folder; give a folder that holds image files")
        self.image_ids = sorted(name for name in _file_names(self.folder) if is_image_name(name))
        if not self.image_ids:
            raise ValueError(f"{folder}: no image found in it or below; looked for {', '.join(IMAGE_SUFFIXES)}")
        self.name = self.folder.resolve().name

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.folder / self.image_ids[index]


def is_image_name(name: str) -> bool:
    """Whether the suffix of a file name is that of an image, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def holds_image(folder: Path) -> bool:
    """Whether there is an image in a folder or below."""
    return any(map(is_image_name, _file_names(folder)))


def _file_names(folder: Path, below: str = "") -> Iterator[str]:
    """Yield the path of every file in a folder and its sub-folders; links to files count, links to folders do not."""
    folders = []
    try:
        with os.scandir(folder / below) as entries:
            for entry in entries:
                # What the folder itself tells about its entries saves asking the disk about each; not so of links.
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{entry.name}/")
                elif os.path.isfile(entry) if entry.is_symlink() else entry.is_file():
                    yield below + entry.name
    except PermissionError:
        return  # a folder that is closed to us, such as the lost+found of a disk, holds no images of ours
    for name in folders:
        yield from _file_names(folder, name)
