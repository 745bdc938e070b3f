import copy
import json
import math
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from noise_sets import coco_content, write_noise, write_set

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.data_check import check_data
from semidetr_hf.data.data_problems import DataReport, Problem
from semidetr_hf.data.validation import check_sources
from semidetr_hf.data.writing import write_source

Change = Callable[[dict[str, Any]], None]


def found(report: DataReport) -> list[tuple[str, str, str]]:
    return [(problem.role, problem.severity, problem.kind) for problem in report.problems]


def only(report: DataReport) -> Problem:
    [problem] = report.problems
    return problem


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    return write_set(tmp_path / "labeled")


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_set(tmp_path / "val", seed=1)


@pytest.fixture
def unlabeled(tmp_path: Path) -> Path:
    for number in range(3):
        write_noise(tmp_path / "more" / f"{number}.png", 1000 + number)
    return tmp_path / "more"


def test_good_data_has_no_problem_and_is_counted(labeled: Path, unlabeled: Path, val: Path) -> None:
    report = check_data(labeled, unlabeled=unlabeled, val=val, workers=2)
    assert report.problems == [] and report.num_errors == 0
    assert [checked.role for checked in report.sets] == ["labeled", "unlabeled", "val"]
    assert [len(checked.images) for checked in report.sets] == [3, 3, 3]
    assert [checked.num_usable for checked in report.sets] == [3, 3, 3]
    assert report.sets[0].class_counts == {3: 6, 7: 6} and report.sets[0].categories == {3: "cat", 7: "dog"}
    assert report.to_text().endswith("\n\nready to train")


# ---- Entries of a json


def set_image(**values: Any) -> Change:
    return lambda content: content["images"][1].update(values)


def set_box(**values: Any) -> Change:
    return lambda content: content["annotations"][5].update(values)  # annotation 6, of image 2


def append(key: str, entry: Any) -> Change:
    return lambda content: content[key].append(entry)


@pytest.mark.parametrize(
    ("change", "severity", "kind", "image_id", "value"),
    [
        (append("images", {"file_name": "x.png"}), "error", "missing_field", None, 'entry 3 of "images" has id=None'),
        (append("images", 5), "error", "missing_field", None, 'entry 3 of "images" is 5'),
        (append("images", {"id": 9}), "error", "missing_field", 9, "image 9 has file_name=None"),
        (append("images", coco_content()["images"][0]), "error", "duplicate_image_id", 1, "entries that are the same"),
        (append("images", {"id": 1, "file_name": "x"}), "error", "duplicate_image_id", 1, "two different entries"),
        (set_image(height=0), "error", "invalid_size", 2, "width=40, height=0"),
        (set_image(width="40"), "error", "invalid_size", 2, "width='40'"),
        (set_image(width=None), "warning", "missing_size", None, "1 of 3 images lack width or height, the first is 2"),
        (append("categories", {"id": 9}), "error", "invalid_category", None, "{'id': 9}"),
        (append("categories", {"id": 3, "name": "cat"}), "error", "duplicate_category_id", None, "same"),
        (append("categories", {"id": 3, "name": "emu"}), "error", "duplicate_category_id", None, "two different"),
        (append("annotations", "box"), "error", "invalid_annotation", None, """entry 12 of "annotations" is 'box'"""),
        (set_box(image_id=77), "error", "orphan_annotation", 77, "annotation 6 has image_id=77"),
        (set_box(image_id=[1]), "error", "orphan_annotation", None, "annotation 6 has image_id=[1]"),
        (set_box(category_id=4), "error", "unknown_category", 2, "annotation 6 has category_id=4"),
        (set_box(bbox=None), "error", "missing_field", 2, "annotation 6 has bbox=None"),
        (set_box(bbox=[1, 2, 3]), "error", "invalid_box", 2, "bbox=[1, 2, 3]"),
        (set_box(bbox=[1, 2, 3, "4"]), "error", "invalid_box", 2, "'4'"),
        (set_box(bbox=[1, 2, math.nan, 4]), "error", "not_finite", 2, "bbox=[1, 2, nan, 4]"),
        (set_box(bbox=[10**400, 2, 3, 4]), "error", "not_finite", 2, "bbox=[1000"),
        (set_box(bbox=[9, 9, -3, 4]), "error", "degenerate", 2, "bbox=[9, 9, -3, 4] of negative size"),
        (set_box(area=-1), "error", "invalid_area", 2, "annotation 6 has area=-1"),
        (set_box(bbox=[9, 9, 0, 4]), "warning", "degenerate", 2, "bbox=[9, 9, 0, 4], narrower than 1 pixel"),
        (set_box(bbox=[40, 9, 5, 5]), "warning", "outside", 2, "bbox=[40, 9, 5, 5] in an image of 40x30 pixels"),
        (set_box(bbox=[35.5, 9, 5.25, 5]), "warning", "sticks_out", 2, "bbox=[35.5, 9, 5.25, 5] in an image of 40x30"),
        (set_box(bbox=[-1, 9, 5, 5]), "warning", "sticks_out", 2, "bbox=[-1, 9, 5, 5]"),
        (set_box(id=5), "warning", "duplicate_annotation_id", 2, "annotation id 5 has two different entries"),
    ],
)
def test_every_wrong_entry_is_found(
    tmp_path: Path, change: Change, severity: str, kind: str, image_id: int | None, value: str
) -> None:
    content = coco_content()
    change(content)
    path = write_set(tmp_path / "labeled", content)
    problem = only(check_data(path))
    assert (problem.role, problem.severity, problem.kind) == ("labeled", severity, kind)
    assert problem.image_id == image_id and value in problem.value
    assert problem.file == str(path) and problem.advice


