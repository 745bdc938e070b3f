"""Run by test_trainer.py under `torchrun`: five steps, of which every process says what it saw and got.

The teacher of the second process finds nothing, so that this process has no pseudo-label in any step.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from tiny import tiny_model

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import PseudoLabels, Stage, View
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.trainer import SemiDetrTrainer


def fingerprint(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(network.state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def find_nothing(_encoded: object, view: View, **_rules: float) -> list[PseudoLabels]:
    nothing = PseudoLabels(
        boxes_xyxy=torch.zeros(0, 4), class_labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0)
    )
    return [nothing] * len(view)


def main(train_json: str, val_json: str, folder: Path) -> None:
    config = TrainingConfig.from_dict(
        {
            "data": {"labeled": train_json, "short_edges": [64], "long_edge": 64, "num_workers": 0}
            | {"labeled_batch_size": 2, "unlabeled_batch_size": 2},
            "schedule": {"num_steps": 5, "burn_in_steps": 1, "one_to_many_steps": 3},
            "pseudo_labels": {"score_threshold": 0.0, "mean_std_filter": False, "max_detections": 3},
            "run": {"output_dir": str(folder / "out"), "cpu": True, "eval_every": 5, "log_every": 1}
            | {"instruments": True},
        }
    )
    names = [str(digit) for digit in range(10)]
    trainer = SemiDetrTrainer(
        config,
        tiny_model(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}),
        SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}),
        labeled=CocoSource(train_json),
        unlabeled=CocoSource(train_json),
        val=CocoSource(val_json),
    )
    rank = trainer.accelerator.process_index
    if rank == 1:
        trainer.teacher.detect = find_nothing  # type: ignore[method-assign,assignment]
    images: list[list[int]] = []
    stages: list[str] = []
    candidates: list[int] = []
    thresholds: list[float | None] = []

    def remember(_module: torch.nn.Module, inputs: tuple, losses: StepLosses) -> None:
        stages.append(next(value for value in inputs if isinstance(value, Stage)).value)
        candidates.append(sum(map(len, losses.candidates)))
        thresholds.append(losses.cost_threshold)

    objective = trainer.accelerator.unwrap_model(trainer.objective)
    objective.register_forward_hook(remember)
    projector_before = fingerprint(objective.projector)
    next_batch = trainer._next_batch

    def watch():
        batch = next_batch()
        images.append(batch.labeled.image_ids)
        return batch

    trainer._next_batch = watch  # type: ignore[method-assign]
    result = trainer.train()
    report = {
        "num_processes": trainer.accelerator.num_processes,
        "images": images,
        "stages": stages,
        "num_candidates": candidates,
        "cost_thresholds": thresholds,
        "student": fingerprint(trainer.student),
        "projector": fingerprint(objective.projector),
        "projector_before": projector_before,
        "teacher": fingerprint(trainer.teacher.detector),
        "ap": result.teacher.ap if result.teacher else None,
    }
    (folder / f"process{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
