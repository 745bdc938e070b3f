"""From sources to batches: data sets that make views, a sampler that can resume, padding.

The sampler hands out pairs (index, seed), so what an image looks like depends on the draw alone, never on which worker
makes it or how many there are.

Source: Semi-DETR's released code reads labeled and unlabeled images from one sampler that draws the composition of
each batch; here the two sets have a loader each, so every batch has exactly the wanted number of both.
"""

import atexit
import logging
import multiprocessing
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.ops import box_convert

from ..geometry import apply_to_boxes, clip_boxes, compose, has_visible_area, scaling
from ..structures import LabeledBatch, Target, UnlabeledBatch, View
from .augment import AugmentConfig, AugmentedImage, labeled_view, strong_view, weak_view
from .images import Sample, UnreadableImageError
from .sources import Source, ViewSource

logger = logging.getLogger(__name__)

MAX_TRIES = 10  # images in a row; more broken ones than this point to a lost disk, not to a bad file


@dataclass(frozen=True, kw_only=True)
class ViewItem:
    """One view before padding: (3, h, w) float normalized pixels and the (3, 3) float64 homography that made it."""

    pixel_values: Tensor
    homography: Tensor


@dataclass(frozen=True, kw_only=True)
class LabeledItem:
    """One labeled image; the boxes of `target` are normalized by the view."""

    view: ViewItem
    target: Target
    image_id: int | str


@dataclass(frozen=True, kw_only=True)
class UnlabeledItem:
    """Two independently drawn views of one image."""

    weak: ViewItem
    strong: ViewItem
    image_id: int | str


