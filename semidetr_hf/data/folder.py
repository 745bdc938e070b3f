"""A bare folder of images, for unlabeled data."""

from pathlib import Path

import torch

from .images import Sample, load_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class FolderSource:
    """Every image below a folder, in the order of the relative paths, without boxes.

    Args:
        folder: searched with all its sub-folders for jpg, jpeg, png, bmp, webp, tif and tiff files, in any case.

    Raises:
        ValueError: if it is not a folder or holds no image.
    """

    category_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    class_counts: tuple[int, ...] = ()
    num_boxes: int = 0

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: not a folder; give a folder that holds image files")
        self.image_ids: list[str] = sorted(
            file.relative_to(self.folder).as_posix()
            for file in self.folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not self.image_ids:
            raise ValueError(f"{folder}: no image found in it or below; looked for {', '.join(IMAGE_SUFFIXES)}")
        self.name = self.folder.resolve().name

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.folder / self.image_ids[index]

    def __getitem__(self, index: int) -> Sample:
        """Return one image with (0, 4) boxes.

        Raises:
            UnreadableImageError: if the file is missing or broken.
        """
        return Sample(
            image=load_image(self.path(index)),
            boxes_xyxy=torch.zeros((0, 4), dtype=torch.float32),
            class_labels=torch.zeros((0,), dtype=torch.int64),
            image_id=self.image_ids[index],
            file_name=self.image_ids[index],
        )
