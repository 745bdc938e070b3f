"""A run that was interrupted ends as the one that was not; what is no part of it is refused."""

import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from small_runs import ANYTHING, build, configure, detector, forget_accelerator, rows_of, same, source_of, weights

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training import resuming
from semidetr_hf.training.checkpoints import Checkpoint, RunCheckpoints
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.resuming import (
    OUTPUTS,
    claimed,
    prepare_output_folder,
    require_same_run,
    set_later_aside,
    settings_of,
)
from semidetr_hf.training.run_config import RunConfig
from semidetr_hf.training.trainer import SemiDetrTrainer

# Burn-in until step 2, first stage until step 4, log lines after steps 3 and 6, evaluations after 4 and 6.
COURSE = {"num_steps": 6, "burn_in_steps": 2, "one_to_many_steps": 4}
OFTEN = {"log_every": 3, "eval_every": 4, "save_every": 1, "keep_checkpoints": 100, "instruments": True}
LOGS = ("log.jsonl", "pseudo_labels.jsonl", "costs.jsonl")


def run_of(digits, folder: Path, *, seed: int = 0, resume: str | None = None, **parts: Any) -> SemiDetrTrainer:
    """A trainer of the whole method; with `resume` its detector is another one, whose weights must not matter."""
    forget_accelerator()
    parts = {"schedule": COURSE, "pseudo_labels": ANYTHING} | parts
    parts["run"] = OFTEN | parts.get("run", {}) | {"resume": resume}
    config = configure(folder, **parts)
    sources = {"labeled": source_of(digits, 3), "unlabeled": source_of(digits, 5), "val": CocoSource(digits.val_json)}
    return build(config, detector(seed), **sources)


def interrupted_copy(trainer: SemiDetrTrainer, folder: Path, step: int) -> None:
    """Copy what a run killed after `step` leaves; its logs have gone on since the checkpoint."""
    output = folder / "out"
    shutil.copytree(trainer.output_dir, output, ignore=shutil.ignore_patterns("checkpoints"))
    name = f"checkpoints/step_{step:08d}"
    shutil.copytree(trainer.output_dir / name, output / name)


def assert_same_end(resumed: SemiDetrTrainer, unbroken: SemiDetrTrainer) -> None:
    assert same(weights(unbroken.objective), weights(resumed.objective))  # student and projector, batch norms too
    assert same(weights(unbroken.teacher), weights(resumed.teacher))
    assert resumed.teacher.num_updates == unbroken.teacher.num_updates
    first, second = (trainer.optimizer.state_dict()["state"] for trainer in (unbroken, resumed))
    assert first.keys() == second.keys() and len(first) > 0
    assert all(same(state, second[key]) for key, state in first.items())
    for name in LOGS:
        assert (resumed.output_dir / name).read_bytes() == (unbroken.output_dir / name).read_bytes(), name
    for name in ("student", "teacher", "best"):
        path = f"{name}/model.safetensors"
        assert (resumed.output_dir / path).read_bytes() == (unbroken.output_dir / path).read_bytes(), name


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"run": {"gradient_accumulation_steps": 2}},
    "bf16": {"run": {"mixed_precision": "bf16"}},
    "workers": {"data": {"num_workers": 2}},
    "cosine": {"optimizer": {"learning_rate": 1e-3, "lr_schedule": "cosine", "warmup_steps": 2}},
}


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    """A function from the name of a variant to a run that nothing interrupted; made once each."""
    made: dict[str, SemiDetrTrainer] = {}

    def make(variant: str) -> SemiDetrTrainer:
        if variant not in made:
            made[variant] = run_of(digits, tmp_path_factory.mktemp(variant), **VARIANTS[variant])
            before = weights(made[variant].objective)
            made[variant].train()
            moved = [
                name for name, tensor in weights(made[variant].objective).items() if not tensor.equal(before[name])
            ]
            assert any(name.endswith("running_mean") and "backbone" in name for name in moved)
            assert any(name.startswith("projector.") for name in moved)
        return made[variant]

    return make


