import json
import subprocess
import sys
from pathlib import Path

import pytest
from noise_sets import coco_content, write_noise, write_set

from semidetr_hf.cli import main
from semidetr_hf.data import picture_check
from semidetr_hf.data.digits import write_digits_dataset

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    content = coco_content()
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["bbox"] = [35, 5, 10, 8]
    return write_set(tmp_path / "labeled", content)


def test_the_embedded_digits_are_ready_to_train(tmp_path: Path, capsys: Capture) -> None:
    digits = write_digits_dataset(tmp_path / "digits", num_train=64, num_val=24, seed=0)
    unlabeled = write_noise(tmp_path / "more" / "a.png", 1).parent
    arguments = ["--labeled", digits.train_json, "--unlabeled", unlabeled, "--val", digits.val_json]
    assert main(["validate", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n\nready to train\n") and err == ""
    num_boxes = str(len(json.loads(digits.train_json.read_text())["annotations"]))
    assert out.splitlines()[1].split() == ["labeled", "64", "64", num_boxes, "10", str(digits.train_json)]


def test_errors_give_status_1_and_a_report_of_everything(broken: Path, tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "new" / "report.json"
    assert main(["validate", "--labeled", str(broken), "--json", str(report), "--workers", "2"]) == 1
    out, _ = capsys.readouterr()
    assert "error: unknown_category in labeled" in out and "annotation 1 has category_id=99" in out
    assert "1 error, 1 warning: correct the files or run with --fix" in out
    content = json.loads(report.read_text())
    assert [problem["kind"] for problem in content["problems"]] == ["unknown_category", "sticks_out"]
    assert [file.name for file in report.parent.iterdir()] == ["report.json"]
    assert not (broken.parent / "labels.cleaned.json").exists()


def test_warnings_give_status_0(tmp_path: Path, capsys: Capture) -> None:
    content = coco_content()
    content["annotations"][1]["bbox"] = [35, 5, 10, 8]
    assert main(["validate", "--labeled", str(write_set(tmp_path / "a", content))]) == 0
    assert capsys.readouterr().out.endswith("ready to train, 1 warning\n")


def test_fix_writes_a_file_that_passes_and_says_what_it_did(broken: Path, tmp_path: Path, capsys: Capture) -> None:
    write_noise(tmp_path / "more" / "1.png", 9)
    (tmp_path / "more" / "2.png").write_bytes(b"broken")
    arguments = ["--unlabeled", str(tmp_path / "more"), "--val", str(write_set(tmp_path / "val", seed=1))]
    assert main(["validate", "--labeled", str(broken), *arguments, "--fix"]) == 1
    cleaned = broken.parent / "labels.cleaned.json"
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index(f"wrote {cleaned}; check it again, as it is to be used") :][1:] == [
        "  clipped boxes: 1 (1 sticks_out)",
        "  dropped annotations: 1 (1 unknown_category)",
        f"{tmp_path / 'more'}: only reported, since --fix cleans COCO json files alone",
    ]
    assert main(["validate", "--labeled", str(cleaned), *arguments]) == 0
    assert "ready to train, 1 warning" in capsys.readouterr().out
    assert main(["validate", "--labeled", str(cleaned), "--fix"]) == 0
    assert capsys.readouterr().out.endswith("ready to train\n\nnothing to clean\n")


def test_fix_says_when_it_cannot_or_when_metrics_change(broken: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["validate", "--labeled", str(write_set(tmp_path / "a")), "--val", str(broken), "--fix"]) == 1
    assert "metrics on it cannot be compared with those on the original" in capsys.readouterr().out
    content = coco_content()
    content["categories"].append({"id": 3, "name": "emu"})
    path = write_set(tmp_path / "b", content)
    assert main(["validate", "--labeled", str(path), "--fix"]) == 1
    out = capsys.readouterr().out
    assert f"{path}: no cleaned file, since --fix cannot mend it: 1 duplicate_category_id" in out
    assert "1 error: correct the files, --fix cannot\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate"], "Missing option '--labeled'"),
        (["validate", "--labeled"], "--labeled"),
        (["validate", "--labeled", "L", "--lab", "x"], "No such option: --lab"),
        (["validate", "--labeled", "L", "--workers", "0"], "workers=0: must be 1 or more"),
        (["validate", "--labeled", "L", "--workers", "many"], "'--workers'"),
        (["validate", "--labeled", "nowhere.json"], "nowhere.json: no such file or folder; expected a COCO .json"),
        (["validate", "--labeled", "L", "--val", "nowhere"], "nowhere: no such file or folder"),
        (["validate", "--labeled", "L", "--val", "nowhere.txt"], "nowhere.txt: no such file; a VOC image set"),
        (["validate", "--labeled", "L", "--labeled-images", "nowhere"], "nowhere: no such folder; labeled_images"),
        (["validate", "--labeled", "L", "--unlabeled-images", "."], "unlabeled_images='.' is of no use"),
        (["validate", "--labeled", "FOLDER"], "a bare folder has no boxes"),
        (["validate", "--labeled", "L", "--json", "L"], "is one of the data files"),
        (["validate", "--labeled", "L", "--json", "FOLDER"], "is a folder; give --json the name of a file"),
        (["validate", "--labeled", "FOREIGN", "--fix"], "x.cleaned.json: exists and was not written by --fix"),
    ],
)
def test_wrong_use_gives_status_2_and_one_line(
    tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    labels = write_set(tmp_path / "a")
    write_noise(tmp_path / "folder" / "1.png", 1)
    (tmp_path / "a" / "x.cleaned.json").write_text("{}")
    (tmp_path / "a" / "x.json").write_text(labels.read_text())
    before = labels.read_bytes()
    names = {"L": labels, "FOLDER": tmp_path / "folder", "FOREIGN": tmp_path / "a" / "x.json"}
    assert main([str(names.get(argument, argument)) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("semidetr: error: ") and message in err
    assert labels.read_bytes() == before


def test_an_interrupted_check_ends_quietly(broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picture_check, "load_image", interrupt)
    assert main(["validate", "--labeled", str(broken)]) == 130
    assert capsys.readouterr() == ("", "")


def test_help_lists_the_flags(capsys: Capture) -> None:
    assert main(["validate", "--help"]) == 0
    out = capsys.readouterr().out
    flags = ("--labeled", "--labeled-images", "--unlabeled", "--val-images", "--json", "--fix", "--workers")
    assert all(flag in out for flag in flags)


def test_the_status_reaches_the_shell(broken: Path) -> None:
    command = [sys.executable, "-m", "semidetr_hf.cli", "validate", "--labeled", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "unknown_category" in done.stdout
    assert done.stderr == ""