@pytest.mark.parametrize(
    "change",
    [
        set_box(bbox=[35.5, 9, 5, 5]),  # half a pixel too far: rounding
        set_box(bbox=[60, 9, 5, 5], iscrowd=1),
        set_box(bbox=[60, 9, 5, 5], ignore=1),
        set_image(license=4),
    ],
)
def test_rounded_boxes_and_boxes_that_are_no_targets_are_no_problem(tmp_path: Path, change: Change) -> None:
    content = coco_content()
    change(content)
    assert check_data(write_set(tmp_path / "labeled", content)).problems == []


def test_a_file_with_many_errors_names_them_all(tmp_path: Path) -> None:
    content = coco_content()
    for annotation, box in zip(content["annotations"], ([1, 2], [1, 2, -3, 4], "x", [50, 50, 4, 4]), strict=False):
        annotation["bbox"] = box
    content["images"][2]["file_name"] = ""
    kinds = ["missing_field", "invalid_box", "degenerate", "invalid_box", "outside"]
    report = check_data(write_set(tmp_path / "labeled", content))
    assert [kind for _, _, kind in found(report) if kind != "few_boxes"] == kinds
    # The boxes of image 3 are none of an unknown image.
    assert "orphan_annotation" not in report.to_text()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("{nonsense", "not_coco", "not a json file"),
        ("[1]", "not_coco", "holds a list"),
        ('{"annotations": [], "categories": []}', "missing_field", 'has no list "images"'),
    ],
)
def test_files_that_are_no_coco_are_an_error(labeled: Path, text: str, kind: str, value: str) -> None:
    labeled.write_text(text)
    problem = only(check_data(labeled))
    assert (problem.severity, problem.kind) == ("error", kind) and value in problem.value


def test_missing_lists_are_named_once(tmp_path: Path) -> None:
    content = coco_content()
    del content["categories"]
    assert found(check_data(write_set(tmp_path / "a", content))) == [("labeled", "error", "missing_field")]
    content = coco_content() | {"images": []}
    assert ("labeled", "error", "no_images") in found(check_data(write_set(tmp_path / "b", content)))


