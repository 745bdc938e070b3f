"""Whole recipes of the tiny detector: baseline, semi-supervised run, and what is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import ANYTHING, configure, detector, forget_accelerator, rows_of

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training.baseline import COMPLETE_FILE
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.recipe import ASKED_FILE, RESULT_FILE, build_trainer, train_with_baseline
from semidetr_hf.training.result import RecipeResult
from semidetr_hf.training.saved_detectors import save_detector
from semidetr_hf.training.trainer import SemiDetrTrainer

STEPS = {"num_steps": 4, "burn_in_steps": 2, "one_to_many_steps": 3}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> DigitsPaths:
    """A dozen scenes."""
    return write_digits_dataset(tmp_path_factory.mktemp("scenes") / "data", num_train=10, num_val=2, image_size=64)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A tiny detector on disk, from which the runs begin."""
    folder = tmp_path_factory.mktemp("start") / "detector"
    save_detector(detector(), SemiDetrImageProcessor(), folder)
    return folder


def of(scenes: DigitsPaths, start: Path, folder: Path, **parts: dict[str, Any]) -> TrainingConfig:
    data = {"labeled": str(scenes.train_json), "val": str(scenes.val_json), "label_fraction": 0.5}
    parts["data"] = data | parts.get("data", {})
    parts["schedule"] = STEPS | parts.get("schedule", {})
    parts["run"] = {"eval_every": 2} | parts.get("run", {})
    recipe = {"estimate": False} | parts.pop("recipe", {})
    return configure(folder, model={"init_from": str(start)}, pseudo_labels=ANYTHING, recipe=recipe, **parts)


def run(config: TrainingConfig) -> tuple[RecipeResult, str]:
    """Return the result and what was said."""
    forget_accelerator()
    said: list[str] = []
    return train_with_baseline(config, say=said.append), "\n".join(said)


