from pathlib import Path

import pytest
import torch
from PIL import Image

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.batch_inference.loading import LoadedBatch, load_batches, name_images
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import Sample

PROCESSOR = SemiDetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})


def photos(folder: Path, count: int) -> FolderSource:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40 + 10 * (i % 2), 40), (40 * i, 90, 90)).save(folder / f"{i}.png")
    return FolderSource(folder)


def load(sources: list[FolderSource], **options: int | bool) -> list[LoadedBatch]:
    given = {"batch_size": 2, "pictures": False} | options
    return list(load_batches(name_images(sources), PROCESSOR, **given))  # type: ignore[arg-type]


def names(batches: list[LoadedBatch]) -> list[list[str]]:
    return [[image.file_name for image in batch.images] for batch in batches]


@pytest.fixture
def sources(tmp_path: Path) -> list[FolderSource]:
    """Two of the same name, of 5 and 2 images, of which the fourth is broken."""
    found = [photos(tmp_path / "a" / "set", 5), photos(tmp_path / "b" / "set", 2)]
    (tmp_path / "a" / "set" / "3.png").write_bytes(b"no picture")
    return found


def test_batches_have_what_the_processor_makes(sources: list[FolderSource]) -> None:
    batches = load(sources)
    assert names(batches) == [["set/0.png", "set/1.png"], ["set/2.png"], ["set/4.png"], ["set-2/0.png", "set-2/1.png"]]
    assert [len(batch.unreadable) for batch in batches] == [0, 1, 0, 0]
    assert "3.png: not a readable image" in batches[1].unreadable[0]
    assert [image.size for image in batches[0].images] == [(40, 40), (40, 50)]
    expected = PROCESSOR(images=[sources[0][i].image for i in (0, 1)], return_tensors="pt")
    assert torch.equal(batches[0].inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(batches[0].inputs["pixel_mask"], expected["pixel_mask"])


def test_a_batch_of_unreadable_images_has_no_inputs(tmp_path: Path) -> None:
    source = photos(tmp_path / "set", 1)
    (tmp_path / "set" / "0.png").write_bytes(b"no picture")
    [batch] = load([source])
    assert batch.images == [] and batch.inputs is None and len(batch.unreadable) == 1


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_the_first_batches_can_be_left_out_and_the_others_stay_the_same(
    sources: list[FolderSource], first: int
) -> None:
    assert names(load(sources, first=first)) == names(load(sources))[first:]


def test_workers_give_the_same_batches(sources: list[FolderSource]) -> None:
    alone, by_workers = load(sources), load(sources, num_workers=2)
    assert names(by_workers) == names(alone)
    for one, other in zip(alone, by_workers, strict=True):
        assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
        assert one.unreadable == other.unreadable


def test_pictures_come_along_when_they_are_wanted(sources: list[FolderSource]) -> None:
    assert all(image.picture is None for batch in load(sources) for image in batch.images)
    first = load(sources, pictures=True)[0].images[0].picture
    assert first is not None and first.tobytes() == sources[0][0].image.tobytes()


def test_a_single_collection_needs_no_prefix(tmp_path: Path) -> None:
    assert names(load([photos(tmp_path / "set", 1)])) == [["0.png"]]


def test_no_more_than_a_batch_is_read_ahead(sources: list[FolderSource], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = FolderSource.__getitem__

    def counted(source: FolderSource, index: int) -> Sample:
        read.append(index)
        return original(source, index)

    monkeypatch.setattr(FolderSource, "__getitem__", counted)
    next(load_batches(name_images(sources), PROCESSOR, batch_size=2, pictures=False))
    assert read == [0, 1]
