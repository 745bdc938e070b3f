"""A step that is not finite leaves no trace."""

import copy
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import ANYTHING, build, configure, detector, rows_of, same, source_of, weights

from semidetr_hf.structures import SemiBatch
from semidetr_hf.training.trainer import SemiDetrTrainer

WARM_UP = {"learning_rate": 1e-3, "warmup_steps": 4}
IN_ONE_STAGE = {"num_steps": 6, "one_to_many_steps": 0}


def state_of(trainer: SemiDetrTrainer) -> dict[str, Any]:
    """Everything that a step that is left out must not change."""
    optimizer = copy.deepcopy(trainer.optimizer.state_dict())
    for group in optimizer["param_groups"]:
        del group["lr"]
    return {
        "student and projector": weights(trainer.objective),
        "teacher": weights(trainer.teacher),
        "updates": trainer.teacher.num_updates,
        "moments": {f"{key} {name}": value for key, s in optimizer["state"].items() for name, value in s.items()},
        "groups": optimizer["param_groups"],
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in ("student and projector", "teacher", "moments"):
        assert before[name].keys() == after[name].keys()
        assert same(before[name], after[name]), name
    assert (before["updates"], before["groups"]) == (after["updates"], after["groups"])


def with_nan(batch: SemiBatch, view: str) -> SemiBatch:
    """Return a batch one of whose images holds a NaN pixel."""

    def spoiled(found: Any) -> Any:
        pixels = found.pixel_values.clone()
        pixels[-1, 0, 3, 3] = math.nan
        return replace(found, pixel_values=pixels)

    if view == "labeled":
        return replace(batch, labeled=replace(batch.labeled, view=spoiled(batch.labeled.view)))
    assert batch.unlabeled is not None
    return replace(batch, unlabeled=replace(batch.unlabeled, **{view: spoiled(getattr(batch.unlabeled, view))}))


@pytest.fixture
def trainer(digits, tmp_path) -> SemiDetrTrainer:
    """After one sound step, so that the optimizer has moments."""
    config = configure(tmp_path, schedule=IN_ONE_STAGE, optimizer=WARM_UP, pseudo_labels=ANYTHING)
    found = build(config, labeled=source_of(digits, 3), unlabeled=source_of(digits, 4))
    result = found.make_step(0, [found._next_batch()])
    assert result.trouble is None
    assert {"loss", "gradient_norm", "pseudo_labels", "consistency"} <= result.numbers.keys()
    return found


def break_loss(trainer: SemiDetrTrainer, batch: SemiBatch, monkeypatch) -> SemiBatch:
    compute = trainer.student.criterion.forward
    monkeypatch.setattr(
        trainer.student.criterion,
        "forward",
        lambda *args: (losses := compute(*args)) | {"loss_giou_enc": losses["loss_giou_enc"] * math.inf},
    )
    return batch


def break_gradient(trainer: SemiDetrTrainer, batch: SemiBatch, _monkeypatch: Any) -> SemiBatch:
    trainer.student.class_head.weight.register_hook(lambda gradient: gradient * math.nan)
    return batch


TROUBLES: dict[str, tuple[Any, str]] = {
    "loss": (break_loss, "losses sup_loss_giou_enc, pseudo_loss_giou_enc"),
    "gradient": (break_gradient, "gradients"),
    "labeled": (lambda _t, batch, _m: with_nan(batch, "labeled"), r"losses sup_\w+, sup_\w+, sup_\w+ and \d+ more"),
    "strong": (
        lambda _t, batch, _m: with_nan(batch, "strong"),
        r"losses pseudo_\w+, pseudo_\w+, pseudo_\w+ and \d+ more",
    ),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_bad_step_leaves_everything_as_it_was_but_the_learning_rate(trainer, monkeypatch, kind: str) -> None:
    spoil, words = TROUBLES[kind]
    before, rate = state_of(trainer), trainer.optimizer.param_groups[-1]["lr"]
    sound = trainer._next_batch()
    batch = spoil(trainer, sound, monkeypatch)
    result = trainer.make_step(1, [batch])
    ids = [*batch.labeled.image_ids, *batch.unlabeled.image_ids]
    assert re.fullmatch(rf"{words} on images {re.escape(str(ids))}", result.trouble)
    assert result.numbers == {}
    assert_unchanged(before, state_of(trainer))
    # Warm-up over four steps: 1/4 after the first one, 2/4 after the second, whether it was made or not.
    assert trainer.optimizer.param_groups[-1]["lr"] > rate
    assert trainer.optimizer.param_groups[-1]["lr"] == trainer.scheduler.get_last_lr()[-1]
    assert trainer.scheduler.last_epoch == 2

    monkeypatch.undo()
    if kind == "gradient":
        trainer.student.class_head.weight._backward_hooks.clear()
    assert all(parameter.grad is None for parameter in trainer.objective.parameters())
    again = trainer.make_step(2, [sound])
    assert again.trouble is None
    assert math.isfinite(again.numbers["loss"])
    assert trainer.teacher.num_updates == before["updates"] + 1
    assert not same(before["student and projector"], weights(trainer.objective))


def test_statistics_of_trained_batch_norms_would_have_changed(trainer) -> None:
    """Otherwise the test above would prove nothing about them."""
    before = weights(trainer.objective)
    trainer.make_step(1, [trainer._next_batch()])
    moved = [name for name, tensor in weights(trainer.objective).items() if not tensor.equal(before[name])]
    assert any("backbone" in name and name.endswith("running_var") for name in moved)
    assert any(name.startswith("projector") and name.endswith("num_batches_tracked") for name in moved)


def test_a_weak_view_that_is_broken_poisons_nothing(trainer) -> None:
    trainer.make_step(1, [with_nan(trainer._next_batch(), "weak")])
    for network in (trainer.objective, trainer.teacher):
        assert all(tensor.isfinite().all() for tensor in weights(network).values())


@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_batch_discards_all_that_are_accumulated_and_the_next_step_is_sound(
    digits, tmp_path, place: int
) -> None:
    """Without denoising, which draws noise, the steps depend on their batches alone."""
    ends, skips = [], []
    for name in ("with", "without"):
        config = configure(
            tmp_path / name,
            schedule=IN_ONE_STAGE,
            run={"gradient_accumulation_steps": 2},
        )
        trainer = build(config, detector(num_denoising_queries=0), labeled=source_of(digits, 4))
        batches = [[trainer._next_batch() for _ in range(2)] for _ in range(3)]
        assert trainer.make_step(0, batches[0]).trouble is None
        if name == "with":
            before = state_of(trainer)
            batches[1][place] = with_nan(batches[1][place], "labeled")
            skips.append(trainer.make_step(1, batches[1]).trouble)
            assert_unchanged(before, state_of(trainer))
        assert trainer.make_step(2, batches[2]).trouble is None
        ends.append(state_of(trainer))
    # What comes after the bad batch is not looked at any more, so it is not among the images that the last names.
    named = batches[1][place].labeled.image_ids
    assert len(skips) == 1
    assert re.fullmatch(rf"losses sup_.* on images {re.escape(str(named))}", skips[0])
    assert_unchanged(*ends)


def test_a_bad_gradient_names_the_images_of_all_batches(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule=IN_ONE_STAGE, run={"gradient_accumulation_steps": 2})
    trainer = build(config, labeled=source_of(digits, 4))
    trainer.student.class_head.weight.register_hook(lambda gradient: gradient * math.inf)
    batches = [trainer._next_batch() for _ in range(2)]
    ids = [image_id for batch in batches for image_id in batch.labeled.image_ids]
    assert len(ids) == 4
    assert trainer.make_step(0, batches).trouble == f"gradients on images {ids}"


def test_trouble_of_several_processes_is_told_together(trainer, monkeypatch) -> None:
    monkeypatch.setattr(
        "semidetr_hf.training.step.gather_from_all", lambda _accelerator, own: [own, None, "gradients on images [7]"]
    )
    assert trainer.make_step._tell_all("losses sup_loss_ce", [3, 4]) == (
        "losses sup_loss_ce on images [3, 4]; gradients on images [7]"
    )
    assert trainer.make_step._tell_all(None, [3, 4]) == "gradients on images [7]"


def test_numbers_are_means_over_the_accumulated_batches(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule=IN_ONE_STAGE, run={"gradient_accumulation_steps": 2})
    trainer = build(config, detector(num_denoising_queries=0, freeze_backbone_norm=True), labeled=source_of(digits, 4))
    losses: list[float] = []
    trainer.objective.register_forward_hook(
        lambda _module, _inputs, found: losses.append(trainer.student.weigh(found.supervised).item())
    )
    result = trainer.make_step(0, [trainer._next_batch() for _ in range(2)])
    assert losses[0] != losses[1]
    assert float(result.numbers["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-6)


# ---- In a run


def test_an_image_of_nan_pixels_does_not_poison_a_run(digits, tmp_path, monkeypatch, caplog) -> None:
    config = configure(tmp_path, schedule={"num_steps": 8}, pseudo_labels=ANYTHING, run={"log_every": 4})
    source = source_of(digits, 4)
    trainer = build(config, labeled=source, unlabeled=source_of(digits, 4))
    bad, skipped, take = source.image_ids[2], [], trainer.batches.next

    def spoil(**options: Any) -> SemiBatch:
        batch = take(**options)
        if bad in batch.labeled.image_ids:
            skipped.append(trainer.step)
            batch.labeled.view.pixel_values[batch.labeled.image_ids.index(bad)] = math.nan
        return batch

    monkeypatch.setattr(trainer.batches, "next", spoil)
    result = trainer.train()
    # Every pass over the four images takes two steps, of which one has the bad image.
    assert len(skipped) == 4
    assert result.step == 8
    for network in (trainer.objective, trainer.teacher):
        assert all(tensor.isfinite().all() for tensor in weights(network).values())
    assert trainer.teacher.num_updates == 4
    assert [row["skipped_steps"] for row in rows_of(config)] == [2, 4]
    warnings = [message for message in caplog.messages if "skipped, not finite" in message]
    assert [int(re.match(r"step (\d+) skipped", message)[1]) for message in warnings] == skipped  # type: ignore[index]
    assert all(f"{bad}" in message.partition("on images ")[2] for message in warnings)


def test_beyond_the_limit_the_run_ends_with_a_checkpoint_from_which_it_can_go_on(digits, tmp_path) -> None:
    def start(**run: Any) -> SemiDetrTrainer:
        schedule = {"num_steps": 5, "burn_in_steps": 4}
        config = configure(tmp_path, schedule=schedule, health={"max_skipped_steps": 1}, run=run)
        return build(config, labeled=source_of(digits, 3), unlabeled=source_of(digits, 3))

    trainer = start()
    trainer.student.class_head.weight.register_hook(
        lambda gradient: gradient * (math.nan if trainer.step >= 2 else 1.0)
    )
    with pytest.raises(FloatingPointError, match=r"step 3: not finite are the gradients .* 2 steps in a row"):
        trainer.train()
    assert [folder.name for folder in trainer.checkpoints.folders()] == ["step_00000004"]
    resumed = start(resume="auto")
    assert resumed.step == 4
    assert resumed.scheduler.last_epoch == 4
    # Also the last step of the burn-in, though it was left out, ended it.
    assert same(weights(resumed.teacher.detector), weights(resumed.student))
    assert resumed.train().step == 5


def test_the_last_step_may_end_the_run_but_not_before_everything_is_written(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 2}, health={"max_skipped_steps": 0})
    trainer = build(config, labeled=source_of(digits, 3), val=source_of(digits, 2))
    trainer.student.class_head.weight.register_hook(
        lambda gradient: gradient * (math.nan if trainer.step == 1 else 1.0)
    )
    with pytest.raises(FloatingPointError, match="step 1: not finite are the gradients"):
        trainer.train()
    rows = rows_of(config)
    assert [(row["step"], "student/ap" in row) for row in rows] == [(1, False), (2, False), (2, True)]
    assert rows[1]["skipped_steps"] == 1
    assert (tmp_path / "out" / "best").is_dir()
    assert trainer.checkpoints.newest().step == 2


class Scaler:
    """A loss scaler that has found no gradient finite so far."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def get_scale(self) -> float:
        return self.factor

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.factor


@pytest.mark.parametrize(("scale", "is_trouble"), [(1024.0, False), (0.5, True)])
def test_a_loss_scaler_that_finds_no_scale_is_trouble(trainer, monkeypatch, scale: float, is_trouble: bool) -> None:
    make_step = trainer.make_step
    monkeypatch.setattr(trainer.accelerator, "scaler", Scaler(scale))
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *_args: torch.tensor(math.inf))
    monkeypatch.setattr(make_step, "optimizer", SkippingOptimizer())
    before = weights(trainer.teacher.detector), trainer.teacher.num_updates
    result = make_step(0, [trainer._next_batch()])
    assert (result.trouble is not None) == is_trouble
    if is_trouble:
        assert result.trouble.startswith("gradients, whatever the loss scale, on images [")
    # There was no step, so there is no new student either.
    assert same(weights(trainer.teacher.detector), before[0])
    assert trainer.teacher.num_updates == before[1]


class SkippingOptimizer:
    step_was_skipped = True

    def step(self) -> None:
        pass

    def zero_grad(self) -> None:
        pass