def test_one_fault_does_not_hide_or_cause_another(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"][0]["name"] = None  # the boxes of the class are not of an unknown one
    content["annotations"][5] |= {"bbox": [40, 9, 5, 5], "area": -1}
    report = check_data(write_set(tmp_path / "a", content))
    assert [kind for _, _, kind in found(report)] == ["invalid_category", "invalid_area", "outside"]


def test_annotations_of_unlabeled_images_are_not_looked_at(labeled: Path, tmp_path: Path) -> None:
    content = coco_content() | {"annotations": "none", "categories": []}
    path = write_set(tmp_path / "more", content, seed=2)
    assert check_data(labeled, unlabeled=path).problems == []
    path.write_text(json.dumps(content | {"categories": None}))
    assert check_data(labeled, unlabeled=path).problems == []
    path.write_text(json.dumps(content | {"categories": [{"id": 1}]}))
    assert found(check_data(labeled, unlabeled=path)) == [("unlabeled", "error", "invalid_category")]


def test_there_are_errors_if_and_only_if_training_refuses_the_file(tmp_path: Path) -> None:
    path = write_set(tmp_path / "labeled")
    rng = random.Random(0)
    outcomes = []
    for _ in range(400):
        content = coco_content()
        change_anything(content, rng)
        path.write_text(json.dumps(content))
        report = check_data(path, workers=1)
        try:
            source = CocoSource(path)
            check_sources(source, None, None, max_images_opened=0)
        except (ValueError, FileNotFoundError) as refusal:
            assert report.num_errors > 0, f"{refusal}: {content}"
        else:
            assert report.num_errors == 0, f"{report.problems}: {content}"
            assert source.num_boxes == report.sets[0].class_counts.total()
        outcomes.append(report.num_errors == 0)
    assert 50 < sum(outcomes) < 350  # both were tried


VALUES = (
    *(None, True, 0, 1, -1, 3, 1.5, 40, math.nan, 1e300, 10**400, "", "x", "4", "1.png", "nowhere.png", [], {}),
    *([1, 2, 3], [1, 2, 3, 4], [38, 5, 20, 5], [50, 50, 5, 5], [5, 5, 0, 4], [5, 5, -2, 4], [1, 2, math.inf, 3]),
)


def change_anything(content: dict[str, Any], rng: random.Random) -> None:
    """Change, delete or repeat one value anywhere in a json."""
    container: Any = content
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(container[key], dict | list) or rng.random() < 0.04:
            break
        container = container[key]
    choice = rng.random()
    if choice < 0.65:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    elif choice < 0.85 or isinstance(container, dict):
        del container[key]
    else:
        container.append(copy.deepcopy(container[key]))


# ---- Classes


def test_classes_that_differ_in_validation_are_an_error(labeled: Path, tmp_path: Path) -> None:
    content = coco_content()
    content["categories"][0]["name"] = "wolf"
    val = write_set(tmp_path / "val", content, seed=1)
    problem = only(check_data(labeled, val=val))
    assert (problem.role, problem.severity, problem.kind) == ("val", "error", "category_mismatch")
    assert problem.value == "category id 7 is 'dog' in labeled but 'wolf' here"


def test_classes_with_no_or_few_boxes_and_equal_names_are_warnings(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] = [box for box in content["annotations"] if box["category_id"] == 3 or box["id"] == 2]
    content["categories"].append({"id": 9, "name": "cat"})
    labeled, val = write_set(tmp_path / "a", content), write_set(tmp_path / "b", content, seed=1)
    report = check_data(labeled, val=val)
    kinds = [("duplicate_category_name", "named 'cat'"), ("few_boxes", "1 boxes of class 'dog'")]
    for problem, (kind, value) in zip(report.sets[0].problems, kinds, strict=False):
        assert problem.severity == "warning" and problem.kind == kind and value in problem.value
    assert [kind for _, _, kind in found(report)][2:] == [
        *("class_without_boxes", "duplicate_category_name", "class_without_boxes")
    ]


def test_no_box_at_all_is_an_error(tmp_path: Path) -> None:
    content = coco_content() | {"annotations": []}
    assert found(check_data(write_set(tmp_path / "a", content))) == [("labeled", "error", "no_boxes")]


# ---- Pictures


def test_missing_broken_and_resized_pictures_are_named(labeled: Path, unlabeled: Path) -> None:
    folder = labeled.parent
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:400])
    write_noise(folder / "3.png", 3, size=(80, 30))
    (unlabeled / "1.png").write_text("no picture")
    report = check_data(labeled, unlabeled=unlabeled)
    missing, broken, resized, none, other = report.problems
    assert (missing.severity, missing.kind, missing.image_id) == ("error", "missing_file", 1)
    assert (broken.severity, broken.kind, broken.file) == ("warning", "unreadable", str(folder / "2.png"))
    assert (resized.severity, resized.kind) == ("warning", "wrong_size")
    assert "80x30" in resized.value and "40x30" in resized.value
    assert (none.severity, none.kind) == ("error", "none_readable")
    assert (other.role, other.kind, other.image_id) == ("unlabeled", "unreadable", "1.png")
    assert [checked.num_usable for checked in report.sets] == [0, 2]


