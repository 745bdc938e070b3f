import itertools
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import Sample, UnreadableImageError
from semidetr_hf.data.loading import (
    LabeledDataset,
    LabeledItem,
    PassSampler,
    UnlabeledDataset,
    ViewItem,
    pad_views,
    view_loader,
)
from semidetr_hf.geometry import apply_to_boxes, identity
from semidetr_hf.structures import LabeledBatch

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
PLAIN = AugmentConfig(short_edges=(30,), flip_probability=0.0, color=False)
VARIED = AugmentConfig(short_edges=(24, 30, 36), long_edge=60)


@pytest.fixture
def source(write_coco: Callable[..., Path]) -> CocoSource:
    return CocoSource(write_coco())


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return FolderSource(tmp_path / "pictures")


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


# Labeled images ------------------------------------------------------------------------------------------------------


def test_plain_labeled_item(source: CocoSource) -> None:
    item = LabeledDataset(source, PLAIN, MEAN, STD)[0, 0]
    # gray 90: 90/255 = .352941; (.352941 - .5)/.5 = -.294118, (.352941 - .25)/.25 = .411765, .352941
    assert item.view.pixel_values.shape == (3, 30, 40)
    assert item.view.pixel_values[:, 3, 4].tolist() == pytest.approx([-0.294118, 0.411765, 0.352941], abs=1e-5)
    # xyxy 10 5 30 15 of 40x30: center 20/40, 10/30, size 20/40, 10/30
    assert item.target["boxes"][0].tolist() == pytest.approx([0.5, 1 / 3, 0.5, 1 / 3])
    assert item.target["boxes"][1].tolist() == pytest.approx([0.05, 2 / 30, 0.1, 4 / 30])
    assert item.target["class_labels"].tolist() == [1, 0] and item.image_id == 1
    assert same(item.view.homography, identity())


def test_image_without_boxes(source: CocoSource) -> None:
    item = LabeledDataset(source, VARIED, MEAN, STD)[1, 0]
    assert item.target["boxes"].shape == (0, 4) and item.target["boxes"].dtype == torch.float32
    assert item.target["class_labels"].shape == (0,)


def test_boxes_follow_the_view(source: CocoSource) -> None:
    dataset = LabeledDataset(source, VARIED, MEAN, STD)
    original = source[0].boxes_xyxy
    flips = set()
    for seed in range(20):
        item = dataset[0, seed]
        height, width = item.view.pixel_values.shape[-2:]
        expected = apply_to_boxes(item.view.homography, original) / torch.tensor([width, height, width, height])
        center, size = item.target["boxes"][:, :2], item.target["boxes"][:, 2:]
        assert torch.cat([center - size / 2, center + size / 2], 1).allclose(expected, atol=1e-6)
        flips.add(bool(item.view.homography[0, 0] < 0))
    assert flips == {True, False}


def test_boxes_that_become_tiny_are_dropped_with_their_class(source: CocoSource) -> None:
    # Halved, the 4x4 box is 2 pixels wide: kept above 1.5, dropped above 2.
    half = AugmentConfig(short_edges=(15,), flip_probability=0.0, color=False)
    assert LabeledDataset(source, half, MEAN, STD, min_box_size=1.5)[0, 0].target["class_labels"].tolist() == [1, 0]
    assert LabeledDataset(source, half, MEAN, STD, min_box_size=2.0)[0, 0].target["class_labels"].tolist() == [1]


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), STD), (MEAN, (1.0, 1.0, 0.0))])
def test_bad_normalization_is_named(source: CocoSource, mean: tuple, std: tuple) -> None:
    with pytest.raises(ValueError, match="image_mean=.*image_std="):
        LabeledDataset(source, PLAIN, mean, std)


# Unlabeled images ----------------------------------------------------------------------------------------------------


def test_unlabeled_item_has_two_views_of_one_image(folder: FolderSource) -> None:
    dataset = UnlabeledDataset(folder, VARIED, MEAN, STD)
    item, again, other = dataset[3, 11], dataset[3, 11], dataset[3, 12]
    assert item.image_id == "3.png"
    assert same(item.weak.pixel_values, again.weak.pixel_values)
    assert same(item.strong.pixel_values, again.strong.pixel_values)
    assert not same(item.strong.homography, other.strong.homography)
    sizes = {
        (view.weak.pixel_values.shape, view.strong.pixel_values.shape) for view in (dataset[0, s] for s in range(30))
    }
    assert len(sizes) == 9  # three sizes each, drawn independently


