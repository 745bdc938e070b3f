import json
import re
from pathlib import Path
from typing import Any

import pytest

from semidetr_hf.batch_inference.journal import Journal, Totals

SETTINGS = {"detector": "d1", "threshold": 0.3}


def record(name: str, detections: int = 1, unreadable: tuple[str, ...] = ()) -> dict[str, Any]:
    image = {"image_id": name, "file_name": name, "width": 8, "height": 6}
    found = [{"category_id": 1, "bbox": [0.0, 0.0, 4.0, 3.0], "score": 0.5}] * detections
    return {"images": [{**image, "detections": found}], "unreadable": list(unreadable)}


def written(path: Path, *records: dict[str, Any]) -> Path:
    with Journal(path, SETTINGS, resume=False) as journal:
        for each in records:
            journal.add(each)
    return path


def test_a_journal_goes_on_behind_its_last_record(tmp_path: Path) -> None:
    path = written(tmp_path / "out" / "j.jsonl", record("a", 2, ("b: broken",)))
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.totals == Totals(batches=1, images=1, unreadable=1, detections=2)
        journal.add(record("c"))
        assert journal.totals == Totals(batches=2, images=2, unreadable=1, detections=3)
        assert list(journal.records()) == [record("a", 2, ("b: broken",)), record("c")]


@pytest.mark.parametrize("torn", [b'{"images": [', b"\0\0\0\n", b'{"images": [], "unreadable": []}'])
def test_what_follows_the_last_whole_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = written(tmp_path / "j.jsonl", record("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.totals.batches == 1
        assert path.read_bytes() == whole
        journal.add(record("b"))
        assert list(journal.records()) == [record("a"), record("b")]


@pytest.mark.parametrize("torn", [b"", b'{"settin'])
def test_a_journal_whose_first_line_is_torn_begins_again(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "j.jsonl").write_bytes(torn)
    with Journal(tmp_path / "j.jsonl", SETTINGS, resume=True) as journal:
        assert journal.totals == Totals(0, 0, 0, 0)
        assert list(journal.records()) == []
        assert json.loads((tmp_path / "j.jsonl").read_text()) == {"settings": SETTINGS}
    assert not (tmp_path / "j.jsonl").exists()  # nothing was added


def test_a_journal_that_is_closed_keeps_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with pytest.raises(KeyboardInterrupt), Journal(path, SETTINGS, resume=True) as journal:
        journal.add(record("a"))
        raise KeyboardInterrupt
    assert len(path.read_text().splitlines()) == 2


def test_every_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, SETTINGS, resume=False) as journal:
        journal.add(record("a"))
        assert len(path.read_text().splitlines()) == 2


def test_an_interrupted_run_is_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", record("a"))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="go on with --resume, or delete this file"):
        Journal(path, SETTINGS, resume=False)
    assert path.read_bytes() == before


def test_other_settings_are_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", record("a"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape("had another threshold (0.3, now 0.5); go on with the same")):
        Journal(path, SETTINGS | {"threshold": 0.5}, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["[1]\n", '{"step": 3}\n', '{"settings": 3}\n'])
def test_another_file_of_its_name_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "j.jsonl").write_text(content)
    with pytest.raises(ValueError, match="not written by a run like this"):
        Journal(tmp_path / "j.jsonl", SETTINGS, resume=True)
    assert (tmp_path / "j.jsonl").read_text() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/j\.jsonl: cannot be written \(.*\); make room, or give another folder"):
        Journal(tmp_path / "file" / "j.jsonl", SETTINGS, resume=False)
