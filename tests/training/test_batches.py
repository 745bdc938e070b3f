"""Which images a step sees depends on the seed and its number alone; trouble of the loaders is told plainly."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from small_runs import SIZE, build, configure, source_of

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import Sample, UnreadableImageError, ViewSize
from semidetr_hf.data.loading import LabeledDataset, UnlabeledDataset
from semidetr_hf.data.sources import Source
from semidetr_hf.structures import SemiBatch
from semidetr_hf.training.batches import TrainingBatches
from semidetr_hf.training.setup import build_schedule

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
VARIED = AugmentConfig(short_edges=(32, 48, SIZE), long_edge=SIZE)
BURN_IN, NUM_STEPS = 2, 5


def batches_of(
    labeled: Source,
    unlabeled: Source | None,
    folder: Path,
    *,
    start: int = 0,
    accumulation: int = 1,
    workers: int = 0,
    grouped: bool = False,
) -> TrainingBatches:
    data = {"num_workers": workers, "labeled_batch_size": 2, "unlabeled_batch_size": 3}
    config = configure(
        folder,
        data=data | {"group_by_aspect_ratio": grouped},
        schedule={"num_steps": NUM_STEPS, "burn_in_steps": BURN_IN},
        run={"gradient_accumulation_steps": accumulation},
    )
    return TrainingBatches(
        config,
        build_schedule(config),
        Accelerator(cpu=True),
        labeled=LabeledDataset(labeled, VARIED, MEAN, STD),
        unlabeled=None if unlabeled is None else UnlabeledDataset(unlabeled, VARIED, MEAN, STD),
        start=start,
    )


def run(batches: TrainingBatches, *, start: int = 0, accumulation: int = 1) -> list[SemiBatch]:
    """The batches of all steps from `start` on."""
    found = [
        batches.next(with_unlabeled=step >= BURN_IN) for step in range(start, NUM_STEPS) for _ in range(accumulation)
    ]
    batches.close()
    return found


def assert_same_batches(first: list[SemiBatch], second: list[SemiBatch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.labeled.image_ids == other.labeled.image_ids
        assert one.labeled.view.pixel_values.equal(other.labeled.view.pixel_values)
        for target, theirs in zip(one.labeled.targets, other.labeled.targets, strict=True):
            assert target["boxes"].equal(theirs["boxes"])
        assert (one.unlabeled is None) == (other.unlabeled is None)
        if one.unlabeled is not None and other.unlabeled is not None:
            assert one.unlabeled.image_ids == other.unlabeled.image_ids
            for view in ("weak", "strong"):
                mine, theirs_view = getattr(one.unlabeled, view), getattr(other.unlabeled, view)
                assert mine.pixel_values.equal(theirs_view.pixel_values)
                assert mine.homographies.equal(theirs_view.homographies)


@pytest.mark.parametrize(("accumulation", "grouped"), [(1, False), (2, False), (1, True)])
def test_from_any_step_on_they_are_those_of_an_unbroken_run(digits, tmp_path, accumulation: int, grouped) -> None:
    sources = source_of(digits, 3), source_of(digits, 5)
    options: dict[str, Any] = {"accumulation": accumulation}
    whole = run(batches_of(*sources, tmp_path, grouped=grouped, **options), **options)
    assert [batch.unlabeled is not None for batch in whole] == [False] * 2 * accumulation + [True] * 3 * accumulation
    assert len({tuple(batch.labeled.image_ids) for batch in whole}) > 2
    for start in range(NUM_STEPS + 1):
        rest = run(batches_of(*sources, tmp_path, start=start, grouped=grouped, **options), start=start, **options)
        assert_same_batches(rest, whole[start * accumulation :])


def test_loader_workers_change_nothing_and_leave_the_random_numbers_alone(digits, tmp_path) -> None:
    sources = source_of(digits, 3), source_of(digits, 5)
    whole = run(batches_of(*sources, tmp_path))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    rest = run(batches_of(*sources, tmp_path, start=3, workers=2), start=3)
    assert torch.get_rng_state().equal(state)
    assert_same_batches(rest, whole[3:])


def test_processes_take_turns(digits, tmp_path) -> None:
    """Accelerate hands out batches; the number of draws must be enough for all of them."""
    config = configure(tmp_path, data={"labeled_batch_size": 2}, schedule={"num_steps": NUM_STEPS})
    dataset = LabeledDataset(source_of(digits, 3), VARIED, MEAN, STD)
    both = TrainingBatches(config, build_schedule(config), two_processes(), labeled=dataset, unlabeled=None, start=3)
    assert sum(len(batch.image_ids) for batch in both.labeled) == (NUM_STEPS - 3) * 2 * 2


def two_processes() -> Any:
    """Stands in for the accelerator of two processes that hands every batch to this one."""
    return SimpleNamespace(num_processes=2, prepare=lambda loader: loader, device=torch.device("cpu"))


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_of_similar_shape_are_made_only_when_asked_for(tmp_path, grouped: bool) -> None:
    """Of 16 wide and 16 high pictures every batch of a window has one kind, the first 16 batches all of them."""
    (tmp_path / "images").mkdir()
    for i in range(32):
        Image.new("RGB", (40, 20) if i % 2 else (20, 40)).save(tmp_path / "images" / f"{i}.png")
    data = {"labeled_batch_size": 2, "unlabeled_batch_size": 2, "group_by_aspect_ratio": grouped}
    config = configure(tmp_path, data=data, schedule={"num_steps": 8})
    unlabeled = UnlabeledDataset(FolderSource(tmp_path / "images"), VARIED, MEAN, STD)
    labeled = LabeledDataset(FolderSource(tmp_path / "images"), VARIED, MEAN, STD)
    batches = TrainingBatches(config, build_schedule(config), two_processes(), labeled=labeled, unlabeled=unlabeled)
    for loader in (batches.labeled, batches.unlabeled):
        ids = [batch.image_ids for batch in loader or ()]
        assert len(ids) == 16
        assert len({image_id for batch in ids for image_id in batch}) == 32
        kinds = [len({int(image_id.removesuffix(".png")) % 2 for image_id in batch}) for batch in ids]
        assert (max(kinds) == 1) == grouped


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_cuda_device_alone(digits, tmp_path, monkeypatch, device: str, pinned: bool) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "semidetr_hf.training.batches.view_loader", lambda *_, **options: asked.append(options["pin_memory"])
    )
    accelerator: Any = SimpleNamespace(num_processes=1, prepare=lambda _: [], device=torch.device(device))
    config = configure(tmp_path)
    dataset = LabeledDataset(source_of(digits, 3), VARIED, MEAN, STD)
    TrainingBatches(config, build_schedule(config), accelerator, labeled=dataset, unlabeled=None)
    assert asked == [pinned]


def test_a_start_beyond_the_last_step_has_no_batch(digits, tmp_path) -> None:
    batches = batches_of(source_of(digits, 3), source_of(digits, 3), tmp_path, start=NUM_STEPS + 3)
    with pytest.raises(StopIteration):
        batches.next(with_unlabeled=False)


def test_without_unlabeled_images_there_are_none(digits, tmp_path) -> None:
    batches = batches_of(source_of(digits, 3), None, tmp_path)
    assert batches.next(with_unlabeled=True).unlabeled is None
    assert batches.unreadable() == {"labeled": []}


# ---- Trouble


def broken_folder(folder: Path, broken: list[int], count: int = 4) -> FolderSource:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (SIZE, SIZE), (60 * i, 0, 0)).save(folder / f"{i}.png")
    for i in broken:
        (folder / f"{i}.png").write_bytes(b"no picture")
    return FolderSource(folder)


def test_places_of_unreadable_images_are_kept(digits, tmp_path) -> None:
    unlabeled = broken_folder(tmp_path / "images", [1, 3])
    batches = batches_of(source_of(digits, 3), unlabeled, tmp_path)
    assert batches.num_unreadable() == 0
    run(batches)
    assert batches.unreadable() == {"labeled": [], "unlabeled": [1, 3]}
    assert batches.num_unreadable() == 2
    again = batches_of(source_of(digits, 3), unlabeled, tmp_path, start=4)
    again.mark_unreadable(batches.unreadable())
    assert again.unreadable() == batches.unreadable()
    assert again.num_unreadable() == 2


@pytest.fixture
def _quiet_deaths(monkeypatch) -> Iterator[None]:
    """Torch looks for dead workers when it waits for one, and not also whenever a process ends, in any line.

    Those that are left have nothing more to do, and torch would wait for each of them.
    """
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", True)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_quiet_deaths")
@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_any_more_are_one_line(digits, tmp_path, workers: int) -> None:
    unlabeled = broken_folder(tmp_path / "images", [0, 1, 2, 3])
    batches = batches_of(source_of(digits, 3), unlabeled, tmp_path, workers=workers)
    with pytest.raises(UnreadableImageError) as caught:
        batches.next(with_unlabeled=True)
    message = str(caught.value)
    assert message.startswith("4 images in a row cannot be read: ")
    assert all(f"{i}.png: not a readable image" in message for i in range(4))
    assert "\n" not in message
    assert "Traceback" not in message


class Deadly(CocoSource):
    """Images whose worker dies at the third one, as if it had taken too much memory."""

    num_read = 0

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        self.num_read += multiprocessing.parent_process() is not None
        if self.num_read == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_for_view(index, largest_view)


class Wrong(CocoSource):
    """Images that raise what is no business of the loaders."""

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        raise RuntimeError(f"image {index} of the source")


@pytest.mark.usefixtures("_quiet_deaths")
def test_a_worker_that_dies_is_one_clear_error(digits, tmp_path) -> None:
    batches = batches_of(Deadly(digits.train_json), None, tmp_path, workers=1)
    with pytest.raises(ChildProcessError) as caught:
        for _ in range(NUM_STEPS):
            batches.next(with_unlabeled=False)
    message = str(caught.value)
    assert message.startswith("a process that loads images died (DataLoader worker (pid")
    assert "out of memory" in message
    assert "lower num_workers=1, at 0 no process is needed" in message
    assert "\n" not in message


def test_other_errors_keep_their_kind(digits, tmp_path) -> None:
    batches = batches_of(Wrong(digits.train_json), None, tmp_path)
    with pytest.raises(RuntimeError, match=r"^image \d of the source$"):
        batches.next(with_unlabeled=False)


def test_a_worker_that_dies_during_a_step_is_the_same_error(digits, tmp_path) -> None:
    """Torch's signal handler raises in whatever line the main process is just then."""
    trainer = build(configure(tmp_path), labeled=source_of(digits, 3))

    def raise_there(*_args: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")

    trainer.objective.register_forward_pre_hook(raise_there)
    with pytest.raises(ChildProcessError, match=r"died \(DataLoader worker .* Killed\.\): .* lower num_workers=0"):
        trainer.train()


@pytest.mark.parametrize("during", ["waiting", "the step"])
def test_a_run_whose_images_are_gone_is_saved_between_two_steps(digits, tmp_path, monkeypatch, during: str) -> None:
    """Accelerate counts batches and keeps the count: saved within a step, the next would have half of its batches."""
    run = {"gradient_accumulation_steps": 2}
    config = configure(tmp_path, schedule={"num_steps": 3}, run=run)
    trainer = build(config, labeled=source_of(digits, 4))
    take, calls = trainer.batches.next, [0]

    def fail(**options: Any) -> SemiBatch:
        calls[0] += 1
        if calls[0] == (3 if during == "waiting" else 4):
            raise UnreadableImageError("4 images in a row cannot be read")
        return take(**options)

    monkeypatch.setattr(trainer.batches, "next", fail)
    with pytest.raises(UnreadableImageError):
        trainer.train()
    resumed = build(
        configure(tmp_path, schedule={"num_steps": 3}, run=run | {"resume": "auto"}), labeled=source_of(digits, 4)
    )
    assert resumed.step == 1
    assert resumed.accelerator.step % 2 == 0
    made: list[int] = []
    resumed.optimizer.optimizer.register_step_pre_hook(lambda *_args: made.append(1))
    resumed.train_step()
    assert len(made) == 1
    assert resumed.accelerator.step % 2 == 0