def test_boxes_of_an_unlabeled_source_are_not_needed(source: CocoSource) -> None:
    assert UnlabeledDataset(source, VARIED, MEAN, STD)[1, 0].image_id == 2


# Unreadable images ---------------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_replaced_by_the_next_and_reported_once(
    folder: FolderSource, caplog: pytest.LogCaptureFixture
) -> None:
    folder.path(4).write_bytes(b"broken")
    dataset = UnlabeledDataset(folder, VARIED, MEAN, STD)
    with caplog.at_level(logging.WARNING):
        assert [dataset[4, seed].image_id for seed in range(3)] == ["0.png"] * 3  # the one after the last is the first
    assert len(caplog.messages) == 1 and str(folder.path(4)) in caplog.messages[0]
    assert int(dataset.is_unreadable.sum()) == 1


def test_when_nothing_is_readable_all_files_are_named(folder: FolderSource) -> None:
    for index in range(5):
        folder.path(index).write_bytes(b"broken")
    with pytest.raises(UnreadableImageError, match="5 images in a row") as caught:
        UnlabeledDataset(folder, VARIED, MEAN, STD)[2, 0]
    assert all(str(folder.path(index)) in str(caught.value) for index in range(5))


# Large pictures ------------------------------------------------------------------------------------------------------


@dataclass
class WholePictures:
    """The images of another source, all of them decoded whole."""

    source: CocoSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]


def write_large_pictures(write_coco: Callable[..., Path]) -> Path:
    """Write a JPEG file of 1600x1200 pixels with edges of every size and noise, and a small one, with boxes."""
    sizes = {"large.jpg": (1600, 1200), "small.jpg": (70, 50)}
    images = [
        {"id": number, "file_name": name, "width": width, "height": height}
        for number, (name, (width, height)) in enumerate(sizes.items(), start=1)
    ]
    boxes = [[3, 5, 331, 77], [1000.5, 700, 599.5, 500], [8, 8, 17, 9]]
    annotations = [{"id": i, "image_id": 1, "category_id": 3, "bbox": box} for i, box in enumerate(boxes)]
    path = write_coco(images=images, annotations=annotations, pictures=False)
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        image = Image.new("RGB", (width, height))
        draw = ImageDraw.Draw(image)
        for radius in np.sort(8 / (1 - rng.random(3000)) ** 0.6)[::-1]:
            x, y = rng.random() * width, rng.random() * height
            color = tuple(rng.integers(0, 256, 3).tolist())
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
        pixels = np.asarray(image) + rng.normal(0, 10, (height, width, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path.parent / name, quality=90)
    return path


def test_views_of_reduced_pictures_are_those_of_whole_ones(write_coco: Callable[..., Path]) -> None:
    source = CocoSource(write_large_pictures(write_coco))
    # Views of 500 pixels or less along the short edge leave half of 1200 pixels 1.2 times as large: too little.
    config = AugmentConfig(short_edges=(200, 300, 400), long_edge=533, color=False)
    assert source.read_for_view(0, config.largest_view).reduction == 2
    in_gray_levels = (0.0,) * 3, (1 / 255,) * 3
    reduced = LabeledDataset(source, config, *in_gray_levels)
    whole = LabeledDataset(WholePictures(source), config, *in_gray_levels)  # type: ignore[arg-type]
    for seed in range(6):
        item, expected = reduced[0, seed], whole[0, seed]
        assert item.view.pixel_values.shape == expected.view.pixel_values.shape
        assert item.view.homography.allclose(expected.view.homography, rtol=1e-12)
        # 1e-6 of an edge of 533 pixels is far below half a pixel.
        assert item.target["boxes"].allclose(expected.target["boxes"], rtol=0, atol=1e-6)
        assert len(item.target["boxes"]) == 3
        difference = (item.view.pixel_values - expected.view.pixel_values).abs()
        assert 0 < difference.mean() < 3  # of 255
    assert same(reduced[1, 0].view.pixel_values, whole[1, 0].view.pixel_values)


def test_both_views_of_a_reduced_picture_are_drawn_as_of_the_whole_one(write_coco: Callable[..., Path]) -> None:
    source = CocoSource(write_large_pictures(write_coco))
    config = AugmentConfig(short_edges=(100, 150), long_edge=200)
    assert source.read_for_view(0, config.largest_view).reduction == 4
    reduced = UnlabeledDataset(source, config, MEAN, STD)
    whole = UnlabeledDataset(WholePictures(source), config, MEAN, STD)  # type: ignore[arg-type]
    for seed in range(10):
        item, expected = reduced[0, seed], whole[0, seed]
        for view, other in ((item.weak, expected.weak), (item.strong, expected.strong)):
            assert view.pixel_values.shape == other.pixel_values.shape
            assert view.homography.allclose(other.homography, rtol=1e-12, atol=1e-12)


def test_a_source_gives_the_whole_picture_unless_asked(write_coco: Callable[..., Path]) -> None:
    source = CocoSource(write_large_pictures(write_coco))
    whole, reduced = source[0], source.read_for_view(0, AugmentConfig(short_edges=(100,)).largest_view)
    assert (whole.reduction, whole.image.size) == (1, (1600, 1200))
    # 1200 / 8 = 150 is 1.5 times 100.
    assert (reduced.reduction, reduced.image.size) == (8, (200, 150))
    assert reduced.boxes_xyxy.equal(whole.boxes_xyxy / 8)
    folder = FolderSource(source.image_folder)
    assert folder[0].image.size == (1600, 1200)
    assert folder.read_for_view(0, AugmentConfig(short_edges=(100,)).largest_view).reduction == 8


# Sampler -------------------------------------------------------------------------------------------------------------


def test_every_pass_shows_every_image_once_in_another_order() -> None:
    indices = [index for index, _ in PassSampler(7, 21, seed=3)]
    passes = [indices[0:7], indices[7:14], indices[14:21]]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 1000), st.data())