# ---- The same end


@pytest.mark.parametrize(
    ("variant", "step"),
    [
        ("plain", 1),  # in the burn-in
        ("plain", 2),  # at its end
        ("plain", 4),  # at the switch of the stage, in the middle of a log interval, after an evaluation
        ("plain", 5),
        ("accumulation", 3),
        ("bf16", 3),
        ("workers", 3),
        ("cosine", 3),
    ],
)
def test_a_resumed_run_ends_as_an_unbroken_one(digits, tmp_path, unbroken, variant: str, step: int) -> None:
    whole = unbroken(variant)
    interrupted_copy(whole, tmp_path, step)
    resumed = run_of(digits, tmp_path, seed=9, resume="auto", **VARIANTS[variant])
    assert resumed.step == step
    result = resumed.train()
    assert (result.step, result.stopped_by) == (COURSE["num_steps"], None)
    assert result.best == whole.networks.best
    assert_same_end(resumed, whole)


def test_the_means_of_a_log_interval_are_part_of_a_checkpoint(digits, tmp_path, unbroken) -> None:
    whole = unbroken("plain")
    interrupted_copy(whole, tmp_path, 5)
    resumed = run_of(digits, tmp_path, resume="auto")
    # Steps 4 and 5, of which no line tells yet; without them the line would be that of step 6 alone.
    resumed.records.means.reset()
    resumed.train()
    [forgetful], [right] = (
        [row["loss"] for row in rows_of(trainer.config) if "loss" in row and row["step"] == 6]
        for trainer in (resumed, whole)
    )
    assert forgetful != right


def test_a_run_that_is_complete_is_left_alone(digits, tmp_path, unbroken) -> None:
    whole = unbroken("plain")
    interrupted_copy(whole, tmp_path, 6)
    log = (tmp_path / "out/log.jsonl").read_bytes()
    resumed = run_of(digits, tmp_path, resume="auto")
    result = resumed.train()
    assert (result.step, result.best) == (6, whole.networks.best)
    assert result.student == whole.networks.metrics["student"]
    assert (tmp_path / "out/log.jsonl").read_bytes() == log


def test_a_run_with_a_constant_learning_rate_may_be_lengthened(digits, tmp_path, unbroken) -> None:
    interrupted_copy(unbroken("plain"), tmp_path, 3)
    shorter = run_of(digits, tmp_path / "short", schedule=COURSE | {"num_steps": 5})
    shorter.train()
    longer = run_of(digits, tmp_path / "short", resume="auto")
    assert longer.step == 5
    longer.train()
    # Evaluated once more, at the first end, which is no part of the unbroken run; the weights are the same.
    assert same(weights(unbroken("plain").objective), weights(longer.objective))
    assert same(weights(unbroken("plain").teacher), weights(longer.teacher))


def test_a_checkpoint_may_be_named(digits, tmp_path, unbroken) -> None:
    whole = unbroken("plain")
    shutil.copytree(whole.output_dir, tmp_path / "out")
    resumed = run_of(digits, tmp_path, resume=str(tmp_path / "out/checkpoints/step_00000003"))
    assert resumed.step == 3
    resumed.train()
    assert_same_end(resumed, whole)


def test_a_checkpoint_may_be_continued_in_an_empty_folder(digits, tmp_path, unbroken) -> None:
    whole = unbroken("plain")
    resumed = run_of(digits, tmp_path, resume=str(whole.output_dir / "checkpoints/step_00000003"))
    resumed.train()
    assert same(weights(whole.objective), weights(resumed.objective))
    assert [row["step"] for row in rows_of(resumed.config)] == [4, 6, 6]


# ---- Which runs are the same


def settings(config: TrainingConfig, digits, **sources: Any) -> dict[str, Any]:
    given = {"labeled": source_of(digits, 3), "unlabeled": source_of(digits, 5), "val": None} | sources
    return settings_of(config, given.pop("teacher_format", None), **given)


