"""Detections written by hand, and a saved detector that finds something, for the tests of pseudo-labels."""

from pathlib import Path

import torch
from small_runs import SIZE, detector

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.labeling.detection import DetectedImage
from semidetr_hf.structures import PseudoLabels
from semidetr_hf.training.saved_detectors import save_detector

Row = tuple[int, float, tuple[float, float, float, float]]  # class label, score, xyxy


def pseudo_labels(*rows: Row) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4),
        class_labels=torch.tensor([label for label, _, _ in rows], dtype=torch.int64),
        scores=torch.tensor([score for _, score, _ in rows], dtype=torch.float32),
    )


def detected(image_id: int | str, *rows: Row, index: int = 0, size: tuple[int, int] = (50, 100)) -> DetectedImage:
    return DetectedImage(
        index=index, image_id=image_id, file_name=f"{image_id}.png", size=size, found=pseudo_labels(*rows)
    )


def save_lively_detector(folder: Path) -> Path:
    """Save a tiny detector of digits whose random scores reach from 0 to 1."""
    model = detector(category_ids=list(range(1, 11)))
    with torch.no_grad():
        model.class_head.weight.normal_(std=0.5)
        model.class_head.bias.zero_()
    save_detector(model, SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE}), folder)
    return folder
