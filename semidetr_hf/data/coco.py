"""The COCO reader: a json file and its images become a source with contiguous class labels.

Source: the annotation filter is the one of Semi-DETR's released code (crowds, ignored boxes, boxes outside the image
and boxes narrower than a pixel are no targets). Unlike there, images without boxes and small images are kept, and a
box of an unknown category is an error instead of being dropped.
"""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .coco_json import CocoDocument, CocoImage, read_coco_json, visible_box
from .images import ImageFile, Sample, ViewSize, load_for_view, stored_size

logger = logging.getLogger(__name__)


class CocoSource:
    """Images and boxes of a COCO json file.

    Class label i is the category with the i-th smallest id; `category_ids[i]` gives the id back.

    Args:
        json_path: the annotation file.
        image_folder: where its file names start; None to look next to the json, in `images` and in the folders around.
        image_ids: keep only these images; None for all. They stay in the order of the file.
        labeled: False to leave the annotations unread; the file then needs neither annotations nor categories.

    Raises:
        FileNotFoundError: if the json or the folder of the images is not found; names the places tried.
        ValueError: if the content is wrong; names the file, the entry and the bad value.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_folder: str | Path | None = None,
        image_ids: Sequence[int | str] | None = None,
        *,
        labeled: bool = True,
    ) -> None:
        self.json_path = Path(json_path)
        self.name = self.json_path.stem
        document = read_coco_json(self.json_path, labeled=labeled)
        self._adopt(document, labeled)
        self.image_folder = find_image_folder(self.json_path, document.images, image_folder)
        if image_ids is not None:
            self._select(self._images_of(image_ids))

    def _adopt(self, document: CocoDocument, labeled: bool) -> None:
        """Take over what was read, from a json or from elsewhere."""
        self.category_ids = tuple(document.categories)
        self.category_names = tuple(document.categories.values())
        self.dropped = dict(document.dropped)
        self._label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        self._annotations = document.annotations
        self._select(document.images)
        self._report(labeled)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_boxes(self) -> int:
        """Number of boxes to train on."""
        return sum(self.class_counts)

    def path(self, index: int) -> ImageFile:
        """Return where one image is."""
        return self.image_folder / self._images[index].file_name

    def __getitem__(self, index: int) -> Sample:
        """Return one image with its usable boxes, clipped to it.

        Raises:
            UnreadableImageError: if the file is missing, broken, or not of the size the json says.
        """
        return self.read_for_view(index, None)

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        """Return the same, of a large JPEG file no more pixels than its views need.

        Args:
            index: of the image.
            largest_view: the largest that will be made of it; None for the whole picture.

        Raises:
            UnreadableImageError: if the file is missing, broken, or not of the size the json says.
        """
        entry = self._images[index]
        image, reduction = load_for_view(self.path(index), entry.size, largest_view)
        size = (image.height * reduction, image.width * reduction)
        boxes, labels = [], []
        for annotation in self._annotations.get(entry.image_id, ()):
            box = visible_box(annotation.bbox, size) if annotation.usable else None
            if box is not None:
                boxes.append(box)
                labels.append(self._label_of[annotation.category_id])
        return Sample(
            image=image,
            boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / reduction,
            class_labels=torch.tensor(labels, dtype=torch.int64),
            image_id=entry.image_id,
            file_name=entry.file_name,
            reduction=reduction,
        )

    def image_size(self, index: int) -> tuple[int, int] | None:
        """Return (height, width) as the json says, else as the file does; None if that cannot be read."""
        return self._images[index].size or stored_size(self.path(index))

    def subset(self, image_ids: Sequence[int | str]) -> "CocoSource":
        """Return a source with only these images, in the order of the file.

        Raises:
            ValueError: if an id is unknown or occurs twice, or none is given.
        """
        part = copy.copy(self)
        part._select(self._images_of(image_ids))
        return part

    def coco_ground_truth(self) -> dict[str, Any]:
        """Return the boxes of this source's images as the COCO dict that pycocotools evaluates against.

        Category ids are the original ones; crowds are kept (the evaluation neither rewards nor punishes them), ignored
        boxes become crowds, tiny boxes stay, and a missing area is width * height. Annotations are numbered from 1,
        because pycocotools takes the id 0 for "not matched".
        """
        annotations = [
            {
                "id": number,
                "image_id": image_id,
                "category_id": annotation.category_id,
                "bbox": list(annotation.bbox),
                "area": annotation.area,
                "iscrowd": int(annotation.is_crowd),
            }
            for number, (image_id, annotation) in enumerate(self._pairs(), start=1)
        ]
        images = []
        for entry in self._images:
            size = {} if entry.size is None else {"height": entry.size[0], "width": entry.size[1]}
            images.append({"id": entry.image_id, "file_name": entry.file_name, **size})
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.category_names, strict=True)
        ]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _pairs(self) -> Iterator[tuple[int | str, Any]]:
        for entry in self._images:
            for annotation in self._annotations.get(entry.image_id, ()):
                yield entry.image_id, annotation

    def _select(self, images: list[CocoImage]) -> None:
        self._images = images
        self.image_ids: list[int | str] = [entry.image_id for entry in images]
        counts = [0] * len(self.category_ids)
        for _, annotation in self._pairs():
            counts[self._label_of[annotation.category_id]] += annotation.usable
        self.class_counts = tuple(counts)

    def _images_of(self, image_ids: Sequence[int | str]) -> list[CocoImage]:
        wanted = set(image_ids)
        if not wanted:
            raise ValueError(f"{self.json_path}: an empty list of image ids was given; choose at least one image")
        if len(wanted) != len(image_ids):
            twice = next(image_id for place, image_id in enumerate(image_ids) if image_id in image_ids[:place])
            raise ValueError(f"{self.json_path}: image id {twice!r} was given twice; remove one of them")
        unknown = wanted.difference(self.image_ids)
        if unknown:
            first = next(image_id for image_id in image_ids if image_id in unknown)
            raise ValueError(
                f"{self.json_path}: {len(unknown)} of the given image ids are not in it, the first is {first!r}; "
                "check that the list was made from this file"
            )
        return [entry for entry in self._images if entry.image_id in wanted]

    def _report(self, labeled: bool) -> None:
        for reason, count in self.dropped.items():
            logger.info("%s: %d boxes are no training targets: %s", self.json_path, count, reason)
        empty = [name for name, count in zip(self.category_names, self.class_counts, strict=True) if count == 0]
        if empty and labeled:
            logger.warning("%s: no box for %d categories: %s", self.json_path, len(empty), ", ".join(empty))


def find_image_folder(json_path: Path, images: Sequence[CocoImage], image_folder: str | Path | None = None) -> Path:
    """Return the folder in which the file names of a json start.

    Args:
        json_path: the annotation file.
        images: its images; a folder fits if the first, the middle or the last of them is in it.
        image_folder: what the user said. None looks in the json's folder, in `images` beside it, in the same places
            one level up, and then in their sub-folders: in those that the json is named after (`train2017` for
            `instances_train2017.json`), else in any below the json's folder.

    Raises:
        FileNotFoundError: if no folder holds the images; names the places tried and the first file.
        ValueError: if several sub-folders hold them, since equal file names may be different pictures.
    """
    probes = [images[0].file_name, images[len(images) // 2].file_name, images[-1].file_name]

    def fits(folder: Path) -> bool:
        # Of a name that no disk can hold Path.is_file raises instead of denying it.
        return any(os.path.isfile(folder / probe) for probe in probes)

    if image_folder is not None:
        if not fits(Path(image_folder)):
            raise FileNotFoundError(
                f"{json_path}: its image {probes[0]!r} is not in the given folder {image_folder}; give another one"
            )
        return Path(image_folder)
    folder, above = json_path.parent, json_path.absolute().parent.parent
    near = [folder, folder / "images", above, above / "images"]
    fitting = [place for place in near if fits(place)][:1] or _fitting_subfolders(near, json_path, fits)
    if len(fitting) > 1:
        names = ", ".join(str(place) for place in fitting)
        raise ValueError(f"{json_path}: its image {probes[0]!r} is in several folders ({names}); give image_folder")
    if not fitting:
        tried = ", ".join(str(place) for place in near)
        raise FileNotFoundError(
            f"{json_path}: its image {probes[0]!r} was not found in {tried} or a folder in these; give image_folder"
        )
    return fitting[0]


def _fitting_subfolders(near: Sequence[Path], json_path: Path, fits: Callable[[Path], bool]) -> list[Path]:
    below = [folder for place in near if place.is_dir() for folder in sorted(place.iterdir()) if folder.is_dir()]
    fitting = [folder for folder in below if fits(folder)]
    named = [folder for folder in fitting if folder.name in json_path.stem]
    # Unnamed folders beside the json's own may be other data sets with equal file names.
    return named or [folder for folder in fitting if folder.is_relative_to(json_path.parent)]
