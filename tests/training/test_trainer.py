import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from small_runs import ANYTHING, SIZE, build, configure, detector, rows_of, same, source_of, weights
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.loading import PassSampler
from semidetr_hf.training.checkpoints import RunCheckpoints
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.resuming import OUTPUTS

# The first step that is not finite ends the run.
AT_ONCE = {"max_skipped_steps": 0}

# What is written where two runs are compared or trackers are told, and what instruments write besides.
COMPARED = {"baseline.json", "result.json", "trackers"}
OF_OTHERS = {*COMPARED, "costs.jsonl", "pseudo_labels.jsonl"}


# ---- A whole run


def test_a_semi_supervised_run_leaves_what_it_promises(digits, tmp_path) -> None:
    config = configure(tmp_path, pseudo_labels=ANYTHING, schedule={"num_steps": 3}, run={"eval_every": 2})
    trainer = build(
        config,
        labeled=source_of(digits, 3),
        unlabeled=FolderSource(digits.train_images),
        val=CocoSource(digits.val_json),
    )
    result = trainer.train()
    output = Path(config.run.output_dir)
    assert sorted(path.name for path in output.iterdir()) == sorted({*OUTPUTS} - OF_OTHERS)
    assert TrainingConfig.from_dict(read_yaml(output / "config.yaml")) == config

    losses = [row for row in rows_of(config) if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3]
    for row in losses:
        assert row["pseudo_labels"] > 0
        assert row["gradient_norm"] > 0
        assert row["learning_rate"] == 1e-3
        assert {"sup_loss_ce", "sup_loss_giou_enc", "sup_loss_ce_dn", "pseudo_loss_bbox_0"} <= set(row)
        assert {"consistency", "consistency_0", "mined", "cost_threshold"} <= set(row)
    # Half of three steps, rounded: two in the first stage, which makes no denoising queries of pseudo-labels.
    assert ["pseudo_loss_ce_dn" in row for row in losses] == [False, False, True]
    assert losses[-1]["unreadable_images"] == 0
    evaluations = [row for row in rows_of(config) if "student/ap" in row]
    assert [row["step"] for row in evaluations] == [2, 3]
    assert set(evaluations[0]["teacher/per_class"]) == {str(digit) for digit in range(10)}

    for name, network in (("student", trainer.student), ("teacher", trainer.teacher.detector)):
        loaded = AutoModelForObjectDetection.from_pretrained(output / name)
        assert same(weights(loaded), weights(network))
    assert AutoModelForObjectDetection.from_pretrained(output / "best").config.num_labels == 10
    processor = AutoImageProcessor.from_pretrained(output / "best")
    assert processor.size["shortest_edge"] == SIZE
    assert result.student is not None
    assert result.teacher is not None
    assert result.best is not None
    assert result.best.metrics.ap >= max(result.student.ap, result.teacher.ap)
    assert result.best.network in ("student", "teacher")
    assert result.best.step in (2, 3)
    assert (result.step, result.stopped_by) == (3, None)
    measured = JsonlLog(output / "resources.jsonl").rows()
    assert [row["step"] for row in measured] == [1, 2, 3]
    assert measured[-1]["seconds"] <= result.seconds
    assert RunCheckpoints(output / "checkpoints", keep=2).folders() == [
        output / "checkpoints" / name for name in ("step_00000002", "step_00000003")
    ]
    assert result.student.ap == evaluations[-1]["student/ap"]


def test_a_supervised_run_without_validation(digits, tmp_path) -> None:
    config = configure(tmp_path)
    result = build(config, labeled=source_of(digits, 2)).train()
    assert (result.student, result.teacher, result.best) == (None, None, None)
    output = Path(config.run.output_dir)
    assert sorted(path.name for path in output.iterdir()) == sorted({*OUTPUTS} - OF_OTHERS - {"best"})
    for row in rows_of(config):
        assert not any("pseudo" in name for name in row)
    with pytest.raises(ValueError, match="validation images"):
        build(configure(tmp_path / "second"), labeled=source_of(digits, 2)).evaluate()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_loss_falls_when_two_images_are_memorized(digits, tmp_path, fraction: float) -> None:
    # In one stage: the losses of the two are not comparable.
    schedule = {"num_steps": 80, "one_to_many_fraction": fraction}
    config = configure(tmp_path, schedule=schedule, optimizer={"learning_rate": 2e-3})
    build(config, labeled=source_of(digits, 2)).train()
    losses = [row["loss"] for row in rows_of(config)]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])


def test_two_runs_of_one_seed_are_one_run(digits, tmp_path) -> None:
    results = []
    for name in ("first", "second"):
        config = configure(tmp_path / name, pseudo_labels=ANYTHING)
        trainer = build(config, labeled=source_of(digits, 3), unlabeled=source_of(digits, 4))
        trainer.train()
        results.append(weights(trainer.student))
    assert same(*results)