def test_images_that_are_nowhere_or_in_another_folder(labeled: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    for file in labeled.parent.glob("*.png"):
        file.rename(elsewhere / file.name)
    report = check_data(labeled)
    assert found(report) == [("labeled", "error", "image_folder")] and report.sets[0].num_usable is None
    assert check_data(labeled, elsewhere).problems == []
    # Of a folder that was given every missing file is named.
    assert [problem.kind for problem in check_data(labeled, labeled.parent).problems[:3]] == ["missing_file"] * 3


def test_boxes_of_images_without_size_are_compared_with_the_picture(tmp_path: Path) -> None:
    content = coco_content()
    del content["images"][1]["width"]
    content["annotations"][5]["bbox"] = [42, 5, 10, 10]
    report = check_data(write_set(tmp_path / "a", content))
    assert found(report) == [("labeled", "warning", "missing_size"), ("labeled", "warning", "outside")]
    assert report.problems[1].image_id == 2 and "40x30" in report.problems[1].value


# ---- Folders


def write_voc(folder: Path, boxes: str, names: tuple[str, ...] = ("a", "b")) -> Path:
    for number, name in enumerate(names):
        write_noise(folder / f"{name}.png", number)
        (folder / f"{name}.xml").write_text(voc_record(boxes))
    return folder


def voc_record(boxes: str) -> str:
    return f"<annotation><size><width>40</width><height>30</height></size>{boxes}</annotation>"


def voc_object(name: str, *corners: int) -> str:
    box = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def test_boxes_of_xml_files_are_checked(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "xml", voc_object("ant", 1, 1, 9, 9) * 3 + voc_object("ant", 30, 1, 50, 9))
    report = check_data(folder)
    assert found(report) == [("labeled", "warning", "sticks_out")] * 2
    assert report.problems[1].image_id == "b" and report.problems[1].fix is None
    assert "object 4 of b has bbox=[30, 1, 20, 8]" in report.problems[1].value
    assert report.sets[0].class_counts == {1: 8}


def test_voc_folders_are_checked_by_their_image_sets(labeled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "VOC2007"
    for number, name in enumerate("abc"):
        write_noise(folder / "JPEGImages" / f"{name}.png", 500 + number)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(voc_record(voc_object("dog", 1, 1, 9, 9) * 5))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\n")
    (folder / "JPEGImages" / "b.png").write_bytes(b"broken")
    report = check_data(folder)
    assert report.sets[0].class_counts == {11: 10} and report.sets[0].num_usable == 1
    assert ("labeled", "warning", "unreadable") in found(report) and report.num_errors == 0
    (folder / "Annotations" / "a.xml").write_text("unlabeled images need none")
    assert found(check_data(labeled, unlabeled=folder)) == [("unlabeled", "warning", "unreadable")]


def test_every_broken_xml_file_is_named(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "xml", voc_object("ant", 1, 1, 9, 9), ("a", "b", "c"))
    (folder / "a.xml").write_text("<annotation>")
    (folder / "c.xml").write_text("<annotation><size><width>4</width></size></annotation>")
    (folder / "b.png").unlink()
    first, second, third = check_data(folder).problems
    assert [first.kind, second.kind, third.kind] == ["invalid_xml", "invalid_xml", "missing_file"]
    assert first.file == str(folder / "a.xml") and second.image_id == "c" and "height" in second.value
    assert third.severity == "error" and "'b'" in third.value


def test_xml_validation_images_may_show_only_what_is_labeled(tmp_path: Path) -> None:
    labeled = write_voc(tmp_path / "xml", voc_object("ant", 1, 1, 9, 9) * 5 + voc_object("bee", 1, 1, 9, 9) * 5)
    val = write_voc(tmp_path / "val", voc_object("bee", 1, 1, 9, 9), ("c",))
    write_noise(val / "c.png", 50)
    report = check_data(labeled, val=val)
    assert found(report) == [("val", "warning", "class_without_boxes")]
    write_voc(tmp_path / "val", voc_object("wasp", 1, 1, 9, 9), ("c",))
    write_noise(val / "c.png", 50)
    problem = only(check_data(labeled, val=val))
    assert (problem.severity, problem.kind) == ("error", "invalid_xml") and "'wasp'" in problem.value


def test_wrong_use_is_an_exception(labeled: Path, unlabeled: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        check_data(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="a bare folder has no boxes"):
        check_data(unlabeled)
    with pytest.raises(ValueError, match="val_images='x' is of no use without val"):
        check_data(labeled, val_images="x")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; labeled_images"):
        check_data(labeled, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="workers=0"):
        check_data(labeled, workers=0)


# ---- Other formats


def in_format(labeled: Path, folder: Path, to: Any) -> str:
    source = CocoSource(labeled)
    return write_source(source, folder, to).path


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "datasets"])
def test_good_data_of_every_format_has_no_problem(labeled: Path, unlabeled: Path, tmp_path: Path, to: str) -> None:
    path = in_format(labeled, tmp_path / "new", to)
    report = check_data(path, unlabeled=unlabeled)
    assert found(report) == []
    assert report.sets[0].num_usable == 3 and report.sets[0].class_counts == {3: 6, 7: 6}


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "datasets"])
def test_the_same_picture_in_two_formats_is_a_leak(labeled: Path, tmp_path: Path, to: str) -> None:
    path = in_format(labeled, tmp_path / "new", to)
    report = check_data(labeled, val=f"{path}:train" if to == "yolo" else path)
    assert found(report) == [("labeled", "error", "leak")] * 3
    assert str(tmp_path / "new") in report.problems[0].value