class _ViewDataset:
    """What both data sets share: reading past broken files, and normalization."""

    def __init__(
        self, source: Source, augment: AugmentConfig, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> None:
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise ValueError(
                f"image_mean={tuple(image_mean)}, image_std={tuple(image_std)}: give three numbers each, std above 0"
            )
        self.source = source
        self.augment = augment
        # (N,), which images turned out to be unreadable; shared memory, since loader workers have copies of the rest
        self.is_unreadable = torch.zeros(len(source), dtype=torch.bool).share_memory_()
        # (pixel / 255 - mean) / std as one multiplication and one subtraction
        self._scale = 1.0 / (255.0 * torch.tensor(image_std, dtype=torch.float32).view(3, 1, 1))
        self._shift = (torch.tensor(image_mean) / torch.tensor(image_std)).float().view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, index: int) -> Sample:
        failures: list[str] = []
        for attempt in range(min(MAX_TRIES, len(self.source))):
            place = (index + attempt) % len(self.source)
            try:
                if isinstance(self.source, ViewSource):
                    return self.source.read_for_view(place, self.augment.largest_view)
                return self.source[place]
            except UnreadableImageError as error:
                failures.append(str(error))
                if not self.is_unreadable[place]:
                    self.is_unreadable[place] = True
                    logger.warning("skipped an image, the next one is taken instead: %s", error)
        raise UnreadableImageError(f"{len(failures)} images in a row cannot be read: " + " | ".join(failures))

    def _to_item(self, view: AugmentedImage, reduction: int) -> ViewItem:
        from_original = compose(scaling(1 / reduction, 1 / reduction), view.homography)
        return ViewItem(pixel_values=self._normalize(view.image), homography=from_original)

    def _normalize(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        # Channels apart and numbers converted in one pass over the pixels.
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(self._scale).sub_(self._shift)


class LabeledDataset(_ViewDataset, Dataset[LabeledItem]):
    """Labeled images as augmented views with boxes.

    An unreadable image is replaced by the next one and reported once.

    Args:
        source: images with boxes.
        augment: how the views are made.
        image_mean: of the three channels, for pixels in 0..1.
        image_std: likewise.
        min_box_size: pixels of the view; boxes that are not wider and higher than this after clipping are dropped.

    Raises:
        ValueError: if mean or std are not three numbers, or a std is not positive.
    """

    def __init__(
        self,
        source: Source,
        augment: AugmentConfig,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        min_box_size: float = 1.0,
    ) -> None:
        super().__init__(source, augment, image_mean, image_std)
        self.min_box_size = min_box_size

    def __getitem__(self, draw: tuple[int, int]) -> LabeledItem:
        """Return image `index` as it looks under `seed`; the argument is the pair (index, seed).

        Raises:
            UnreadableImageError: if this image and the ones after it cannot be read.
        """
        index, seed = draw
        sample = self._read(index)
        view = labeled_view(sample.image, self.augment, random.Random(seed))
        width, height = view.image.size
        boxes = clip_boxes(apply_to_boxes(view.homography, sample.boxes_xyxy), (height, width))
        keep = has_visible_area(boxes, self.min_box_size)
        relative = boxes[keep] / torch.tensor([width, height, width, height], dtype=boxes.dtype)
        target: Target = {
            "class_labels": sample.class_labels[keep],
            "boxes": box_convert(relative, in_fmt="xyxy", out_fmt="cxcywh"),
        }
        return LabeledItem(view=self._to_item(view, sample.reduction), target=target, image_id=sample.image_id)

    @staticmethod
    def collate(items: Sequence[LabeledItem]) -> LabeledBatch:
        """Put labeled images into one padded batch.

        Raises:
            ValueError: if there is none.
        """
        return LabeledBatch(
            view=pad_views([item.view for item in items]),
            targets=[item.target for item in items],
            image_ids=[item.image_id for item in items],
        )


class UnlabeledDataset(_ViewDataset, Dataset[UnlabeledItem]):
    """Images as a weak and a strong view, drawn independently; boxes of the source are ignored.

    An unreadable image is replaced by the next one and reported once.

    Args:
        source: images with or without boxes.
        augment: how the views are made.
        image_mean: of the three channels, for pixels in 0..1.
        image_std: likewise.

    Raises:
        ValueError: if mean or std are not three numbers, or a std is not positive.
    """

    def __getitem__(self, draw: tuple[int, int]) -> UnlabeledItem:
        """Return image `index` as it looks under `seed`; the argument is the pair (index, seed).

        Raises:
            UnreadableImageError: if this image and the ones after it cannot be read.
        """
        index, seed = draw
        sample = self._read(index)
        rng = random.Random(seed)
        weak = weak_view(sample.image, self.augment, rng)
        strong = strong_view(sample.image, self.augment, rng)
        return UnlabeledItem(
            weak=self._to_item(weak, sample.reduction),
            strong=self._to_item(strong, sample.reduction),
            image_id=sample.image_id,
        )

    @staticmethod
    def collate(items: Sequence[UnlabeledItem]) -> UnlabeledBatch:
        """Put unlabeled images into one batch of weak and one of strong views, padded separately.

        Raises:
            ValueError: if there is none.
        """
        return UnlabeledBatch(
            weak=pad_views([item.weak for item in items]),
            strong=pad_views([item.strong for item in items]),
            image_ids=[item.image_id for item in items],
        )


class PassSampler(Sampler[tuple[int, int]]):
    """Pass after pass over all images, each in its own random order, as pairs (index, seed of the draw).

    Order and seeds depend only on `seed` and the number of the draw, so draw 1000 is the same after a resume at 1000.

    Args:
        num_images: size of the data set.
        num_draws: where to stop, counted from the first draw of the run; passes continue over the end of the data set.
        seed: 0 or more.
        start: first draw to hand out.

    Raises:
        ValueError: if `num_images` is not positive, `seed` is negative, or `start` is not in 0..num_draws.
    """

    def __init__(self, num_images: int, num_draws: int, seed: int, start: int = 0) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: there must be at least one image to draw from")
        if not 0 <= start <= num_draws:
            raise ValueError(f"start={start}: must be between 0 and num_draws={num_draws}")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be 0 or larger")
        self.num_images, self.num_draws, self.seed, self.start = num_images, num_draws, seed, start

    def __len__(self) -> int:
        return self.num_draws - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: list[int] = []
        for draw in range(self.start, self.num_draws):
            pass_number, place = divmod(draw, self.num_images)
            if place == 0 or not order:
                order = np.random.default_rng((self.seed, pass_number)).permutation(self.num_images).tolist()
            # The third number keeps the stream of the draws apart from that of the passes.
            draw_seed = np.random.SeedSequence((self.seed, draw, 1)).generate_state(1, np.uint64)
            yield order[place], int(draw_seed[0])


def pad_views(items: Sequence[ViewItem]) -> View:
    """Pad views to the largest height and width among them, with zeros at the bottom and on the right.

    Args:
        items: B views.

    Raises:
        ValueError: if there is none.
    """
    if not items:
        raise ValueError("pad_views got no views; a batch needs at least one image")
    sizes = [tuple(item.pixel_values.shape[-2:]) for item in items]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    # Zeros that lie in shared memory when a loader worker makes them; the finished batch would be copied there.
    pixel_values = default_collate([torch.zeros(()).expand(3, height, width)] * len(items))
    pixel_mask = torch.zeros((len(items), height, width), dtype=torch.int64)
    for row, (item, size) in enumerate(zip(items, sizes, strict=True)):
        pixel_values[row, :, : size[0], : size[1]] = item.pixel_values
        pixel_mask[row, : size[0], : size[1]] = 1
    return View(
        pixel_values=pixel_values,
        pixel_mask=pixel_mask,
        image_sizes=torch.tensor(sizes, dtype=torch.int64),
        homographies=torch.stack([item.homography for item in items]),
    )


def view_loader(
    dataset: LabeledDataset | UnlabeledDataset,
    sampler: Sampler[tuple[int, int]],
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of `LabeledBatch` or `UnlabeledBatch`, as the data set makes them.

    Args:
        dataset: makes the items, and the batches with its `collate`.
        sampler: pairs (index, seed), such as a `PassSampler`.
        batch_size: images in a batch; the last one may have fewer.
        num_workers: processes that make items; 0 = this one.
        pin_memory: whether batches are put where a CUDA device can fetch them while the program goes on.
    """
    if num_workers > 0:
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_stop_signals,
        # Of its own: a loader draws a seed for its workers, which must not move the random numbers of the training.
        generator=torch.Generator().manual_seed(0),
    )


def _ignore_stop_signals(_worker_id: int) -> None:
    # They reach the whole process group. The workers end with the training process, and not before it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    # At its exit multiprocessing asks processes like these by SIGTERM to end, and waits for ever if they ignore it.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report that they died
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
