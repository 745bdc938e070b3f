import json
from pathlib import Path

import pytest
from labeled_images import save_lively_detector
from PIL import Image

from semidetr_hf.cli import main
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.data.sources import open_source

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively_detector(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((64, 64), 30 + 30 * number).convert("RGB").save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def test_a_folder_of_photos_becomes_labels_to_review(photos, lively, tmp_path, capsys: Capture) -> None:
    output = tmp_path / "review"
    arguments = ["--model", str(lively), "--output", str(output), "--threshold", "0.6", "--cpu"]
    formats = ["--format", "coco", "--format", "yolo", "--format", "label-studio", "--sheet", "1"]
    assert main(["--quiet", "label", str(photos), *arguments, *formats]) == 0
    out, err = capsys.readouterr()
    source = open_source(output / "labels.json")
    assert len(source) == 3 and source.num_boxes > 0
    assert out.splitlines()[-1] == f"{source.num_boxes} labels on 3 images; 1 unreadable; in {output}"
    assert "cannot be read: " in out and "image/s" not in err
    assert sorted(path.name for path in output.iterdir()) == [
        "label_studio.json",
        "label_studio_setup.xml",
        "labels.json",
        "most_uncertain.png",
        "ranking.csv",
        "review.json",
        "yolo",
    ]


def test_thresholds_for_a_precision(photos, lively, tmp_path, capsys: Capture) -> None:
    digits = write_digits_dataset(tmp_path / "digits", num_train=4, num_val=4, image_size=64)
    arguments = ["--model", str(lively), "--output", str(tmp_path / "review"), "--top", "1", "--sheet", "0", "--cpu"]
    wanted = ["--precision", "0.9", "--calibrate-on", str(digits.val_json)]
    assert main(["label", str(photos), *arguments, *wanted]) == 0
    out, err = capsys.readouterr()
    assert "1 images, the most uncertain of 3" in out and "calibrate" in err
    assert json.loads((tmp_path / "review" / "review.json").read_text())["calibration"]["precision"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "0.9"], "--precision and --calibrate-on need each other"),
        (["--calibrate-on", "val.json"], "--precision and --calibrate-on need each other"),
        (["--precision", "0.9", "--threshold", "0.5", "--calibrate-on", "x"], "--threshold contradicts --precision"),
        (["--format", "voc"], "formats=['voc']: give one or more of coco, yolo, label-studio"),
        (["--precision", "2", "--calibrate-on", "x"], "precision=2.0: must be above 0 and below 1"),
        (["--threshold", "0.01"], "threshold=0.01: must be from min_score=0.05 to 1"),
        (["--output", "taken"], "taken: exists and is no empty folder"),
        ([], "no folder with the config.json of a saved detector"),
    ],
)
def test_wrong_arguments_are_one_line(photos, tmp_path, capsys: Capture, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    given = ["--model", str(tmp_path / "no detector"), "--output", str(tmp_path / "review"), *arguments]
    assert main(["label", str(photos), *given]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("semidetr: error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "review").exists()
