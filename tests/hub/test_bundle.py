"""What is put together for the Hub."""

import json
import shutil
from pathlib import Path

import pytest

from semidetr_hf.hub import TrainingFacts, write_bundle


def test_detector_code_card_results_and_handler_are_put_together(
    detector_folder: Path, run_folder: Path, tmp_path: Path, facts: TrainingFacts
) -> None:
    curves, example = tmp_path / "any.png", tmp_path / "a.png"
    curves.write_bytes(b"curves")
    example.write_bytes(b"example")
    folder = tmp_path / "bundle"
    files = write_bundle(
        detector_folder,
        folder,
        "me/detector",
        facts=facts,
        log=run_folder / "log.jsonl",
        curves=curves,
        examples=[example],
    )
    assert files == sorted(path for path in folder.rglob("*") if path.is_file())
    assert (folder / "examples" / "a.png").read_bytes() == b"example"
    assert (folder / "training_curves.png").read_bytes() == b"curves"
    assert (folder / "log.jsonl").read_bytes() == (run_folder / "log.jsonl").read_bytes()
    assert json.loads((folder / "eval_results.json").read_text())["scores"]["teacher"]["ap"] == 0.352349
    assert "](training_curves.png)" in (folder / "README.md").read_text()
    assert {path.name for path in detector_folder.iterdir()} <= {path.name for path in files}
    assert {"handler.py", "requirements.txt", "modeling_semidetr.py"} <= {path.name for path in files}


def test_a_bundle_can_be_made_of_a_bundle_and_keeps_a_card_written_by_hand(
    detector_folder: Path, tmp_path: Path, facts: TrainingFacts
) -> None:
    first = write_bundle(detector_folder, tmp_path / "first", "me/detector", facts=facts)
    (tmp_path / "first" / "README.md").write_text("by hand")
    second = write_bundle(tmp_path / "first", tmp_path / "second", "me/detector")
    assert [path.name for path in second] == [path.name for path in first]
    assert (tmp_path / "second" / "README.md").read_text() == "by hand"


def test_examples_of_one_name_and_missing_ones_are_refused(detector_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"two examples are called x\.png"):
        write_bundle(
            detector_folder, tmp_path / "out", "x", examples=[tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
        )
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such example picture"):
        write_bundle(detector_folder, tmp_path / "out", "x", examples=[tmp_path / "none.png"])


def test_paths_of_the_machine_stay_at_home(detector_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(detector_folder, tmp_path / "best")
    (tmp_path / "best" / "training_args.bin").write_bytes(b"/home/me")
    for path in write_bundle(tmp_path / "best", tmp_path / "out", "me/detector", log=run_folder / "log.jsonl"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert path.name != "training_args.bin"
