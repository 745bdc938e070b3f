from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import run_config
from small_runs import SIZE, detector

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.data.loading import UnlabeledDataset
from semidetr_hf.report import pseudo_label_views
from semidetr_hf.report.pseudo_label_views import LabeledViews, label_views
from semidetr_hf.training.setup import build_augment

PROCESSOR = SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})


def label(folder: Path, digits: DigitsPaths, count: int = 3, **rules) -> LabeledViews:
    source = CocoSource(digits.train_json)
    config = run_config(folder, digits, pseudo_labels=rules)
    return label_views(config, source, source, detector(), PROCESSOR, count=count)


def test_images_are_spread_over_the_source_and_shown_in_both_views(tmp_path: Path, digits: DigitsPaths) -> None:
    views = label(tmp_path, digits)
    ids = [pair.weak.title.split(",")[0] for pair in views.pairs]
    source = CocoSource(digits.train_json)
    assert ids == [str(source.image_ids[place]) for place in (0, 5, 10)]
    assert views.thresholds == (0.0, 0.0) and views.num_seen == 0
    for pair in views.pairs:
        assert pair.weak.title.endswith("weak view") and pair.strong.title.endswith("strong view")
        assert pair.weak.data != pair.strong.data
        assert len(pair.weak.boxes) > 0  # every detection is a pseudo-label here
        assert [(box.name, box.score) for box in pair.weak.boxes] == [
            (box.name, box.score) for box in pair.strong.boxes
        ]


def test_below_the_threshold_are_candidates(tmp_path: Path, digits: DigitsPaths) -> None:
    everything = label(tmp_path, digits)
    scores = sorted(box.score for pair in everything.pairs for box in pair.weak.boxes)
    middle = scores[len(scores) // 2]
    boxes = [
        box
        for pair in label(tmp_path, digits, score_threshold=middle, confident_source="candidates").pairs
        for box in pair.weak.boxes
    ]
    assert {box.kind for box in boxes} == {"found", "candidate"}
    assert all((box.score >= middle) == (box.kind == "found") for box in boxes)


def test_adaptive_thresholds_are_found_again(
    tmp_path: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_label_views, "NUM_FOR_THRESHOLDS", 8)
    views = label(tmp_path, digits, class_thresholds="adaptive", lowest_threshold=0.01)
    assert views.num_seen == 8
    lowest, highest = views.thresholds
    assert 0.01 <= lowest <= highest < 0.9  # 0.9 is the threshold before any image was seen


def test_more_images_than_there_are_are_not_shown_twice(tmp_path: Path, digits: DigitsPaths) -> None:
    assert len({pair.weak.title for pair in label(tmp_path, digits, count=50).pairs}) == 16


def test_the_picture_shows_the_pixels_that_the_network_sees(tmp_path: Path, digits: DigitsPaths) -> None:
    source, config = CocoSource(digits.train_json), run_config(tmp_path, digits)
    dataset = UnlabeledDataset(source, build_augment(config), PROCESSOR.image_mean, PROCESSOR.image_std)
    item = dataset[(0, 3)]
    shown = pseudo_label_views._to_image(item.weak, PROCESSOR)
    again = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (PROCESSOR.image_mean, PROCESSOR.image_std))
    assert isinstance(shown, Image.Image)
    assert torch.allclose((again - mean) / std, item.weak.pixel_values, atol=1e-5)
