"""What is read from the folder of a run for the page of its detector."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import LOG, run_config, write_run
from small_runs import configure, source_of

from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training.config import DataConfig, TrainingConfig
from semidetr_hf.training.run_facts import DATA_FILE, command, read_facts, record_data


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    return write_digits_dataset(tmp_path_factory.mktemp("digits"), num_train=4, num_val=2, image_size=64)


@pytest.fixture
def config(digits: DigitsPaths, tmp_path: Path) -> TrainingConfig:
    config = run_config(tmp_path / "out", digits, run={"seed": 3})
    write_run(config, networks=())
    return config


def test_scores_counts_steps_time_and_seed_are_those_of_the_run(config: TrainingConfig, digits: DigitsPaths) -> None:
    output = Path(config.run.output_dir)
    labeled = source_of(digits, 3)
    record_data(output, config.data, {"labeled": labeled, "unlabeled": source_of(digits, 1), "val": None})
    facts = read_facts(output / "best")
    assert facts is not None
    assert (facts.network, facts.seed, facts.label_fraction, facts.fold) == ("teacher", 3, 0.5, config.data.fold)
    assert {name: (score["ap"], score["step"]) for name, score in facts.scores.items()} == {
        "student": (0.2, 6),
        "teacher": (0.3, 6),
    }
    assert facts.num_images == {"labeled": 3, "unlabeled": 1}
    assert (facts.steps, facts.seconds, facts.val, facts.data) == (6, 60.0, None, labeled.name)
    assert (facts.data_id, facts.base_model) == (None, None)


def test_what_result_json_kept_is_in_best(config: TrainingConfig) -> None:
    output = Path(config.run.output_dir)
    (output / "result.json").write_text(json.dumps({"kept": "supervised"}))
    baseline = replace(config, run=replace(config.run, output_dir=str(output / "supervised")))
    write_run(baseline, [row for row in LOG if "student/ap" not in row] + [LOG[1] | {"teacher/ap": 0.9}], networks=())
    facts = read_facts(output / "best")
    assert facts is not None
    assert facts.network == "supervised"
    assert [*facts.scores] == ["supervised", "student", "teacher"]
    assert facts.scores["supervised"]["ap"] == 0.9


def test_a_network_that_is_no_best_has_the_score_of_its_last_evaluation(config: TrainingConfig) -> None:
    output = Path(config.run.output_dir)
    later = LOG[-1] | {"step": 8, "student/ap": 0.15}
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(later) + "\n")
    facts = read_facts(output / "student")
    assert facts is not None
    assert (facts.network, facts.scores["student"]["ap"], facts.scores["student"]["step"]) == ("student", 0.15, 8)
    best = read_facts(output / "best")
    assert best is not None
    assert best.scores["student"]["ap"] == 0.2


def test_other_folders_have_no_facts_and_broken_files_are_named(config: TrainingConfig, tmp_path: Path) -> None:
    assert read_facts(tmp_path / "anything") is None
    broken = Path(config.run.output_dir) / DATA_FILE
    broken.write_text("[1")
    with pytest.raises(ValueError, match=r"data\.json: not the JSON that a run writes"):
        read_facts(broken.parent / "best")


def test_ids_of_the_hub_are_told_and_paths_are_not(tmp_path: Path, digits: DigitsPaths, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "data").mkdir()
    for labeled, expected in (("me/scenes:train", "me/scenes"), ("my/data", None), (str(digits.train_json), None)):
        record_data(tmp_path, DataConfig(labeled=labeled), {"labeled": source_of(digits, 1)})
        assert json.loads((tmp_path / DATA_FILE).read_text())["labeled"].get("id") == expected


def test_the_command_makes_the_run_again_and_tells_no_absolute_path(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "data": {"labeled": "/home/me/secret/my train.json", "unlabeled": "photos/new"},
        "run": {"seed": 3, "push_to_hub": True, "trackers": ["tensorboard"]},
    }
    text = command(configure(tmp_path, **parts))
    flags = text.replace(" \\\n  ", "\n").splitlines()
    assert flags[0] == "semidetr train"
    assert {"--labeled 'my train.json'", "--unlabeled photos/new", "--seed 3", "--short_edges 64"} <= set(flags)
    assert flags[-1] == "--output_dir runs/mine"
    for absent in ("secret", str(tmp_path), "push_to_hub", "tensorboard", "--cpu"):
        assert absent not in text


def test_a_detector_from_the_cache_of_the_hub_is_the_base_model(config: TrainingConfig) -> None:
    output = Path(config.run.output_dir)
    cached = "/home/me/.cache/huggingface/hub/models--owner--some-name/snapshots/0123abc"
    replace(config, model=replace(config.model, init_from=cached)).save(output / "config.yaml")
    facts = read_facts(output / "best")
    assert facts is not None
    assert facts.base_model == "owner/some-name"
    assert "/home/me" not in facts.command