def test_a_resumed_sampler_continues_the_unbroken_one(count: int, draws: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, draws))
    whole = list(PassSampler(count, draws, seed))
    assert len(whole) == draws and len({draw_seed for _, draw_seed in whole}) == draws
    resumed = PassSampler(count, draws, seed, start)
    assert list(resumed) == whole[start:] and len(resumed) == draws - start
    assert list(resumed) == whole[start:]  # a second walk is the same


def test_sampler_seeds_do_not_depend_on_the_size_of_the_data() -> None:
    assert [s for _, s in PassSampler(3, 10, 0)] == [s for _, s in PassSampler(8, 10, 0)]
    assert list(PassSampler(8, 10, 0)) != list(PassSampler(8, 10, 1))


@pytest.mark.parametrize(
    ("arguments", "complaint"), [((0, 5, 0), "num_images=0"), ((5, 5, -1), "seed=-1"), ((5, 5, 0, 6), "start=6")]
)
def test_bad_sampler_arguments(arguments: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PassSampler(*arguments)


# Batches -------------------------------------------------------------------------------------------------------------


def test_padding_is_zero_at_the_bottom_and_right() -> None:
    items = [
        ViewItem(pixel_values=torch.full((3, 2, 5), 7.0), homography=identity()),
        ViewItem(pixel_values=torch.full((3, 4, 3), 8.0), homography=2 * identity()),
    ]
    view = pad_views(items)
    assert view.pixel_values.shape == (2, 3, 4, 5) and view.image_sizes.tolist() == [[2, 5], [4, 3]]
    # 2*5 and 4*3 real pixels, three channels
    assert view.pixel_values.sum(dim=(1, 2, 3)).tolist() == [7 * 30, 8 * 36]
    assert view.pixel_mask.tolist()[0] == [[1] * 5] * 2 + [[0] * 5] * 2
    assert view.pixel_mask.tolist()[1] == [[1, 1, 1, 0, 0]] * 4
    assert view.pixel_mask.dtype == view.image_sizes.dtype == torch.int64
    assert view.homographies.dtype == torch.float64 and view.homographies[1, 0, 0] == 2


class InWorker(UnlabeledDataset):
    """Says of a batch that was made in a worker whether its pixels lie in shared memory before they are sent."""

    @staticmethod
    def collate(items: Any) -> Any:
        return UnlabeledDataset.collate(items).weak.pixel_values.is_shared()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_make_batches_where_the_other_process_reads_them(folder: FolderSource, num_workers: int) -> None:
    dataset = InWorker(folder, VARIED, MEAN, STD)
    [shared] = view_loader(dataset, PassSampler(len(folder), 2, 0), batch_size=2, num_workers=num_workers)
    assert shared == (num_workers > 0)


def test_a_batch_of_two_holds_the_two_batches_of_one(source: CocoSource) -> None:
    dataset = LabeledDataset(source, VARIED, MEAN, STD)
    items: list[LabeledItem] = [dataset[0, 1], dataset[1, 2]]
    both = dataset.collate(items)
    assert both.image_ids == [1, 2] and len(both.view) == 2
    for row, item in enumerate(items):
        single = dataset.collate([item])
        height, width = single.view.image_sizes[0].tolist()
        assert same(both.view.pixel_values[row, :, :height, :width], single.view.pixel_values[0])
        assert single.view.pixel_mask.all() and both.view.pixel_mask[row].sum() == height * width
        assert same(both.targets[row]["boxes"], single.targets[0]["boxes"])


def test_empty_batches_are_refused() -> None:
    for dataset in (LabeledDataset, UnlabeledDataset):
        with pytest.raises(ValueError, match="no views"):
            dataset.collate([])


def batches(folder: FolderSource, *, start: int, num_workers: int) -> Iterator[tuple[list[str], torch.Tensor]]:
    dataset = UnlabeledDataset(folder, VARIED, MEAN, STD)
    sampler = PassSampler(len(folder), 10, seed=5, start=start)
    for batch in view_loader(dataset, sampler, batch_size=4, num_workers=num_workers):
        yield batch.image_ids, batch.strong.pixel_values


def test_batches_do_not_depend_on_workers_and_can_resume(folder: FolderSource) -> None:
    alone = list(batches(folder, start=0, num_workers=0))
    with_workers = list(batches(folder, start=0, num_workers=2))
    resumed = list(batches(folder, start=4, num_workers=0))
    assert [len(ids) for ids, _ in alone] == [4, 4, 2]
    pairs = itertools.chain(zip(alone, with_workers, strict=True), zip(alone[1:], resumed, strict=True))
    for (ids, pixels), (other_ids, other_pixels) in pairs:
        assert ids == other_ids and same(pixels, other_pixels)


def test_loader_of_labeled_images(source: CocoSource) -> None:
    loader = view_loader(LabeledDataset(source, VARIED, MEAN, STD), PassSampler(2, 4, 0), batch_size=2)
    seen = []
    for batch in loader:
        assert isinstance(batch, LabeledBatch)
        seen.append(batch.image_ids)
    assert [sorted(image_ids) for image_ids in seen] == [[1, 2], [1, 2]]


class SignalHandlers(UnlabeledDataset):
    """Items that say what the process which makes them does about SIGINT and SIGTERM."""

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        return [signal.getsignal(kind) is signal.SIG_IGN for kind in (signal.SIGINT, signal.SIGTERM)]

    @staticmethod
    def collate(items: Any) -> Any:
        return items


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_do_not_end_before_the_process_that_reads_from_them(folder: FolderSource, num_workers: int) -> None:
    dataset = SignalHandlers(folder, VARIED, MEAN, STD)
    [[found]] = view_loader(dataset, PassSampler(len(folder), 1, 0), batch_size=1, num_workers=num_workers)
    assert found == [num_workers > 0] * 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_does_not_move_the_random_numbers_of_the_training(folder: FolderSource, num_workers: int) -> None:
    state = torch.get_rng_state()
    assert len(list(batches(folder, start=0, num_workers=num_workers))) == 3
    assert torch.get_rng_state().equal(state)


LEAVES_EARLY = """
import sys
from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.loading import PassSampler, UnlabeledDataset, view_loader

source = FolderSource(sys.argv[1])
dataset = UnlabeledDataset(source, AugmentConfig(short_edges=(30,)), (0.5,) * 3, (0.5,) * 3)
batches = iter(view_loader(dataset, PassSampler(len(source), 50, 0), batch_size=1, num_workers=2))
next(batches)
print("leaving")
"""


@pytest.mark.multiprocess
def test_a_program_that_leaves_while_workers_load_does_not_wait_for_them(folder: FolderSource) -> None:
    """They ignore SIGTERM, by which Python would end them."""
    command = [sys.executable, "-c", LEAVES_EARLY, str(folder.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
