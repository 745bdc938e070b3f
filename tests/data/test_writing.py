import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from trap_set import CATEGORIES, ORIENTATION, PICTURES, write_trap_set

from semidetr_hf.data import writing
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.splits import labeled_subset
from semidetr_hf.data.voc import VocSource
from semidetr_hf.data.writing import Written, write_source

FORMATS = ("coco", "yolo", "voc", "datasets")


class Traps(NamedTuple):
    """The set of traps as it was made, and as it was written in every format."""

    original: CocoSource
    written: dict[str, Written]


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Traps:
    folder = tmp_path_factory.mktemp("traps")
    original = CocoSource(write_trap_set(folder / "raw"))
    return Traps(original, {to: write_source(original, folder / f"as {to}", to) for to in FORMATS})  # type: ignore[arg-type]


# ---- What comes back


@pytest.mark.parametrize("to", FORMATS)
def test_nothing_is_lost_on_the_way(traps: Traps, to: str) -> None:
    written = traps.written[to]
    assert written.lost == {} and written.num_images == len(PICTURES)
    assert written.num_boxes == traps.original.num_boxes == 3 * (len(PICTURES) - 1)


@pytest.mark.parametrize("to", FORMATS)
def test_pictures_boxes_names_and_ids_come_back(traps: Traps, to: str) -> None:
    source = open_source(traps.written[to].path)
    assert dict(zip(source.category_ids, source.category_names, strict=True)) == CATEGORIES
    assert source.class_counts == traps.original.class_counts and 0 in source.class_counts
    if to in ("coco", "datasets"):
        assert list(source.image_ids) == traps.original.image_ids
    for index in range(len(source)):
        before, after = traps.original[index], source[index]
        assert after.image.tobytes() == before.image.tobytes(), before.file_name
        assert after.class_labels.tolist() == before.class_labels.tolist()
        torch.testing.assert_close(after.boxes_xyxy, before.boxes_xyxy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
def test_boxes_come_back_to_a_billionth_of_a_pixel(traps: Traps, to: str) -> None:
    before = traps.original.coco_ground_truth()["annotations"]
    after = open_source(traps.written[to].path).coco_ground_truth()["annotations"]
    for ours, theirs in zip(before, after, strict=True):
        assert theirs["bbox"] == pytest.approx(ours["bbox"], abs=1e-9)
        assert theirs["area"] == pytest.approx(ours["area"], abs=1e-6)
        assert (theirs["category_id"], theirs["iscrowd"]) == (ours["category_id"], ours["iscrowd"])


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_images_are_drawn_for_a_split(traps: Traps, to: str) -> None:
    source = open_source(traps.written[to].path)
    assert isinstance(source, CocoSource)
    places = []
    for whole in (traps.original, source):
        kept, _ = labeled_subset(whole.image_ids, fraction=0.4, fold=1)
        places.append([list(whole.image_ids).index(image_id) for image_id in kept])
        assert whole.subset(kept).num_boxes > 0
    assert places[0] == places[1] and len(places[0]) == 4


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", ["coco", "voc"])
def test_any_format_becomes_any_other(traps: Traps, tmp_path: Path, first: str, second: Any) -> None:
    middle = open_source(traps.written[first].path)
    assert isinstance(middle, CocoSource)
    last = open_source(write_source(middle, tmp_path / "last", second).path)
    assert dict(zip(last.category_ids, last.category_names, strict=True)) == CATEGORIES
    assert last[3].image.tobytes() == traps.original[3].image.tobytes()
    torch.testing.assert_close(last[3].boxes_xyxy, traps.original[3].boxes_xyxy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
def test_without_boxes_every_picture_is_there(traps: Traps, to: str) -> None:
    source = open_source(traps.written[to].path, labeled=False)
    assert len(source) == len(PICTURES) and source.num_boxes == 0


def test_other_programs_can_open_what_is_written(traps: Traps) -> None:
    tables = datasets.load_from_disk(traps.written["datasets"].path)
    objects = tables["train"].features["objects"].feature
    assert objects["category"].names == list(CATEGORIES.values())
    assert tables["train"][0]["image"].size == (64, 48) and len(tables["train"][0]["objects"]) == 3
    label = Path(traps.written["yolo"].path).parent / "labels" / "deep" / "er" / "glass.txt"
    numbers = np.loadtxt(label)
    assert numbers.shape == (3, 5) and set(numbers[:, 0]) <= {0, 2, 3} and (numbers[:, 1:] < 1).all()
    # By VOC's convention the pixels count from 1.
    voc = Path(traps.written["voc"].path).parents[2]
    [box, *_] = ElementTree.parse(voc / "Annotations" / "zebra crossing.xml").getroot().iter("bndbox")
    x, y, width, height = traps.original.coco_ground_truth()["annotations"][0]["bbox"]
    corners = [float(box.findtext(tag) or "") for tag in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == pytest.approx([x + 1, y + 1, x + width, y + height])


# ---- What a format cannot hold


@pytest.fixture
def source_of(write_coco: Callable[..., Path]) -> Callable[..., CocoSource]:
    """Return a function that opens pictures of 40x30 with these annotations of image 1, and other keys of the json."""

    def build(*annotations: dict[str, Any], **content: Any) -> CocoSource:
        entries = [
            {"id": place, "image_id": 1, "category_id": 7} | entry for place, entry in enumerate(annotations, 1)
        ]
        return CocoSource(write_coco(annotations=entries, **content))

    return build


PLAIN = {"bbox": [10, 5, 20, 10]}


@pytest.mark.parametrize(
    ("to", "odd", "reason", "is_written"),
    [
        ("yolo", {"bbox": [1, 2, 3, 4], "iscrowd": 1}, writing.CROWDS, False),
        ("yolo", {"bbox": [1, 2, 3, 4], "area": 5}, writing.AREAS, True),
        ("yolo", {"bbox": [90, 2, 3, 4]}, writing.FAR_OUTSIDE, False),
        ("voc", {"bbox": [1, 2, 0.5, 4]}, writing.NARROW, False),
        ("voc", {"bbox": [1, 2, 3, 4], "area": 5}, writing.AREAS, True),
        ("voc", {"bbox": [-1, 2, 5, 4]}, writing.CUT, True),
    ],
)
def test_what_is_lost_is_counted(
    source_of: Callable[..., CocoSource], tmp_path: Path, to: Any, odd: dict[str, Any], reason: str, is_written: bool
) -> None:
    written = write_source(source_of(PLAIN, odd), tmp_path / "new", to)
    assert written.lost == {reason: 1} and written.num_boxes == 1 + is_written
    found = open_source(written.path).coco_ground_truth()["annotations"]  # type: ignore[attr-defined]
    assert len(found) == written.num_boxes and found[0]["bbox"] == PLAIN["bbox"]


@pytest.mark.parametrize("to", ["coco", "voc", "datasets"])
def test_crowds_come_back(source_of: Callable[..., CocoSource], tmp_path: Path, to: Any) -> None:
    written = write_source(source_of(PLAIN, {"bbox": [1, 2, 3, 4], "iscrowd": 1}), tmp_path / "new", to)
    source = open_source(written.path)
    assert written.lost == {} and written.num_boxes == 2 and source.num_boxes == 1
    assert source.coco_ground_truth()["annotations"][1]["iscrowd"] == 1  # type: ignore[attr-defined]


def test_ids_of_images_that_are_text_are_numbered_in_a_json(traps: Traps, tmp_path: Path) -> None:
    source = open_source(traps.written["voc"].path)
    assert isinstance(source, VocSource)
    written = write_source(source, tmp_path / "new", "coco")
    assert written.lost == {writing.NUMBERED: len(PICTURES)}
    assert list(open_source(written.path).image_ids) == list(range(1, len(PICTURES) + 1))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_on_a_stored_picture_are_turned_with_it(
    source_of: Callable[..., CocoSource], tmp_path: Path, orientation: int
) -> None:
    """The box is drawn around the only white pixels, and is around them in the turned picture as well."""
    source = source_of({"bbox": [4, 6, 10, 3]})
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (4, 6, 14, 9))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert source[0].image.size == (40, 30)
    written = write_source(source, tmp_path / "new", "yolo")
    sample = open_source(written.path)[0]
    assert written.lost == {writing.TURNED: 1} and sample.image.size == (30, 40)
    rows, columns = np.nonzero(np.asarray(sample.image)[:, :, 0])
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sample.boxes_xyxy[0].tolist() == pytest.approx(around, abs=1e-4)


# ---- Where the pictures go


def test_pictures_are_linked_or_left_where_they_are(traps: Traps, tmp_path: Path) -> None:
    linked = open_source(write_source(traps.original, tmp_path / "linked", "yolo", images="link").path)
    kept = open_source(write_source(traps.original, tmp_path / "kept", "coco", images="keep").path)
    for index in range(len(traps.original)):
        file = traps.original.path(index)
        assert os.path.samefile(linked.path(index), file) and os.path.samefile(kept.path(index), file)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["annotations.json"]


def test_names_that_lead_out_of_the_folder_are_cut(source_of: Callable[..., CocoSource], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    images = [{"id": 1, "file_name": "deep/../a.png"}, {"id": 2, "file_name": "images/b  c .png"}]
    (tmp_path / "images").mkdir()
    written = write_source(source_of(PLAIN, images=images), tmp_path / "new", "voc")
    assert sorted(path.name for path in (tmp_path / "new" / "JPEGImages").iterdir()) == ["a.png", "b c.png"]
    assert open_source(written.path).num_boxes == 1


def test_a_split_is_named(traps: Traps, tmp_path: Path) -> None:
    for to, split, end in (
        ("yolo", "val", "/data.yaml"),
        ("yolo", "test", "/data.yaml:test"),
        ("voc", "test", "/ImageSets/Main/test.txt"),
        ("datasets", "validation", ""),
        ("datasets", "test", ":test"),
    ):
        written = write_source(traps.original.subset([5]), tmp_path / f"{to} {split}", to, split=split)  # type: ignore[arg-type]
        assert written.path == f"{tmp_path}/{to} {split}{end}"
        part: Any = "val" if split == "val" else "train"
        assert open_source(written.path, part=part).num_boxes == 3


# ---- What is refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "csv"}, "to='csv'"),
        ({"to": "yolo", "images": "move"}, "images='move'"),
        ({"to": "yolo", "images": "keep"}, "images='keep', to='yolo': only a COCO json"),
        ({"to": "coco", "split": "../x"}, "split='../x': must be a plain word"),
    ],
)
def test_wrong_arguments_are_refused(traps: Traps, tmp_path: Path, options: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_source(traps.original, tmp_path / "new", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["yolo", "voc", "datasets"])
def test_names_that_other_formats_cannot_hold_are_refused(
    source_of: Callable[..., CocoSource], tmp_path: Path, to: Any
) -> None:
    for names, complaint in ((("cat", "cat"), "two categories are named 'cat'"), (("cat", "a\nb"), r"name 'a\\nb'")):
        categories = [{"id": number, "name": name} for number, name in zip((3, 7), names, strict=True)]
        with pytest.raises(ValueError, match=complaint):
            write_source(source_of(PLAIN, categories=categories), tmp_path / "new", to)
        assert not list(tmp_path.glob("*new*")) and not list(tmp_path.glob(".*new*"))


def test_what_is_there_stays_and_nothing_is_left_of_what_failed(
    source_of: Callable[..., CocoSource], tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError, match="new: is there already; remove it"):
        write_source(source_of(PLAIN), tmp_path / "new", "coco")
    source = source_of(PLAIN, images=[{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}])
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(OSError, match=r"b\.png: the picture cannot be read, and its size is needed"):
        write_source(source, tmp_path / "other", "voc")
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: the image file does not exist"):
        write_source(source, tmp_path / "other", "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "labels.json", "new"]


def test_a_picture_whose_suffix_is_none_of_an_image_is_no_voc(
    source_of: Callable[..., CocoSource], tmp_path: Path
) -> None:
    source = source_of(PLAIN, images=[{"id": 1, "file_name": "a.gif", "width": 40, "height": 30}])
    assert open_source(write_source(source, tmp_path / "y", "yolo").path).num_boxes == 1
    with pytest.raises(ValueError, match=r"a\.gif: VOC pictures are known by their suffix"):
        write_source(source, tmp_path / "v", "voc")


def test_pictures_without_a_name_get_the_suffix_of_what_they_are(traps: Traps, tmp_path: Path) -> None:
    content = Path(str(traps.original.path(0))).read_bytes()  # a JPEG
    objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["cat"]}
    rows = [{"image": {"bytes": content, "path": None}, "objects": objects}]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "set"))
    source = open_source(tmp_path / "set")
    assert isinstance(source, CocoSource)
    write_source(source, tmp_path / "new", "coco")
    [entry] = json.loads((tmp_path / "new" / "annotations.json").read_text())["images"]
    assert entry["file_name"] == "row 0.jpeg"
    assert (tmp_path / "new" / "images" / "row 0.jpeg").read_bytes() == content
