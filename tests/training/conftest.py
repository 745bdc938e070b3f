"""Fixtures of the tests that train."""

import pytest
from small_runs import SIZE, forget_accelerator

from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset


@pytest.fixture(autouse=True)
def _fresh_accelerator_state():
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=8, num_val=2, image_size=SIZE)