def test_what_the_precision_of_the_teacher_means_here_is_what_counts(digits, tmp_path) -> None:
    auto, low = (configure(tmp_path, run={"teacher_precision": name}) for name in ("auto", "bf16"))
    with_bf16 = settings(auto, digits, teacher_format=torch.bfloat16)
    assert with_bf16 == settings(low, digits, teacher_format=torch.bfloat16)
    without = settings(auto, digits, teacher_format=None)
    with pytest.raises(ValueError, match="run.teacher_precision was 'torch.bfloat16' and is 'same'"):
        require_same_run(checkpoint_of(with_bf16), without, num_steps=6)


def checkpoint_of(own: dict[str, Any]) -> Checkpoint:
    # As it comes back from run.json.
    return Checkpoint(Path("out/checkpoints/step_00000003"), json.loads(json.dumps({"step": 3, "settings": own})))


@pytest.mark.parametrize(
    ("part", "field", "first", "second"),
    [
        ("data", "labeled_batch_size", 2, 3),
        ("data", "short_edges", [64], [32, 64]),
        ("optimizer", "learning_rate", 1e-3, 2e-3),
        ("optimizer", "lr_schedule", "constant", "cosine"),
        ("schedule", "burn_in_steps", 0, 1),
        ("pseudo_labels", "score_threshold", 0.4, 0.5),
        ("consistency", "candidate_filter", "cost", "none"),
        ("matching", "one_to_many_top_k", 13, 5),
        ("model", "size", "nano", "small"),
        ("run", "seed", 0, 1),
        ("run", "mixed_precision", "no", "bf16"),
        ("run", "gradient_accumulation_steps", 1, 2),
        ("run", "instruments", False, True),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(
    digits, tmp_path, part: str, field: str, first: Any, second: Any
) -> None:
    before, after = (configure(tmp_path, **{part: {field: value}}) for value in (first, second))
    checkpoint = checkpoint_of(settings(before, digits))
    require_same_run(checkpoint, settings(before, digits), num_steps=20)
    with pytest.raises(ValueError) as caught:
        require_same_run(checkpoint, settings(after, digits), num_steps=20)
    message = str(caught.value)
    shown = [repr(str(value) if isinstance(value, list) else value) for value in (first, second)]
    assert f"{part}.{field} was {shown[0]} and is {shown[1]}" in message
    assert message.startswith("out/checkpoints/step_00000003: ") and "config.yaml" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("data", {"num_workers": 3}),
        ("data", {"labeled": "moved.json", "labeled_images": "moved"}),
        ("run", {"output_dir": "elsewhere", "keep_checkpoints": 9, "save_every": 7, "log_every": 3, "eval_every": 9}),
        ("run", {"trackers": ["tensorboard"], "cpu": False, "resume": "auto"}),
        ("health", {"max_skipped_steps": 1, "on_collapse": "warn", "collapse_ap": 0.1}),
        ("model", {"init_from": "elsewhere", "backbone_weights": "random"}),
    ],
)
def test_how_a_run_is_carried_out_may_change(digits, tmp_path, part: str, values: dict) -> None:
    before, after = configure(tmp_path), configure(tmp_path, **{part: values})
    assert before != after
    require_same_run(checkpoint_of(settings(before, digits)), settings(after, digits), num_steps=20)


def test_only_where_nothing_depends_on_the_number_of_steps_it_may_grow(digits, tmp_path) -> None:
    def with_steps(num_steps: int, optimizer: dict[str, Any], **schedule: Any) -> dict[str, Any]:
        schedule = {"num_steps": num_steps, "one_to_many_steps": 4} | schedule
        return settings(configure(tmp_path, optimizer=optimizer, schedule=schedule), digits)

    require_same_run(checkpoint_of(with_steps(10, {})), with_steps(20, {}), num_steps=20)
    drops = {"lr_schedule": "step", "lr_drop_steps": [8]}
    require_same_run(checkpoint_of(with_steps(10, drops)), with_steps(20, drops), num_steps=20)
    cosine = {"lr_schedule": "cosine"}
    with pytest.raises(ValueError, match="schedule.num_steps was 10 and is 20"):
        require_same_run(checkpoint_of(with_steps(10, cosine)), with_steps(20, cosine), num_steps=20)
    # A fraction of the steps is a number of steps, which must not change either.
    with pytest.raises(ValueError, match=r"first stage \(one_to_many_steps\) was 5 and is 10"):
        fraction = {"one_to_many_steps": None, "one_to_many_fraction": 0.5}
        require_same_run(checkpoint_of(with_steps(10, {}, **fraction)), with_steps(20, {}, **fraction), num_steps=20)


