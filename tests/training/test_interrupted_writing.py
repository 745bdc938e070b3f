"""Runs that cannot write any more say so in one line, and go on later; no checkpoint is lost, wherever writing ends.

The runs are those of `examples/train_ssod.py`, so that what is asserted is what its user gets.
"""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import other as accelerate_saving
from example_modules import load_example
from interruptions import RESUME, arguments, assert_same_run, files_of, newest_step, write_config

from semidetr_hf.training import checkpoints as checkpoints_module
from semidetr_hf.training.checkpoints import RunCheckpoints, read_checkpoint
from semidetr_hf.training.command_line import parse_config
from semidetr_hf.training.setup import build_image_processor, build_model, open_sources
from semidetr_hf.training.trainer import SemiDetrTrainer


@pytest.fixture(scope="module")
def config(digits, tmp_path_factory) -> Path:
    return write_config(digits, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert load_example("train_ssod").main(arguments(config, output)) == 0
    return output


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory) -> Path:
    """A run that was stopped after seven steps, one after a regular checkpoint."""
    output = tmp_path_factory.mktemp("runs") / "stopped"
    step, made = SemiDetrTrainer.train_step, 0

    def step_and_stop(self: SemiDetrTrainer) -> dict[str, float]:
        nonlocal made
        made += 1
        if made == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiDetrTrainer, "train_step", step_and_stop)
        assert load_example("train_ssod").main(arguments(config, output)) == 128 + signal.SIGTERM
    assert [folder.name[-2:] for folder in RunCheckpoints(output / "checkpoints", 2).folders()] == ["06", "07"]
    return output


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "out"))


