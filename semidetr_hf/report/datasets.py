"""The images and boxes of a run in numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import Source, ViewSource
from semidetr_hf.training.setup import Sources

MAX_HEADERS = 1000  # images of a set whose size is looked up; without a json that means to open their files
BOX_EDGES = (0, 16, 32, 64, 96, 192, 384)  # pixels; 32 and 96 are the borders of COCO's small, medium and large


@dataclass(frozen=True, kw_only=True)
class SetNumbers:
    """One set of images.

    Attributes:
        role: labeled, unlabeled or validation.
        name: of the source.
        num_images: in the set.
        num_boxes: that are used; None for unlabeled images.
        image_sizes: smallest, median and largest width x height, as text.
        box_shares: share of its boxes between each of `BOX_EDGES` and the next, by square root of their area; empty
            without boxes.
    """

    role: str
    name: str
    num_images: int
    num_boxes: int | None
    image_sizes: str
    box_shares: list[float]


def describe_sets(sources: Sources) -> list[SetNumbers]:
    """Return the numbers of the labeled, unlabeled and validation images that there are."""
    roles = (("labeled", sources.labeled), ("unlabeled", sources.unlabeled), ("validation", sources.val))
    return [_describe(role, source) for role, source in roles if source is not None]


def box_size_names() -> list[str]:
    """Return what the ranges of `box_shares` are called, in pixels."""
    ranges = [f"{low} to {high}" for low, high in zip(BOX_EDGES[1:], BOX_EDGES[2:], strict=False)]
    return [f"below {BOX_EDGES[1]}", *ranges, f"from {BOX_EDGES[-1]}"]


def _describe(role: str, source: Source) -> SetNumbers:
    is_labeled = role != "unlabeled"
    return SetNumbers(
        role=role,
        name=source.name,
        num_images=len(source),
        num_boxes=source.num_boxes if is_labeled else None,
        image_sizes=_image_sizes(source),
        box_shares=_box_shares(source) if is_labeled and isinstance(source, CocoSource) else [],
    )


def _image_sizes(source: Source) -> str:
    if not isinstance(source, ViewSource):
        return "unknown"
    indices: Sequence[int] = range(len(source))
    if len(indices) > MAX_HEADERS:
        indices = random.Random(0).sample(indices, MAX_HEADERS)
    sizes = sorted(
        (size for index in indices if (size := source.image_size(index)) is not None),
        key=lambda size: size[0] * size[1],
    )
    if not sizes:
        return "unknown"
    texts = [f"{width} x {height}" for height, width in (sizes[0], sizes[len(sizes) // 2], sizes[-1])]
    if sizes[0] == sizes[-1]:
        return f"all {texts[0]}"
    looked_at = "" if len(indices) == len(source) else f", of {MAX_HEADERS} looked at"
    return f"{texts[0]} to {texts[2]}, median {texts[1]}{looked_at}"


def _box_shares(source: CocoSource) -> list[float]:
    edges = [
        max(width * height, 0.0) ** 0.5
        for _, _, width, height in (annotation["bbox"] for annotation in source.coco_ground_truth()["annotations"])
    ]
    if not edges:
        return []
    upper = (*BOX_EDGES[1:], float("inf"))
    return [sum(low <= edge < high for edge in edges) / len(edges) for low, high in zip(BOX_EDGES, upper, strict=True)]
