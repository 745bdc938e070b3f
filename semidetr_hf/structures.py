"""What travels between the folders of this package: images as views, batches, pseudo-labels.

Everything here is a plain container of tensors; it computes nothing.

Legend: B images, G boxes of one image, H and W the padded height and width of a batch.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypedDict

import torch
from torch import Tensor


class Stage(Enum):
    """How predictions are given to boxes: several for each box at first, exactly one later."""

    ONE_TO_MANY = "one_to_many"
    ONE_TO_ONE = "one_to_one"


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What the losses on unlabeled images count in one step; the supervised ones always count once.

    Attributes:
        pseudo: weight of the detection losses.
        consistency: weight of the consistency loss of every decoder layer; 0 = it is not computed.
        denoises_pseudo_labels: whether denoising queries are made of pseudo-labels, with weight `pseudo`.
    """

    pseudo: float
    consistency: float
    denoises_pseudo_labels: bool


class Target(TypedDict):
    """Boxes of one image as every transformers detector takes them in `labels`."""

    class_labels: Tensor  # (G,) int64, 0..num_labels-1
    boxes: Tensor  # (G, 4) float, cxcywh, normalised by the unpadded image


@dataclass(frozen=True, kw_only=True)
class View:
    """A padded batch of images together with the way each one was made from its original.

    Attributes:
        pixel_values: (B, 3, H, W) float, normalised, zero where padded (bottom and right).
        pixel_mask: (B, H, W) int64, 1 = real pixel, 0 = padding.
        image_sizes: (B, 2) int64, unpadded (height, width) of each view in pixels; they stay on the CPU, where boxes
            are kept account of.
        homographies: (B, 3, 3) float64, original pixels -> view pixels (continuous corner coordinates); they stay on
            the CPU, too: not every device has float64.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    image_sizes: Tensor
    homographies: Tensor

    def __len__(self) -> int:
        return self.pixel_values.shape[0]

    def to(self, device: torch.device | str) -> "View":
        """Return the same view on `device`, sizes and homographies still on the CPU."""
        return View(
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            pixel_mask=self.pixel_mask.to(device, non_blocking=True),
            image_sizes=self.image_sizes,
            homographies=self.homographies,
        )

    def pin_memory(self) -> "View":
        """Return the same view in page-locked memory, from which `to` copies while the program goes on.

        torch's DataLoader calls it with `pin_memory=True`; a class without such a method stays where it is.
        """
        return replace(self, pixel_values=self.pixel_values.pin_memory(), pixel_mask=self.pixel_mask.pin_memory())


@dataclass(frozen=True, kw_only=True)
class LabeledBatch:
    """Labeled images of one step.

    Attributes:
        view: the augmented images.
        targets: one `Target` per image, boxes normalised by the unpadded view.
        image_ids: the ids of the source, for messages.
    """

    view: View
    targets: list[Target]
    image_ids: list[Any]

    def to(self, device: torch.device | str) -> "LabeledBatch":
        """Return the same batch on `device`, the targets still on the CPU: the losses move them all at once."""
        return LabeledBatch(view=self.view.to(device), targets=self.targets, image_ids=self.image_ids)

    def pin_memory(self) -> "LabeledBatch":
        """Return the same batch with its view in page-locked memory; targets are too small to matter."""
        return replace(self, view=self.view.pin_memory())


@dataclass(frozen=True, kw_only=True)
class UnlabeledBatch:
    """Unlabeled images of one step: row i of `weak` and row i of `strong` show the same original image.

    Attributes:
        weak: resized and perhaps flipped, for the teacher.
        strong: also distorted in colour and geometry, for the student.
        image_ids: the ids of the source, for messages.
    """

    weak: View
    strong: View
    image_ids: list[Any]

    def to(self, device: torch.device | str) -> "UnlabeledBatch":
        """Return the same batch on `device`."""
        return UnlabeledBatch(weak=self.weak.to(device), strong=self.strong.to(device), image_ids=self.image_ids)

    def pin_memory(self) -> "UnlabeledBatch":
        """Return the same batch with both views in page-locked memory."""
        return replace(self, weak=self.weak.pin_memory(), strong=self.strong.pin_memory())


@dataclass(frozen=True, kw_only=True)
class SemiBatch:
    """Everything one training step sees on one process. `unlabeled` is None in supervised training and burn-in."""

    labeled: LabeledBatch
    unlabeled: UnlabeledBatch | None = None

    def to(self, device: torch.device | str) -> "SemiBatch":
        """Return the same batch on `device`."""
        return SemiBatch(
            labeled=self.labeled.to(device), unlabeled=None if self.unlabeled is None else self.unlabeled.to(device)
        )


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Detections of one image that may stand in for labels.

    Attributes:
        boxes_xyxy: (G, 4) float, pixels of the unpadded view they belong to.
        class_labels: (G,) int64.
        scores: (G,) float, sigmoid scores of the teacher.
    """

    boxes_xyxy: Tensor
    class_labels: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.boxes_xyxy.shape[0]

    def __getitem__(self, keep: Tensor) -> "PseudoLabels":
        """Return the rows chosen by a (G,) bool mask or an index tensor, in that order."""
        return PseudoLabels(
            boxes_xyxy=self.boxes_xyxy[keep], class_labels=self.class_labels[keep], scores=self.scores[keep]
        )