def test_more_steps_than_are_wanted_cannot_be_unmade(digits, tmp_path) -> None:
    same = settings(configure(tmp_path), digits)
    require_same_run(checkpoint_of(same), same, num_steps=3)
    with pytest.raises(ValueError, match="has made 3 steps, more than num_steps=2; raise it"):
        require_same_run(checkpoint_of(same), same, num_steps=2)


def test_images_may_move_but_must_stay_the_same(digits, tmp_path) -> None:
    config = configure(tmp_path)
    checkpoint = checkpoint_of(settings(config, digits))
    moved = tmp_path / "moved"
    shutil.copytree(digits.train_json.parent, moved)
    there = CocoSource(moved / digits.train_json.name)
    require_same_run(checkpoint, settings(config, digits, labeled=there.subset(there.image_ids[:3])), num_steps=20)
    others = {
        "labeled": there.subset(there.image_ids[1:4]),  # as many, but others
        "unlabeled": None,
        "validation": there,
    }
    for role, source in others.items():
        with pytest.raises(ValueError, match=f"the {role} images was .* and is "):
            given = settings(config, digits, **{"val" if role == "validation" else role: source})
            require_same_run(checkpoint, given, num_steps=20)


def test_a_trainer_with_other_settings_does_not_touch_the_folder(digits, tmp_path, unbroken) -> None:
    interrupted_copy(unbroken("plain"), tmp_path, 3)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"run\.seed was 0 and is 5"):
        run_of(digits, tmp_path, resume="auto", run={"seed": 5})
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


# ---- What is in the output folder


def prepare(folder: Path, **values: Any) -> Checkpoint | None:
    run = RunConfig(output_dir=str(folder), cpu=True, **values)
    return prepare_output_folder(run, RunCheckpoints(folder / "checkpoints", keep=2), Accelerator(cpu=True))


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run.json").write_text(json.dumps({"step": step, "files": {}, "settings": {}}))
    return checkpoint


def test_an_empty_folder_is_a_new_run(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert prepare(tmp_path / "out") is None
    assert prepare(tmp_path / "out", overwrite=True) is None
    assert caplog.messages == []
    assert prepare(tmp_path / "out", resume="auto") is None
    assert "no checkpoint to go on from, the run begins" in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OUTPUTS)
