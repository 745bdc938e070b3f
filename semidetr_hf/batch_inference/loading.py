"""Images in batches, read and prepared ahead by several processes.

The n-th batch always holds the same images, however many processes read and wherever a run goes on: images of other
sizes in a batch are padded, which changes scores a little, so other batches would give other numbers.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from semidetr_hf.data.images import Sample, UnreadableImageError
from semidetr_hf.data.sources import Source
from semidetr_hf.video import VideoFrames

Images = Source | VideoFrames


class LoadedImage(NamedTuple):
    """An image that was read.

    Attributes:
        image_id: of the source; with several sources, with the name of its source before it.
        file_name: likewise; the id if the source has no names.
        size: (height, width) in pixels.
        picture: RGB, or None where nobody wants to see it.
    """

    image_id: int | str
    file_name: str
    size: tuple[int, int]
    picture: Image.Image | None


class LoadedBatch(NamedTuple):
    """Some images, ready for a detector.

    Attributes:
        images: those that can be read.
        inputs: what the image processor makes of them, on the CPU; None if there are none.
        unreadable: what is wrong with the others.
    """

    images: list[LoadedImage]
    inputs: Any
    unreadable: list[str]


class NamedImages(NamedTuple):
    """A collection of images and what goes before its ids and names, to tell it from others; may be empty."""

    images: Images
    prefix: str

    def load(self, samples: Sequence[Sample | UnreadableImageError], processor: Any, *, pictures: bool) -> LoadedBatch:
        """Return a batch of what was read; `pictures` says whether they are wanted as well."""
        readable = [sample for sample in samples if isinstance(sample, Sample)]
        return LoadedBatch(
            images=[
                LoadedImage(
                    image_id=f"{self.prefix}{sample.image_id}" if self.prefix else sample.image_id,
                    file_name=f"{self.prefix}{sample.file_name or sample.image_id}",
                    size=(sample.image.height, sample.image.width),
                    picture=sample.image if pictures else None,
                )
                for sample in readable
            ],
            inputs=processor(images=[sample.image for sample in readable], return_tensors="pt") if readable else None,
            unreadable=[str(sample) for sample in samples if isinstance(sample, UnreadableImageError)],
        )


def name_images(images: Sequence[Images]) -> list[NamedImages]:
    """Give each of several collections a prefix of its own: its name, with a number behind it where two have the same.

    A single collection has none.
    """
    if len(images) == 1:
        return [NamedImages(images[0], "")]
    seen: Counter[str] = Counter()
    named = []
    for part in images:
        seen[part.name] += 1
        named.append(NamedImages(part, f"{part.name}/" if seen[part.name] == 1 else f"{part.name}-{seen[part.name]}/"))
    return named


def load_batches(
    images: Sequence[NamedImages],
    processor: Any,
    *,
    batch_size: int,
    pictures: bool,
    num_workers: int = 0,
    first: int = 0,
) -> Iterator[LoadedBatch]:
    """Yield batches of each collection after the other.

    Args:
        images: with names.
        processor: an image processor of transformers.
        batch_size: images in a batch, of which unreadable ones are left out; the last of a collection may have fewer.
        pictures: whether the pictures are wanted as well.
        num_workers: processes that read ahead, two batches each; 0 = none. Frames of a video are read in this one.
        first: number of the first batch that is wanted.
    """
    for part in images:
        if isinstance(part.images, VideoFrames):
            frames = iter(part.images)
            while samples := list(islice(frames, batch_size)):
                if first > 0:
                    first -= 1
                else:
                    yield part.load(samples, processor, pictures=pictures)
            continue
        dataset = _Batches(part, processor, batch_size, pictures)
        wanted = range(first, len(dataset))
        first = max(0, first - len(dataset))
        yield from DataLoader(
            dataset,
            batch_size=None,
            sampler=wanted,
            collate_fn=_as_it_is,
            num_workers=min(num_workers, len(wanted)),
            worker_init_fn=_leave_interrupts,
            # Of its own: a loader draws a seed for its workers, which must not move the random numbers of the caller.
            generator=torch.Generator().manual_seed(0),
        )


class _Batches(Dataset[LoadedBatch]):
    """The batches of a source."""

    def __init__(self, part: NamedImages, processor: Any, batch_size: int, pictures: bool) -> None:
        self.part, self.processor, self.batch_size, self.pictures = part, processor, batch_size, pictures

    def __len__(self) -> int:
        return -(-len(self.part.images) // self.batch_size)

    def __getitem__(self, number: int) -> LoadedBatch:
        begin = number * self.batch_size
        indices = range(begin, min(begin + self.batch_size, len(self.part.images)))
        return self.part.load([self._read(index) for index in indices], self.processor, pictures=self.pictures)

    def _read(self, index: int) -> Sample | UnreadableImageError:
        try:
            return self.part.images[index]  # type: ignore[index]  # a video is not read here
        except UnreadableImageError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts(_worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; the main process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
