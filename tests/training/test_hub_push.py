"""Uploads beside a training: when they begin, what they hold, and that nothing about them stops a run."""

import logging
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub.hub_server import CUT, TOKEN, Hub, as_the_hub
from run_folders import run_config, write_run
from small_runs import build, configure, forget_accelerator, source_of

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.evaluation import DetectionMetrics
from semidetr_hf.training.hub_push import HubPush
from semidetr_hf.training.networks import BestNetwork

NAME = "me/digits"


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    with as_the_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    return write_digits_dataset(tmp_path_factory.mktemp("digits"), num_train=4, num_val=2, image_size=64)


@pytest.fixture
def config(digits: DigitsPaths, tmp_path: Path) -> TrainingConfig:
    """That of a run whose folder is there."""
    config = run_config(tmp_path / "out", digits, run={"push_to_hub": True, "hub_model_id": NAME})
    write_run(config)
    return config


@pytest.fixture
def without_curves(monkeypatch) -> None:
    """Drawing them takes longer than all the rest."""
    monkeypatch.setattr("semidetr_hf.training.hub_push._draw_curves", lambda *_paths: None)


def uploads(config: TrainingConfig, *, main: bool = True) -> HubPush:
    accelerator: Any = SimpleNamespace(is_main_process=main)
    return HubPush(config, accelerator)


def best(step: int) -> BestNetwork:
    """An evaluation that is the better the later it is."""
    values: dict[str, Any] = {
        field.name: {} if field.name.startswith("per_class") else step / 100 for field in fields(DetectionMetrics)
    }
    return BestNetwork(DetectionMetrics(**values), "teacher", step)


def finish(push: HubPush) -> None:
    assert push._upload.wait(60)


def messages(hub: Hub) -> list[str]:
    return [commit["message"] for commit in hub.repositories[NAME].commits]


def test_every_new_best_is_uploaded_and_the_end_once_more(hub: Hub, config: TrainingConfig) -> None:
    push, output = uploads(config), Path(config.run.output_dir)
    for step, changed in ((2, True), (2, False), (4, True)):
        if changed:
            (output / "best" / "model.safetensors").write_bytes(f"weights of step {step}".encode())
        push.after_evaluation(best(step))
        finish(push)
    (output / "log.jsonl").write_text((output / "log.jsonl").read_text() + '{"step": 6, "loss": 1.0}\n')
    push.end(is_last=True)
    assert messages(hub) == ["Step 2: teacher, AP 0.020", "Step 4: teacher, AP 0.040", "End of the training"]
    files = hub.repositories[NAME].files
    assert files["model.safetensors"] == b"weights of step 4"
    assert files["log.jsonl"] == (output / "log.jsonl").read_bytes()
    assert {"README.md", "training_curves.png", "eval_results.json", "modeling_semidetr.py"} <= files.keys()
    assert files["training_curves.png"].startswith(b"\x89PNG")
    assert "semidetr train" in files["README.md"].decode()
    assert [path for path in output.iterdir() if path.name.startswith(".push")] == []


