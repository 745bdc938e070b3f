import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.data.splits import labeled_subset
from semidetr_hf.data.voc import DEFAULT_SET, VOC_NAMES, VocSource, voc_to_coco_json

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
DOG = ("dog", (9, 5, 20, 15))


def write_object(name: str, corners: tuple[float, ...], difficult: object = None) -> str:
    # VOC2012 writes the maximum first, and the box of a person's parts below it.
    tags = zip(("xmax", "xmin", "ymax", "ymin"), (corners[2], corners[0], corners[3], corners[1]), strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{mark}<bndbox>{box}</bndbox>{part}</object>"


def write_xml(path: Path, *objects: tuple[Any, ...], size: str = SIZE) -> Path:
    """Write one XML file; an object is (name, corners as written[, difficult])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{size}{''.join(write_object(*item) for item in objects)}</annotation>")
    return path


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (90, 90, 90)).save(path)


def write_set(folder: Path, name: str, text: str) -> Path:
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2007 of three images: trainval is 000007 and 000005, test 000006 without objects."""
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    write_xml(folder / "Annotations" / "000005.xml", DOG, ("person", (1, 1, 40, 30), 1))
    write_xml(folder / "Annotations" / "000006.xml")
    write_xml(folder / "Annotations" / "000007.xml", ("aeroplane", (31, 1, 40, 30), 0))
    for name in ("000005", "000006", "000007"):
        write_picture(folder / "JPEGImages" / f"{name}.jpg")
    write_set(folder, "trainval", "000007\n000005\n")
    write_set(folder, "test", "000006\n")
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Three pictures, two of them with an XML file, with names that are not VOC's."""
    folder = tmp_path / "mine"
    write_xml(folder / "b.1.xml", ("zebra", (0, 2, 10, 12)), ("ant", (1, 1, 5, 5)))
    write_xml(folder / "sub" / "a.xml", ("zebra", (3, 3, 6, 7)))
    for name in ("b.1.png", "sub/a.JPG", "unlabeled.png"):
        write_picture(folder / name)
    return folder


# ---- What is read


def test_an_image_set_in_its_order_with_the_categories_of_voc(voc: Path) -> None:
    source = VocSource(voc / "ImageSets" / "Main" / "trainval.txt")
    assert source.image_ids == ["000007", "000005"] and source.name == "VOC2007 trainval"
    assert source.category_ids == tuple(range(20)) and source.category_names == VOC_NAMES
    assert (VOC_NAMES[0], VOC_NAMES[11], VOC_NAMES[14], VOC_NAMES[19]) == ("aeroplane", "dog", "person", "tvmonitor")
    assert source.path(1) == voc / "JPEGImages" / "000005.jpg"
    sample = source[1]
    assert sample.image.size == (40, 30) and sample.image_id == "000005" and sample.file_name == "000005.jpg"
    # xmin 9 is the ninth pixel, which begins at 8; the pixel of xmax 20 ends at 20. The person is difficult.
    assert sample.boxes_xyxy.tolist() == [[8, 4, 20, 15]] and sample.class_labels.tolist() == [11]
    assert source[0].boxes_xyxy.tolist() == [[30, 0, 40, 30]]
    assert source.num_boxes == 2 and source.class_counts[11] == 1 and source.dropped == {"difficult": 1}


def test_a_voc_folder_means_its_trainval_set_and_says_so(voc: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert VocSource(voc).image_ids == ["000007", "000005"]
    assert any(str(voc) in message and DEFAULT_SET in message for message in caplog.messages)


def test_images_without_objects_are_kept(voc: Path) -> None:
    source = VocSource(voc / "ImageSets" / "Main" / "test.txt")
    assert len(source) == 1 and source[0].boxes_xyxy.shape == (0, 4) and source[0].class_labels.shape == (0,)


@pytest.mark.parametrize(
    ("corners", "difficult", "written", "bbox"),
    [
        # exact: 9..20 are twelve pixels, 5..15 eleven
        ("exact", 0, (9, 5, 20, 15), [8, 4, 12, 11]),
        # one pixel, the first
        ("exact", 0, (1, 1, 1, 1), [0, 0, 1, 1]),
        # a 0 cannot be in VOC: the edge of the image is meant
        ("exact", 0, (0, 0, 3, 4), [0, 0, 3, 4]),
        # released code: all minus 1, so a pixel is lost at the right and at the bottom
        ("released", 1, (9, 5, 20, 15), [8, 4, 11, 10]),
        # 9.7 is cut to 9, 20.9 to 20
        ("released", 0, (9.7, 5.0, 20.9, 15.2), [8, 4, 11, 10]),
        ("written", 0, (9, 5, 20, 15), [9, 5, 11, 10]),
        (None, 0, (9.5, 5, 20, 15), [8.5, 4, 11.5, 11]),
    ],
)
def test_the_three_readings_of_corners(voc: Path, corners: Any, difficult: int, written: tuple, bbox: list) -> None:
    write_xml(voc / "Annotations" / "000006.xml", ("cow", written, difficult))
    [truth] = VocSource(voc / "ImageSets" / "Main" / "test.txt", corners=corners).coco_ground_truth()["annotations"]
    assert truth["bbox"] == pytest.approx(bbox)
    assert truth["area"] == pytest.approx(bbox[2] * bbox[3])
    assert truth["iscrowd"] == difficult and truth["category_id"] == 9


def test_without_image_sets_every_xml_file_of_a_voc_folder_is_read(voc: Path) -> None:
    for file in (voc / "ImageSets" / "Main").iterdir():
        file.unlink()
    (voc / "ImageSets" / "Main").rmdir()
    assert VocSource(voc).image_ids == ["000005", "000006", "000007"]
    assert VocSource(voc).coco_ground_truth()["annotations"][0]["bbox"] == [8, 4, 12, 11]


def test_xml_files_beside_the_pictures_with_names_of_their_own(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = VocSource(plain)
    assert any("1 pictures without an XML file" in message for message in caplog.messages)
    assert source.image_ids == ["b.1", "sub/a"] and source.name == "mine"
    assert source.category_names == ("ant", "zebra") and source.category_ids == (1, 2)
    # labeling tools count edges from 0, so the values are edges already
    assert source[0].boxes_xyxy.tolist() == [[0, 2, 10, 12], [1, 1, 5, 5]]
    assert source[0].class_labels.tolist() == [1, 0]
    assert source.path(1) == plain / "sub" / "a.JPG"


def test_pictures_in_another_folder(plain: Path, tmp_path: Path) -> None:
    for name in ("b.1.png", "sub/a.JPG"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).rename(tmp_path / "pictures" / name)
    assert VocSource(plain, tmp_path / "pictures")[1].image.size == (40, 30)
    with pytest.raises(
        FileNotFoundError, match=r"no picture named 'b\.1' in .*mine, nor 1 more of its 2.*image_folder"
    ):
        VocSource(plain)


def test_all_sets_of_a_folder_have_the_same_categories(voc: Path) -> None:
    write_xml(voc / "Annotations" / "000006.xml", ("unicorn", (1, 1, 5, 5)))
    trainval, test = (VocSource(voc / "ImageSets" / "Main" / f"{name}.txt") for name in ("trainval", "test"))
    assert trainval.category_names == test.category_names == ("aeroplane", "dog", "person", "unicorn")
    assert trainval.category_ids == test.category_ids == (1, 2, 3, 4)


# ---- Categories that are given


@pytest.mark.parametrize(
    ("given", "ids"), [(("zebra", "emu", "ant"), (1, 2, 3)), ({9: "zebra", 4: "emu", 6: "ant"}, (9, 4, 6))]
)
def test_given_categories_keep_their_order_and_need_not_occur(plain: Path, given: Any, ids: tuple[int, ...]) -> None:
    source = VocSource(plain, categories=given)
    assert source.category_names == ("zebra", "emu", "ant") and source.category_ids == ids
    # zebra, ant; in the order of the file
    assert source[0].class_labels.tolist() == [0, 2]
    assert source.class_counts == (2, 0, 1)
    assert [truth["category_id"] for truth in source.coco_ground_truth()["annotations"]] == [ids[0], ids[2], ids[0]]


def test_a_single_name_of_voc_does_not_bring_all_twenty_if_categories_are_given(tmp_path: Path) -> None:
    write_xml(tmp_path / "a.xml", ("person", (1, 1, 5, 5)))
    write_picture(tmp_path / "a.png")
    assert len(VocSource(tmp_path).category_names) == 20
    source = VocSource(tmp_path, categories=["mug", "person"])
    assert source.category_names == ("mug", "person") and source[0].class_labels.tolist() == [1]


def test_a_name_that_is_not_given_is_one_error_with_file_and_name(plain: Path) -> None:
    with pytest.raises(ValueError, match="shows 'zebra', but the categories to find are ant, emu; correct") as caught:
        VocSource(plain, categories=["ant", "emu"])
    assert str(caught.value).startswith(str(plain / "b.1.xml")) and "\n" not in str(caught.value)


def test_names_outside_the_image_set_do_not_matter_if_categories_are_given(voc: Path) -> None:
    write_xml(voc / "Annotations" / "000006.xml", ("zebra", (1, 1, 5, 5)))
    assert VocSource(voc, categories=VOC_NAMES).category_names == VOC_NAMES


@pytest.mark.parametrize("given", [[], {}, "dog", ["dog", "cat", "dog"], {1: "dog", 2: "dog"}])
def test_categories_that_name_nothing_or_a_class_twice_are_refused(plain: Path, given: Any) -> None:
    with pytest.raises(ValueError, match=r"categories=.*: must be one or more names, each once"):
        VocSource(plain, categories=given)


# ---- Which boxes


def test_boxes_outside_the_image_are_counted_and_no_targets(voc: Path) -> None:
    write_xml(voc / "Annotations" / "000006.xml", ("dog", (50, 5, 60, 9)), ("dog", (35, 25, 44, 36)))
    source = VocSource(voc / "ImageSets" / "Main" / "test.txt")
    assert source.dropped == {"outside the image or smaller than one pixel": 1}
    assert source[0].boxes_xyxy.tolist() == [[34, 24, 40, 30]]


def test_unlabeled_images_need_no_xml_files(voc: Path) -> None:
    for file in (voc / "Annotations").iterdir():
        file.write_text("broken")
    source = VocSource(voc, labeled=False)
    assert len(source) == 2 and source.category_names == () and source.num_boxes == 0
    assert source[0].boxes_xyxy.shape == (0, 4) and source[0].image_id == "000007"


def test_one_image_reads_the_same_alone_and_with_another(voc: Path) -> None:
    write_set(voc, "one", "000005")
    both, one = VocSource(voc)[1], VocSource(voc / "ImageSets" / "Main" / "one.txt")[0]
    assert both.boxes_xyxy.equal(one.boxes_xyxy) and both.class_labels.equal(one.class_labels)


def test_a_subset_as_of_any_coco_source(voc: Path) -> None:
    source = VocSource(voc)
    labeled, unlabeled = labeled_subset(source.image_ids, fraction=0.5, fold=1)
    parts = source.subset(labeled), source.subset(unlabeled)
    assert sorted(parts[0].image_ids + parts[1].image_ids) == ["000005", "000007"]
    assert parts[0].num_boxes + parts[1].num_boxes == source.num_boxes
    with pytest.raises(ValueError, match=r"trainval\.txt.*'000099'"):
        source.subset(["000099"])


# ---- As COCO json


@pytest.mark.parametrize("image_set", ["trainval", None])
def test_the_coco_json_says_what_the_source_says(voc: Path, image_set: str | None) -> None:
    path = voc_to_coco_json(voc, image_set, voc / "voc07_trainval.json")
    ours, theirs = VocSource(voc), CocoSource(path)
    assert theirs.image_ids == [1, 2]
    for name in ("category_ids", "category_names", "class_counts"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert theirs.dropped == {"crowd": 1}
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.file_name == other.file_name and mine.image.size == other.image.size
        assert mine.boxes_xyxy.equal(other.boxes_xyxy) and mine.class_labels.equal(other.class_labels)


def test_the_numbers_of_the_released_conversion(voc: Path) -> None:
    content = json.loads(voc_to_coco_json(voc, "trainval", voc / "out.json", corners="released").read_text())
    assert content["categories"][14] == {"id": 14, "name": "person"}
    assert content["images"][1] == {"id": 2, "file_name": "000005.jpg", "height": 30, "width": 40}
    # dog 9,5,20,15 and person 1,1,40,30, all minus 1; the released area is width * height: 110 and 39 * 29 = 1131
    assert [(box["image_id"], box["category_id"], box["bbox"], box["area"]) for box in content["annotations"][1:]] == [
        (2, 11, [8, 4, 11, 10], 110),
        (2, 14, [0, 0, 39, 29], 1131),
    ]


def test_a_json_is_not_touched_when_the_set_is_wrong(voc: Path) -> None:
    target = voc / "out.json"
    target.write_text("as before")
    write_xml(voc / "Annotations" / "000005.xml", size="")
    with pytest.raises(ValueError, match="size"):
        voc_to_coco_json(voc, "trainval", target)
    assert target.read_text() == "as before"


# ---- Bad input


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("<annotation></annotation>", "no <size>"),
        ("<annotation><size><width>4</width></size></annotation>", "<size> has no <height>"),
        ("<annotation><size><width>0</width><height>3</height></size></annotation>", "height=3, width=0"),
        ("<annotation><size><width>4.5</width><height>3</height></size></annotation>", r"width=4\.5"),
        ("<annotation><size><width>x</width><height>3</height></size></annotation>", "width='x'"),
        ((("dog", (20, 5, 9, 15)),), r"object 1 \(dog\) has xmin=20, ymin=5, xmax=9"),
        ((DOG, ("dog", (9, 15, 20, 5))), r"object 2 \(dog\).*ymin=15.*ymax=5"),
        ((("dog", (9, 5, 20, "nan")),), "ymax='nan'"),
        ((("dog", (9, 5, 20, "")),), "no <ymax>"),
        ((("dog", (9, 5, 20, "1e")),), "ymax='1e'"),
        (((" ", (9, 5, 20, 15)),), "object 1 has no <name>"),
        ((("dog", (9, 5, 20, 15), "yes"),), "difficult='yes'"),
        (f"<annotation>{SIZE}<object><name>dog</name></object></annotation>", r"object 1 \(dog\) has no <bndbox>"),
        ("<annotation><size>", "not a readable XML"),
        ("", "not a readable XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not a readable XML"),
        ("<project></project>", "holds <project>"),
        ('<!DOCTYPE a [<!ENTITY x "xx">]><annotation>&x;</annotation>', "declares a document type 'a'"),
        ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>', "declares a document type 'a'"),
        ("<annotation>&x;</annotation>", "undefined entity"),
    ],
)
def test_wrong_xml_files_are_named_in_one_line(voc: Path, content: str | tuple, complaint: str) -> None:
    path = voc / "Annotations" / "000005.xml"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write_xml(path, *content)
    with pytest.raises(ValueError, match=complaint) as caught:
        VocSource(voc)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lists no image"),
        ("\n \n", "lists no image"),
        ("000005\n000007\n000005\n", "line 3 repeats '000005' of line 1"),
        ("000005  1\n000007 -1\n", "shows one class"),
    ],
)
def test_wrong_image_sets_are_named(voc: Path, text: str, complaint: str) -> None:
    path = write_set(voc, "wrong", text)
    with pytest.raises(ValueError, match=complaint) as caught:
        VocSource(path)
    assert str(path) in str(caught.value)


