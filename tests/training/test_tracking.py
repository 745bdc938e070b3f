"""What trackers are told, by one that writes down what it is told; and by the real ones that are installed."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from small_runs import ANYTHING, build, configure, source_of

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training import tracking
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.tracking import FOLDER, PICTURE, require_trackers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Recording(GeneralTracker):
    """Takes the place of wandb and keeps what it is told, over all sessions."""

    name = "wandb"
    requires_logging_directory = False
    told: list[tuple[str, Any]]

    def __init__(self, project: str, **options: Any) -> None:
        self.told.append(("options", (project, options)))
        self.run = SimpleNamespace(id=options.get("id", "run 1"))

    @property
    def tracker(self) -> Any:
        return self.run

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_options: Any) -> None:
        self.told.append(("numbers", (step, values)))

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.told.append(("pictures", (step, values)))

    def finish(self) -> None:
        self.told.append(("finish", None))


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, Any]]:
    """What trackers called wandb are told."""
    monkeypatch.setattr(Recording, "told", [], raising=False)
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recording)
    for module in (accelerate_tracking, tracking):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.WANDB])
    return Recording.told


def of_kind(told: list[tuple[str, Any]], kind: str) -> list[Any]:
    return [content for other, content in told if other == kind]


def run_with(folder: Path, *, num_steps: int = 4, trackers: tuple[str, ...] = ("wandb",)) -> TrainingConfig:
    return configure(
        folder,
        schedule={"num_steps": num_steps, "one_to_many_steps": 2},
        pseudo_labels=ANYTHING,
        run={"eval_every": 2, "trackers": list(trackers), "resume": "auto"},
    )


def train(config: TrainingConfig, digits: Any) -> None:
    sources = {"labeled": source_of(digits, 2), "unlabeled": source_of(digits, 4)}
    build(config, **sources, val=CocoSource(digits.val_json)).train()


def test_numbers_pictures_and_settings_of_a_run_that_went_on(digits, tmp_path, told) -> None:
    train(run_with(tmp_path), digits)
    train(run_with(tmp_path, num_steps=6), digits)
    (project, first), (_, second) = of_kind(told, "options")
    assert project == "semidetr"
    assert "id" not in first
    assert second["id"] == "run 1"
    assert second["resume"] == "allow"
    assert Path(first["dir"]) == tmp_path / "out" / FOLDER
    assert [kind for kind, _ in told].count("finish") == 2
    # Once, although the number of steps has changed; some trackers refuse to change what they were told.
    [settings] = of_kind(told, "settings")
    assert settings["schedule.num_steps"] == 4
    assert {type(value) for value in settings.values()} <= {int, float, str, bool}
    assert settings["run.resume"] == "None"
    assert [step for step, values in of_kind(told, "numbers") if "teacher/ap" in values] == [2, 4, 6]
    assert [step for step, values in of_kind(told, "numbers") if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in of_kind(told, "pictures")] == [2, 4, 6]
    [picture] = of_kind(told, "pictures")[0][1][PICTURE]
    assert picture.width > 512  # two views beside each other


def test_a_run_that_begins_anew_is_a_new_one_for_the_tracker(digits, tmp_path, told) -> None:
    for _ in range(2):
        config = run_with(tmp_path, num_steps=2)
        train(replace(config, run=replace(config.run, resume=None, overwrite=True)), digits)
    assert ["id" in options for _, options in of_kind(told, "options")] == [False, False]
    assert len(of_kind(told, "settings")) == 2


def test_a_tracker_that_joins_later_is_told_the_settings(digits, tmp_path, told) -> None:
    train(run_with(tmp_path, num_steps=2, trackers=()), digits)
    assert not (tmp_path / "out" / FOLDER).exists()
    train(run_with(tmp_path, num_steps=4), digits)
    assert len(of_kind(told, "settings")) == 1
    assert json.loads((tmp_path / "out" / FOLDER / "runs.json").read_text()) == {"wandb": "run 1"}


def test_no_pictures_are_kept_for_trackers_that_take_none(digits, tmp_path, told, monkeypatch) -> None:
    monkeypatch.delitem(tracking.TAKE_PICTURES, "wandb")
    trainer = build(run_with(tmp_path), labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    assert trainer.records.pictures is None
    assert list(trainer.make_step.observers) == []


def test_on_other_processes_nothing_is_kept_or_written(tmp_path, told) -> None:
    accelerator: Any = SimpleNamespace(
        is_main_process=False, log_with=["wandb"], trackers=[], init_trackers=lambda *_arguments, **_options: None
    )
    tracking.start_trackers(accelerator, tmp_path / "out", {"a": 1}, 0)
    assert not (tmp_path / "out").exists()
    assert told == []


def test_unknown_and_missing_trackers_are_named_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    require_trackers(["tensorboard"])
    require_trackers([])
    with pytest.raises(ValueError, match=r"trackers=\['mlflow'\]: mlflow is not installed; pip install mlflow$"):
        require_trackers(["mlflow"])
    with pytest.raises(ValueError, match=r"'abacus' is unknown; choose among aim, clearml, comet_ml, dvclive, mlflow"):
        require_trackers(["tensorboard", "abacus"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "needs"),
    [
        ("tensorboard", "tensorboard"),
        ("wandb", "wandb"),
        ("trackio", "trackio"),
        ("mlflow", "sqlalchemy"),  # without which it has no store of its own
    ],
)
def test_real_trackers_hold_one_run_with_numbers_pictures_and_settings(
    tracker: str, needs: str, digits, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read by the import
    pytest.importorskip(tracker)
    pytest.importorskip(needs)
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    for num_steps in (4, 6):
        train(run_with(tmp_path, num_steps=num_steps, trackers=(tracker,)), digits)
    found = importlib.import_module("trackers").READERS[tracker](tmp_path / "out" / FOLDER)
    assert found.runs == 1
    assert [step for step, _ in found.scalars["teacher/ap"]] == [2, 4, 6]
    assert [step for step, _ in found.scalars["loss"]] == [1, 2, 3, 4, 5, 6]
    assert found.picture_steps == [2, 4, 6]
    assert {"schedule.num_steps", "optimizer.learning_rate", "run.seed"} <= found.settings
