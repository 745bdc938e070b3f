"""Fixtures of the tests that train."""

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from small_runs import SIZE

from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset


@pytest.fixture(autouse=True)
def _fresh_accelerator_state():
    """Accelerate keeps mixed precision and accumulation for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=8, num_val=2, image_size=SIZE)