def test_a_second_run_into_the_same_folder_replaces_the_networks_if_it_may(digits, tmp_path) -> None:
    config = configure(tmp_path)
    build(config, detector(seed=1), labeled=source_of(digits, 2)).train()
    with pytest.raises(FileExistsError, match=r"holds a run of 2 steps .*--overwrite"):
        build(config, detector(seed=2), labeled=source_of(digits, 2))
    assert not list(Path(config.run.output_dir).glob("earlier_*"))
    overwriting = configure(tmp_path, run={"overwrite": True})
    trainer = build(overwriting, detector(seed=2), labeled=source_of(digits, 2))
    trainer.train()
    output = Path(config.run.output_dir)
    loaded = AutoModelForObjectDetection.from_pretrained(output / "student")
    assert same(weights(loaded), weights(trainer.student))
    # The log of the first run is not continued either.
    assert [row["step"] for row in rows_of(config)] == [1, 2]
    # The settings that it leaves are those of a run into a folder of its own.
    assert TrainingConfig.from_dict(read_yaml(output / "config.yaml")) == config


# ---- Steps


def test_the_teacher_moves_on_optimizer_steps_only(digits, tmp_path, monkeypatch) -> None:
    config = configure(tmp_path, run={"gradient_accumulation_steps": 2}, pseudo_labels=ANYTHING)
    trainer = build(config, labeled=source_of(digits, 4), unlabeled=source_of(digits, 4))
    students, teachers = [], []
    next_batch = trainer._next_batch

    def watch():
        students.append(weights(trainer.student))
        teachers.append(weights(trainer.teacher.detector))
        return next_batch()

    monkeypatch.setattr(trainer, "_next_batch", watch)
    for _ in range(2):
        trainer.train_step()
        trainer.step += 1
    assert len(students) == 4
    parameters = [name for name, _ in trainer.student.named_parameters()]

    def moved(states: list, first: int, second: int) -> bool:
        return any(not torch.equal(states[first][name], states[second][name]) for name in parameters)

    assert (moved(students, 0, 1), moved(students, 1, 2), moved(students, 2, 3)) == (False, True, False)
    assert (moved(teachers, 0, 1), moved(teachers, 1, 2), moved(teachers, 2, 3)) == (False, True, False)
    assert trainer.teacher.num_updates == 2


def test_one_image_four_times_is_four_images_at_once(digits, tmp_path) -> None:
    """No denoising (it draws noise), frozen batch statistics, and the same number of boxes in every image.

    One to one: several predictions of a box are weighed by how good they are, which is no mean over images.
    """
    document = json.loads(digits.train_json.read_text())
    first_boxes = {box["image_id"]: box for box in reversed(document["annotations"])}
    document["annotations"] = list(first_boxes.values())
    (tmp_path / "one_box.json").write_text(json.dumps(document))
    source = CocoSource(tmp_path / "one_box.json", digits.train_json.parent)
    source = source.subset(source.image_ids[:4])
    gradients: list[dict[str, torch.Tensor]] = []
    for images, accumulation in ((1, 4), (4, 1)):
        config = configure(
            tmp_path,
            data={"labeled_batch_size": images},
            run={"gradient_accumulation_steps": accumulation},
            optimizer={"max_grad_norm": 1e9},
            schedule={"one_to_many_fraction": 0.0},
        )
        # A batch norm that is trained sees other statistics in one image than in four.
        model = detector(num_denoising_queries=0, freeze_backbone_norm=True)
        trainer = build(config, model, labeled=source)

        # Gradients, not weights: Adam turns the rounding of a gradient that should be 0 into a whole step.
        def remember(*_args: Any, model: torch.nn.Module = model) -> None:
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        trainer.optimizer.optimizer.register_step_pre_hook(remember)
        trainer.train_step()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    one_by_one, at_once = gradients
    assert max(gradient.abs().max().item() for gradient in at_once.values()) > 1
    for name, gradient in at_once.items():
        torch.testing.assert_close(one_by_one[name], gradient, rtol=1e-4, atol=1e-5)


def test_after_the_burn_in_both_networks_start_from_the_same_weights(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 5, "burn_in_steps": 3}, pseudo_labels=ANYTHING)
    trainer = build(config, labeled=source_of(digits, 3), unlabeled=source_of(digits, 4))
    seen, equal = [], []
    for _ in range(5):
        numbers = trainer.train_step()
        trainer.step += 1
        seen.append("pseudo_labels" in numbers)
        equal.append(same(weights(trainer.student), weights(trainer.teacher.detector)))
    assert seen == [False, False, False, True, True]
    # The first update averages two students, momentum 1/2; the third step ends the burn-in.
    assert equal == [False, False, True, False, False]


