"""What a user gets to see for wrong data and wrong settings: one line that names the culprit, and status 1."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_modules import load_example
from PIL import Image

FLAGS = (
    "--size nano --backbone_weights random --short_edges 64 --long_edge 64 --num_steps 1 --labeled_batch_size 2 "
    "--unlabeled_batch_size 2 --num_workers 0 --cpu"
).split()
BOXES = [
    {"id": i, "image_id": i, "category_id": category, "bbox": [10, 10, 30, 30]}
    for i, category in ((1, 3), (2, 7), (3, 3))
]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return load_example("train_ssod").main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures with one box each in `labels.json`, and an empty folder `empty`."""
    for i in (1, 2, 3):
        Image.new("RGB", (64, 64), (60 * i, 90, 90)).save(tmp_path / f"{i}.png")
    write_labels(tmp_path)
    (tmp_path / "empty").mkdir()
    return tmp_path


def write_labels(folder: Path, **content: Any) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2, 3)]
    document = {"images": images, "categories": CATEGORIES, "annotations": BOXES} | content
    (folder / "labels.json").write_text(json.dumps(document))


def arguments(folder: Path, *extra: str) -> list[str]:
    return ["--labeled", str(folder / "labels.json"), "--output_dir", str(folder / "out"), *FLAGS, *extra]


def remove_picture(folder: Path) -> None:
    (folder / "2.png").unlink()


def break_all_pictures(folder: Path) -> None:
    for i in (1, 2, 3):
        (folder / f"{i}.png").write_bytes(b"no picture")


def use_unknown_category(folder: Path) -> None:
    write_labels(folder, annotations=[{"id": 8, "image_id": 1, "category_id": 5, "bbox": [10, 10, 30, 30]}])


def use_negative_size(folder: Path) -> None:
    write_labels(folder, annotations=[{"id": 8, "image_id": 1, "category_id": 3, "bbox": [10, 10, -30, 30]}])


def remove_boxes(folder: Path) -> None:
    write_labels(folder, annotations=[])


def remove_json(folder: Path) -> None:
    (folder / "labels.json").unlink()


def write_no_json(folder: Path) -> None:
    (folder / "labels.json").write_text("images: 3")


def write_broken_xml(folder: Path) -> None:
    (folder / "1.xml").write_text("<annotation><object>")


def change_nothing(_folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "extra", "culprits"),
    [
        (remove_picture, "", ["2.png", "missing"]),
        (break_all_pictures, "", ["1.png", "not a readable image"]),
        (use_unknown_category, "", ["labels.json", "annotation 8", "category_id=5"]),
        (use_negative_size, "", ["labels.json", "annotation 8", "[10, 10, -30, 30]", "negative"]),
        (remove_boxes, "", ["labels", "not one usable box"]),
        (remove_json, "", ["labels.json", "no such file"]),
        (write_no_json, "", ["labels.json", "not a json file"]),
        (change_nothing, "--unlabeled {folder}/empty", ["empty", "no image found"]),
        (change_nothing, "--unlabeled {folder}/nowhere", ["nowhere", "no such file or folder"]),
        (change_nothing, "--unlabeled {folder} --label_fraction 0.5", ["label_fraction=0.5", "unlabeled="]),
        (change_nothing, "--labeled {folder}", ["a bare folder has no boxes"]),
        (change_nothing, "--learning_rate -1", ["learning_rate=-1.0", "above 0"]),
        (change_nothing, "--config {folder}/nowhere.yaml", ["nowhere.yaml", "no such configuration file"]),
        (change_nothing, "--backbone resnet1234", ["backbone='resnet1234'", "no such model"]),
        (change_nothing, "--backbone_weights nowhere.pth --size small", ["nowhere.pth", "no such file"]),
        (change_nothing, "--backbone_weights imagenet", ["TimmBackbone", "--backbone_weights random"]),
        (change_nothing, "--init_from nowhere", ["init_from='nowhere'", "config.json"]),
        (change_nothing, "--trackers abacus", ["abacus"]),
        (change_nothing, "--consistency_copies 0", ["consistency_copies=0", "at least 1"]),
        (change_nothing, "--one_to_many_steps 2", ["one_to_many_steps=2", "num_steps=1"]),
        (change_nothing, "--evaluated_networks ema", ["evaluated_networks=['ema']", "student, teacher"]),
        (change_nothing, "--unlabeled {folder} --instruments", ["instruments=True", "label_fraction"]),
        (change_nothing, "--labeled {folder}/1.png", ["1.png", "COCO .json", "XML"]),
        (write_broken_xml, "--labeled {folder}", ["1.xml"]),
        (change_nothing, "--labeled {folder}/empty/train.txt", ["train.txt"]),
    ],
)
def test_one_line_names_the_culprit(main, folder: Path, capsys, damage, extra: str, culprits: list[str]) -> None:
    damage(folder)
    assert main(arguments(folder, *extra.format(folder=folder).split())) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train_ssod.py: error: ")
    for culprit in culprits:
        assert culprit in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("schedule: {ema_momentum: 2}", ["ema_momentum=2", "below 1"]),
        ("schedule: {ema_momentun: 0.9}", ["`schedule`", "ema_momentun"]),
        ("schedules: {ema_momentum: 0.9}", ["unknown schedules"]),
        ("matching: {one_to_many_assigner: hungarian}", ["one_to_many_assigner='hungarian'", "alignment"]),
        ("consistency: {consistency_weight: 1e1}", ["consistency_weight='1e1'", "1.0e-4"]),
        ("schedule: 3", ["run.yaml", "sections"]),
        ("[1, 2]", ["run.yaml", "sections"]),
        ("schedule: {", ["run.yaml", "not a YAML file"]),
    ],
)
def test_a_wrong_yaml_file_is_one_line_too(main, folder: Path, capsys, text: str, culprits: list[str]) -> None:
    (folder / "run.yaml").write_text(text)
    assert main(arguments(folder, "--config", str(folder / "run.yaml"))) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert all(culprit in line for culprit in culprits)


@pytest.mark.parametrize("extra", ["--learning_rate fast", "--learning_rat 0.1", "--size huge", "--method official"])
def test_bad_usage_is_status_two(main, folder: Path, capsys, extra: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(folder, *extra.split()))
    assert ended.value.code == 2
    assert extra.split()[0] in capsys.readouterr().err


def test_what_has_no_default_is_asked_for(main, capsys) -> None:
    assert main(["--output_dir", "out"]) == 1
    assert "`data` lacks labeled" in capsys.readouterr().err


def test_one_unreadable_picture_is_skipped_and_counted(main, folder: Path, capsys) -> None:
    (folder / "2.png").write_bytes(b"no picture")
    assert main(arguments(folder, "--num_steps", "3")) == 0
    # Two images a step, so every image is drawn in the first two of the three steps.
    assert "1 unreadable images skipped" in capsys.readouterr().out


def test_a_category_without_boxes_is_a_warning(main, folder: Path, capsys, caplog) -> None:
    write_labels(folder, categories=[*CATEGORIES, {"id": 9, "name": "cow"}])
    assert main(arguments(folder)) == 0
    assert any("cow" in record.message and record.levelname == "WARNING" for record in caplog.records)
    assert "Traceback" not in capsys.readouterr().err
