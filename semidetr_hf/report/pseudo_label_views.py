"""Pseudo-labels to look at: unlabeled images in both views, labeled by the saved teacher as in training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.loading import UnlabeledDataset, UnlabeledItem, ViewItem
from semidetr_hf.data.sources import Source
from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.report.pictures import DrawnBox, Picture, picture
from semidetr_hf.ssod.class_thresholds import smoothed_rates
from semidetr_hf.ssod.pseudo_labels import CandidatePair, find_confident
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import PseudoLabels
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.setup import build_augment, build_objective

NUM_FOR_THRESHOLDS = 100  # images on which adaptive thresholds are found again


@dataclass(frozen=True)
class ViewPair:
    """One unlabeled image as the teacher and as the student see it, with the teacher's pseudo-labels."""

    weak: Picture
    strong: Picture


@dataclass(frozen=True, kw_only=True)
class LabeledViews:
    """A few unlabeled images with their pseudo-labels.

    Attributes:
        pairs: one per image.
        thresholds: the lowest and the highest score of all classes from which on a detection is a pseudo-label.
        num_seen: images on which adaptive thresholds were found again, 0 for fixed ones.
    """

    pairs: list[ViewPair]
    thresholds: tuple[float, float]
    num_seen: int


@dataclass(frozen=True, kw_only=True)
class LabeledItem:
    """One unlabeled image as in training: both views, the teacher's candidates, and which are pseudo-labels."""

    item: UnlabeledItem
    candidates: CandidatePair
    is_confident: list[bool]


@dataclass(frozen=True, kw_only=True)
class LabeledItems:
    """A few unlabeled images, labeled; `thresholds` and `num_seen` as in `LabeledViews`."""

    items: list[LabeledItem]
    thresholds: tuple[float, float]
    num_seen: int


def label_views(
    config: TrainingConfig,
    unlabeled: Source,
    labeled: Source,
    model: SemiDetrForObjectDetection,
    processor: SemiDetrImageProcessor,
    *,
    count: int,
) -> LabeledViews:
    """Label a few unlabeled images as the training does, and draw them; arguments as those of `label_items`."""
    found = label_items(config, unlabeled, labeled, model, processor, augment=build_augment(config), count=count)
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    pairs = []
    for entry in found.items:
        item, candidates = entry.item, entry.candidates
        sides = (("weak", item.weak, candidates.weak), ("strong", item.strong, candidates.strong))
        pictures = [
            picture(
                _to_image(view, processor),
                _boxes(labels, entry.is_confident, names),
                f"{item.image_id}, {side} view",
                what="Image",
            )
            for side, view, labels in sides
        ]
        pairs.append(ViewPair(*pictures))
    return LabeledViews(pairs=pairs, thresholds=found.thresholds, num_seen=found.num_seen)


@torch.no_grad()
def label_items(
    config: TrainingConfig,
    unlabeled: Source,
    labeled: Source,
    model: SemiDetrForObjectDetection,
    processor: SemiDetrImageProcessor,
    *,
    augment: AugmentConfig,
    count: int,
) -> LabeledItems:
    """Label a few unlabeled images as the training does.

    The images are spread evenly over the source, and their views drawn from the seed of the run. A saved network does
    not hold adaptive thresholds, so they are found again on more such images.

    Args:
        config: of the run.
        unlabeled: its unlabeled images.
        labeled: its labeled images, whose frequencies of classes adaptive thresholds follow.
        model: the teacher.
        processor: its image processor.
        augment: how views are made.
        count: how many images, at least 1; fewer if there are fewer.

    Raises:
        UnreadableImageError: if an image and those behind it cannot be read.
    """
    dataset = UnlabeledDataset(unlabeled, augment, processor.image_mean, processor.image_std)
    rates = smoothed_rates(labeled.class_counts, len(labeled))
    objective = build_objective(config, model, has_unlabeled=True, boxes_per_image=rates)
    teacher = EMATeacher(model)
    num_seen = 0
    if objective.class_thresholds is not None:
        for item in _spread(dataset, NUM_FOR_THRESHOLDS, config.run.seed):
            batch = UnlabeledDataset.collate([item]).to(model.device)
            objective.find_candidates(teacher, teacher.encode(batch.weak), batch)
            num_seen += 1
    items, thresholds = [], torch.zeros(1)
    for item in _spread(dataset, count, config.run.seed):
        batch = UnlabeledDataset.collate([item]).to(model.device)
        candidates, thresholds = objective.find_candidates(teacher, teacher.encode(batch.weak), batch)
        is_confident = find_confident(candidates, thresholds)[0].tolist()
        items.append(LabeledItem(item=item, candidates=candidates[0], is_confident=is_confident))
    lowest, highest = round(float(thresholds.min()), 3), round(float(thresholds.max()), 3)
    return LabeledItems(items=items, thresholds=(lowest, highest), num_seen=num_seen)


def _spread(dataset: UnlabeledDataset, count: int, seed: int) -> Iterator[UnlabeledItem]:
    """Yield so many images of a data set, at equal distances, each with a seed of its own."""
    count = min(count, len(dataset))
    for number in range(count):
        yield dataset[(number * len(dataset) // count, seed + number)]


def _boxes(labels: PseudoLabels, is_confident: list[bool], names: Sequence[str]) -> list[DrawnBox]:
    rows = zip(
        labels.boxes_xyxy.tolist(), labels.class_labels.tolist(), labels.scores.tolist(), is_confident, strict=True
    )
    return [
        DrawnBox("found" if sure else "candidate", x1, y1, x2 - x1, y2 - y1, names[label], score)
        for (x1, y1, x2, y2), label, score, sure in sorted(rows, key=lambda row: row[3])  # the confident ones on top
    ]


def _to_image(view: ViewItem, processor: Any) -> Image.Image:
    """Turn normalized pixels back into a picture."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (processor.image_mean, processor.image_std))
    pixels: Tensor = ((view.pixel_values * std + mean) * 255).round().clamp(0, 255)
    return Image.fromarray(np.asarray(pixels.to(torch.uint8).permute(1, 2, 0)))