def test_a_supervised_run_has_no_burn_in(digits, tmp_path) -> None:
    trainer = build(configure(tmp_path, schedule={"num_steps": 4, "burn_in_steps": 2}), labeled=source_of(digits, 3))
    equal = []
    for _ in range(2):
        trainer.train_step()
        trainer.step += 1
        equal.append(same(weights(trainer.student), weights(trainer.teacher.detector)))
    # A burn-in would end with the second step and make the two equal.
    assert equal == [False, False]


def test_a_missing_tracker_is_named(digits, tmp_path) -> None:
    config = configure(tmp_path, run={"trackers": ["tensorboard", "comet_ml"]})
    with pytest.raises(ValueError, match=r"trackers=.*: comet_ml is not installed; pip install comet-ml"):
        build(config, labeled=source_of(digits, 2))


def test_the_loaders_are_run_to_their_end(digits, tmp_path) -> None:
    config = configure(tmp_path, pseudo_labels=ANYTHING)
    build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4)).train()
    # Accelerate drops a loader that has come to its end; what stays is the None it begins with.
    assert GradientState().dataloader_references == [None]


def test_unlabeled_images_of_weight_zero_are_not_looked_at(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule={"unsupervised_weight": 0.0}, pseudo_labels=ANYTHING)
    build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4)).train()
    assert not any("pseudo_loss_ce" in row for row in rows_of(config))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize(("scale", "consistency_weight"), [(False, 3.0), (True, 1.5)])
def test_the_loss_is_the_weighted_sum(
    digits, tmp_path, scale: bool, consistency_weight: float, fraction: float
) -> None:
    config = configure(
        tmp_path,
        schedule={"unsupervised_weight": 0.5, "num_steps": 1, "one_to_many_fraction": fraction},
        pseudo_labels=ANYTHING,
        consistency={"consistency_weight": 3.0, "scale_consistency": scale},
    )
    build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 4)).train()
    [row] = rows_of(config)
    # Weights of the detector: class 2, box 5, overlap 2; the consistency of every layer has weight 3, or 3 x 0.5.
    kinds = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    expected = consistency_weight * (row["consistency"] + row["consistency_0"])
    assert expected > 0
    for name, value in row.items():
        kind = next((kind for kind in kinds if kind in name), None)
        if kind is not None:
            expected += kinds[kind] * value * (0.5 if name.startswith("pseudo_") else 1.0)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_precisions(digits, tmp_path, mixed_precision: str) -> None:
    config = configure(tmp_path, run={"mixed_precision": mixed_precision}, pseudo_labels=ANYTHING)
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=source_of(digits, 2))
    trainer.train()
    assert all(math.isfinite(row["loss"]) for row in rows_of(config))
    assert {parameter.dtype for parameter in trainer.student.parameters()} == {torch.float32}


# ---- Trouble


def test_a_loss_that_is_not_finite_names_losses_and_images(digits, tmp_path, monkeypatch) -> None:
    config = configure(tmp_path, schedule={"one_to_many_fraction": 0.0}, health=AT_ONCE)
    trainer = build(config, labeled=source_of(digits, 2))
    criterion = trainer.student.criterion.forward

    def overflow(*args: Any) -> dict[str, torch.Tensor]:
        losses = criterion(*args)
        return losses | {name: losses[name] * math.inf for name in ("loss_giou_enc", "loss_bbox")}

    monkeypatch.setattr(trainer.student.criterion, "forward", overflow)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert re.match(
        r"step 0: not finite are the losses sup_loss_bbox, sup_loss_giou_enc on images \[\d, \d\]; that makes 1",
        message,
    )
    assert "\n" not in message


def test_predictions_that_are_not_finite_name_the_images_too(digits, tmp_path) -> None:
    model = detector()
    with torch.no_grad():
        model.class_head.bias.fill_(math.nan)
    trainer = build(configure(tmp_path, health=AT_ONCE), model, labeled=source_of(digits, 2))
    message = r"step 0: not finite are the losses sup_\w+, sup_\w+, sup_\w+ and \d+ more on images \[\d, \d\];"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train_step()


