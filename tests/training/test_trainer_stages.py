"""What the trainer does in either stage: matching, suppression, consistency, instruments."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from small_runs import ANYTHING, build, configure, rows_of, same, source_of, weights
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import LossWeights, Stage
from semidetr_hf.training import networks as networks_module
from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.resuming import OUTPUTS
from semidetr_hf.training.trainer import SemiDetrTrainer


def watch_steps(trainer: SemiDetrTrainer) -> list[tuple[Stage, LossWeights, StepLosses]]:
    """Return a list that grows by stage, weights and losses of every batch."""
    seen: list[tuple[Stage, LossWeights, StepLosses]] = []

    def remember(_module: torch.nn.Module, inputs: tuple, losses: StepLosses) -> None:
        seen.append((inputs[2], inputs[3], losses))

    trainer.objective.register_forward_hook(remember)
    return seen


def saved_nms_iou(folder: Path) -> float | None:
    return json.loads((folder / "preprocessor_config.json").read_text()).get("nms_iou")


# ---- The switch


@pytest.mark.parametrize(
    ("schedule", "in_first"),
    [({"one_to_many_steps": 3}, 3), ({"one_to_many_fraction": 0.0}, 0), ({"one_to_many_fraction": 1.0}, 5), ({}, 2)],
)
def test_the_stage_switches_at_the_step_of_the_schedule(digits, tmp_path, schedule: dict, in_first: int) -> None:
    config = configure(tmp_path, schedule={"num_steps": 5, **schedule}, pseudo_labels=ANYTHING)
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    seen = watch_steps(trainer)
    trainer.train()
    assert [stage for stage, _, _ in seen] == [Stage.ONE_TO_MANY] * in_first + [Stage.ONE_TO_ONE] * (5 - in_first)
    # Pseudo-labels are denoised in the second stage alone.
    assert ["pseudo_loss_ce_dn" in losses.pseudo for _, _, losses in seen] == [False] * in_first + [True] * (
        5 - in_first
    )
    assert all(losses.consistency for _, _, losses in seen)


def test_a_stage_lasts_all_batches_of_its_steps(digits, tmp_path) -> None:
    run = {"gradient_accumulation_steps": 2}
    config = configure(tmp_path, schedule={"num_steps": 2}, pseudo_labels=ANYTHING, run=run)
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    seen = watch_steps(trainer)
    trainer.train()
    assert [stage for stage, _, _ in seen] == [Stage.ONE_TO_MANY] * 2 + [Stage.ONE_TO_ONE] * 2


def test_a_supervised_run_and_the_burn_in_have_both_stages_too(digits, tmp_path) -> None:
    schedule = {"num_steps": 4, "burn_in_steps": 3}
    for name, unlabeled in (("supervised", None), ("burn-in", source_of(digits, 4))):
        config = configure(tmp_path / name, schedule=schedule, pseudo_labels=ANYTHING)
        trainer = build(config, labeled=source_of(digits, 2), unlabeled=unlabeled)
        seen = watch_steps(trainer)
        trainer.train()
        assert [stage for stage, _, _ in seen] == [Stage.ONE_TO_MANY] * 2 + [Stage.ONE_TO_ONE] * 2
        assert [bool(losses.pseudo) for _, _, losses in seen] == [False] * 3 + [unlabeled is not None]


def test_consistency_in_the_first_stage_alone(digits, tmp_path) -> None:
    config = configure(
        tmp_path,
        schedule={"num_steps": 2, "unsupervised_weight": 4.0},
        pseudo_labels=ANYTHING,
        consistency={"consistency_stages": "one_to_many", "consistency_weight": 10.0, "scale_consistency": True},
    )
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    seen = watch_steps(trainer)
    trainer.train()
    assert [given.consistency for _, given, _ in seen] == [40.0, 0.0]
    assert [sorted(losses.consistency) for _, _, losses in seen] == [["consistency", "consistency_0"], []]
    assert ["mined" in row for row in rows_of(config)] == [True, False]


# ---- Suppression of duplicates in checkpoints


@pytest.fixture
def suppressions(monkeypatch) -> Iterator[list[float | None]]:
    """Every evaluation is better than the one before; what it suppressed is appended to the list."""
    seen: list[float | None] = []
    names = [name for name in DetectionMetrics.__dataclass_fields__ if not name.startswith("per_class")]

    def improve(_network: Any, processor: Any, *_args: Any, **_options: Any) -> tuple[DetectionMetrics, list]:
        seen.append(processor.nms_iou)
        numbers = dict.fromkeys(names, 0.0) | {"ap": len(seen) / 100}
        return DetectionMetrics(**numbers, per_class={}), []

    monkeypatch.setattr(networks_module, "evaluate", improve)
    yield seen


def test_checkpoints_of_the_first_stage_say_that_they_need_suppression(digits, tmp_path, suppressions) -> None:
    config = configure(
        tmp_path,
        schedule={"num_steps": 4},
        pseudo_labels={"nms_iou": 0.55},
        run={"evaluated_networks": ["student"]},
    )
    trainer = build(config, labeled=source_of(digits, 2), val=CocoSource(digits.val_json))
    best = Path(config.run.output_dir) / "best"
    saved = []
    for _ in range(4):
        trainer.train_step()
        trainer.step += 1
        trainer.evaluate()
        saved.append(saved_nms_iou(best))
    # What the last step trained counts: after step 2 of 4 the checkpoint is still one of the first stage.
    assert saved == suppressions == [0.55, 0.55, None, None]
    assert AutoImageProcessor.from_pretrained(best).nms_iou is None


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, None), (0.5, None), (1.0, 0.6)])
def test_the_last_checkpoints_too(digits, tmp_path, fraction: float, expected: float | None) -> None:
    config = configure(tmp_path, schedule={"one_to_many_fraction": fraction})
    trainer = build(config, labeled=source_of(digits, 2))
    trainer.train()
    assert [saved_nms_iou(Path(config.run.output_dir) / name) for name in ("student", "teacher")] == [expected] * 2
    # The processor that the trainer was given is its owner's.
    assert trainer.image_processor.nms_iou is None


def test_a_checkpoint_of_the_first_stage_is_worth_what_the_run_said(digits, tmp_path) -> None:
    schedule = {"num_steps": 30, "one_to_many_fraction": 1.0}
    config = configure(tmp_path, schedule=schedule, optimizer={"learning_rate": 2e-3}, pseudo_labels={"nms_iou": 0.3})
    labeled = source_of(digits, 2)
    result = build(config, labeled=labeled, val=labeled).train()
    assert result.best is not None
    best = Path(config.run.output_dir) / "best"
    model, processor = AutoModelForObjectDetection.from_pretrained(best), AutoImageProcessor.from_pretrained(best)
    accelerator = Accelerator(cpu=True)
    again, found = evaluate(model, processor, labeled, batch_size=1, accelerator=accelerator)
    assert again == result.best.metrics
    processor.nms_iou = None
    assert evaluate(model, processor, labeled, batch_size=1, accelerator=accelerator)[1] != found


def test_one_network_is_evaluated_if_one_is_asked_for(digits, tmp_path, suppressions) -> None:
    config = configure(tmp_path, run={"evaluated_networks": ["teacher"], "eval_every": 1})
    result = build(config, labeled=source_of(digits, 2), val=CocoSource(digits.val_json)).train()
    assert len(suppressions) == 2
    assert result.best is not None
    assert (result.student, result.best.network, result.best.step) == (None, "teacher", 2)
    assert result.teacher is not None
    evaluations = [row for row in rows_of(config) if "teacher/ap" in row]
    assert [row["teacher/ap"] for row in evaluations] == [0.01, 0.02]
    assert not any(name.startswith("student/") for row in evaluations for name in row)
    assert (Path(config.run.output_dir) / "student").is_dir()


# ---- Projector


def test_the_projector_is_trained_at_the_full_learning_rate(digits, tmp_path) -> None:
    optimizer = {"learning_rate": 1e-3, "backbone_lr_factor": 0.1, "weight_decay": 0.0}
    config = configure(tmp_path, pseudo_labels=ANYTHING, optimizer=optimizer)
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    projector = trainer.objective.projector
    backbone, rest = trainer.optimizer.param_groups
    assert {id(p) for p in projector.parameters()} <= {id(p) for p in rest["params"]}
    assert (backbone["lr"], rest["lr"]) == (1e-4, 1e-3)
    before = weights(projector)
    trainer.train_step()
    # Without weight decay only a gradient moves them.
    still = [name for name, parameter in projector.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


@pytest.mark.parametrize(
    ("weight", "unlabeled", "unsupervised_weight"), [(0.0, True, 4.0), (1.0, False, 4.0), (1.0, True, 0.0)]
)
def test_without_a_consistency_loss_there_is_no_projector(
    digits, tmp_path, weight: float, unlabeled: bool, unsupervised_weight: float
) -> None:
    config = configure(
        tmp_path,
        schedule={"unsupervised_weight": unsupervised_weight},
        pseudo_labels=ANYTHING,
        consistency={"consistency_weight": weight},
    )
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4) if unlabeled else None)
    trainer.train()
    assert trainer.objective.projector is None
    count = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert count == len([p for p in trainer.student.parameters() if p.requires_grad])
    for row in rows_of(config):
        assert not {"consistency", "mined", "cost_threshold"} & set(row)
    assert ("pseudo_loss_ce" in rows_of(config)[0]) == (unlabeled and unsupervised_weight > 0)


# ---- Variants of the ablation


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("matching", "one_to_many_assigner", name) for name in ("alignment", "max_iou", "atss", "sim_ota")]
    + [("consistency", "candidate_filter", name) for name in ("cost", "none", "top_k", "mean_std")],
)
def test_every_variant_makes_a_step_in_either_stage(digits, tmp_path, section: str, field: str, value: str) -> None:
    parts: dict[str, dict[str, Any]] = {section: {field: value}}
    config = configure(tmp_path, pseudo_labels=ANYTHING, **parts)
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    before = weights(trainer.student)
    trainer.train()
    assert not same(before, weights(trainer.student))
    rows = rows_of(config)
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"pseudo_loss_ce", "consistency", "mined"} <= set(row) for row in rows)
    # Only candidates that are mined by their cost have a threshold.
    assert {"cost_threshold" in row for row in rows} == {value not in ("none", "top_k", "mean_std")}


@pytest.mark.parametrize(("candidate_filter", "mined"), [("none", 1), ("top_k", 2), ("mean_std", 3)])
def test_the_filter_decides_how_many_are_mined(digits, tmp_path, candidate_filter: str, mined: int) -> None:
    config = configure(
        tmp_path,
        schedule={"num_steps": 1},
        pseudo_labels=ANYTHING | {"score_threshold": 2 / 3, "min_box_size": None},
        consistency={"candidate_filter": candidate_filter, "candidate_top_k": 2},
    )
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4))
    detect = trainer.teacher.detect

    def score_evenly(*args: Any, **rules: Any) -> list:
        # Three detections of each image, one of them confident.
        return [replace(found, scores=torch.tensor([0.9, 0.5, 0.4])) for found in detect(*args, **rules)]

    trainer.teacher.detect = score_evenly  # type: ignore[method-assign]
    trainer.train()
    [row] = rows_of(config)
    assert (row["pseudo_labels"], row["mined"]) == (1, mined)


# ---- Instruments


def run_with_instruments(
    digits, folder: Path, instruments: bool, *, overwrite: bool = False, **parts: Any
) -> SemiDetrTrainer:
    config = configure(
        folder,
        schedule={"num_steps": 4, "burn_in_steps": 1},
        pseudo_labels=ANYTHING,
        run={"instruments": instruments, "eval_every": 2, "overwrite": overwrite},
        **parts,
    )
    trainer = build(
        config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 5), val=CocoSource(digits.val_json)
    )
    trainer.train()
    # The next run of the same test is one of its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return trainer


def test_instruments_write_what_they_see_and_change_nothing(digits, tmp_path) -> None:
    watched, blind = (run_with_instruments(digits, tmp_path / str(flag), flag) for flag in (True, False))
    for network in ("student", "teacher"):
        assert same(weights(watched.networks.networks[network]), weights(blind.networks.networks[network]))
    assert same(weights(watched.objective.projector), weights(blind.objective.projector))

    output = watched.output_dir
    steps = JsonlLog(output / "pseudo_labels.jsonl").rows()
    # The step of the burn-in has no pseudo-labels.
    assert [row["step"] for row in steps] == [1, 2, 3]
    counts = {"matched", "predicted", "true", "iou_sum"}
    assert all(set(row[name]) == counts for row in steps for name in ("candidates", "confident", "mined"))
    costs = JsonlLog(output / "costs.jsonl").rows()
    assert [row["step"] for row in costs] == [1, 2, 3]
    assert all(len(row["costs"]) == len(row["correct"]) > 0 for row in costs)
    rows = [row for row in rows_of(watched.config) if "loss" in row]
    # Threshold and counts are those of the run.
    assert [row["threshold"] for row in costs] == [row["cost_threshold"] for row in rows[1:]]
    assert [row["confident"]["predicted"] / 2 for row in steps] == [row["pseudo_labels"] for row in rows[1:]]
    assert "quality/candidates_precision" not in rows[0]
    for row in rows[1:]:
        assert {"quality/candidates_precision", "quality/confident_recall", "quality/mined_precision"} <= set(row)
    evaluations = [row for row in rows_of(watched.config) if "student/ap" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    for row in evaluations:
        assert {f"{name}/{kind}" for name in ("student", "teacher") for kind in ("ap_nms", "ap_no_nms")} <= set(row)
    # The first two of the four steps are of the first stage, which is evaluated with suppression.
    assert evaluations[0]["student/ap"] == evaluations[0]["student/ap_nms"]
    assert evaluations[1]["student/ap"] == evaluations[1]["student/ap_no_nms"]

    written = [{path.name for path in trainer.output_dir.iterdir()} for trainer in (watched, blind)]
    own = {*OUTPUTS} - {"baseline.json", "result.json", "trackers"}  # of runs that are compared or tracked
    assert written == [own, own - {"costs.jsonl", "pseudo_labels.jsonl"}]
    assert not any("quality" in name or "nms" in name for row in rows_of(blind.config) for name in row)


def test_instruments_without_mining_by_cost_record_no_costs(digits, tmp_path) -> None:
    trainer = run_with_instruments(digits, tmp_path, True, consistency={"candidate_filter": "none"})
    assert JsonlLog(trainer.output_dir / "costs.jsonl").rows() == []
    assert [row["step"] for row in JsonlLog(trainer.output_dir / "pseudo_labels.jsonl").rows()] == [1, 2, 3]


def test_a_second_run_does_not_continue_what_instruments_wrote(digits, tmp_path) -> None:
    for overwrite in (False, True):
        trainer = run_with_instruments(digits, tmp_path, True, overwrite=overwrite)
    for name in ("pseudo_labels.jsonl", "costs.jsonl"):
        assert [row["step"] for row in JsonlLog(trainer.output_dir / name).rows()] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["folder", "json without boxes"])
def test_instruments_on_images_without_labels_are_one_clear_error(digits, tmp_path, kind: str) -> None:
    config = configure(tmp_path, run={"instruments": True})
    unlabeled: Any = FolderSource(digits.train_images)
    if kind == "json without boxes":
        unlabeled = CocoSource(digits.train_json, labeled=False)
    with pytest.raises(ValueError) as caught:
        build(config, labeled=source_of(digits, 2), unlabeled=unlabeled)
    message = str(caught.value)
    assert "instruments=True" in message
    assert "unlabeled" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
