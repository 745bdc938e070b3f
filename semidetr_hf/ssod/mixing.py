"""Pseudo-labeled images mixed with each other: two laid over one another (mixup), four in one (mosaic).

Where labels are few, so are good pseudo-labels. Mixup lets missed objects weigh half as background, and mosaic shows
objects smaller and in other surroundings.

Source: MixPL (arXiv 2312.07006), Pseudo Mixup and Pseudo Mosaic; the ideas alone, its text and code were not at hand.
Here mixed images are made of the strong views of one batch and come on top of them. Not part of Semi-DETR.

Legend: B images of the batch, M mixed images, H and W the padded height and width of the batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from semidetr_hf.geometry import has_visible_area
from semidetr_hf.model.box_ops import xyxy_to_cxcywh
from semidetr_hf.structures import PseudoLabels, Target, View

Mixing = Literal["none", "mixup", "mosaic", "both"]
MIN_BOX_SIZE = 1.0  # pixels; smaller ones are lost when a picture is halved


@dataclass(frozen=True, kw_only=True)
class MixedImages:
    """Mixed images and what is on them.

    Attributes:
        pixel_values: (M, 3, H, W), normalised.
        pixel_mask: (M, H, W) int64, 1 = pixel of the image.
        targets: per image, boxes normalised by the unpadded image.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    targets: list[Target]


def mix_pseudo_labeled(view: View, labels: list[PseudoLabels], mixing: Mixing) -> MixedImages | None:
    """Mix the images of a batch, drawn at random without replacement.

    Args:
        view: B images.
        labels: their pseudo-labels, in pixels of the view.
        mixing: "mixup" makes one image of every two, "mosaic" one of every four, "both" both.

    Returns:
        B // 2 and B // 4 images; None if there are none, for lack of images or with "none".
    """
    order = torch.randperm(len(view)).tolist()
    pairs = [order[i : i + 2] for i in range(0, len(order) - 1, 2)] if mixing in ("mixup", "both") else []
    order = torch.randperm(len(view)).tolist()
    fours = [order[i : i + 4] for i in range(0, len(order) - 3, 4)] if mixing in ("mosaic", "both") else []
    mixed = [mixup(view, labels, pair) for pair in pairs] + [mosaic(view, labels, four) for four in fours]
    if not mixed:
        return None
    return MixedImages(
        pixel_values=torch.stack([image.pixel_values for image in mixed]),
        pixel_mask=torch.stack([image.pixel_mask for image in mixed]),
        targets=[image.target for image in mixed],
    )


@dataclass(frozen=True, kw_only=True)
class MixedImage:
    """One of them: (3, H, W) pixels, their (H, W) mask, and the target."""

    pixel_values: Tensor
    pixel_mask: Tensor
    target: Target


def mixup(view: View, labels: list[PseudoLabels], pair: list[int]) -> MixedImage:
    """Return the mean of two images, as large as the larger one of them along each edge, with the boxes of both.

    Beside the smaller one the mean is taken with gray, the 0 of normalised pixels.
    """
    height, width = view.image_sizes[pair].amax(dim=0).tolist()
    mask = torch.zeros_like(view.pixel_mask[0])
    mask[:height, :width] = 1
    boxes = torch.cat([labels[i].boxes_xyxy for i in pair])
    classes = torch.cat([labels[i].class_labels for i in pair])
    return MixedImage(
        pixel_values=view.pixel_values[pair].mean(dim=0),
        pixel_mask=mask,
        target=_target(boxes, classes, (height, width)),
    )


def mosaic(view: View, labels: list[PseudoLabels], four: list[int]) -> MixedImage:
    """Return a picture of the size of the padded batch with an image in each quarter, the ratio of its edges kept."""
    height, width = view.pixel_values.shape[-2:]
    canvas = torch.zeros_like(view.pixel_values[0])
    boxes, classes = [], []
    for place, i in enumerate(four):
        top, left = (place // 2) * (height // 2), (place % 2) * (width // 2)
        own_height, own_width = view.image_sizes[i].tolist()
        factor = min(height // 2 / own_height, width // 2 / own_width)
        size = max(1, int(own_height * factor)), max(1, int(own_width * factor))
        image = view.pixel_values[i : i + 1, :, :own_height, :own_width]
        small = F.interpolate(image, size=size, mode="bilinear", antialias=True)[0]
        canvas[:, top : top + size[0], left : left + size[1]] = small
        scale = labels[i].boxes_xyxy.new_tensor([size[1] / own_width, size[0] / own_height] * 2)
        corner = labels[i].boxes_xyxy.new_tensor([left, top] * 2)
        moved = labels[i].boxes_xyxy * scale + corner
        visible = has_visible_area(moved, MIN_BOX_SIZE)
        boxes.append(moved[visible])
        classes.append(labels[i].class_labels[visible])
    return MixedImage(
        pixel_values=canvas,
        pixel_mask=torch.ones_like(view.pixel_mask[0]),
        target=_target(torch.cat(boxes), torch.cat(classes), (height, width)),
    )


def _target(boxes: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Target:
    height, width = image_size
    return {
        "class_labels": classes,
        "boxes": xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height])),
    }
