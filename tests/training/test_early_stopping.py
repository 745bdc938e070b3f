from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import build, configure, rows_of, source_of, weights

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.metrics.coco_detection.coco_metrics import DetectionMetrics
from semidetr_hf.training.checkpoints import RunCheckpoints
from semidetr_hf.training.early_stopping import EarlyStopping, build_early_stopping
from semidetr_hf.training.networks import BestNetwork


def best_at(step: int) -> BestNetwork:
    metrics = DetectionMetrics.from_dict(dict.fromkeys(NUMBERS, 0.5) | {"per_class": {}})
    return BestNetwork(metrics, "teacher", step)


NUMBERS = [name for name in DetectionMetrics.__dataclass_fields__ if "per_class" not in name]


@pytest.mark.parametrize(
    ("step", "best_step", "expected"),
    [
        # Evaluations at 10, 20, 30 ...; the last stage begins at 25, so that those at 30, 40 and 50 count.
        (20, 10, False),
        (40, 10, False),
        (49, 10, False),
        (50, 10, True),
        # A better one at 40: those at 50, 60 and 70 have to be worse.
        (60, 40, False),
        (70, 40, True),
        (40, 40, False),
    ],
)
def test_three_evaluations_of_the_last_stage_without_a_better_ap(step: int, best_step: int, expected: bool) -> None:
    stopping = EarlyStopping(patience=3, begins=25, eval_every=10)
    assert stopping.has_stalled(step, best_at(best_step)) is expected


def test_without_patience_or_evaluation_no_run_ends_early() -> None:
    assert not EarlyStopping(patience=None, begins=0, eval_every=1).has_stalled(1000, best_at(1))
    assert not EarlyStopping(patience=1, begins=0, eval_every=1).has_stalled(1000, None)


@pytest.mark.parametrize(
    ("schedule", "drops", "has_unlabeled", "expected"),
    [
        ({"burn_in_steps": 20, "one_to_many_steps": 60}, [], True, 60),
        ({"burn_in_steps": 20, "one_to_many_steps": 60}, [70, 80], True, 80),
        ({"burn_in_steps": 20, "one_to_many_steps": 0}, [], True, 20),
        ({"burn_in_steps": 20, "one_to_many_steps": 0}, [], False, 0),
        # In the first stage to the end: there is no second one to wait for.
        ({"burn_in_steps": 20, "one_to_many_steps": 100}, [], True, 20),
    ],
)
def test_when_the_last_stage_begins(
    tmp_path: Path, schedule: dict[str, int], drops: list[int], has_unlabeled: bool, expected: int
) -> None:
    optimizer = {"lr_schedule": "step", "lr_drop_steps": drops} if drops else {}
    config = configure(
        tmp_path,
        schedule={"num_steps": 100} | schedule,
        optimizer=optimizer,
        recipe={"early_stopping_patience": 4},
        run={"eval_every": 5},
    )
    stopping = build_early_stopping(config, has_unlabeled=has_unlabeled)
    assert stopping == EarlyStopping(patience=4, begins=expected, eval_every=5)


def test_a_run_that_does_not_become_better_ends_as_a_complete_one(digits, tmp_path) -> None:
    # With a learning rate so small, every evaluation is like the first one.
    config = configure(
        tmp_path,
        optimizer={"learning_rate": 1e-12},
        schedule={"num_steps": 9, "one_to_many_steps": 0},
        recipe={"early_stopping_patience": 2},
        run={"eval_every": 1, "evaluated_networks": ["student"]},
    )
    sources = {"labeled": source_of(digits, 3), "val": CocoSource(digits.val_json)}
    trainer = build(config, **sources)
    result = trainer.train()
    assert (result.step, result.stopped_by, result.stopped_early) == (3, None, True)
    assert [row["step"] for row in rows_of(config) if "student/ap" in row] == [1, 2, 3]
    newest = RunCheckpoints(tmp_path / "out" / "checkpoints", keep=2).newest()
    assert newest is not None
    assert newest.step == 3

    # The same command again finds that there is nothing left to do.
    again = build(replace(config, run=replace(config.run, resume="auto")), **sources)
    before = weights(again.student)
    result = again.train()
    assert (result.step, result.stopped_early) == (3, True)
    assert all((before[name] == tensor).all() for name, tensor in weights(again.student).items())
