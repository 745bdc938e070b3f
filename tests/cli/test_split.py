import json
from pathlib import Path

import pytest
from bad_inputs.folders import coco, voc

from semidetr_hf.cli import main
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.splits import labeled_subset, read_ids

Capture = pytest.CaptureFixture[str]


def test_a_coco_json_becomes_two_that_open(tmp_path: Path, capsys: Capture) -> None:
    labels, output = coco(tmp_path), tmp_path / "splits"
    fractions = ["--label-fraction", "0.34", "--label-fraction", "0.7"]
    assert main(["split", str(labels), *fractions, "--fold", "2", "--fold", "3", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        f"fold 2, 34 percent: --labeled {output}/labels.2@34.json --unlabeled {output}/labels.2@34-unlabeled.json"
    )
    kept, lost = labeled_subset(CocoSource(labels).image_ids, fraction=0.7, fold=3)
    assert len(kept) == 2
    for name, expected in (("labels.3@70.json", kept), ("labels.3@70-unlabeled.json", lost)):
        assert [image["id"] for image in json.loads((output / name).read_text())["images"]] == expected


def test_ids_of_other_formats_are_the_draw_of_training(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        voc(tmp_path / "photos", name=name)
    assert main(["split", str(tmp_path / "photos"), "--label-fraction", "0.5", "--output", str(tmp_path / "out")]) == 0
    kept, lost = labeled_subset(open_source(tmp_path / "photos").image_ids, fraction=0.5, fold=1)
    assert read_ids(tmp_path / "out" / "photos.1@50-labeled-ids.json") == kept
    assert read_ids(tmp_path / "out" / "photos.1@50-unlabeled-ids.json") == lost


def test_ids_of_a_coco_json_when_asked_for(tmp_path: Path) -> None:
    labels = coco(tmp_path)
    assert main(["split", str(labels), "--label-fraction", "0.4", "--ids", "--output", str(tmp_path / "out")]) == 0
    written = {path.name: read_ids(path) for path in (tmp_path / "out").iterdir()}
    assert sorted(map(len, written.values())) == [1, 2]
    assert set().union(*written.values()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label-fraction", "10"], "--label-fraction 10.0: must be above 0 and below 1 (10 percent is 0.1)"),
        (["--label-fraction", "0"], "--label-fraction 0.0: must be above 0"),
        (["--label-fraction", "0.5", "--label-fraction", "0.5"], "none twice"),
        (["--label-fraction", "0.5", "--fold", "-1"], "all must be 0 or larger"),
        ([], "Missing option '--label-fraction'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path: Path, capsys: Capture, flags: list[str], message: str) -> None:
    assert main(["split", str(coco(tmp_path)), *flags, "--output", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
