import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import configure, source_of

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.outcome import best_evaluations, gain_over_supervised, reasons_for_no_gain
from semidetr_hf.training.result import NetworkScore, RecipeResult
from semidetr_hf.training.setup import Sources


def write_log(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(step: int, **aps: float) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    for network, ap in aps.items():
        row |= {f"{network}/ap": ap, f"{network}/ap50": ap + 0.1, f"{network}/ap75": ap - 0.1}
    return row


def score(network: str, ap: float) -> NetworkScore:
    return NetworkScore(network=network, step=7, ap=ap, ap50=ap, ap75=ap)


@pytest.fixture
def sources(digits) -> Sources:
    return Sources(labeled=source_of(digits, 2), unlabeled=source_of(digits, 8), val=CocoSource(digits.val_json))


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    return configure(tmp_path, schedule={"num_steps": 30})


def test_the_best_evaluation_of_each_network(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        {"step": 5, "loss": 1.0},
        evaluation(10, student=0.3, teacher=0.2),
        evaluation(20, student=0.2, teacher=0.4),
        evaluation(30, student=0.3, teacher=0.4),
    )
    best = best_evaluations(tmp_path)
    # Of equal ones the first.
    assert best["student"] == NetworkScore(network="student", step=10, ap=0.3, ap50=0.4, ap75=pytest.approx(0.2))
    assert (best["teacher"].step, best["teacher"].ap) == (20, 0.4)
    write_log(tmp_path / "none", {"step": 5, "loss": 1.0})
    assert best_evaluations(tmp_path / "none") == {}


def test_the_gain_is_that_of_the_better_network() -> None:
    scores = {"supervised": score("student", 0.4), "student": score("student", 0.3), "teacher": score("teacher", 0.5)}
    assert gain_over_supervised(scores) == pytest.approx(0.1)
    assert gain_over_supervised({"supervised": score("student", 0.4)}) is None
    assert gain_over_supervised({"teacher": score("teacher", 0.4)}) is None


def test_reasons_are_those_that_the_log_shows(config: TrainingConfig, sources: Sources) -> None:
    write_log(
        Path(config.run.output_dir),
        evaluation(10, teacher=0.05),
        {"step": 10, "pseudo_labels": 3.0},
        {"step": 20, "event": "the AP of the teacher fell from 0.300 to 0.100; nothing is done about it"},
        {"step": 30, "pseudo_labels": 0.1},
        evaluation(30, teacher=0.3),
    )
    reasons = reasons_for_no_gain(config, sources)
    for beginning in (
        "the AP of the teacher fell from 0.300 to 0.100",
        "few pseudo-labels: 0.10 per image in the end",
        "the teacher was weak when it began to label images, AP 0.050",
        "the teacher was still becoming better at the end",
        "on 2 validation images",
        "the unlabeled images show other things",
    ):
        assert any(reason.startswith(beginning) for reason in reasons), beginning
    assert not any("only" in reason for reason in reasons)


def test_what_the_log_does_not_show_is_no_reason(config: TrainingConfig, sources: Sources) -> None:
    write_log(
        Path(config.run.output_dir),
        {"step": 10, "pseudo_labels": 3.0},
        evaluation(10, teacher=0.4),
        {"step": 30, "pseudo_labels": 3.0},
        evaluation(30, teacher=0.3),
    )
    reasons = reasons_for_no_gain(config, sources._replace(unlabeled=source_of_two(sources)))
    assert [reason.split(":")[0] for reason in reasons] == [
        "there are only 2 unlabeled images for 2 labeled ones",
        "on 2 validation images a small difference is chance",
        "the unlabeled images show other things than the labeled ones",
    ]


def source_of_two(sources: Sources) -> CocoSource:
    return sources.labeled.subset(sources.labeled.image_ids[:2])


def test_the_table_of_the_end() -> None:
    ended = {"run_folder": "out", "step": 9, "seconds": 61.2, "num_unreadable": 3}
    scores = {"supervised": score("teacher", 0.4), "student": score("student", 0.3), "teacher": score("teacher", 0.35)}
    result = RecipeResult(
        scores=scores, kept="supervised", best_folder="out/best", gain=-0.05, reasons=["of this", "of that"], **ended
    )
    lines = result.table().splitlines()
    assert lines[1].split() == ["supervised,", "teacher", "0.400", "0.400", "0.400", "7"]
    assert lines[4].split() == ["gain", "over", "supervised", "-0.050"]
    assert "kept: supervised, in out/best" in lines
    assert lines[-4:-1] == ["The unlabeled images did not help. It may be that:", "  - of this", "  - of that"]
    assert lines[-1] == "61 seconds, 3 unreadable images skipped"
    helped = RecipeResult(scores=scores, kept="teacher", best_folder="out/best", gain=0.05, **ended)
    assert "did not help" not in helped.table()
    assert result.to_dict()["scores"]["teacher"]["ap"] == 0.35