@pytest.mark.usefixtures("without_curves")
def test_a_slow_hub_holds_up_nothing_and_gets_what_was_best_when_it_began(hub: Hub, config: TrainingConfig) -> None:
    push, weights = uploads(config), Path(config.run.output_dir) / "best" / "model.safetensors"
    weights.write_bytes(b"first")
    hub.answering.clear()
    push.after_evaluation(best(2))
    weights.write_bytes(b"second")
    started = time.monotonic()
    push.after_evaluation(best(4))
    assert time.monotonic() - started < 1
    assert NAME not in hub.repositories
    hub.answering.set()
    finish(push)
    assert hub.repositories[NAME].files["model.safetensors"] == b"first"
    push.after_evaluation(best(4))  # what was passed over is made up for, without a better one
    finish(push)
    assert hub.repositories[NAME].files["model.safetensors"] == b"second"


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("failure", [401, 409, 429, 500, CUT])
def test_a_failure_is_a_warning_and_tried_again_at_the_next_evaluation(
    hub: Hub, config: TrainingConfig, caplog, failure: int
) -> None:
    push = uploads(config)
    hub.fail("/commit/", failure)
    push.after_evaluation(best(2))
    finish(push)
    assert hub.repositories[NAME].commits == []
    with caplog.at_level(logging.INFO):
        push.after_evaluation(best(2))
        finish(push)
        push.end(is_last=False)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{NAME}: not uploaded (")
    assert warning.endswith("it is tried again now")
    assert "uploaded: " in caplog.text
    assert TOKEN not in caplog.text
    assert len(messages(hub)) == 1


@pytest.mark.usefixtures("without_curves")
def test_the_end_waits_no_longer_than_it_may_and_says_how_to_go_on(hub: Hub, config: TrainingConfig, caplog) -> None:
    push = uploads(config)
    hub.answering.clear()
    push.after_evaluation(best(2))
    started = time.monotonic()
    push.end(is_last=True, seconds=0.2)
    assert time.monotonic() - started < 5
    [warning] = [record.getMessage() for record in caplog.records]
    assert "not uploaded within 0 seconds" in warning or "not uploaded within 0.2 seconds" in warning
    assert f"`semidetr push {config.run.output_dir}/best {NAME}` uploads it by hand" in warning
    hub.answering.set()
    finish(push)


@pytest.mark.usefixtures("without_curves")
def test_a_run_without_validation_images_uploads_its_averaged_network(hub: Hub, digits, tmp_path: Path) -> None:
    config = run_config(tmp_path / "out", digits, run={"push_to_hub": True, "hub_model_id": NAME}, data={"val": None})
    output = write_run(config, [{"step": 6, "loss": 1.0}], networks=("teacher",))
    push = uploads(config)
    push.after_evaluation(None)
    push.end(is_last=True)
    assert messages(hub) == ["End of the training"]
    assert hub.repositories[NAME].files["model.safetensors"] == (output / "teacher/model.safetensors").read_bytes()
    assert "It was not evaluated." in hub.repositories[NAME].files["README.md"].decode()


@pytest.mark.usefixtures("without_curves")
def test_what_cannot_be_put_together_stops_nothing(hub: Hub, config: TrainingConfig, caplog) -> None:
    push = uploads(config)
    (Path(config.run.output_dir) / "best" / "config.json").unlink()
    push.after_evaluation(best(2))
    push.end(is_last=True)
    assert len(caplog.records) == 2
    assert "nothing was put together for the Hub (" in caplog.text
    assert hub.repositories == {}


def test_other_processes_and_runs_that_did_not_ask_upload_nothing(hub: Hub, config: TrainingConfig) -> None:
    silent = replace(config, run=replace(config.run, push_to_hub=False, hub_model_id=None))
    for push in (uploads(config, main=False), uploads(silent)):
        push.after_evaluation(best(2))
        push.end(is_last=True)
    assert hub.requests == []


def test_a_run_without_a_token_does_not_begin(digits: DigitsPaths, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("semidetr_hf.hub.upload.get_token", lambda: None)
    config = configure(tmp_path, run={"push_to_hub": True, "hub_model_id": NAME})
    forget_accelerator()
    trainer = build(config, labeled=source_of(digits, 4))
    with pytest.raises(PermissionError, match="hf auth login"):
        trainer.train()
    assert trainer.step == 0


@pytest.mark.usefixtures("without_curves")
def test_a_training_uploads_its_best_network(hub: Hub, digits: DigitsPaths, tmp_path: Path) -> None:
    config = configure(tmp_path, run={"push_to_hub": True, "hub_model_id": NAME, "eval_every": 1})
    hub.fail("/commit/", 500)
    forget_accelerator()
    result = build(config, labeled=source_of(digits, 4), val=CocoSource(digits.val_json)).train()
    assert result.step == 2
    output = Path(config.run.output_dir)
    files = hub.repositories[NAME].files
    assert files["model.safetensors"] == (output / "best" / "model.safetensors").read_bytes()
    assert files["log.jsonl"] == (output / "log.jsonl").read_bytes()
    assert "4 labeled" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"hub_model_id": "me/x"}, "nothing goes there without push_to_hub"),
        ({"push_to_hub": True, "hub_model_id": "my detector"}, "'my detector' is no name of a repository"),
        ({"push_to_hub": True, "output_dir": "runs/my detector"}, "'my detector' is no name of a repository"),
    ],
)
def test_names_that_cannot_be_are_refused_at_once(tmp_path: Path, run: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(tmp_path, run=run)


def test_the_repository_has_the_name_of_the_output_folder(tmp_path: Path) -> None:
    assert configure(tmp_path, run={"push_to_hub": True}).run.repository == "out"
