"""A run whose networks have scores of all heights, and its data, for the tests of the page."""

from pathlib import Path

import pytest
import torch
from run_folders import run_config, write_run
from small_runs import SIZE, detector

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training.saved_detectors import save_detector


def lively_detector(seed: int = 0) -> SemiDetrForObjectDetection:
    """A detector of random weights with scores from 0 to 1 and boxes that overlap, unlike those of a fresh one."""
    model = detector(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.class_head.weight.normal_(std=0.4, generator=generator)
        model.class_head.bias.zero_()
        model.model.decoder.box_head.layers[-1].bias[2:] += 1.2  # width and height, as logits, in every layer
    return model


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    """Scenes larger than the views of the run."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=10, num_val=4, image_size=96)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, digits: DigitsPaths) -> Path:
    """A run with its three networks; `best` is of the first stage, so it needs NMS."""
    config = run_config(tmp_path_factory.mktemp("demo") / "mine", digits, pseudo_labels={"score_threshold": 0.5})
    folder = write_run(config, networks=())
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    for seed, name in enumerate(("best", "teacher", "student")):
        processor = SemiDetrImageProcessor(size=size, nms_iou=0.3 if name == "best" else None)
        save_detector(lively_detector(seed), processor, folder / name)
    return folder