def test_anything_of_an_earlier_run_is_refused_and_named(tmp_path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=rf"holds a run \({name}\).*--resume.*--overwrite") as caught:
        prepare(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_no_run_writes_are_no_run(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare(tmp_path) is None
    assert prepare(tmp_path, overwrite=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_a_checkpoint_what_makes_room_is_moved_and_never_lost(tmp_path, caplog) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for number in (1, 2):
        (tmp_path / "log.jsonl").write_text(f"run {number}")
        (tmp_path / "best").mkdir()
        assert prepare(tmp_path, resume="auto") is None
        assert f"earlier_{number}" in caplog.messages[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier_1", "earlier_2", "notes.txt"]
    for number in (1, 2):
        aside = tmp_path / f"earlier_{number}"
        assert sorted(path.name for path in aside.iterdir()) == ["best", "log.jsonl"]
        assert (aside / "log.jsonl").read_text() == f"run {number}"


def test_overwriting_leaves_no_checkpoint_of_the_earlier_run(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    write_checkpoint(tmp_path, 3)
    assert prepare(tmp_path, overwrite=True) is None
    assert not any((tmp_path / name).exists() for name in OUTPUTS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_checkpoints_of_later_steps_are_set_aside(tmp_path) -> None:
    for step in (3, 6, 9):
        write_checkpoint(tmp_path, step)
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=2)
    set_later_aside(checkpoints, 6, Accelerator(cpu=True))
    assert [folder.name for folder in checkpoints.folders()] == ["step_00000003", "step_00000006"]
    assert (tmp_path / "earlier_1/checkpoints/step_00000009/run.json").is_file()
    set_later_aside(checkpoints, 6, Accelerator(cpu=True))
    assert not (tmp_path / "earlier_2").exists()


def test_auto_takes_the_newest_and_a_folder_takes_that_one(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    third, ninth = (write_checkpoint(tmp_path, step) for step in (3, 9))
    newest, named = prepare(tmp_path, resume="auto"), prepare(tmp_path, resume=str(third))
    assert newest is not None and named is not None
    assert (newest.folder, newest.step) == (ninth, 9)
    assert (named.folder, named.step) == (third, 3)
    assert f"going on from {ninth}, after 9 steps" in caplog.text
    with pytest.raises(FileExistsError, match="holds a run of 9 steps"):
        prepare(tmp_path)


def test_a_checkpoint_of_another_folder_needs_an_empty_one(tmp_path) -> None:
    other = write_checkpoint(tmp_path / "other", 3)
    found = prepare(tmp_path / "out", resume=str(other))
    assert found is not None and found.step == 3
    write_checkpoint(tmp_path / "out", 2)
    with pytest.raises(FileExistsError, match="another run than the one of resume="):
        prepare(tmp_path / "out", resume=str(other))


def test_a_checkpoint_that_is_not_there_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"step_00000004.*run\.json is missing"):
        prepare(tmp_path, resume=str(tmp_path / "checkpoints/step_00000004"))


def test_random_numbers_go_on_where_the_checkpoint_was(digits, tmp_path, unbroken) -> None:
    """A resumed trainer has drawn other random numbers while it was built; none of that may remain."""
    interrupted_copy(unbroken("plain"), tmp_path, 3)
    run_of(digits, tmp_path, resume="auto")
    first = torch.rand(3)
    torch.manual_seed(1234)
    run_of(digits, tmp_path, resume="auto")
    assert torch.rand(3).equal(first)


# ---- Who is training into it


def claim(folder: Path, **content: Any) -> None:
    own = {"host": socket.gethostname(), "pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time()}
    (folder / ".running.json").write_text(json.dumps(own | content))


def test_a_folder_into_which_another_process_trains_is_refused(tmp_path) -> None:
    claim(tmp_path)
    for values in ({}, {"resume": "auto"}, {"overwrite": True}):
        with pytest.raises(
            FileExistsError, match=f"process {os.getppid()} is training into it; wait for it, or end it"
        ):
            prepare(tmp_path, **values)


@pytest.mark.parametrize(
    "content",
    [
        {"started": 1.0},  # the number has gone to another process
        {"pid": 2**22 + 1},  # above the largest there is
        {"pid": os.getpid()},  # an earlier run of this process
        {"host": "elsewhere"},
        {"pid": "rubbish"},
    ],
)
def test_a_claim_of_a_process_that_has_ended_is_none(tmp_path, content: dict[str, Any]) -> None:
    claim(tmp_path, **content)
    assert prepare(tmp_path) is None


def test_a_run_claims_its_folder_while_it_trains(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="broken"), claimed(tmp_path, Accelerator(cpu=True)):
        assert json.loads((tmp_path / ".running.json").read_text())["pid"] == os.getpid()
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_process_does_not_see_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(resuming, "on_any_process", lambda _accelerator, _missing: True)
    with pytest.raises(OSError, match="not all processes see this folder"), claimed(tmp_path, Accelerator(cpu=True)):
        pass
