import json
from pathlib import Path

import pytest
from bad_inputs.folders import coco, detector, voc2007

from semidetr_hf.cli import main

Capture = pytest.CaptureFixture[str]


def test_the_numbers_are_shown_and_written(tmp_path: Path, capsys: Capture) -> None:
    labels, model, numbers = coco(tmp_path), detector(tmp_path), tmp_path / "new" / "scores.json"
    capsys.readouterr()  # of writing the detector
    assert main(["-q", "eval", str(labels), "--model", str(model), "--cpu", "--json", str(numbers)]) == 0
    out, err = capsys.readouterr()
    written = json.loads(numbers.read_text())
    assert f"ap50 {written['ap50']:.4f}".split() in [line.split() for line in out.splitlines()]
    assert set(written["per_class"]) == {"cat", "dog"}
    assert str(numbers) in out
    # No bar, no warning.
    assert err == ""


def test_boxes_of_voc_are_read_as_asked_for(tmp_path: Path, capsys: Capture) -> None:
    model, data = detector(tmp_path), voc2007(tmp_path / "VOC2007")
    for corners in ("released", "auto"):
        assert main(["eval", str(data), "--model", str(model), "--cpu", "--voc-corners", corners]) == 0
        assert "VOC2007" in capsys.readouterr().out
    assert main(["eval", str(data), "--model", str(model), "--cpu", "--voc-corners", "rounded"]) == 2
    assert "'--voc-corners'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json", "--model", "MODEL"], "nowhere.json: no such file or folder"),
        (["LABELS", "--model", "nowhere"], "--model='nowhere': no folder with the config.json"),
        (["LABELS", "--model", "MODEL", "--json", "FOLDER"], "a folder; give the name of a file"),
        (["FOLDER", "--model", "MODEL"], "a bare folder has no boxes"),
        (["LABELS", "--model", "MODEL", "--batch-size", "0"], "'--batch-size'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (tmp_path / "pictures").mkdir()
    labels = coco(tmp_path / "pictures")
    names = {"LABELS": labels, "FOLDER": labels.parent, "MODEL": detector(tmp_path)}
    assert main(["eval", *(str(names.get(argument, argument)) for argument in arguments), "--cpu"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
