import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import PackedImage, UnreadableImageError
from semidetr_hf.data.loading import PassSampler, UnlabeledDataset, view_loader
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.tar_shards import TarSource, find_shards


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    long = "long/" * 40 + "ä b.PNG"  # longer than the header of a tar file holds
    write_tar(tmp_path / "s" / "x-000.tar", [("b.png", png(1)), ("notes.txt", b"x"), (long, png(2))])
    write_tar(tmp_path / "s" / "x-001.tar", [("a.png", png(3)), ("b.png", png(4))])
    return tmp_path / "s"


def greys(source: TarSource) -> list[int]:
    return [source[index].image.getpixel((0, 0))[0] for index in range(len(source))]


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/x-{000..001}.tar", "/x-00[01].tar"])
def test_images_in_the_order_in_which_they_are_packed(shards: Path, pattern: str) -> None:
    source = open_source(f"{shards}{pattern}", labeled=False)
    assert isinstance(source, TarSource) and greys(source) == [1, 2, 3, 4]
    assert source.image_ids[0] == "x-000.tar/b.png" and source.image_ids[3] == "x-001.tar/b.png"
    assert source.image_size(0) == (8, 9) and source[0].boxes_xyxy.shape == (0, 4)
    place = source.path(2)
    assert isinstance(place, PackedImage) and str(place) == f"{shards}/x-001.tar/a.png"


def test_one_file_and_of_equal_names_the_last(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))])
    assert sorted(greys(TarSource(path))) == [2, 3]


def test_loader_processes_read_side_by_side(shards: Path) -> None:
    source = open_source(shards, labeled=False)
    augment = AugmentConfig(short_edges=(8,), long_edge=9, flip_probability=0, color=False)
    dataset = UnlabeledDataset(source, augment, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    loader = view_loader(dataset, PassSampler(4, 12, seed=0), batch_size=2, num_workers=2)
    expected = {image_id: (place + 1) / 255 for place, image_id in enumerate(source.image_ids)}
    seen = 0
    for batch in loader:
        for image_id, pixels in zip(batch.image_ids, batch.weak.pixel_values, strict=True):
            torch.testing.assert_close(pixels[0, 0, 0].item(), expected[image_id])
            seen += 1
    assert seen == 12


def test_a_folder_with_images_beside_an_archive_is_a_folder_of_images(shards: Path) -> None:
    Image.new("RGB", (4, 4)).save(shards / "c.png")
    assert isinstance(open_source(shards, labeled=False), FolderSource)


def test_what_is_not_there_is_named(shards: Path) -> None:
    for pattern, missing in (("y.tar", "y"), ("y-*.tar", r"y-\*"), ("x-{000..002}.tar", "x-002")):
        with pytest.raises(FileNotFoundError, match=rf"{missing}\.tar: no such tar file; correct the path"):
            find_shards(f"{shards}/{pattern}")
    write_tar(shards.parent / "t" / "x-000.tar", [("a.png", png(1))])
    with pytest.raises(ValueError, match=r"two tar files are called 'x-000\.tar'"):
        find_shards(f"{shards.parent}/[st]/x-000.tar")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2))]).read_bytes()
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(tmp_path / "a.tar", "a.png")
    # Within the second image; a member is a header of 512 bytes and content filled up to 512.
    (tmp_path / "cut.tar").write_bytes(whole[: 1024 + 512 + 20])
    (tmp_path / "text.tar").write_bytes(b"text" * 400)
    for name in ("z", "text", "cut"):
        with pytest.raises(ValueError, match=rf"{name}\.tar: not a whole, uncompressed tar file"):
            TarSource(tmp_path / f"{name}.tar")
    write_tar(tmp_path / "none.tar", [("notes.txt", b"x")])
    with pytest.raises(ValueError, match=r"none\.tar: no image in 1 tar files"):
        TarSource(tmp_path / "none.tar")
    with pytest.raises(ValueError, match=r"a\.tar: tar files have no boxes; give a COCO"):
        open_source(tmp_path / "a.tar")


def test_a_broken_image_and_an_archive_that_is_gone_are_unreadable(tmp_path: Path) -> None:
    source = TarSource(write_tar(tmp_path / "a.tar", [("a.png", b"broken"), ("b.png", png(2))]))
    with pytest.raises(UnreadableImageError, match=r"a\.tar/a\.png: not a readable image"):
        source[0]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableImageError, match=r"a\.tar/b\.png: the image file does not exist"):
        source[1]
