from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data.folder import FolderSource


def test_finds_images_of_any_case_in_sub_folders_in_order(tmp_path: Path) -> None:
    for name in ["b.JPG", "a b.png", "sub/ä.webp", "sub/c.TIFF"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "trap.png").mkdir()
    source = FolderSource(tmp_path)
    assert source.image_ids == ["a b.png", "b.JPG", "sub/c.TIFF", "sub/ä.webp"]
    assert len(source) == 4 and source.num_boxes == 0 and source.name == tmp_path.name
    sample = source[3]
    assert sample.image_id == sample.file_name == "sub/ä.webp" and sample.image.size == (5, 4)
    assert sample.boxes_xyxy.shape == (0, 4) and sample.class_labels.shape == (0,)
    assert source.path(0) == tmp_path / "a b.png"


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "elsewhere" / "a.png")
    images = tmp_path / "images"
    images.mkdir()
    (images / "file.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (images / "folder.png").symlink_to(tmp_path / "elsewhere")
    (images / "nowhere.png").symlink_to(tmp_path / "missing")
    (images / "itself.png").symlink_to(images / "itself.png")
    assert FolderSource(images).image_ids == ["file.png"]


def test_empty_folder_and_no_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}.*\.jpeg"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        FolderSource(tmp_path / "missing")