def test_an_unknown_set_is_told_the_known_ones(voc: Path) -> None:
    for read in (
        lambda: VocSource(voc / "ImageSets" / "Main" / "trainvul.txt"),
        lambda: voc_to_coco_json(voc, "trainvul", voc / "out.json"),
    ):
        with pytest.raises(FileNotFoundError, match=r"trainvul\.txt: no such image set; there are: test, trainval"):
            read()
    assert not (voc / "out.json").exists()


def test_what_is_missing_or_twice_is_named(voc: Path, tmp_path: Path) -> None:
    write_picture(voc / "JPEGImages" / "000005.png")
    with pytest.raises(ValueError, match=r"000005\.jpg and 000005\.png"):
        VocSource(voc)
    (voc / "JPEGImages" / "000005.png").unlink()
    (voc / "JPEGImages" / "000005.jpg").unlink()
    for labeled in (True, False):
        with pytest.raises(FileNotFoundError, match=r"trainval\.txt: no picture named '000005'.*nor 0 more"):
            VocSource(voc, labeled=labeled)
    write_set(voc, "trainval", "000008")
    with pytest.raises(FileNotFoundError, match=r"000008\.xml: no such annotation file"):
        VocSource(voc)
    with pytest.raises(FileNotFoundError, match="elsewhere, no such folder; give image_folder"):
        VocSource(voc / "ImageSets" / "Main" / "test.txt", tmp_path / "elsewhere")


