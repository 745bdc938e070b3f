"""Every image file of the checked sets is opened once: is it readable, of the right size, and there twice?"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .coco_check import check_box
from .data_problems import CheckedSet, Severity
from .images import ImageFile, UnreadableImageError, is_missing, load_image

DIGEST_BYTES = 16  # at 2**64 images one expects the first two different ones of equal digest
IN_FLIGHT = 4  # files per thread that are opened ahead; all at once would need memory for every one

Digests = NDArray[np.uint8]


class Picture(NamedTuple):
    """What opening one file showed; `size` is (height, width), `kind` and `fault` say what is wrong."""

    digest: bytes | None
    size: tuple[int, int] | None
    kind: str | None = None
    fault: UnreadableImageError | None = None


class Place(NamedTuple):
    """One image, by its place among the images of its set, and that of the set."""

    set_index: int
    image_index: int


def check_pictures(sets: Sequence[CheckedSet], *, workers: int, progress: bool) -> list[list[Place]]:
    """Open all images of all sets in parallel and note what is wrong with them.

    Args:
        sets: get the problems, the number of usable images, and the sizes that their json does not give.
        workers: threads; decoding a picture does not hold Python's lock.
        progress: whether to show a bar on a terminal.

    Returns:
        The groups of two and more images that show the same, by `digest_of`; in each, in the order of the sets.
    """
    digests = [np.zeros((len(checked.images), DIGEST_BYTES), dtype=np.uint8) for checked in sets]
    are_usable = [np.zeros(len(checked.images), dtype=bool) for checked in sets]
    jobs = ((path_of(sets[n], i), sets[n].images[i].size) for n, i in _places_of(sets))
    opened = in_parallel(inspect_picture, jobs, workers)
    total = sum(len(checked.images) for checked in sets if checked.locate is not None)
    bar = tqdm(opened, total=total, desc="opening images", unit=" images", disable=None if progress else True)
    for (number, index), picture in zip(_places_of(sets), bar, strict=True):
        if picture.digest is not None:
            digests[number][index] = np.frombuffer(picture.digest, dtype=np.uint8)
            are_usable[number][index] = picture.kind is None
        _note(sets[number], index, picture)
    for checked, is_usable in zip(sets, are_usable, strict=True):
        if checked.locate is not None:
            checked.num_usable = int(is_usable.sum())
    return equal_pictures(digests)


def _places_of(sets: Sequence[CheckedSet]) -> Iterator[Place]:
    for number, checked in enumerate(sets):
        if checked.locate is not None:
            yield from (Place(number, index) for index in range(len(checked.images)))


def path_of(checked: CheckedSet, index: int) -> ImageFile:
    """Return where one image is, of a set whose images were found."""
    if checked.locate is None:
        raise ValueError(f"{checked.path}: its images were not found")
    return checked.locate(index)


def inspect_picture(job: tuple[ImageFile, tuple[int, int] | None]) -> Picture:
    """Open one file as training does.

    Args:
        job: the file, and the (height, width) that the annotations are made for, None when unknown.
    """
    path, expected_size = job
    try:
        image = load_image(path, expected_size)
    except UnreadableImageError as fault:
        if is_missing(path):
            return Picture(None, None, "missing_file", fault)
        if expected_size is None:
            return Picture(None, None, "unreadable", fault)
        picture = inspect_picture((path, None))
        return picture if picture.digest is None else picture._replace(kind="wrong_size", fault=fault)
    return Picture(digest_of(image.tobytes(), image.size), (image.height, image.width))


def digest_of(pixels: bytes, size: tuple[int, int]) -> bytes:
    """Return 16 bytes that tell whether two pictures are the same, pixel for pixel.

    They do not depend on name, file format or metadata: a lossless copy in another format is found, also one with
    other EXIF data. A picture that was compressed again, resized, cropped or turned is another one. So is one whose
    EXIF orientation is followed in one set and not in the other, because the sizes in a json say that its boxes were
    drawn on the stored picture.

    Args:
        pixels: upright RGB, row by row.
        size: (width, height).
    """
    digest = hashlib.blake2b(b"%dx%d " % size, digest_size=DIGEST_BYTES)
    digest.update(pixels)
    return digest.digest()


def in_parallel(
    inspect: Callable[[tuple[ImageFile, tuple[int, int] | None]], Picture],
    jobs: Iterator[tuple[ImageFile, tuple[int, int] | None]],
    workers: int,
) -> Iterator[Picture]:
    """Yield the results in the order of the jobs; only a few of them wait at a time."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Picture]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(inspect, job))
            if len(waiting) >= workers * IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After Ctrl+C nobody wants to wait for the rest.
        pool.shutdown(cancel_futures=True)


def equal_pictures(digests: Sequence[Digests]) -> list[list[Place]]:
    """Return the groups of images with equal digests.

    Args:
        digests: (N, 16) of every set; a row of zeros is no digest.
    """
    rows = np.concatenate([*digests, np.zeros((0, DIGEST_BYTES), dtype=np.uint8)]).view(np.uint64)  # (M, 2)
    starts = list(itertools.accumulate((len(part) for part in digests), initial=0))
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    order = order[rows[order].any(axis=1)]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    bounds = [*np.flatnonzero(is_new), len(order)]
    groups = [
        [_place(int(row), starts) for row in sorted(order[start:end])]
        for start, end in itertools.pairwise(bounds)
        if end - start > 1
    ]
    return sorted(groups)


def _place(row: int, starts: Sequence[int]) -> Place:
    number = max(n for n, start in enumerate(starts[:-1]) if start <= row)
    return Place(number, row - starts[number])


def _note(checked: CheckedSet, index: int, picture: Picture) -> None:
    image = checked.images[index]
    where = {"image_id": image.image_id, "place": checked.places[index] if checked.places else None}
    if picture.fault is not None:
        _note_fault(checked, path_of(checked, index), picture, where)
    elif image.size is None and picture.size is not None and checked.labeled:
        checked.found_sizes[image.image_id] = picture.size
        for place, annotation_id, bbox in checked.unsized.pop(image.image_id, ()):
            check_box(bbox, picture.size, checked, image_id=image.image_id, annotation_id=annotation_id, place=place)


def _note_fault(checked: CheckedSet, path: ImageFile, picture: Picture, where: dict[str, Any]) -> None:
    named = str(UnreadableImageError(f"{path}: "))  # escaped as in the message
    value, _, advice = str(picture.fault).removeprefix(named).rpartition("; ")
    # Training skips what it cannot open, but does not start while files are missing.
    severity: Severity = "error" if picture.kind == "missing_file" else "warning"
    checked.add(severity, str(picture.kind), value, advice, file=path, fix="drop_image", **where)
