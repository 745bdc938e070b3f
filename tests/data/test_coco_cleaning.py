import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from noise_sets import coco_content, write_noise, write_set

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.coco_cleaning import Cleaning, cleaned_path, require_replaceable, write_cleaned
from semidetr_hf.data.data_check import check_data


def clean(labeled: Path, **others: Any) -> Cleaning:
    """Check, clean, and return what became of the labeled json."""
    return write_cleaned(check_data(labeled, **others).sets)[0]


def read(cleaning: Cleaning) -> dict[str, Any]:
    assert cleaning.output is not None
    return json.loads(cleaning.output.read_text())


def test_what_needs_no_guess_is_mended_and_the_rest_stays(tmp_path: Path) -> None:
    content = coco_content(4) | {"info": {"year": 2024}}
    boxes = content["annotations"]
    boxes[0]["bbox"] = [35, 5, 10, 8]  # sticks out by 5; its area is that of the box
    boxes[1] |= {"bbox": [-5, 5, 10, 8], "area": 33}  # the area is that of a mask
    boxes[2]["bbox"] = [5, 5, 0, 8]
    boxes[3]["bbox"] = [5, 5, -4, 8]
    boxes[4]["category_id"] = 99
    boxes[5]["image_id"] = 77
    boxes[6]["area"] = -1
    boxes[7]["bbox"] = [90, 90, 4, 4]
    boxes += [dict(boxes[8]), "box"]
    del content["images"][1]["width"]
    content["images"] += [dict(content["images"][2]), {"id": 5}]
    content["categories"].append({"id": 3, "name": "cat"})
    path = write_set(tmp_path / "a", content)
    original = path.read_bytes()
    cleaning = clean(path)

    assert path.read_bytes() == original
    assert cleaning.output == tmp_path / "a" / "labels.cleaned.json" and not cleaning.left["degenerate"]
    result = read(cleaning)
    # The file of image 4 is missing, and gone with it are annotations 13 to 16.
    assert result["images"] == coco_content()["images"]
    assert result["categories"] == coco_content()["categories"] and result["info"] == {"year": 2024}
    assert [box["id"] for box in result["annotations"]] == [1, 2, 7, 9, 10, 11, 12]
    assert result["annotations"][0]["bbox"] == [35, 5, 5, 8] and result["annotations"][0]["area"] == 40
    assert result["annotations"][1]["bbox"] == [0, 5, 5, 8] and result["annotations"][1]["area"] == 33
    assert "area" not in result["annotations"][2]
    assert cleaning.done == {
        ("dropped images", "missing_file"): 1,
        ("dropped images", "duplicate_image_id"): 1,
        ("dropped images", "missing_field"): 1,
        ("dropped categories", "duplicate_category_id"): 1,
        ("filled in sizes", "missing_size"): 1,
        ("left out areas", "invalid_area"): 1,
        ("clipped boxes", "sticks_out"): 2,
        ("dropped annotations", "degenerate"): 2,
        ("dropped annotations", "unknown_category"): 1,
        ("dropped annotations", "orphan_annotation"): 1,
        ("dropped annotations", "outside"): 1,
        ("dropped annotations", "duplicate_annotation_id"): 1,
        ("dropped annotations", "invalid_annotation"): 1,
        ("dropped annotations", "image dropped"): 4,
    }
    again = check_data(cleaning.output)
    assert {problem.kind for problem in again.problems} == {"few_boxes"} and again.num_errors == 0
    assert len(CocoSource(cleaning.output)) == 3
    assert result["cleaned_by"]["original"] == "labels.json"


def test_unusable_and_leaked_pictures_are_dropped_from_training_and_never_from_validation(tmp_path: Path) -> None:
    labeled, val = write_set(tmp_path / "a"), write_set(tmp_path / "b", seed=1)
    unlabeled = write_set(tmp_path / "c", {"images": coco_content()["images"]}, seed=2)
    (labeled.parent / "2.png").write_bytes(b"broken")
    write_noise(labeled.parent / "3.png", 3, size=(50, 50))
    (unlabeled.parent / "1.png").write_bytes((val.parent / "1.png").read_bytes())
    first, second, third = write_cleaned(check_data(labeled, unlabeled=unlabeled, val=val).sets)
    assert first.done == {
        ("dropped images", "unreadable"): 1,
        ("dropped images", "wrong_size"): 1,
        ("dropped annotations", "image dropped"): 8,
    }
    assert [image["id"] for image in read(first)["images"]] == [1]
    assert second.done == {("dropped images", "leak"): 1}
    assert [image["id"] for image in read(second)["images"]] == [2, 3]
    assert third.output is None and not cleaned_path(val).exists()