def test_wrong_arguments_are_named(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corners='middle': must be one of exact, released, written"):
        VocSource(voc, corners="middle")  # type: ignore[arg-type]
    (tmp_path / "notes.txt").write_text("000005")
    with pytest.raises(ValueError, match=r"notes\.txt: a list of images must be a VOC image set"):
        VocSource(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        VocSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no \.xml file"):
        VocSource(tmp_path / "empty")
    (voc / "ImageSets" / "Main" / "test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"test\.txt: not a text file"):
        VocSource(voc / "ImageSets" / "Main" / "test.txt")


def test_a_picture_of_another_size_is_refused(voc: Path) -> None:
    Image.new("RGB", (80, 60)).save(voc / "JPEGImages" / "000005.jpg")
    with pytest.raises(UnreadableImageError, match="80x60.*40x30"):
        VocSource(voc)[1]


def test_a_complaint_is_one_line_whatever_the_name(plain: Path) -> None:
    xml = write_xml(plain / "odd.xml", ("hot\ndog", (5, 5, 4, 9)))
    with pytest.raises(ValueError, match=rf"{xml}: object 1 \(hot dog\) has xmin=5") as caught:
        VocSource(plain)
    assert "\n" not in str(caught.value)


def test_an_image_set_may_hold_names_that_no_disk_can(voc: Path) -> None:
    path = write_set(voc, "long", "x" * 300)
    with pytest.raises(FileNotFoundError, match="x.xml: no such annotation file"):
        VocSource(path)
