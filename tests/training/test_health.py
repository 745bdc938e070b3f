"""Steps that are left out, a teacher that unlearns, advice; and what a run does about them."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import ANYTHING, build, configure, rows_of, source_of

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.structures import Stage
from semidetr_hf.training import networks as networks_module
from semidetr_hf.training.evaluation import DetectionMetrics
from semidetr_hf.training.health import COUNTS, MIN_IMAGES, PATIENCE, Advice, Health, SkippedSteps, TeacherWatch
from semidetr_hf.training.trainer import SemiDetrTrainer

FIRST, SECOND = Stage.ONE_TO_MANY, Stage.ONE_TO_ONE


# ---- Steps


def test_skipped_steps_are_counted_in_a_row_and_in_all() -> None:
    steps = SkippedSteps(limit=2)
    assert steps.skipped(4, "gradients on images [1]") == (
        "step 4 skipped, not finite are the gradients on images [1] (1 in a row, 2 allowed)"
    )
    assert "(2 in a row, 2 allowed)" in steps.skipped(5, "losses")
    steps.made()
    assert (steps.in_a_row, steps.total) == (0, 2)
    assert "(1 in a row" in steps.skipped(7, "losses")
    assert steps.total == 3


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_one_more_than_allowed_ends_the_run(limit: int) -> None:
    steps = SkippedSteps(limit)
    for step in range(limit):
        steps.skipped(step, "losses sup_loss_ce on images [8]")
    with pytest.raises(FloatingPointError) as caught:
        steps.skipped(limit, "losses sup_loss_ce on images [8]")
    message = str(caught.value)
    assert message.startswith(f"step {limit}: not finite are the losses sup_loss_ce on images [8]; ")
    assert f"{limit + 1} steps in a row, more than max_skipped_steps={limit}" in message
    assert "learning_rate" in message
    assert "\n" not in message


# ---- Teacher


def test_a_teacher_collapses_below_a_share_of_its_best_in_the_stage() -> None:
    watch = TeacherWatch(0.5, 0.1)
    assert [watch.see_ap(ap, FIRST) for ap in (0.2, 0.4, 0.2, 0.3)] == [None] * 4
    assert watch.see_ap(0.19, FIRST) == "the AP of the teacher fell from 0.400 to 0.190"
    # In the other stage the numbers are others; from there it may fall again.
    assert watch.see_ap(0.1, SECOND) is None
    assert watch.best_ap == 0.1
    assert watch.see_ap(0.04, SECOND) == "the AP of the teacher fell from 0.100 to 0.040"


def test_a_teacher_that_never_knew_anything_cannot_collapse() -> None:
    watch = TeacherWatch(0.5, 0.1)
    assert [watch.see_ap(ap, FIRST) for ap in (0.019, 0.0)] == [None, None]
    assert [watch.see_ap(ap, FIRST) for ap in (0.02, 0.0)][1] is not None
    never = TeacherWatch(0.0, 0.0)
    assert [never.see_ap(ap, FIRST) for ap in (0.9, 0.0)] == [None, None]
    assert see_all(never, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0) == [None] * 6


def see_all(watch: TeacherWatch, *counts: float, images: int = MIN_IMAGES, stage: Stage = FIRST) -> list[str | None]:
    return [watch.see_pseudo_labels(count, images, stage) for count in counts]


def test_the_median_of_three_counts_is_what_falls() -> None:
    watch = TeacherWatch(0.5, 0.1)
    # Medians: none yet, none yet, 5; then 5, 5 and, of 5 1 0.4, the 1; of 1 0.4 0.4 the 0.4, below a tenth of 5.
    assert see_all(watch, 5.0, 4.0, 6.0, 0.0, 5.0, 1.0, 0.4) == [None] * 7
    assert watch.most_pseudo_labels == 5.0
    assert see_all(watch, 0.4) == ["pseudo-labels of an image fell from 5.00 to 0.40"]


def test_few_images_are_counted_together() -> None:
    watch = TeacherWatch(0.5, 0.1)
    # 500 images make a count: twice 249 and 2 images, of which the last two have 250 pseudo-labels each.
    assert see_all(watch, 1.0, 1.0, images=249) == [None, None]
    assert watch.counts == []
    assert see_all(watch, 250.0, images=2) == [None]
    assert watch.counts == [(249 + 249 + 500) / 500]
    assert (watch.num_images, watch.num_pseudo_labels) == (0, 0.0)


def test_counts_that_only_fluctuate_are_no_collapse() -> None:
    numbers = random.Random(0)
    watch = TeacherWatch(0.5, 0.1)
    # Most images show nothing, some show many: 4 images an interval, 0.5 pseudo-labels an image on average.
    per_image = [sum(numbers.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, 5]) for _ in range(4)) / 4 for _ in range(5000)]
    assert set(see_all(watch, *per_image, images=4)) == {None}
    assert 0.3 < watch.most_pseudo_labels < 0.7


def test_pseudo_labels_of_another_stage_are_no_measure() -> None:
    watch = TeacherWatch(0.5, 0.1)
    see_all(watch, 5.0, 5.0, 5.0, 0.4)
    assert see_all(watch, *[0.4] * 2 * COUNTS, stage=SECOND) == [None] * 2 * COUNTS
    few = TeacherWatch(0.5, 0.1)
    assert see_all(few, 0.19, 0.19, 0.19, 0.0, 0.0, 0.0) == [None] * 6


def test_a_watch_that_forgets_begins_anew() -> None:
    watch = TeacherWatch(0.5, 0.1)
    watch.see_ap(0.8, FIRST)
    see_all(watch, 5.0, 5.0, 5.0, 0.0)
    watch.forget()
    assert watch == TeacherWatch(0.5, 0.1)
    assert watch.see_ap(0.1, FIRST) is None
    assert see_all(watch, 0.0, 0.0, 0.0) == [None] * 3


# ---- Advice


def advice() -> Advice:
    return Advice(score_threshold=0.4, num_workers=2)


def test_advice_on_pseudo_labels_after_patience_and_once() -> None:
    given = advice()
    assert given.on_pseudo_labels(0.0, PATIENCE - 1) is None
    text = given.on_pseudo_labels(0.0, 1)
    assert text is not None
    assert text.startswith(f"no pseudo-label above 0.4 in {PATIENCE} steps")
    assert given.on_pseudo_labels(0.0, PATIENCE) is None


@pytest.mark.parametrize("interruption", [0.1, None])
def test_one_pseudo_label_or_a_supervised_interval_begins_the_count_anew(interruption: float | None) -> None:
    given = advice()
    for count in (0.0, interruption, 0.0):
        assert given.on_pseudo_labels(count, PATIENCE - 1) is None
    assert given.on_pseudo_labels(0.0, 1) is not None


def test_advice_on_a_weak_teacher_once() -> None:
    given = advice()
    assert given.on_teacher(0.02) is None
    assert "an AP of 0.013" in str(given.on_teacher(0.013))
    assert given.on_teacher(0.0) is None


def test_advice_on_waiting_once_and_not_in_the_first_steps() -> None:
    given = advice()
    assert given.on_waiting(0.9, 99) is None
    assert given.on_waiting(0.39, 100) is None
    assert str(given.on_waiting(0.4, 100)).startswith(
        "40% of the time is spent waiting for images: raise num_workers=2"
    )
    assert given.on_waiting(0.9, 200) is None


# ---- What a checkpoint keeps


def test_the_state_survives_a_file_and_present_settings_stay() -> None:
    health = Health(SkippedSteps(10), TeacherWatch(0.5, 0.1), advice())
    health.steps.skipped(3, "losses")
    health.steps.skipped(4, "losses")
    health.teacher.see_ap(0.3, FIRST)
    see_all(health.teacher, 4.0, 4.0, 4.0, 0.1)
    see_all(health.teacher, 0.5, images=10)
    health.advice.on_teacher(0.0)
    health.advice.on_pseudo_labels(0.0, 17)
    health.rollbacks, health.supervised_only = 1, True
    again = Health(SkippedSteps(1), TeacherWatch(0.25, 0.2), Advice(score_threshold=0.7, num_workers=0))
    again.restore(json.loads(json.dumps(health.state())))
    assert again.steps == SkippedSteps(1, in_a_row=2, total=2)
    assert again.teacher == TeacherWatch(
        0.25,
        0.2,
        stage="one_to_many",
        best_ap=0.3,
        most_pseudo_labels=4.0,
        counts=[4.0, 4.0, 0.1],
        num_images=10,
        num_pseudo_labels=5.0,
    )
    assert again.advice == Advice(0.7, 0, given=["weak_teacher"], steps_without=17)
    assert (again.rollbacks, again.supervised_only) == (1, True)
    assert again.teacher.see_ap(0.05, FIRST) == "the AP of the teacher fell from 0.300 to 0.050"


# ---- What a run does


@pytest.fixture
def give_aps(monkeypatch) -> Iterator[Callable[..., None]]:
    """A function that sets the AP of the teacher at one evaluation after the other."""
    numbers = dict.fromkeys(
        (name for name in DetectionMetrics.__dataclass_fields__ if not name.startswith("per_class")), 0.0
    )

    def give(*aps: float) -> None:
        left = list(aps)
        monkeypatch.setattr(
            networks_module,
            "evaluate",
            lambda *_args, **_options: (DetectionMetrics(**numbers | {"ap": left.pop(0)}, per_class={}), []),
        )

    yield give


def run_of(digits, folder: Path, *, on_collapse: str, **run: Any) -> SemiDetrTrainer:
    config = configure(
        folder,
        schedule={"num_steps": 6, "one_to_many_steps": 0},
        optimizer={"learning_rate": 1e-3, "lr_schedule": "cosine"},
        pseudo_labels=ANYTHING,
        health={"on_collapse": on_collapse},
        run={"eval_every": 1, "keep_checkpoints": 100, "evaluated_networks": ["teacher"]} | run,
    )
    sources = {"labeled": source_of(digits, 3), "unlabeled": source_of(digits, 4)}
    return build(config, **sources, val=CocoSource(digits.val_json))


def checkpoint(trainer: SemiDetrTrainer, step: int) -> dict[str, Any]:
    """Networks and moments of the optimizer, and the rest of it."""
    folder = trainer.checkpoints.folder / f"step_{step:08d}"
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
    networks = {**load_file(folder / "model.safetensors"), **load_file(folder / "teacher.safetensors")}
    moments = {f"{key} {name}": value for key, s in optimizer["state"].items() for name, value in s.items()}
    return {"tensors": networks | moments, "rates": [group["lr"] for group in optimizer["param_groups"]]}


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(tensor, second["tensors"][name]) for name, tensor in first["tensors"].items())


def events(trainer: SemiDetrTrainer) -> list[tuple[int, str]]:
    return [(row["step"], row["event"]) for row in rows_of(trainer.config) if "event" in row]


def saw_unlabeled(trainer: SemiDetrTrainer) -> list[bool]:
    return ["pseudo_loss_ce" in row for row in rows_of(trainer.config) if "loss" in row]


def rates(trainer: SemiDetrTrainer) -> list[float]:
    return [row["learning_rate"] for row in rows_of(trainer.config) if "loss" in row]


def test_rolled_back_once_and_supervised_after_that(digits, tmp_path, give_aps, caplog) -> None:
    give_aps(0.3, 0.1, 0.3, 0.1, 0.1, 0.1)
    trainer = run_of(digits, tmp_path, on_collapse="roll_back")
    result = trainer.train()
    assert result.step == 6
    best, after, later = (checkpoint(trainer, step) for step in (1, 2, 3))
    assert equal(best, after)
    assert not equal(best, later)
    # The learning rate goes on with the steps, as it would have without.
    assert after["rates"] != best["rates"]
    assert after["rates"][-1] == rates(trainer)[1]
    give_aps(0.3, 0.3, 0.3, 0.3, 0.3, 0.3)
    undisturbed = run_of(digits, tmp_path / "undisturbed", on_collapse="roll_back")
    undisturbed.train()
    assert rates(trainer) == rates(undisturbed)
    assert len(set(rates(trainer))) == 6

    fell = "the AP of the teacher fell from 0.300 to 0.100; "
    assert events(trainer) == [
        (2, fell + "the networks are those of step 1 again"),
        (4, fell + "the run goes on without unlabeled images"),
    ]
    assert [f"step {step}: {text}" in caplog.messages for step, text in events(trainer)] == [True, True]
    assert saw_unlabeled(trainer) == [True] * 4 + [False] * 2
    assert (trainer.health.rollbacks, trainer.health.supervised_only) == (1, True)
    assert events(undisturbed) == []


def test_a_run_that_was_told_to_goes_on_supervised_at_once_and_after_a_resume(digits, tmp_path, give_aps) -> None:
    give_aps(0.3, 0.1, 0.3, 0.1, 0.1, 0.1)
    trainer = run_of(digits, tmp_path, on_collapse="supervised")
    trainer.train()
    assert [step for step, _ in events(trainer)] == [2]
    assert saw_unlabeled(trainer) == [True] * 2 + [False] * 4
    assert not equal(checkpoint(trainer, 1), checkpoint(trainer, 2))
    log = (trainer.output_dir / "log.jsonl").read_bytes()
    for step in (4, 5, 6):
        (trainer.checkpoints.folder / f"step_{step:08d}").rename(tmp_path / f"step_{step:08d}")
    give_aps(0.1, 0.1, 0.1)
    resumed = run_of(digits, tmp_path, on_collapse="supervised", resume="auto")
    assert resumed.step == 3
    resumed.train()
    assert (trainer.output_dir / "log.jsonl").read_bytes() == log


def test_a_warning_changes_nothing(digits, tmp_path, give_aps, caplog) -> None:
    ends = []
    for name, aps in (("falls", (0.3, 0.1, 0.1, 0.1, 0.1, 0.1)), ("stays", (0.3,) * 6)):
        give_aps(*aps)
        trainer = run_of(digits, tmp_path / name, on_collapse="warn")
        trainer.train()
        ends.append(trainer)
    falls, stays = ends
    [(step, text)] = events(falls)
    assert step == 2
    assert text.endswith("nothing is done about it")
    assert f"step 2: {text}" in caplog.messages
    assert equal(checkpoint(falls, 6), checkpoint(stays, 6))
    assert saw_unlabeled(falls) == [True] * 6


def test_without_an_evaluation_there_is_nothing_to_roll_back_to(digits, tmp_path, monkeypatch) -> None:
    config = configure(tmp_path, schedule={"num_steps": 3}, pseudo_labels=ANYTHING)
    trainer = build(config, labeled=source_of(digits, 3), unlabeled=source_of(digits, 4))
    found = iter([None, "pseudo-labels of an image fell from 3.00 to 0.10"])
    monkeypatch.setattr(trainer.health.teacher, "see_pseudo_labels", lambda _count, _images, _stage: next(found))
    trainer.train()
    [(step, text)] = events(trainer)
    assert step == 2
    assert re.fullmatch(r"pseudo-labels .* to 0\.10; the run goes on without unlabeled images", text)
    assert saw_unlabeled(trainer) == [True, True, False]


def test_advice_reaches_the_log_of_the_program_once(digits, tmp_path, give_aps, caplog) -> None:
    give_aps(0.01, 0.01, 0.01, 0.01, 0.01, 0.01)
    run_of(digits, tmp_path, on_collapse="warn").train()
    assert sum("begins to label images with an AP of 0.010" in message for message in caplog.messages) == 1


def test_after_the_last_step_there_is_only_a_warning(digits, tmp_path, give_aps) -> None:
    give_aps(0.3, 0.3, 0.3, 0.3, 0.3, 0.1)
    trainer = run_of(digits, tmp_path, on_collapse="roll_back")
    trainer.train()
    [(step, text)] = events(trainer)
    assert (step, text.rpartition("; ")[2]) == (6, "nothing is done about it")
    # The networks that were written are those of the last checkpoint.
    written = load_file(trainer.output_dir / "teacher" / "model.safetensors")
    kept = load_file(trainer.checkpoints.folder / "step_00000006" / "teacher.safetensors")
    assert all(torch.equal(tensor, kept[f"detector.{name}"]) for name, tensor in written.items())
