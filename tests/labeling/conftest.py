"""The data and the detector that the tests of whole reviews share."""

from pathlib import Path

import pytest
from labeled_images import save_lively_detector

from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    return write_digits_dataset(tmp_path_factory.mktemp("data") / "digits", num_train=8, num_val=4, image_size=64)


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively_detector(tmp_path_factory.mktemp("run") / "best")
