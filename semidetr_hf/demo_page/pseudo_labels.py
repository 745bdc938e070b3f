"""The teacher of a run beside its student: pseudo-labels and detections on a few of its unlabeled images."""

from dataclasses import dataclass, replace

import torch

from semidetr_hf.data.sources import Source
from semidetr_hf.demo_page.found import Detector, Found, detect, on_picture
from semidetr_hf.geometry import apply_to_boxes, invert
from semidetr_hf.report.pseudo_label_views import LabeledItem, label_items
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.setup import Sources, build_augment


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """One unlabeled image: its name, the teacher's pseudo-labels, and all detections of the student."""

    name: str
    pseudo_labels: Found
    student: Found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Teacher and student on a few images.

    Attributes:
        images: one or more.
        thresholds: the lowest and the highest score of all classes from which on a detection is a pseudo-label.
        student: the network beside the teacher.
    """

    images: list[LabeledImage]
    thresholds: tuple[float, float]
    student: Detector


def compare_networks(
    config: TrainingConfig, sources: Sources, teacher: Detector, student: Detector, *, count: int
) -> Comparison | None:
    """Let the teacher label a few unlabeled images by the rules of the run, and the student detect on them.

    The teacher sees whole pictures as in its weak views, but not mirrored, so that both can be compared.

    Args:
        config: of the run.
        sources: its images.
        teacher: its saved teacher, a Semi-DETR.
        student: its saved student.
        count: how many images, spread evenly over the unlabeled ones.

    Returns:
        None if the run has no unlabeled images.

    Raises:
        UnreadableImageError: if an image and those behind it cannot be read.
    """
    if sources.unlabeled is None:
        return None
    augment = replace(build_augment(config), flip_probability=0, color=False, geometry=False, erase_patches=(0, 0))
    labeled = label_items(
        config, sources.unlabeled, sources.labeled, teacher.model, teacher.processor, augment=augment, count=count
    )
    images = [_labeled_image(entry, sources.unlabeled, student) for entry in labeled.items]
    return Comparison(images=images, thresholds=labeled.thresholds, student=student)


def _labeled_image(entry: LabeledItem, source: Source, student: Detector) -> LabeledImage:
    sample = source[list(source.image_ids).index(entry.item.image_id)]
    weak = entry.candidates.weak
    labels = weak[torch.tensor(entry.is_confident, dtype=torch.bool, device=weak.scores.device)]
    found = on_picture(
        sample.image,
        apply_to_boxes(invert(entry.item.weak.homography), labels.boxes_xyxy.float().cpu()),
        labels.class_labels.cpu(),
        labels.scores.float().cpu(),
    )
    return LabeledImage(name=sample.file_name, pseudo_labels=found, student=detect(student, sample.image))