def test_every_wrong_line_of_label_files_is_found(labeled: Path, tmp_path: Path) -> None:
    path = in_format(labeled, tmp_path / "new", "yolo")
    labels = tmp_path / "new" / "labels"
    (labels / "1.txt").write_text("0 0.5 0.5 0.1\n0 0.5 0.5 0.2 0.2\n9 0.5 0.5 0.2 0.2\n")
    (labels / "3.txt").write_bytes(b"\xff\xfe")
    report = check_data(path)
    assert found(report) == [("labeled", "error", "invalid_line")] * 2 + [("labeled", "error", "invalid_label_file")]
    assert [problem.image_id for problem in report.problems] == ["images/1.png", "images/1.png", "images/3.png"]
    assert report.problems[1].value.startswith("line 3 has the class 9")
    assert report.problems[1].file == str(labels / "1.txt")


def test_odd_boxes_of_label_files_are_warnings_that_name_the_object(labeled: Path, tmp_path: Path) -> None:
    path = in_format(labeled, tmp_path / "new", "yolo")
    (tmp_path / "new" / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.95 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n")
    kinds = [(problem.kind, problem.value[:40]) for problem in check_data(path).problems if problem.image_id]
    assert kinds == [
        ("sticks_out", "annotation object 2 of images/1.png has "),
        ("degenerate", "annotation object 3 of images/1.png has "),
    ]


@pytest.mark.parametrize(
    ("to", "name", "text", "kind"),
    [
        ("yolo", "data.yaml", "names: [", "invalid_yolo"),
        ("datasets", "category_ids.json", '{"emu": 1}', "invalid_data_set"),
    ],
)
def test_a_set_that_is_refused_as_a_whole_is_one_error(
    labeled: Path, tmp_path: Path, to: str, name: str, text: str, kind: str
) -> None:
    path = in_format(labeled, tmp_path / "new", to)
    (tmp_path / "new" / name).write_text(text)
    assert found(check_data(path)) == [("labeled", "error", kind)]


def test_broken_images_in_archives_are_found(labeled: Path, unlabeled: Path, tmp_path: Path) -> None:
    (unlabeled / "0.png").write_bytes(b"broken")
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(unlabeled, "photos")
    archived = check_data(labeled, unlabeled=tmp_path / "more.tar")
    problem = only(archived)
    assert (problem.role, problem.severity, problem.kind) == ("unlabeled", "warning", "unreadable")
    assert problem.file == f"{tmp_path}/more.tar/photos/0.png" and archived.sets[1].num_usable == 2


def test_boxes_of_a_data_set_are_checked_in_their_format(labeled: Path, tmp_path: Path) -> None:
    path = in_format(labeled, tmp_path / "new", "datasets")
    report = check_data(path, bbox_format="xyxy")
    # Read as corners, the last box of every image, (5, 8) to (10, 8), has no height.
    assert [problem.kind for problem in report.problems if problem.image_id is not None] == ["degenerate"] * 3
