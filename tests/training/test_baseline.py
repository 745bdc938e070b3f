import logging
from pathlib import Path
from typing import Any

import pytest
from small_runs import configure

from semidetr_hf.training.baseline import (
    COMPLETE_FILE,
    is_reusable,
    mark_complete,
    require_comparable,
    start_from,
    supervised_baseline,
)

SETTINGS: dict[str, Any] = {"the validation images": "(2, ...)", "run.seed": 0, "data.short_edges": (64,)}


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A folder with all that is looked for in a complete baseline."""
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("{}")
    mark_complete(tmp_path, SETTINGS)
    return tmp_path


def test_the_baseline_is_one_to_one_on_labeled_images_alone(tmp_path: Path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 10, "burn_in_steps": 4}, optimizer={"learning_rate": 2e-3})
    baseline = supervised_baseline(config, tmp_path / "supervised")
    schedule = baseline.schedule
    assert (schedule.burn_in_steps, schedule.first_stage_steps, schedule.unsupervised_weight) == (0, 0, 0.0)
    assert baseline.consistency.consistency_weight == 0
    assert baseline.run.output_dir == str(tmp_path / "supervised")
    # Same labels, augmentation, optimizer and steps.
    assert (schedule.num_steps, baseline.optimizer, baseline.model) == (10, config.optimizer, config.model)
    assert (baseline.data.labeled, baseline.data.short_edges) == (config.data.labeled, config.data.short_edges)


def test_what_concerns_unlabeled_images_makes_no_other_baseline(tmp_path: Path) -> None:
    first = configure(tmp_path)
    second = configure(
        tmp_path,
        pseudo_labels={"score_threshold": 0.1},
        consistency={"consistency_weight": 3.0},
        data={"unlabeled_batch_size": 7},
        schedule={"unsupervised_weight": 2.0, "burn_in_steps": 1},
    )
    assert supervised_baseline(first, "x") == supervised_baseline(second, "x")


def test_what_is_left_of_a_run_after_its_burn_in(tmp_path: Path) -> None:
    config = configure(
        tmp_path,
        schedule={"num_steps": 100, "burn_in_steps": 30, "one_to_many_steps": 50},
        optimizer={"lr_schedule": "step", "lr_drop_steps": [20, 80], "warmup_steps": 5},
    )
    rest = start_from(config, tmp_path / "best", steps_done=30)
    assert (rest.schedule.num_steps, rest.schedule.burn_in_steps, rest.schedule.one_to_many_steps) == (70, 0, 20)
    assert rest.optimizer.lr_drop_steps == [50]
    assert rest.model.init_from == str(tmp_path / "best")
    assert start_from(rest, tmp_path / "best", steps_done=0) == rest


def test_drops_of_the_learning_rate_within_the_steps_that_are_left_out_are_refused(tmp_path: Path) -> None:
    optimizer = {"lr_schedule": "step", "lr_drop_steps": [20]}
    config = configure(tmp_path, schedule={"num_steps": 100, "burn_in_steps": 30}, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"lr_drop_steps=\[20\]: all within the 30 steps"):
        start_from(config, "x", steps_done=30)


def test_a_complete_baseline_of_the_same_settings_is_reused(complete: Path) -> None:
    assert is_reusable(complete, SETTINGS, best="best")
    assert not is_reusable(complete, SETTINGS | {"run.seed": 1}, best="best")
    assert not is_reusable(complete, SETTINGS | {"new field": 1}, best="best")
    assert not is_reusable(complete, SETTINGS, best="teacher")
    assert not is_reusable(complete / "elsewhere", SETTINGS, best="best")


def test_a_torn_file_of_a_complete_baseline_is_named(complete: Path) -> None:
    (complete / COMPLETE_FILE).write_text('{"run.seed"')
    with pytest.raises(ValueError, match=r"baseline\.json: not the file of a complete baseline .*delete it"):
        is_reusable(complete, SETTINGS, best="best")


def test_a_baseline_that_was_asked_for_may_be_of_other_settings_which_is_said(complete: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        require_comparable(complete, SETTINGS, best="best")
        assert caplog.text == ""
        require_comparable(complete, SETTINGS | {"run.seed": 3}, best="best")
    assert "run.seed was 0 and is 3" in caplog.text


def test_a_baseline_that_was_asked_for_must_be_complete_and_of_the_same_images(complete: Path) -> None:
    with pytest.raises(ValueError, match="evaluated on other images"):
        require_comparable(complete, SETTINGS | {"the validation images": "(3, ...)"}, best="best")
    with pytest.raises(FileNotFoundError, match=r"no complete supervised run, with baseline\.json and teacher/"):
        require_comparable(complete, SETTINGS, best="teacher")
    (complete / COMPLETE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="no complete supervised run"):
        require_comparable(complete, SETTINGS, best="best")
