"""Checks of the data before training: what makes a run pointless stops it, what is merely odd becomes a warning."""

import os
import random
from collections.abc import Sequence

from .images import ImageFile, PackedImage, UnreadableImageError, is_missing
from .sources import Source

MAX_NAMES = 10  # in one message


def check_sources(
    labeled: Source,
    unlabeled: Source | None,
    val: Source | None,
    *,
    max_images_opened: int = 200,
    seed: int = 0,
) -> list[str]:
    """Check the sources of a run against themselves and each other.

    Every file of the labeled and the validation source is looked for, of the unlabeled one a sample. A sample of all
    three is opened.

    Args:
        labeled: images with boxes.
        unlabeled: images without, None in supervised training.
        val: images with boxes to evaluate on, None to skip its checks.
        max_images_opened: over all sources together; 0 opens none.
        seed: of the sample.

    Returns:
        Warnings, one line each, for the caller to log: unreadable images, classes without labeled boxes, validation
        images that are labeled or unlabeled ones too.

    Raises:
        ValueError: if the labeled or the validation source has no box, their categories differ, or no image of a
            source's sample can be read.
        FileNotFoundError: if image files are missing; gives the first and how many.
    """
    _require_boxes("labeled", labeled)
    if val is not None:
        _require_boxes("validation", val)
        _require_same_categories(labeled, val)
    rng = random.Random(seed)
    roles = [("labeled", labeled), ("unlabeled", unlabeled), ("validation", val)]
    present = [(role, source) for role, source in roles if source is not None]
    warnings = _classes_without_boxes(labeled)
    if val is not None:
        for role, source in (("labeled", labeled), ("unlabeled", unlabeled)):
            warnings += [] if source is None else _shared_files(role, source, val)
    for role, source in present:
        share = max_images_opened // len(present)
        sample = sorted(rng.sample(range(len(source)), min(share, len(source))))
        _require_files(role, source, sample if role == "unlabeled" else range(len(source)))
        warnings += _unreadable_images(role, source, sample)
    return warnings


def _require_boxes(role: str, source: Source) -> None:
    if source.num_boxes == 0:
        raise ValueError(
            f"{source.name}: the {role} source has {len(source)} images but not one usable box; give it annotations"
        )


def _require_same_categories(labeled: Source, val: Source) -> None:
    ours = dict(zip(labeled.category_ids, labeled.category_names, strict=True))
    theirs = dict(zip(val.category_ids, val.category_names, strict=True))
    if ours == theirs:
        return
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    listed = [
        f"id {key} is {ours.get(key, 'missing')!r} in {labeled.name} but {theirs.get(key, 'missing')!r} in {val.name}"
        for key in differing[:MAX_NAMES]
    ]
    raise ValueError(
        f"labeled and validation categories differ in {len(differing)} ids ({'; '.join(listed)}); "
        "write the same categories into both; if the labeled images have XML files, into the validation json"
    )


def _require_files(role: str, source: Source, indices: Sequence[int]) -> None:
    missing = [path for path in map(source.path, indices) if is_missing(path)]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: this and {len(missing) - 1} more of {len(indices)} image files looked for in the {role} "
            f"source {source.name} are missing; correct the image folder or remove the entries"
        )


def _unreadable_images(role: str, source: Source, indices: Sequence[int]) -> list[str]:
    failures = []
    for index in indices:
        try:
            source[index]
        except UnreadableImageError as error:
            failures.append(str(error))
    if failures and len(failures) == len(indices):
        raise ValueError(
            f"{source.name}: none of {len(failures)} images tried of the {role} source can be read; "
            f"the first: {failures[0]}"
        )
    return failures


def _classes_without_boxes(labeled: Source) -> list[str]:
    empty = [name for name, count in zip(labeled.category_names, labeled.class_counts, strict=True) if count == 0]
    if not empty:
        return []
    return [f"{labeled.name}: no labeled box of {len(empty)} classes, which cannot be learned: {_listed(empty)}"]


def _shared_files(role: str, source: Source, val: Source) -> list[str]:
    theirs = {_real_place(path): _own_name(path) for path in map(val.path, range(len(val)))}
    # Following links asks the disk about every part of a path, too slow for half a million; equal names are few.
    names = {name for path, given in theirs.items() for name in (os.path.basename(path), given)}
    ours = {_real_place(path) for path in map(source.path, range(len(source))) if _own_name(path) in names}
    shared = [path for path in theirs if path in ours]
    if not shared:
        return []
    return [
        f"{val.name}: {len(shared)} validation images are also {role}, the metric will be too good: {_listed(shared)}"
    ]


def _real_place(path: ImageFile) -> str:
    # Unlike Path.resolve, realpath takes a link that points at itself for what it is: unreadable, as is found later.
    return path.place if isinstance(path, PackedImage) else os.path.realpath(path)


def _own_name(path: ImageFile) -> str:
    return path.place if isinstance(path, PackedImage) else path.name


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
