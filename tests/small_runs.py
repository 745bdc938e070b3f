"""Runs of a few steps of the tiny detector on small images of digits, for the tests of the trainer."""

from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import tiny_model

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.trainer import SemiDetrTrainer

SIZE = 64
PLAIN = AugmentConfig(short_edges=(SIZE,), long_edge=SIZE, flip_probability=0, color=False)
# Every detection becomes a pseudo-label, so that unlabeled images count from the first step.
ANYTHING = {"score_threshold": 0.0, "mean_std_filter": False, "max_detections": 3}


def source_of(digits: DigitsPaths, count: int) -> CocoSource:
    source = CocoSource(digits.train_json)
    return source.subset(source.image_ids[:count])


def detector(seed: int = 0, **overrides: Any) -> SemiDetrForObjectDetection:
    names = [str(digit) for digit in range(10)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return tiny_model(seed, **(labels | overrides))


def configure(folder: Path, **parts: dict[str, Any]) -> TrainingConfig:
    """A configuration for two steps on small images; `parts` are put on top."""
    values: dict[str, dict[str, Any]] = {
        "data": {"labeled": "x", "short_edges": [SIZE], "long_edge": SIZE, "num_workers": 0}
        | {"labeled_batch_size": 2, "unlabeled_batch_size": 2},
        "optimizer": {"learning_rate": 1e-3, "backbone_lr_factor": 1.0},
        "schedule": {"num_steps": 2},
        # Numbers that do not depend on what the CPU can do.
        "run": {"output_dir": str(folder / "out"), "cpu": True, "log_every": 1, "teacher_precision": "same"},
    }
    for name, part in parts.items():
        values[name] = values.get(name, {}) | part
    return TrainingConfig.from_dict(values)


def build(config: TrainingConfig, model: SemiDetrForObjectDetection | None = None, **sources: Any) -> SemiDetrTrainer:
    processor = SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    return SemiDetrTrainer(config, model or detector(), processor, augment=PLAIN, **sources)


def forget_accelerator() -> None:
    """Make the next run of a test one of its own: Accelerate keeps precision and accumulation for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def rows_of(config: TrainingConfig) -> list[dict[str, Any]]:
    return JsonlLog(Path(config.run.output_dir) / "log.jsonl").rows()
