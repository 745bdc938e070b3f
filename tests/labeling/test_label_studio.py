import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from labeled_images import detected

from semidetr_hf.labeling.label_studio import write_label_studio, write_labeling_setup
from semidetr_hf.labeling.labels import label_by_threshold

IMAGES = label_by_threshold([detected("sure"), detected(5, (1, 0.5, (10, 5, 40, 25)))], 0.5)
FILES = [Path("/photos/new ones/a&b ä.png"), Path("/photos/c.png")]
NAMES = ("dog", "cat & <kitten>")


def test_boxes_are_in_percent_and_addresses_are_quoted(tmp_path) -> None:
    write_label_studio(tmp_path / "tasks.json", IMAGES, FILES, NAMES, model_version="runs/x")
    first, second = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert first["data"] == {
        "image": "/data/local-files/?d=photos/new%20ones/a%26b%20%C3%A4.png",
        "image_id": 5,
        "uncertainty": 1.0,
    }
    (prediction,) = first["predictions"]
    # One bit leaves two answers; Label Studio shows low scores first.
    assert prediction["model_version"] == "runs/x" and prediction["score"] == 0.5
    (box,) = prediction["result"]
    assert box["value"] == {
        "x": 10,
        "y": 10,
        "width": 30,
        "height": 40,
        "rotation": 0,
        "rectanglelabels": ["cat & <kitten>"],
    }
    assert (box["original_width"], box["original_height"], box["score"]) == (100, 50, 0.5)
    assert second["predictions"][0]["result"] == [] and second["predictions"][0]["score"] == 1


def test_images_of_a_server_are_found_below_a_folder(tmp_path) -> None:
    where = {"model_version": "x", "prefix": "https://example.com/i/", "root": Path("/photos")}
    write_label_studio(tmp_path / "tasks.json", IMAGES, FILES, NAMES, **where)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "https://example.com/i/new%20ones/a%26b%20%C3%A4.png",
        "https://example.com/i/c.png",
    ]
    with pytest.raises(ValueError, match=r"^/photos/new ones/a&b ä.png: not below label_studio_root='/elsewhere'"):
        write_label_studio(tmp_path / "x.json", IMAGES, FILES, NAMES, **{**where, "root": Path("/elsewhere")})
    assert not (tmp_path / "x.json").exists()


def test_the_setup_has_the_names_that_the_boxes_refer_to(tmp_path) -> None:
    write_label_studio(tmp_path / "tasks.json", IMAGES, FILES, NAMES, model_version="x")
    write_labeling_setup(tmp_path / "setup.xml", NAMES)
    view = ElementTree.parse(tmp_path / "setup.xml").getroot()
    labels = view.find("RectangleLabels")
    assert tuple(label.get("value") for label in labels) == NAMES
    (box,) = json.loads((tmp_path / "tasks.json").read_text())[0]["predictions"][0]["result"]
    assert (labels.get("name"), view.find("Image").get("name")) == (box["from_name"], box["to_name"])
    assert view.find("Image").get("value") == "$image"
