import json
from pathlib import Path

import pytest
from run_folders import run_config, write_run

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report.headline import costs, headline, machine
from semidetr_hf.report.run_folder import read_run

SUPERVISED = [{"step": 4, "student/ap": 0.25, "student/ap50": 0.5, "student/ap75": 0.2}]
RESULT = {
    "scores": {
        "supervised": {"network": "teacher", "step": 6, "ap": 0.4, "ap50": 0.6, "ap75": 0.3},
        "teacher": {"network": "teacher", "step": 6, "ap": 0.3, "ap50": 0.5, "ap75": 0.2},
    },
    "kept": "supervised",
    "gain": -0.1,
    "reasons": ["few pseudo-labels"],
}


@pytest.fixture
def folder(tmp_path: Path, digits: DigitsPaths) -> Path:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    (folder / "best").mkdir()
    (folder / "best" / "config.json").touch()  # nobody opens it
    return folder


def test_the_best_evaluations_are_compared(folder: Path, digits: DigitsPaths) -> None:
    write_run(run_config(folder / "supervised", digits), SUPERVISED, networks=())
    found = headline(read_run(folder))
    assert {name: (score.ap, score.step) for name, score in found.scores.items()} == {
        "supervised": (0.25, 4),
        "student": (0.2, 6),
        "teacher": (0.3, 6),
    }
    assert found.kept == "teacher" and found.gain == pytest.approx(0.05)


def test_without_a_supervised_run_there_is_no_gain(folder: Path) -> None:
    found = headline(read_run(folder))
    assert found.gain is None and list(found.scores) == ["student", "teacher"]


def test_what_the_training_says_it_kept_counts(folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(RESULT))
    found = headline(read_run(folder))
    assert found.kept == "supervised" and found.gain == -0.1 and found.reasons == ["few pseudo-labels"]
    assert found.scores["supervised"].network == "teacher"


@pytest.mark.parametrize("content", [{"table": {}}, {**RESULT, "scores": {"student": {"ap": 1}}}, {"scores": 3}])
def test_a_result_of_something_else_is_named(folder: Path, content: dict) -> None:
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result\.json: not the result of a training.*move it away"):
        headline(read_run(folder))


def test_time_and_memory_are_those_of_the_run(folder: Path) -> None:
    run = read_run(folder)
    assert dict(costs(run)) == {
        "time": "0:01:00",
        "time per step": "0.5 s (median)",
        "waiting for images": "10% of the time (median)",
        "memory of the process": "at most 906 MB when logged",
    }
    (folder / "resources.jsonl").unlink()
    assert costs(read_run(folder)) == []


def test_versions_and_hardware_are_told() -> None:
    found = dict(machine())
    assert found["torch"].count(".") >= 2 and found["processor"].endswith("cores") and found["GPU"]
