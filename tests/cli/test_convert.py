from pathlib import Path

import pytest
from trap_set import write_trap_set

from semidetr_hf.cli import main
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.voc import VocSource
from semidetr_hf.data.yolo import YoloSource

Capture = pytest.CaptureFixture[str]


def test_a_data_set_goes_from_one_format_to_the_next(tmp_path: Path, capsys: Capture) -> None:
    path = str(write_trap_set(tmp_path / "raw"))
    for to, kind in (("yolo", YoloSource), ("voc", VocSource)):
        assert main(["convert", path, str(tmp_path / to), "--to", to, "--split", "val"]) == 0
        out, _ = capsys.readouterr()
        first, *rest = out.splitlines()
        assert first.startswith("wrote 12 images with 33 boxes of 4 classes; --labeled ") and rest == []
        path = first.split("'")[1]
        source = open_source(path, part="val")
        assert isinstance(source, kind) and source.num_boxes == 33


def test_what_is_lost_is_told(tmp_path: Path, capsys: Capture) -> None:
    assert main(["convert", str(write_trap_set(tmp_path / "raw")), str(tmp_path / "voc"), "--to", "voc"]) == 0
    assert (
        main(["convert", str(tmp_path / "voc" / "ImageSets/Main/train.txt"), str(tmp_path / "c"), "--to", "coco"]) == 0
    )
    out, _ = capsys.readouterr()
    assert "\n  12 images have text for an id: they are numbered instead\n" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{raw}/labels.json", "{raw}", "--to", "yolo"], "raw: is there already; remove it, or give another output"),
        (
            ["{raw}/labels.json", "{raw}/new", "--to", "yolo", "--images", "keep"],
            "images='keep', to='yolo': only a COCO",
        ),
        (["{raw}/the images", "{raw}/new", "--to", "yolo"], "the images: a bare folder has no boxes; give a COCO"),
        (["{raw}/nothing.json", "{raw}/new", "--to", "yolo"], "nothing.json: no such file or folder; expected a COCO"),
        (["{raw}/labels.json", "{raw}/new", "--to", "csv"], "'csv' is not one of"),
        (["{raw}/labels.json", "{raw}/new"], "Missing option '--to'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: Capture, arguments: list[str], complaint: str) -> None:
    write_trap_set(tmp_path / "raw")
    assert main(["convert", *(argument.format(raw=tmp_path / "raw") for argument in arguments)]) == 2
    _, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("semidetr: error: ") and complaint in line
    assert not (tmp_path / "raw" / "new").exists()