def main(config: Path, output: Path, *flags: str) -> int:
    return load_example("train_ssod").main(arguments(config, output, *RESUME, *flags))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said to the user; the rest is of progress bars."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    (error,) = [line for line in lines if "error" in line.lower()]
    assert lines[-1] == error
    assert error.startswith("train_ssod.py: error: ")
    return error


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writing beyond this size fail, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def at_step_9(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen while the ninth step is made."""
    step = SemiDetrTrainer.train_step

    def train_step(self: SemiDetrTrainer) -> dict[str, float]:
        if self.step == 8:
            action()
        return step(self)

    monkeypatch.setattr(SemiDetrTrainer, "train_step", train_step)


# What does not fit any more, how large files may become (None: as the log is, and a little more), and flags.
FULL: list[tuple[str, int | None, list[str]]] = [
    ("checkpoints/step_00000009", 10_000_000, []),  # its optimizer.bin has 14 MB, all else is smaller
    ("checkpoints/step_00000009", 1_000_000, []),  # its model.safetensors has 7 MB
    ("student", 300_000, ["--save_every", "100"]),
    ("log.jsonl", None, []),
    ("recipe.yaml", 1_000, []),
]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "size", "flags"), FULL)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    config, undisturbed, copied, capsys, victim: str, size: int | None, flags: list[str]
) -> None:
    kept = copied / "checkpoints" / "step_00000007"
    before = files_of(kept)
    with largest_file(size or (copied / "log.jsonl").stat().st_size + 50):
        assert main(config, copied, *flags) == 1
    error = error_of(capsys)
    assert f"{copied / victim}: cannot be written (" in error
    assert "make room" in error
    assert newest_step(copied) == 7
    assert files_of(kept) == before
    if victim.startswith("checkpoints"):
        assert f"{kept} is intact" in error
        assert "--resume auto" in error
        assert not list((copied / "checkpoints").glob(".*"))  # what does not help keeps no room
    assert main(config, copied) == 0
    assert_same_run(copied, undisturbed)


def test_a_log_that_became_a_folder_is_named(config, undisturbed, copied, capsys, monkeypatch) -> None:
    log = copied / "log.jsonl"

    def replace() -> None:
        log.rename(copied.parent / "log.jsonl")
        log.mkdir()

    at_step_9(replace, monkeypatch)
    assert main(config, copied) == 1
    assert f"{log}: cannot be written (Is a directory" in error_of(capsys)
    # Also for who does not read it.
    assert main(config, copied) == 1
    assert f"{log}: a folder is where this file of the run belongs; move it away" in error_of(capsys)
    log.rmdir()
    (copied.parent / "log.jsonl").rename(log)
    monkeypatch.undo()
    assert main(config, copied) == 0
    assert_same_run(copied, undisturbed)


def test_a_folder_that_is_removed_is_named(config, copied, capsys, monkeypatch) -> None:
    at_step_9(lambda: shutil.rmtree(copied), monkeypatch)
    assert main(config, copied, "--log_every", "1") == 1
    error = error_of(capsys)
    assert f"{copied / 'pseudo_labels.jsonl'}: cannot be written (No such file or directory" in error
    assert "restore the folder" in error


def test_a_folder_that_is_closed_is_named(config, copied, capsys, monkeypatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    at_step_9(lambda: (copied / "checkpoints").chmod(0o500), monkeypatch)
    try:
        assert main(config, copied) == 1
    finally:
        (copied / "checkpoints").chmod(0o700)
    error = error_of(capsys)
    assert f"{copied / 'checkpoints' / 'step_00000009'}: cannot be written (" in error
    assert "Permission denied" in error
    assert newest_step(copied) == 7
    monkeypatch.undo()
    assert main(config, copied) == 0


@pytest.mark.slow
def test_a_run_taken_up_from_an_earlier_checkpoint_can_be_interrupted_too(
    config, undisturbed, tmp_path, capsys
) -> None:
    output = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    earlier = output / "checkpoints" / "step_00000006"
    program, flags = load_example("train_ssod"), ["--resume", str(earlier), "--keep_checkpoints", "1"]
    with pytest.MonkeyPatch.context() as patch:
        at_step_9(lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert program.main(arguments(config, output, *flags)) == 128 + signal.SIGTERM
    # Those of the future were neither taken for the newest nor deleted.
    assert newest_step(output) == 9
    assert sorted(folder.name[-2:] for folder in output.glob("earlier_1/checkpoints/*")) == ["15", "16"]
    assert main(config, output) == 0
    shutil.rmtree(output / "earlier_1")
    assert_same_run(output, undisturbed)


class Killed(BaseException):
    """Stands for the end of the process; nothing that is meant for errors sees it."""


# What a checkpoint makes of files: names, and writing, of which half remains.
NAMES = [(os, name) for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")]
WRITERS = [(torch, "save"), (accelerate_saving, "safe_save_file"), (checkpoints_module, "save_model")]


class KilledAt:
    """Ends the process, so to speak, at the n-th operation on files; counts them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def save(self, trainer: SemiDetrTrainer, before: Path) -> bool:
        """Save a checkpoint beside those in the folder `before`; return whether it was interrupted."""
        shutil.rmtree(trainer.checkpoints.folder)
        shutil.copytree(before, trainer.checkpoints.folder, copy_function=os.link)
        trainer._saved_step = None
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch)
            try:
                trainer.save_checkpoint()
            except Killed:
                return True
        return False

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name in NAMES:
            monkeypatch.setattr(module, name, self._before(getattr(module, name)))
        for module, name in WRITERS:
            monkeypatch.setattr(module, name, self._amid(getattr(module, name)))
        monkeypatch.setattr(Path, "write_text", self._amid(Path.write_text, target=0))

    def _before(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.number:
                raise Killed
            return operation(*args, **options)

        return interrupted

    def _amid(self, operation: Callable[..., Any], target: int = 1) -> Callable[..., Any]:
        def interrupted(*args: Any, **options: Any) -> Any:
            self.count += 1
            result = operation(*args, **options)
            if self.count == self.number:
                os.truncate(args[target], os.stat(args[target]).st_size // 2)
                raise Killed
            return result

        return interrupted


@pytest.mark.slow
def test_a_checkpoint_may_be_interrupted_between_any_two_operations(config, undisturbed, tmp_path) -> None:
    folder = tmp_path / "out" / "checkpoints"
    values = parse_config(arguments(config, folder.parent, *RESUME, "--keep_checkpoints", "1"))
    sources = open_sources(values)

    def build() -> SemiDetrTrainer:
        model, processor = build_model(values, sources.labeled), build_image_processor(values)
        return SemiDetrTrainer(values, model, processor, **sources._asdict())

    # The next checkpoint is that of step 16; those of 12 and 15 have to make room, and that of step 6 is the best.
    before = tmp_path / "before"
    shutil.copytree(undisturbed / "checkpoints" / "step_00000006", before / "step_00000006")
    shutil.copytree(undisturbed / "checkpoints" / "step_00000015", before / "step_00000015")
    shutil.copytree(undisturbed / "checkpoints" / "step_00000006", before / "step_00000012")
    shutil.copytree(before, folder)
    trainer = build()
    trainer.step += 1
    trainer.save_checkpoint()
    complete = files_of(folder)
    assert {name.split("/")[0] for name in complete} == {"step_00000006", "step_00000016"}

    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    newest, interruption = [], KilledAt(1)
    while interruption.save(trainer, before):
        found = trainer.checkpoints.newest()
        assert found is not None
        newest.append(found.step)
        assert files_of(found.folder) == files_of((before if found.step == 15 else whole) / found.folder.name)
        for checkpoint in trainer.checkpoints.folders():  # a torn one has another name
            read_checkpoint(checkpoint)
        if interruption.number % 8 == 0:
            assert build().step == found.step
        # What lies about is cleared away by the next one.
        trainer._saved_step = None
        trainer.save_checkpoint()
        assert files_of(folder) == complete
        interruption = KilledAt(interruption.number + 1)
    # There were many, before and after the moment from which the new one counts.
    assert newest == sorted(newest)
    assert set(newest) == {15, 16}
    assert min(newest.count(15), newest.count(16)) >= 5
