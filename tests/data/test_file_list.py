from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data.file_list import FileListSource
from semidetr_hf.data.sources import open_source


def test_paths_start_at_the_list_and_keep_their_order(tmp_path: Path) -> None:
    for name in ("b c.png", "ä/a.PNG"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(tmp_path / "photos" / name)
    names = ["../photos/b c.png", f"{tmp_path}/photos/ä/a.PNG"]
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "more.txt"
    path.write_text("\ufeff" + "\n\n".join(names) + "\n", encoding="utf-8")
    source = open_source(path, labeled=False)
    assert isinstance(source, FileListSource) and source.name == "more" and source.image_ids == names
    assert source[0].image.size == (9, 8) and source[1].boxes_xyxy.shape == (0, 4)
    assert source.image_size(1) == (8, 9) and source.num_boxes == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a.png\n b.png\na.png\n", "line 3 repeats 'a.png' of line 1; remove one"),
        (b"\n \n", "lists no image; write one path per line"),
        (b"\xff\xfea", "not a text file in UTF-8"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.txt: {complaint}"):
        open_source(path, labeled=False)


def test_a_missing_list_and_a_list_as_labeled_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.txt: no such list of images"):
        open_source(tmp_path / "x.txt", labeled=False)
    (tmp_path / "x.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"x\.txt: a list of images must be a VOC image set"):
        open_source(tmp_path / "x.txt")