def test_gradients_that_are_not_finite_are_an_error_too(digits, tmp_path) -> None:
    model = detector()
    model.class_head.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer = build(configure(tmp_path, health=AT_ONCE), model, labeled=source_of(digits, 2))
    before = weights(trainer.student.class_head)
    with pytest.raises(FloatingPointError, match=r"step 0: not finite are the gradients on images \[\d, \d\];"):
        trainer.train_step()
    assert same(before, weights(trainer.student.class_head))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_skipped_and_counted(digits, tmp_path, caplog, num_workers: int) -> None:
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (SIZE, SIZE), (80 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no picture")
    config = configure(tmp_path, schedule={"num_steps": 4}, data={"num_workers": num_workers})
    trainer = build(config, labeled=source_of(digits, 2), unlabeled=FolderSource(folder))
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        result = trainer.train()
    # Eight draws of three images: the broken one is drawn at least twice, and counted once.
    assert result.num_unreadable == 1
    assert rows_of(config)[-1]["unreadable_images"] == 1
    if num_workers == 0:  # the log of worker processes does not pass through this one
        assert sum("1.png" in record.message for record in caplog.records) == 1


def test_pointless_data_is_refused_before_anything_is_written(digits, tmp_path) -> None:
    document = json.loads(digits.train_json.read_text()) | {"annotations": []}
    (tmp_path / "no_boxes.json").write_text(json.dumps(document))
    source = CocoSource(tmp_path / "no_boxes.json", digits.train_json.parent)
    with pytest.raises(ValueError, match="not one usable box"):
        build(configure(tmp_path), labeled=source)
    assert not (tmp_path / "out").exists()


# ---- Reports


def test_tensorboard_receives_plain_numbers(digits, tmp_path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = configure(tmp_path, run={"trackers": ["tensorboard"], "eval_every": 2})
    build(config, labeled=source_of(digits, 2), val=CocoSource(digits.val_json)).train()
    events = event_accumulator.EventAccumulator(str(Path(config.run.output_dir) / "trackers" / "semidetr"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"loss", "learning_rate", "student/ap", "teacher/ap50"} <= set(scalars)
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in rows_of(config) if "loss" in row], rel=1e-6)


def test_trackers_get_no_gaps_and_nothing_nested(digits, tmp_path, monkeypatch) -> None:
    config = configure(tmp_path, run={"eval_every": 2})
    trainer = build(config, labeled=source_of(digits, 2), val=CocoSource(digits.val_json))
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(trainer.accelerator, "log", lambda values, step: logged.append(values))
    trainer.train()
    assert len(logged) == 3  # two steps and one evaluation
    assert all(math.isfinite(value) for values in logged for value in values.values())
    # Digits on images of 64 pixels are never large, so this number does not exist.
    assert "student/ap_large" not in logged[-1]


# ---- Batches


def test_one_process_gets_exactly_the_planned_batches(digits, tmp_path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 5}, run={"gradient_accumulation_steps": 2, "seed": 7})
    source = source_of(digits, 3)
    trainer = build(config, labeled=source, unlabeled=source_of(digits, 5))
    planned = [source.image_ids[index] for index, _ in PassSampler(3, 20, seed=7)]
    batches = list(trainer.batches.labeled)
    assert [batch.image_ids for batch in batches] == [planned[i : i + 2] for i in range(0, 20, 2)]
    assert trainer.batches.unlabeled is not None
    assert sum(len(batch.image_ids) for batch in trainer.batches.unlabeled) == 20


@pytest.mark.multiprocess
def test_two_processes_share_the_batches_and_end_with_the_same_weights(digits, tmp_path) -> None:
    """The second of them has no pseudo-label at all: they must wait for each other nevertheless, and agree."""
    program = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, program.parents[1:3]))}
    # On CPUs `accelerate launch` needs MPI to start several processes; torch's own launcher does not.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(program), str(digits.train_json), str(digits.val_json), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process{rank}.json").read_text()) for rank in (0, 1))
    assert (first["num_processes"], second["num_processes"]) == (2, 2)
    # Five steps of two images on two processes: the 20 draws of the plan, two by two in turn.
    planned = [index + 1 for index, _ in PassSampler(8, 20, seed=0)]
    assert first["images"] == [planned[i : i + 2] for i in range(0, 20, 4)]
    assert second["images"] == [planned[i : i + 2] for i in range(2, 20, 4)]
    # The first step is burn-in, the next two are of the first stage, the last two of the second.
    assert first["stages"] == second["stages"] == ["one_to_many"] * 3 + ["one_to_one"] * 2
    assert first["num_candidates"][0] == 0
    assert min(first["num_candidates"][1:]) > 0
    assert second["num_candidates"] == [0, 0, 0, 0, 0]
    assert first["cost_thresholds"] == second["cost_thresholds"]
    assert first["cost_thresholds"][0] is None
    assert all(math.isfinite(threshold) for threshold in first["cost_thresholds"][1:])
    for network in ("student", "teacher", "projector"):
        assert first[network] == second[network], network
        assert re.fullmatch(r"[0-9a-f]{64}", first[network])
    assert first["student"] != first["teacher"]
    assert first["projector"] != first["projector_before"] == second["projector_before"]
    assert first["ap"] == second["ap"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted({*OUTPUTS} - COMPARED)
