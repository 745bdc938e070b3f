from pathlib import Path

import pytest
import torch
from small_runs import configure, detector, source_of, weights

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training.baseline import supervised_baseline
from semidetr_hf.training.setup import Sources
from semidetr_hf.training.trial import Estimate, kinds_of_steps, try_steps

SCHEDULE = {"num_steps": 100, "burn_in_steps": 20, "one_to_many_steps": 60}


def test_the_kinds_of_steps_are_burn_in_and_stages(tmp_path: Path) -> None:
    config = configure(tmp_path, schedule=SCHEDULE)
    assert kinds_of_steps(config, has_unlabeled=True) == {
        "labeled, one-to-many": range(20),
        "labeled and unlabeled, one-to-many": range(20, 60),
        "labeled and unlabeled, one-to-one": range(60, 100),
    }
    assert kinds_of_steps(config, has_unlabeled=False) == {
        "labeled, one-to-many": range(60),
        "labeled, one-to-one": range(60, 100),
    }
    # The burn-in may be longer than the first stage.
    longer = configure(tmp_path, schedule=SCHEDULE | {"burn_in_steps": 70})
    assert kinds_of_steps(longer, has_unlabeled=True) == {
        "labeled, one-to-many": range(60),
        "labeled, one-to-one": range(60, 70),
        "labeled and unlabeled, one-to-one": range(70, 100),
    }


def test_the_time_of_a_run_is_that_of_its_steps_and_evaluations(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule=SCHEDULE, run={"eval_every": 40})
    sources = Sources(labeled=source_of(digits, 3), unlabeled=source_of(digits, 8), val=CocoSource(digits.val_json))
    seconds = {
        "labeled, one-to-many": 1.0,
        "labeled and unlabeled, one-to-many": 2.0,
        "labeled and unlabeled, one-to-one": 3.0,
    }
    estimate = Estimate(step_seconds=seconds, image_seconds=0.5, memory_bytes=1, on_cuda=False)
    # 20 x 1 + 40 x 2 + 40 x 3, and three evaluations (at 40, 80, 100) of two networks on two images.
    assert estimate.run_seconds(config, sources, num_processes=1) == pytest.approx(220 + 3 * 2 * 2 * 0.5)
    # Two processes evaluate an image each.
    assert estimate.run_seconds(config, sources, num_processes=2) == pytest.approx(220 + 3 * 2 * 0.5)
    assert estimate.run_seconds(config, sources._replace(val=None), num_processes=1) == pytest.approx(220)


def test_trial_steps_leave_nothing_behind(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 3, "burn_in_steps": 1, "one_to_many_steps": 2})
    sources = Sources(labeled=source_of(digits, 3), unlabeled=source_of(digits, 8), val=CocoSource(digits.val_json))
    model = detector()
    before = weights(model)
    estimate = try_steps([supervised_baseline(config, tmp_path / "out" / "supervised"), config], model, sources)
    assert list(estimate.step_seconds) == [
        "labeled, one-to-one",
        "labeled, one-to-many",
        "labeled and unlabeled, one-to-many",
        "labeled and unlabeled, one-to-one",
    ]
    assert all(0 < seconds < 60 for seconds in estimate.step_seconds.values())
    assert estimate.image_seconds is not None
    assert estimate.image_seconds > 0
    assert not estimate.on_cuda
    # A process with torch in it takes more than 100 MB.
    assert estimate.memory_bytes > 1e8
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    assert list(tmp_path.iterdir()) == []
