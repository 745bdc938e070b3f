import json
import re
from pathlib import Path

import pytest
from bad_inputs.folders import coco, detector
from PIL import Image

from semidetr_hf.cli import main

Capture = pytest.CaptureFixture[str]


def test_pictures_and_detections_are_written(tmp_path: Path, capsys: Capture) -> None:
    model, output = detector(tmp_path), tmp_path / "found"
    coco(tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    flags = [
        "--model",
        str(model),
        "--output",
        str(output),
        "--threshold",
        "0",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    capsys.readouterr()  # what saving the detector showed
    assert main(["-q", "predict", str(tmp_path / "pictures"), *flags]) == 0
    out, err = capsys.readouterr()
    detections = json.loads((output / "predictions.json").read_text())
    rate = r"[0-9]+\.[0-9] images per second"
    expected = rf"{len(detections)} detections on 3 images, 1 unreadable, {rate}; in {re.escape(str(output))}\n"
    assert re.fullmatch(expected, out)
    # What is wrong is told also when asked to be quiet.
    [line] = err.splitlines()
    assert line.startswith("skipped: ") and "broken.jpg" in line
    assert {found["category_id"] for found in detections} <= {3, 7}
    assert sorted(path.name for path in output.iterdir()) == [
        "1.png.png",
        "2.png.png",
        "3.png.png",
        "predictions.json",
        "unreadable.txt",
    ]
    assert "broken.jpg: not a readable image" in (output / "unreadable.txt").read_text()


def test_without_pictures(tmp_path: Path) -> None:
    model, output = detector(tmp_path), tmp_path / "found"
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    flags = ["--model", str(model), "--output", str(output), "--no-draw", "--device", "cpu", "--threshold", "1"]
    assert main(["predict", str(tmp_path / "black.png"), *flags]) == 0
    assert [path.name for path in output.iterdir()] == ["predictions.json"]
    assert json.loads((output / "predictions.json").read_text()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["no*.jpg"], "no*.jpg: no file fits this pattern"),
        (["PICTURE", "--threshold", "2"], "'--threshold'"),
        (["PICTURE", "--device", "abacus"], "'abacus' cannot be used as a device"),
        (["PICTURE", "--output", "PICTURE"], "1.png: a file; give a folder"),
        ([], "Missing argument 'IMAGES'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    picture = coco(tmp_path).with_name("1.png")
    given = [str(picture) if argument == "PICTURE" else argument for argument in arguments]
    flags = ["--model", str(detector(tmp_path)), "--device", "cpu", "--output", str(tmp_path / "found")]
    assert main(["predict", *flags, *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "found").exists()
