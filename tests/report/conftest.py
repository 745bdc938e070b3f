"""Fixtures of the tests of the report."""

from collections.abc import Iterator

import pytest
from small_runs import SIZE, forget_accelerator

from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset


@pytest.fixture(autouse=True)
def _fresh_accelerator_state() -> Iterator[None]:
    yield
    forget_accelerator()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=16, num_val=12, image_size=SIZE)