def test_boxes_of_images_without_size_are_clipped_to_the_picture(tmp_path: Path) -> None:
    content = coco_content()
    del content["images"][0]["width"], content["images"][0]["height"]
    content["images"][1]["height"] = None
    content["images"][2] |= {"height": None, "width": 99}  # contradicts the picture
    content["annotations"][0]["bbox"] = [30, 20, 20, 20]
    cleaning = clean(write_set(tmp_path / "a", content))
    result = read(cleaning)
    assert result["images"] == coco_content()["images"][:2]
    assert result["annotations"][0]["bbox"] == [30, 20, 10, 10]
    assert {box["image_id"] for box in result["annotations"]} == {1, 2}
    assert cleaning.done["dropped images", "wrong_size"] == 1


def test_what_would_be_a_guess_is_left_and_said(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].append(content["images"][0] | {"file_name": "x.png"})
    content["annotations"][0]["id"] = 2
    content["categories"].append({"id": 3, "name": "emu"})
    path = write_set(tmp_path / "a", content)
    cleaning = clean(path)
    assert cleaning.output is None and not cleaned_path(path).exists()
    assert cleaning.left == {"duplicate_image_id": 1, "duplicate_annotation_id": 1, "duplicate_category_id": 1}
    path.write_text("{nonsense")
    assert clean(path).left == {"not_coco": 1}


def test_boxes_of_a_repeated_id_stay_while_one_of_its_images_does(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].append(content["images"][0] | {"file_name": "2.png"})
    path = write_set(tmp_path / "a", content)
    (path.parent / "1.png").unlink()
    result = read(clean(path))
    assert [image["id"] for image in result["images"]] == [2, 3, 1]
    assert len(result["annotations"]) == 12


def test_a_json_that_is_labeled_and_validated_keeps_its_images(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [35, 5, 10, 8]
    path = write_set(tmp_path / "a", content)
    [cleaning] = write_cleaned(check_data(path, val=path).sets)
    assert cleaning.done == {("clipped boxes", "sticks_out"): 1} and cleaning.is_val
    assert len(read(cleaning)["images"]) == 3 and cleaning.left == {"leak": 3}


def test_nothing_is_written_if_there_is_nothing_to_do_or_nothing_would_be_left(tmp_path: Path) -> None:
    good = write_set(tmp_path / "a")
    nothing = Cleaning(source=good, output=None, is_val=False, done=Counter(), left=Counter())
    assert clean(good) == nothing and not cleaned_path(good).exists()
    for number in (1, 2, 3):
        (good.parent / f"{number}.png").write_bytes(b"broken")
    cleaning = clean(good)
    assert cleaning.output is None and cleaning.left["no_images"] == 1 and not cleaned_path(good).exists()
    good.write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}] * 2}))
    assert clean(good).output is None and clean(good).left["no_images"] == 1


def test_only_a_cleaned_file_of_ours_is_replaced(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [35, 5, 10, 8]
    path = write_set(tmp_path / "a", content)
    output = cleaned_path(path)
    for foreign in ('{"images": []}', "[1]", "not json"):
        output.write_text(foreign)
        with pytest.raises(FileExistsError, match="labels.cleaned.json: exists and was not written by --fix"):
            clean(path)
        assert output.read_text() == foreign
    output.unlink()
    clean(path)
    require_replaceable(path)
    output.write_text(output.read_text().replace('"dog"', '"wolf"'))
    clean(path)
    assert '"dog"' in output.read_text()
    assert sorted(file.name for file in path.parent.iterdir() if file.suffix != ".png") == [output.name, path.name]


def test_a_json_that_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [35, 5, 10, 8]
    path = write_set(tmp_path / "a", content)
    report = check_data(path)
    path.write_text(json.dumps(content | {"images": content["images"][1:]}))
    with pytest.raises(ValueError, match="was changed while it was checked"):
        write_cleaned(report.sets)
    assert not cleaned_path(path).exists()