def network(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_file(first: Path, second: Path) -> bool:
    ours, theirs = network(first), network(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def finished(scenes, start, tmp_path_factory) -> tuple[TrainingConfig, RecipeResult, str]:
    """A whole recipe with its estimate."""
    config = of(scenes, start, tmp_path_factory.mktemp("finished"), recipe={"estimate": True})
    result, said = run(config)
    return config, result, said


def test_a_recipe_trains_both_and_keeps_the_best(finished) -> None:
    config, result, said = finished
    output = Path(config.run.output_dir)
    assert set(result.scores) == {"supervised", "student", "teacher"}
    best = max(result.scores.values(), key=lambda score: score.ap)
    assert result.kept is not None
    assert result.scores[result.kept].ap == best.ap
    assert result.gain == max(result.scores[n].ap for n in ("student", "teacher")) - result.scores["supervised"].ap
    assert json.loads((output / RESULT_FILE).read_text()) == result.to_dict()
    assert TrainingConfig.from_dict(read_yaml(output / ASKED_FILE)) == config
    # Both logs are whole; the baseline saw no unlabeled image.
    for folder, sees_unlabeled in ((output / "supervised", False), (output, True)):
        rows = [
            row for row in rows_of(replace(config, run=replace(config.run, output_dir=str(folder)))) if "loss" in row
        ]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert any("pseudo_loss_ce" in row for row in rows) is sees_unlabeled
    for line in ("5 labeled images", "5 unlabeled ones", "2 to evaluate on", "baseline supervised, 4 steps"):
        assert line in " ".join(said.split())
    assert "gain over supervised" in said


def test_neither_trial_steps_nor_the_baseline_change_the_run(finished, scenes, start, tmp_path) -> None:
    config, _, _ = finished
    alone = replace(config, run=replace(config.run, output_dir=str(tmp_path / "alone")))
    forget_accelerator()
    build_trainer(alone).train()
    assert rows_of(alone) == rows_of(config)
    assert same_file(tmp_path / "alone" / "student", Path(config.run.output_dir) / "student")


def test_a_baseline_of_the_same_settings_is_reused_whatever_the_thresholds(finished, tmp_path, monkeypatch) -> None:
    config, first, _ = finished
    trained: list[str] = []
    train = SemiDetrTrainer.train

    def watched(self: SemiDetrTrainer, **options: bool) -> Any:
        trained.append(self.config.run.output_dir)
        return train(self, **options)

    monkeypatch.setattr(SemiDetrTrainer, "train", watched)
    labels = replace(config.pseudo_labels, max_detections=2)
    shutil.copytree(config.run.output_dir, tmp_path / "out")
    again = replace(config.run, output_dir=str(tmp_path / "out"), overwrite=True)
    result, said = run(replace(config, pseudo_labels=labels, run=again))
    assert trained == [again.output_dir]
    assert "reused" in said
    assert result.scores["supervised"] == first.scores["supervised"]


def test_when_the_supervised_network_is_better_it_is_kept_and_reasons_are_given(scenes, start, tmp_path) -> None:
    # A baseline that counts as better than anything: its log says so.
    config = of(scenes, start, tmp_path)
    run(config)
    output = Path(config.run.output_dir)
    log = output / "supervised" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        row |= {"teacher/ap": 0.9} if "teacher/ap" in row else {}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, said = run(replace(config, run=replace(config.run, resume="auto")))
    assert (result.kept, result.scores["supervised"].ap) == ("supervised", 0.9)
    assert result.gain is not None
    assert result.gain < 0
    assert same_file(output / "best", output / "supervised" / "best")
    assert "on 2 validation images a small difference is chance" in said
    assert "there are only 5 unlabeled images for 5 labeled ones" in said


def test_a_warm_start_begins_from_the_baseline_and_leaves_out_the_burn_in(scenes, start, tmp_path) -> None:
    # The first step changes nothing, so that the student is still what it started from.
    config = of(scenes, start, tmp_path, recipe={"warm_start": True}, optimizer={"learning_rate": 1e-12})
    result, said = run(config)
    output = Path(config.run.output_dir)
    made = [row["step"] for row in rows_of(config) if "loss" in row]
    assert made == [1, 2]
    assert all("pseudo_loss_ce" in row for row in rows_of(config) if "loss" in row)
    assert result.step == 2
    best, student = network(output / "supervised" / "best"), network(output / "student")
    learned = [name for name in best if "running_" not in name and "num_batches" not in name]
    assert [name for name in learned if not torch.allclose(best[name], student[name], atol=1e-6)] == []
    assert "starts from the best network of the baseline" in " ".join(said.split())


def test_a_recipe_that_was_stopped_in_its_baseline_goes_on_there(
    finished, scenes, start, tmp_path, monkeypatch
) -> None:
    whole, _, _ = finished
    config = replace(whole, run=replace(whole.run, output_dir=str(tmp_path / "out")))
    make = SemiDetrTrainer.train_step

    def stopping(self: SemiDetrTrainer) -> Any:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self)

    with monkeypatch.context() as patch:
        patch.setattr(SemiDetrTrainer, "train_step", stopping)
        for folder in (tmp_path / "out" / "supervised", tmp_path / "out"):
            result, said = run(replace(config, run=replace(config.run, resume="auto")))
            assert (result.stopped_by, result.kept) == ("SIGTERM", None)
            assert f"stopped by SIGTERM after 2 steps of the run in {folder}; --resume auto goes on" in said
            assert not (tmp_path / "out" / RESULT_FILE).exists()
            assert (tmp_path / "out" / "supervised" / COMPLETE_FILE).exists() is (folder.name == "out")
    result, _ = run(replace(config, run=replace(config.run, resume="auto")))
    assert result.stopped_by is None
    for name in ("", "supervised"):
        logs = [
            rows_of(replace(c, run=replace(c.run, output_dir=str(Path(c.run.output_dir) / name))))
            for c in (whole, config)
        ]
        assert logs[0] == logs[1]


def test_supervised_data_is_one_run_that_may_serve_as_a_baseline(scenes, start, tmp_path) -> None:
    alone = of(scenes, start, tmp_path / "alone", data={"label_fraction": None})
    result, said = run(alone)
    output = Path(alone.run.output_dir)
    assert set(result.scores) == {"student", "teacher"}
    assert (result.gain, result.kept in ("student", "teacher")) == (None, True)
    assert not (output / "supervised").exists()
    assert "supervised alone" in said
    second, said = run(of(scenes, start, tmp_path / "semi", recipe={"baseline": str(output)}))
    assert second.scores["supervised"].ap == max(score.ap for score in result.scores.values())
    assert f"reused, {output}" in " ".join(said.split())


def test_without_validation_images_nothing_is_chosen_and_that_is_said(scenes, start, tmp_path) -> None:
    result, said = run(of(scenes, start, tmp_path, data={"val": None}))
    assert (result.scores, result.kept, result.gain) == ({}, None, None)
    assert result.best_folder == str(tmp_path / "out" / "teacher")
    assert said.count("--val_fraction 0.2") == 2


def test_an_earlier_run_is_found_before_anything_is_trained(finished, monkeypatch) -> None:
    config, _, _ = finished
    monkeypatch.setattr(SemiDetrTrainer, "train", lambda *_args, **_options: pytest.fail("trained"))
    before = sorted(Path(config.run.output_dir).rglob("*"))
    with pytest.raises(FileExistsError, match=r"holds a run of 4 steps .*--resume auto"):
        run(config)
    assert sorted(Path(config.run.output_dir).rglob("*")) == before


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_make_one_recipe(scenes, start, tmp_path) -> None:
    # A warm start reads what the main process alone has written.
    config = of(scenes, start, tmp_path, recipe={"estimate": True, "warm_start": True})
    config.save(tmp_path / "run.yaml")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(here / "recipe_processes.py"), str(tmp_path / "run.yaml"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process{rank}.json").read_text()) for rank in (0, 1))
    assert first["result"] == second["result"] == json.loads((tmp_path / "out" / RESULT_FILE).read_text())
    assert (len(first["said"]), second["said"]) == (2, [])
    assert "x 2 processes" in " ".join(first["said"][0].split())
    assert set(first["result"]["scores"]) == {"supervised", "student", "teacher"}
