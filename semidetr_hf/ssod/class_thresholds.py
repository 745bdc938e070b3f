"""A score threshold for every class that follows how often the class is seen: for few labels.

With tens of labels the teacher's scores are low and differ from class to class; of a fixed threshold nothing is left
of most classes, and what is left out teaches the student background. Here a class has the threshold at which an
unlabeled image has, on average, as many pseudo-labels of the class as a labeled image has boxes.

Source: LabelMatch (arXiv 2206.06608), label-distribution-aware confidence thresholds; the idea alone, its text and
code were not at hand. Here a histogram of scores, which forgets, is kept up from step to step. Not part of Semi-DETR.

Legend: C classes, S steps of the scale of scores, G boxes of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semidetr_hf.structures import PseudoLabels

STEPS = 200  # of the scale of scores from 0 to 1: thresholds are multiples of 0.005
WINDOW = 1000  # images after which a detection counts 1/e
HIGHEST = 0.9  # labels of so high a score are used, however many there are


def smoothed_rates(class_counts: Sequence[int], num_images: int) -> list[float]:
    """Return how many boxes of each class an image is expected to have, at least a little of every class.

    One box is added to each class, and all are scaled to the old sum (Laplace's rule): of ten images a class may be
    missing that the other ones have.

    Args:
        class_counts: (C,) boxes of each class in all labeled images.
        num_images: how many those are.

    Raises:
        ValueError: if there is no class or no image.
    """
    if not class_counts or num_images < 1:
        raise ValueError(f"{len(class_counts)} classes in {num_images} images: no rate can be told from them")
    total = sum(class_counts)
    scale = total / (total + len(class_counts)) / num_images
    return [(count + 1) * scale for count in class_counts]


class ClassThresholds(nn.Module):
    """The present thresholds, from the scores of the detections seen so far.

    Args:
        boxes_per_image: (C,) expected number of boxes of each class in an image, see `smoothed_rates`.
        lowest: no threshold is below this.

    Raises:
        ValueError: if `lowest` is not from 0 to `HIGHEST`.
    """

    boxes_per_image: Tensor
    histogram: Tensor
    num_images: Tensor

    def __init__(self, boxes_per_image: Sequence[float], *, lowest: float):
        super().__init__()
        if not 0 <= lowest <= HIGHEST:
            raise ValueError(f"lowest={lowest}: must be from 0 to {HIGHEST}")
        self.lowest = lowest
        # Buffers: a run that is resumed goes on with what it has seen.
        self.register_buffer("boxes_per_image", torch.tensor(boxes_per_image, dtype=torch.float32))
        self.register_buffer("histogram", torch.zeros(len(boxes_per_image), STEPS))  # (C, S)
        self.register_buffer("num_images", torch.zeros(()))

    @torch.no_grad()
    def forward(self, detections: list[PseudoLabels]) -> Tensor:
        """Take note of the detections of one step, and return the thresholds; all processes must call it.

        Args:
            detections: of every image of this process, duplicates removed.

        Returns:
            (C,) float32 on the CPU, from `lowest` to `HIGHEST`.
        """
        # One message for all processes: the counts, and in the last place the number of images.
        news = torch.cat([self._count(detections).flatten(), torch.tensor([float(len(detections))])])
        news = news.to(self.histogram.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(news)
        keep = (1 - 1 / WINDOW) ** news[-1]
        self.histogram.mul_(keep).add_(news[:-1].view_as(self.histogram))
        self.num_images.mul_(keep).add_(news[-1])
        return self.thresholds()

    def thresholds(self) -> Tensor:
        """Return (C,) float32 on the CPU; `HIGHEST` before any image was seen."""
        if self.num_images == 0:
            return torch.full((len(self.histogram),), HIGHEST)
        # Mean number of detections of an image with at least the score of each step, and none above the last.
        at_least = self.histogram.flip(1).cumsum(1).flip(1) / self.num_images
        too_many = at_least > self.boxes_per_image[:, None]  # (C, S), true first, then false
        return (too_many.sum(dim=1) / STEPS).clamp(self.lowest, HIGHEST).cpu()

    def _count(self, detections: list[PseudoLabels]) -> Tensor:
        num_classes = len(self.histogram)
        labels = torch.cat([torch.empty(0, dtype=torch.int64), *(found.class_labels.cpu() for found in detections)])
        scores = torch.cat([torch.empty(0), *(found.scores.float().cpu() for found in detections)])
        places = labels * STEPS + (scores * STEPS).long().clamp(max=STEPS - 1)
        return torch.bincount(places, minlength=num_classes * STEPS).view(num_classes, STEPS).float()
