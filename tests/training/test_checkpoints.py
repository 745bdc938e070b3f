"""Checkpoints of a run: whole under their name, passed over when torn, and restored exactly."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import build, configure, detector, forget_accelerator, same, source_of, weights

from semidetr_hf.training import checkpoints as checkpoints_module
from semidetr_hf.training.checkpoints import Checkpoint, RunCheckpoints, read_checkpoint, restore
from semidetr_hf.training.trainer import SemiDetrTrainer

FILES = ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "teacher.safetensors"]


@pytest.fixture(scope="module")
def written(digits, tmp_path_factory) -> Path:
    """The checkpoint of a run after its second step."""
    config = configure(tmp_path_factory.mktemp("written"))
    trainer = build(config, labeled=source_of(digits, 2))
    trainer.train()
    forget_accelerator()
    return trainer.output_dir / "checkpoints/step_00000002"


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(written, tmp_path / "checkpoints" / written.name)


@pytest.fixture(scope="module")
def other_trainer(digits, tmp_path_factory) -> Callable[[], SemiDetrTrainer]:
    """A function that makes a trainer of other weights which fits the checkpoint."""

    def make() -> SemiDetrTrainer:
        forget_accelerator()
        return build(configure(tmp_path_factory.mktemp("other")), detector(seed=5), labeled=source_of(digits, 2))

    return make


# ---- read_checkpoint


def test_a_checkpoint_holds_what_a_run_needs_in_files_of_known_sizes(checkpoint: Path) -> None:
    found = read_checkpoint(checkpoint)
    assert (found.folder, found.step) == (checkpoint, 2)
    assert set(FILES) <= set(found.state["files"])
    on_disk = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != "run.json"}
    assert found.state["files"] == on_disk
    assert min(on_disk.values()) > 0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "longer"])
def test_a_torn_checkpoint_names_the_file(checkpoint: Path, name: str, kind: str) -> None:
    path = checkpoint / name
    content = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b"x"}[kind])
    there = {"truncated": len(content) - 1, "longer": len(content) + 1}.get(kind, "no")
    with pytest.raises(ValueError) as caught:
        read_checkpoint(checkpoint)
    assert str(caught.value) == f"{path}: {there} of {len(content)} bytes are there, the checkpoint is torn"


def test_a_folder_without_its_description_is_no_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "run.json").unlink()
    for folder in (checkpoint, checkpoint / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of a run, its run\.json is missing"):
            read_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "\x00\x01"])
def test_a_description_of_rubbish_is_one_clear_error(checkpoint: Path, text: str) -> None:
    (checkpoint / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: not the run\.json of a checkpoint") as caught:
        read_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


# ---- RunCheckpoints


def torn(folder: Path) -> None:
    (folder / "optimizer.bin").write_bytes(b"torn")


def test_without_a_folder_there_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.folders() == []
    assert checkpoints.newest() is None
    assert checkpoints.of_step(2) is checkpoints.of_step(None) is None


def test_the_newest_complete_one_is_taken_and_the_others_are_named(checkpoint: Path, caplog) -> None:
    folder = checkpoint.parent
    for step in (4, 10):
        shutil.copytree(checkpoint, folder / f"step_{step:08d}")
    torn(folder / "step_00000010")
    shutil.copytree(checkpoint, folder / ".step_00000011-unfinished")
    (folder / "step_00000012").write_text("no folder")
    checkpoints = RunCheckpoints(folder, keep=2)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.folder == folder / "step_00000004"
    assert len(caplog.messages) == 2
    assert ".step_00000011-unfinished: passed over" in caplog.messages[0]
    assert "step_00000010/optimizer.bin: 4 of" in caplog.messages[1]
    torn(folder / "step_00000004")
    torn(checkpoint)
    assert checkpoints.newest() is None


def test_the_checkpoint_of_a_step(checkpoint: Path, caplog) -> None:
    checkpoints = RunCheckpoints(checkpoint.parent, keep=2)
    found = checkpoints.of_step(2)
    assert found is not None
    assert (found.folder, found.step) == (checkpoint, 2)
    assert checkpoints.of_step(3) is None
    assert caplog.messages == []
    torn(checkpoint)
    assert checkpoints.of_step(2) is None
    assert "the checkpoint is torn" in caplog.text


def save(checkpoints: RunCheckpoints, trainer: SemiDetrTrainer, step: int, best_step: int | None = None) -> None:
    checkpoints.save(
        trainer.accelerator, trainer.teacher, state={"step": step}, own_state={"own": step}, best_step=best_step
    )


def test_the_newest_stay_and_that_of_the_best_evaluation(other_trainer, tmp_path: Path) -> None:
    checkpoints, trainer = RunCheckpoints(tmp_path / "checkpoints", keep=2), other_trainer()
    stays = []
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (10, 5)):
        save(checkpoints, trainer, step, best)
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == [f.name for f in checkpoints.folders()]
        stays.append([read_checkpoint(folder).step for folder in checkpoints.folders()])
    assert stays == [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [5, 10]]


def test_a_checkpoint_has_its_name_only_when_it_is_complete(other_trainer, tmp_path: Path, monkeypatch) -> None:
    checkpoints, trainer = RunCheckpoints(tmp_path / "checkpoints", keep=2), other_trainer()
    save(checkpoints, trainer, 1)
    seen = []
    save_model = checkpoints_module.save_model

    def watch(*args: Any) -> None:
        seen.append(sorted(path.name for path in checkpoints.folder.iterdir()))
        save_model(*args)

    monkeypatch.setattr(checkpoints_module, "save_model", watch)
    save(checkpoints, trainer, 2)
    assert seen == [[".step_00000002-unfinished", "step_00000001"]]


@pytest.mark.parametrize("earlier", [False, True])
def test_what_cannot_be_written_leaves_the_earlier_ones_and_says_so(
    other_trainer, tmp_path: Path, monkeypatch, earlier: bool
) -> None:
    checkpoints, trainer = RunCheckpoints(tmp_path / "checkpoints", keep=2), other_trainer()
    if earlier:
        save(checkpoints, trainer, 1)

    def fail(*_args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_model", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(checkpoints, trainer, 2)
    message = str(caught.value)
    assert "step_00000002: cannot be written" in message and "--resume auto" in message
    assert ("step_00000001 is intact" if earlier else "there is no earlier one") in message
    assert "\n" not in message
    # What was written of it may be what fills the disk.
    assert [path.name for path in checkpoints.folder.iterdir()] == (["step_00000001"] if earlier else [])


def test_the_checkpoint_of_a_step_that_is_made_again_replaces_the_first(other_trainer, tmp_path: Path) -> None:
    checkpoints, trainer = RunCheckpoints(tmp_path / "checkpoints", keep=2), other_trainer()
    save(checkpoints, trainer, 1)
    (checkpoints.folder / "step_00000001/stale.txt").write_text("of the first")
    save(checkpoints, trainer, 1)
    assert not (checkpoints.folder / "step_00000001/stale.txt").exists()
    assert read_checkpoint(checkpoints.folder / "step_00000001").step == 1


# ---- restore


def restored(path: Path, trainer: SemiDetrTrainer) -> dict[str, Any]:
    return restore(read_checkpoint(path), trainer.accelerator, trainer.teacher)


def test_networks_optimizer_and_learning_rate_come_back(digits, tmp_path: Path, other_trainer) -> None:
    config = configure(tmp_path, optimizer={"learning_rate": 1e-3, "warmup_steps": 3}, schedule={"num_steps": 4})
    trainer = build(config, labeled=source_of(digits, 2))
    for _ in range(2):
        trainer.train_step()
        trainer.step += 1
    trainer.save_checkpoint()
    before = (weights(trainer.objective), weights(trainer.teacher), trainer.teacher.num_updates)
    other = other_trainer()
    assert not same(weights(other.objective), before[0])
    own = restored(trainer.output_dir / "checkpoints/step_00000002", other)
    assert own["means"] == trainer.records.means.state()
    assert same(weights(other.objective), before[0])
    assert same(weights(other.teacher), before[1])
    assert other.teacher.num_updates == before[2] == 2
    assert other.scheduler.last_epoch == 2
    first, second = (t.optimizer.state_dict() for t in (trainer, other))
    assert all(same(state, second["state"][key]) for key, state in first["state"].items())
    assert len(first["state"]) == len(second["state"]) > 0
    assert [group["lr"] for group in first["param_groups"]] == [group["lr"] for group in second["param_groups"]]


def test_random_generators_go_on_exactly(other_trainer, tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.default_rng, np.random.rand(), torch.rand(2).tolist(), random.gauss(0, 1)]

    trainer, checkpoints = other_trainer(), RunCheckpoints(tmp_path / "checkpoints", keep=1)
    random.seed(7)
    np.random.seed(8)
    torch.manual_seed(9)
    random.gauss(0, 1)  # keeps a second number for the next call
    save(checkpoints, trainer, 3)
    expected = draw()
    assert draw() != expected
    assert restored(checkpoints.folder / "step_00000003", trainer)["own"] == 3
    assert draw() == expected


def test_another_number_of_processes_is_refused(checkpoint: Path, other_trainer) -> None:
    found = read_checkpoint(checkpoint)
    state = found.state | {"processes": found.state["processes"] * 2}
    trainer = other_trainer()
    before = weights(trainer.student)
    with pytest.raises(ValueError, match="written by 2 processes, but this run has 1; start 2, or a new run"):
        restore(Checkpoint(found.folder, state), trainer.accelerator, trainer.teacher)
    assert same(before, weights(trainer.student))


RUBBISH: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda content: bytes(len(content)),
    "random": lambda content: np.random.default_rng(1).bytes(len(content)),
    "text": lambda content: (b"this is no checkpoint at all " * (len(content) // 20))[: len(content)],
    "begins well": lambda content: content[:100] + bytes(len(content) - 100),
    "ends well": lambda content: bytes(len(content) - 300) + content[-300:],
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_a_file_of_rubbish_is_one_clear_error(checkpoint: Path, other_trainer, kind: str) -> None:
    trainer = other_trainer()
    for name in FILES:
        path = checkpoint / name
        content = path.read_bytes()
        path.write_bytes(RUBBISH[kind](content))
        torch.manual_seed(1234)  # or those that a file before has restored would do
        with pytest.raises(ValueError) as caught:
            restored(checkpoint, trainer)
        message = str(caught.value)
        assert message.startswith(f"{checkpoint}: "), (name, message)
        assert "\n" not in message
        assert len(message) < 1000, message
        path.write_bytes(content)
    restored(checkpoint, trainer)


def test_a_checkpoint_of_another_detector_is_one_clear_error(digits, tmp_path: Path, checkpoint: Path) -> None:
    trainer = build(configure(tmp_path), detector(decoder_layers=1), labeled=source_of(digits, 2))
    with pytest.raises(ValueError, match="this checkpoint cannot be read") as caught:
        restored(checkpoint, trainer)
    assert "\n" not in str(caught.value)


def test_random_generators_that_do_not_come_back_are_noticed(checkpoint: Path, other_trainer, monkeypatch) -> None:
    trainer = other_trainer()
    # Accelerate only logs what goes wrong here.
    monkeypatch.setattr(np.random, "set_state", lambda _state: None)
    np.random.seed(123)
    with pytest.raises(ValueError, match="the random generators were not restored"):
        restored(checkpoint, trainer)


def test_the_description_is_plain_text(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "run.json").read_text())
    assert state["settings"]["run.seed"] == 0
    assert (state["health"]["steps"]["in_a_row"], state["health"]["rollbacks"]) == (0, 0)
    assert len(state["processes"]) == 1


def test_a_copy_that_somebody_made_is_none_of_the_checkpoints(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.with_name(f"{checkpoint.name}_backup"))
    checkpoints = RunCheckpoints(checkpoint.parent, keep=1)
    assert checkpoints.folders() == [checkpoint]
    found = checkpoints.newest()
    assert found is not None
    assert found.folder == checkpoint
