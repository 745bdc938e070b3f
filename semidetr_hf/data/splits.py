"""Which images of a labeled set keep their labels (COCO-partial), and lists of image ids on disk.

Source: the split script of Semi-DETR's released code draws with numpy's legacy generator, seeded by the fold plus a
random offset that was not recorded. Here the offset is the argument `seed`, 0 unless told, so that a split can be made
again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

ImageId = TypeVar("ImageId", int, str, int | str)


def labeled_subset(
    image_ids: Sequence[ImageId], *, fraction: float, fold: int = 0, seed: int = 0
) -> tuple[list[ImageId], list[ImageId]]:
    """Divide image ids into those that keep their labels and those that lose them.

    Splits of the same fold and seed are nested: the 1% set is part of the 5% set.

    Args:
        image_ids: all ids, in the order of the annotation file; the draw depends on that order.
        fraction: share of labeled images, 0 < fraction <= 1; the number is rounded down but at least 1.
        fold: which of several draws, 0 or more.
        seed: added to `fold`, 0 or more.

    Returns:
        The labeled and the unlabeled ids, each in the order of `image_ids`.

    Raises:
        ValueError: if `fraction`, `fold` or `seed` is out of range, or there is no image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be larger than 0 and at most 1 (10 percent is 0.1)")
    if fold < 0 or seed < 0:
        raise ValueError(f"fold={fold}, seed={seed}: both must be 0 or larger")
    if not image_ids:
        raise ValueError("labeled_subset got no image ids; open a source with at least one image")
    # Rounding first removes the float error that would make 29% of 100 images 28.
    num_labeled = max(1, int(round(fraction * len(image_ids), 6)))
    drawn = np.random.RandomState(fold + seed).choice(len(image_ids), num_labeled, replace=False)
    chosen = set(drawn.tolist())
    labeled = [image_id for place, image_id in enumerate(image_ids) if place in chosen]
    unlabeled = [image_id for place, image_id in enumerate(image_ids) if place not in chosen]
    return labeled, unlabeled


def write_ids(path: str | Path, image_ids: Sequence[int | str]) -> None:
    """Write image ids as a json list, creating the folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(image_ids), ensure_ascii=False) + "\n", encoding="utf-8")


def read_ids(path: str | Path) -> list[int | str]:
    """Read a json list of image ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a json list of integers and strings, or an id occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of image ids; write one with write_ids")
    try:
        image_ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a json file ({error}); write the list with write_ids") from error
    if not isinstance(image_ids, list):
        raise ValueError(f"{path}: expected a json list of image ids, found a {type(image_ids).__name__}")
    seen: set[int | str] = set()
    for image_id in image_ids:
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise ValueError(f"{path}: image id {image_id!r} is neither an integer nor a string; remove it")
        if image_id in seen:
            raise ValueError(f"{path}: image id {image_id!r} occurs twice; remove one of them")
        seen.add(image_id)
    return image_ids
