from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import BatchSampler

from semidetr_hf.data import folder as folder_reader
from semidetr_hf.data.aspect_ratio import WINDOW, AspectRatioSampler
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import EXIF_ORIENTATION
from semidetr_hf.data.loading import PassSampler


class Sizes:
    """A source that knows nothing but the (height, width) of its images."""

    def __init__(self, sizes: Sequence[tuple[int, int] | None]) -> None:
        self.sizes = sizes

    def read_for_view(self, index: int, largest_view: Any) -> Any:
        raise NotImplementedError

    def image_size(self, index: int) -> tuple[int, int] | None:
        return self.sizes[index]


def sampler(sizes: Sequence[Any], num_draws: int, batch_size: int, *, seed: int = 0, start: int = 0) -> Any:
    return AspectRatioSampler(PassSampler(len(sizes), num_draws, seed, start), Sizes(sizes), batch_size)  # type: ignore[arg-type]


def cut(values: Sequence[Any], length: int) -> list[Any]:
    return [values[place : place + length] for place in range(0, len(values), length)]


def test_batches_hold_neighbours_in_the_order_of_ratios() -> None:
    # Image i has the ratio (i + 1) / 100; a window of 16 batches of two is the whole set.
    sizes = [(100, i + 1) for i in range(2 * WINDOW)]
    batches = cut([index for index, _ in sampler(sizes, 2 * WINDOW, 2)], 2)
    assert sorted(batches) == [[i, i + 1] for i in range(0, 2 * WINDOW, 2)]
    assert batches != sorted(batches)
    assert batches != cut([index for index, _ in sampler(sizes, 2 * WINDOW, 2, seed=1)], 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(0, 70),
    st.integers(0, 1000),
    st.data(),
)
def test_any_batch_can_be_entered_and_every_draw_occurs_once(
    sizes: list[tuple[int, int]], batch_size: int, num_batches: int, seed: int, data: st.DataObject
) -> None:
    num_draws = num_batches * batch_size
    start = data.draw(st.integers(0, num_batches)) * batch_size
    whole = list(sampler(sizes, num_draws, batch_size, seed=seed))
    resumed = sampler(sizes, num_draws, batch_size, seed=seed, start=start)
    assert list(resumed) == whole[start:] and len(resumed) == num_draws - start
    # A run that is made longer goes on in the order that it had begun.
    assert list(sampler(sizes, num_draws + 7 * batch_size, batch_size, seed=seed))[:num_draws] == whole
    length = WINDOW * batch_size
    plain = list(PassSampler(len(sizes), num_draws, seed))
    for place in range(0, num_draws - length + 1, length):
        assert sorted(whole[place : place + length]) == sorted(plain[place : place + length])
    assert len({draw_seed for _, draw_seed in whole}) == num_draws


def test_an_image_that_cannot_be_read_counts_as_square() -> None:
    # 16 passes: 16 times the ratio 1/2 (4 batches), 32 times 1 (8 batches), 16 times 2 (4 batches).
    sizes = [(2, 1), None, (1, 2), (1, 1)]
    batches = cut([index for index, _ in sampler(sizes, 4 * WINDOW, 4)], 4)
    kinds = [frozenset(batch) for batch in batches]
    assert kinds.count(frozenset({0})) == 4 and kinds.count(frozenset({2})) == 4
    assert all(kind in ({0}, {2}) or kind <= {1, 3} for kind in kinds)
    assert frozenset({1, 3}) in kinds


def test_two_processes_take_turns_and_see_every_draw_once() -> None:
    sizes = [(100, i + 1) for i in range(2 * WINDOW)]
    whole = cut(list(sampler(sizes, 2 * WINDOW, 2)), 2)
    taken = [
        list(BatchSamplerShard(BatchSampler(sampler(sizes, 2 * WINDOW, 2), 2, drop_last=False), 2, rank))
        for rank in (0, 1)
    ]
    # Batch b goes to process b modulo 2.
    assert taken == [whole[0::2], whole[1::2]]


def test_no_file_is_opened_where_the_json_says_the_size(write_coco: Callable[..., Path]) -> None:
    path = write_coco()
    source = CocoSource(path)
    for name in ("a.png", "b.png"):
        (path.parent / name).unlink()
    assert source.image_size(0) == (30, 40)


def test_headers_are_read_window_by_window_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3 * WINDOW):
        Image.new("RGB", (4 + number % 3, 4)).save(tmp_path / f"{number:02}.png")
    opened: list[Path] = []
    read = folder_reader.stored_size
    monkeypatch.setattr(folder_reader, "stored_size", lambda path: opened.append(path) or read(path))
    source = FolderSource(tmp_path)
    draws = AspectRatioSampler(PassSampler(len(source), 9 * WINDOW, 0), source, 1)
    walk = iter(draws)
    assert opened == []
    next(walk)
    assert len(opened) == WINDOW
    assert len(list(walk)) == 9 * WINDOW - 1
    assert len(opened) == len(set(opened)) == 3 * WINDOW


def test_a_source_of_ones_own_is_asked_for_its_files_alone(tmp_path: Path) -> None:
    class Files:
        def path(self, index: int) -> Path:
            return tmp_path / f"{index}.jpg"

    for index in range(4):
        image = Image.new("RGB", (20, 10))
        exif = image.getexif()
        exif[EXIF_ORIENTATION] = 6 if index % 2 else 1  # turned a quarter: higher than wide
        image.save(tmp_path / f"{index}.jpg", exif=exif)
    draws = AspectRatioSampler(PassSampler(4, 2 * WINDOW, 0), Files(), 2)  # type: ignore[arg-type]
    assert all(len({index % 2 for index in batch}) == 1 for batch in cut([index for index, _ in draws], 2))


def test_a_bad_batch_size_is_named() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        sampler([(1, 1)], 4, 0)
