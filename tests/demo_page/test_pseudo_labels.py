from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from semidetr_hf.demo_page.found import open_detector
from semidetr_hf.demo_page.pseudo_labels import Comparison, compare_networks
from semidetr_hf.report.run_folder import read_run
from semidetr_hf.training.setup import open_sources

COUNT = 3


@pytest.fixture(scope="module")
def same(run_folder: Path) -> Comparison:
    """A comparison of a teacher with itself."""
    run = read_run(run_folder)
    config = replace(run.config, data=replace(run.config.data, flip_probability=1.0))
    teacher = open_detector(run_folder / "teacher", "cpu")
    comparison = compare_networks(config, open_sources(config), teacher, teacher, count=COUNT)
    assert comparison is not None
    return comparison


def test_pseudo_labels_and_detections_lie_on_the_same_picture(same: Comparison) -> None:
    """A view of the run has 64 pixels and would be mirrored, the picture has 96 and is not."""
    assert len(same.images) == COUNT and same.thresholds == (0.5, 0.5)
    for image in same.images:
        labels, found = image.pseudo_labels, image.student
        assert labels.size == found.size == (96, 96)
        assert 0 < len(labels) < len(found)
        overlaps = box_iou(labels.boxes_xyxy, found.boxes_xyxy)
        overlaps[labels.class_labels[:, None] != found.class_labels] = 0
        best, place = overlaps.max(dim=1)
        assert best.min() > 0.9  # the view is made by another resize than the input of the detector
        assert torch.allclose(found.scores[place], labels.scores, atol=0.05)


def test_pseudo_labels_reach_the_threshold_of_the_run(same: Comparison) -> None:
    assert min(float(image.pseudo_labels.scores.min()) for image in same.images) >= 0.5
    assert min(float(image.student.scores.min()) for image in same.images) < 0.5


def test_images_are_unlabeled_ones_and_named(same: Comparison, run_folder: Path) -> None:
    unlabeled = open_sources(read_run(run_folder).config).unlabeled
    assert unlabeled is not None
    names = {unlabeled[index].file_name for index in range(len(unlabeled))}
    assert len({image.name for image in same.images}) == COUNT
    assert {image.name for image in same.images} <= names


def test_a_run_without_unlabeled_images_has_no_comparison(run_folder: Path) -> None:
    run = read_run(run_folder)
    sources = open_sources(run.config)._replace(unlabeled=None)
    student = open_detector(run_folder / "student", "cpu")
    assert compare_networks(run.config, sources, student, student, count=COUNT) is None
