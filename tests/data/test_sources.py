import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data import sources
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.sources import find_reader, open_source
from semidetr_hf.data.voc import VocSource

XML = (
    "<annotation><size><width>4</width><height>4</height></size><object><name>dog</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOC folder with one image, in a devkit."""
    folder = tmp_path / "devkit" / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main", "SegmentationClass"):
        (folder / part).mkdir(parents=True)
    (folder / "Annotations" / "1.xml").write_text(XML)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("1")
    for part in ("JPEGImages", "SegmentationClass"):
        Image.new("RGB", (4, 4)).save(folder / part / "1.png")
    return folder


def test_the_door_chooses_the_reader(tmp_path: Path, write_coco: Callable[..., Path]) -> None:
    path = write_coco()
    assert isinstance(open_source(path), CocoSource)
    assert isinstance(open_source(str(tmp_path), labeled=False), FolderSource)


def test_a_json_as_unlabeled_source_needs_no_annotations(write_coco: Callable[..., Path]) -> None:
    source = open_source(write_coco(annotations=None, categories=None), labeled=False)
    assert len(source) == 2 and source.num_boxes == 0 and source[0].boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("place", [".", "ImageSets/Main/trainval.txt"])
@pytest.mark.parametrize("labeled", [True, False])
def test_voc_folders_and_image_sets(voc: Path, place: str, labeled: bool) -> None:
    source = open_source(voc / place, labeled=labeled)
    # The mask of the same name is no image of the set.
    assert isinstance(source, VocSource) and source.image_ids == ["1"]
    assert source[0].boxes_xyxy.tolist() == ([[0, 0, 4, 3]] if labeled else [])


def test_a_folder_with_xml_files_and_without_its_boxes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.xml").write_text(XML)
    labeled, unlabeled = open_source(tmp_path), open_source(tmp_path, labeled=False)
    assert isinstance(labeled, VocSource) and labeled.image_ids == ["a"] and labeled.num_boxes == 1
    assert isinstance(unlabeled, FolderSource) and unlabeled.image_ids == ["a.png", "b.png"]
    (tmp_path / "xml").mkdir()
    (tmp_path / "a.xml").rename(tmp_path / "xml" / "a.xml")
    assert open_source(tmp_path / "xml", tmp_path)[0].image.size == (4, 4)


@pytest.mark.parametrize("labeled", [True, False])
def test_a_devkit_is_not_taken_for_a_folder_of_images(voc: Path, labeled: bool) -> None:
    with pytest.raises(ValueError, match="devkit: holds the VOC folders VOC2007; give one"):
        open_source(voc.parent, labeled=labeled)


def test_an_unknown_image_set_is_told_the_known_ones(voc: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such image set; there are: trainval"):
        open_source(voc / "ImageSets" / "Main" / "test.txt")


def test_what_is_not_accepted_is_named(tmp_path: Path, write_coco: Callable[..., Path]) -> None:
    write_coco()
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"one\.png.*\.png.*COCO \.json"):
        open_source(tmp_path / "one.png")
    with pytest.raises(ValueError, match="no boxes"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="image_folder='x'"):
        open_source(tmp_path, "x", labeled=False)


@pytest.mark.parametrize("place", [".", "ImageSets/Main/trainval.txt"])
def test_corners_and_categories_reach_xml_files(voc: Path, place: str) -> None:
    source = open_source(voc / place, corners="written", categories={5: "cat", 8: "dog"})
    # xmin 1, ymin 1, xmax 4, ymax 3 as they are
    assert source[0].boxes_xyxy.tolist() == [[1, 1, 4, 3]] and source[0].class_labels.tolist() == [1]
    assert source.category_ids == (5, 8)


def test_a_json_says_its_own_categories(write_coco: Callable[..., Path]) -> None:
    path = write_coco()
    assert open_source(path, categories=["emu"], corners="written").category_names == open_source(path).category_names


@pytest.mark.parametrize(
    ("path", "labeled", "reader", "split"),
    [
        ("x.json", True, "coco", None),
        ("x.YAML", True, "yolo", None),
        ("x.yml:test", False, "yolo", "test"),
        ("x.txt", True, "voc", None),
        ("x.txt", False, "list", None),
        ("ImageSets/Main/x.txt", False, "voc", None),
        ("x.tar", False, "tar", None),
        ("x-{00..12}.tar", False, "tar", None),
        ("x.parquet:train", True, "datasets", "train"),
        ("some-one/cppe.5", True, "datasets", None),
        ("some-one/cppe.5:test", False, "datasets", "test"),
        ("saved", False, "datasets", None),
        ("saved:test", True, "datasets", "test"),
        ("yolo", True, "yolo", None),
        ("yolo", False, "folder", None),
        ("meta", True, "datasets", None),
        ("meta", False, "folder", None),
        ("meta/train", True, "datasets", None),
        ("shards", False, "tar", None),
        ("a:b", False, "folder", None),
    ],
)
def test_what_a_path_is_told_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, labeled: bool, reader: str, split: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "x.json",
        "saved/state.json",
        "yolo/data.yaml",
        "meta/train/metadata.jsonl",
        "shards/1.tar",
        "a:b/c.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    found = find_reader(path, labeled=labeled)
    assert (found.reader, found.split) == (reader, split)
    assert found.path == (path if split is None else path.removesuffix(f":{split}"))


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no splits, so :test cannot be one; leave it out"):
        find_reader(f"{tmp_path}:test", labeled=False)


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"x\.parquet: is read with the library datasets; pip install 'semidetr-hf"):
        open_source(tmp_path / "x.parquet")


def test_readers_do_not_need_the_libraries_of_other_formats() -> None:
    program = (
        "import sys, semidetr_hf.data.sources, semidetr_hf.data.data_check as check;"
        "print([name for name in ('datasets', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
