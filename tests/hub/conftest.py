"""A Hub on this machine for every test that asks for it, and a saved detector to put there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.hub_server import Hub, as_the_hub
from run_folders import run_config, write_run

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.hub import TrainingFacts

FACTS = TrainingFacts(
    network="teacher",
    scores={
        "supervised": {"ap": 0.3, "ap50": 0.5, "ap75": 0.31, "step": 10},
        "teacher": {"ap": 0.352349, "ap50": 0.6, "ap75": 0.4, "step": 20},
    },
    data="train.json",
    val="val.json",
    num_images={"labeled": 20, "unlabeled": 200, "val": 30},
    label_fraction=0.1,
    fold=2,
    seed=7,
    steps=1100,
    seconds=1000.0,
    command="semidetr train --labeled train.json",
    base_model="me/base",
)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    with as_the_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """The folder of a run as a training leaves it, with `best/`, the teacher's."""
    folder = tmp_path_factory.mktemp("run")
    digits = write_digits_dataset(folder / "data", num_train=4, num_val=2, image_size=64)
    return write_run(run_config(folder / "out", digits))


@pytest.fixture(scope="session")
def detector_folder(run_folder: Path) -> Path:
    return run_folder / "best"


@pytest.fixture
def facts() -> TrainingFacts:
    return FACTS
