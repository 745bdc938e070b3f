import io
import os
import tarfile

from labeled_images import detected
from PIL import Image

from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import PackedImage
from semidetr_hf.data.tar_shards import TarSource
from semidetr_hf.labeling.image_files import place_image, ranked_name, unpack_images
from semidetr_hf.labeling.labels import label_by_threshold


def png(color: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(content, format="PNG")
    return content.getvalue()


def test_files_stay_where_they_are(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    images = label_by_threshold([detected("a.png")], 0.5)
    files = unpack_images(images, FolderSource(tmp_path / "link"), tmp_path / "out")
    assert files == [(tmp_path / "photos").resolve() / "a.png"]
    assert not (tmp_path / "out").exists()


def test_images_of_archives_are_written_under_their_rank(tmp_path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for color, name in enumerate(("one/a.png", "two/a.png")):
            member = tarfile.TarInfo(name)
            member.size = len(png(color))
            tar.addfile(member, io.BytesIO(png(color)))
    (tmp_path / "out").mkdir()
    found = [detected("a", index=1, size=(8, 8)), detected("b", index=0, size=(8, 8))]
    files = unpack_images(label_by_threshold(found, 0.5), TarSource(tmp_path / "x.tar"), tmp_path / "out")
    assert [file.relative_to((tmp_path / "out").resolve()).as_posix() for file in files] == [
        "images/000001_a.png",
        "images/000002_a.png",
    ]
    assert [file.read_bytes() for file in files] == [png(1), png(0)]


def test_what_has_no_name_is_called_by_its_content() -> None:
    nameless = PackedImage("row 3", "", lambda: png(0))
    assert ranked_name(12, nameless, png(0)) == "000012_image.png"


def test_an_image_is_a_second_name_of_its_file_and_where_that_cannot_be_a_copy(tmp_path, monkeypatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1))
    place_image(file, tmp_path / "linked.png")
    assert os.path.samefile(file, tmp_path / "linked.png")

    def refuse(*_args) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    place_image(file, tmp_path / "copied.png")
    assert not os.path.samefile(file, tmp_path / "copied.png")
    assert (tmp_path / "copied.png").read_bytes() == png(1)
