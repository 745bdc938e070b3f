"""Folders of runs as a training leaves them, made without training."""

import json
from pathlib import Path
from typing import Any

from small_runs import SIZE, configure, detector

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.saved_detectors import save_detector

LOG = [
    {"step": 2, "loss": 9.0, "sup_loss_ce": 1.0, "sup_loss_bbox": 0.5, "sup_loss_giou": 0.7, "learning_rate": 1e-3},
    {"step": 2, "student/ap": 0.1, "student/ap50": 0.2, "student/ap75": 0.05}
    | {"teacher/ap": 0.05, "teacher/ap50": 0.1, "teacher/ap75": 0.0},
    {"step": 4, "loss": 7.0, "sup_loss_ce": 0.8, "pseudo_loss_ce": 0.2, "consistency": 0.1, "learning_rate": 1e-3}
    | {"pseudo_labels": 1.5, "mined": 2.5, "cost_threshold": 0.8, "quality/confident_precision": 0.75}
    | {"quality/confident_recall": 0.5, "quality/mined_precision": 0.6},
    {"step": 6, "loss": 6.0, "sup_loss_ce": 0.7, "pseudo_loss_ce": 0.3, "consistency": 0.05, "learning_rate": 1e-3}
    | {"pseudo_labels": 2.0, "mined": 3.0, "cost_threshold": 0.7, "quality/confident_precision": 0.8},
    {"step": 6, "student/ap": 0.2, "student/ap50": 0.4, "student/ap75": 0.1}
    | {"teacher/ap": 0.3, "teacher/ap50": 0.5, "teacher/ap75": 0.2},
]
RESOURCES = [
    {"step": step, "seconds": 10.0 * step, "seconds_per_step": 0.5, "waiting": 0.1, "memory_mb": 900.0 + step}
    | {"open_files": 5, "threads": 3}
    for step in (2, 4, 6)
]


def run_config(folder: Path, digits: DigitsPaths, **parts: dict[str, Any]) -> TrainingConfig:
    """Six steps: two of burn-in, two of one-to-many, two of one-to-one; every detection becomes a pseudo-label."""
    data = {"labeled": str(digits.train_json), "val": str(digits.val_json), "label_fraction": 0.5}
    schedule = {"num_steps": 6, "burn_in_steps": 2, "one_to_many_steps": 4}
    anything = {"score_threshold": 0.0, "mean_std_filter": False, "max_detections": 3}
    values = {"data": data, "schedule": schedule, "pseudo_labels": anything}
    for name, part in parts.items():
        values[name] = values.get(name, {}) | part
    config = configure(folder.parent, **values)
    return TrainingConfig.from_dict(
        {**config.to_dict(), "run": {**config.to_dict()["run"], "output_dir": str(folder)}}
    )


def write_run(
    config: TrainingConfig, log: list[dict[str, Any]] | None = None, networks: tuple[str, ...] = ("best", "teacher")
) -> Path:
    """Write the folder of a run, with detectors of random weights."""
    folder = Path(config.run.output_dir)
    folder.mkdir(parents=True)
    config.save(folder / "config.yaml")
    for name, rows in (("log", LOG if log is None else log), ("resources", RESOURCES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    processor = SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    for name in networks:
        save_detector(detector(), processor, folder / name)
    return folder


def made_detections(source: CocoSource) -> list[dict[str, Any]]:
    """Return one detection per box, in the order of the boxes; of every second image every second one is wrong.

    Wrong ones have the place of the box and the class after its own.
    """
    truth = source.coco_ground_truth()
    ids = [category["id"] for category in truth["categories"]]
    detections = []
    for number, box in enumerate(truth["annotations"]):
        x, y, width, height = box["bbox"]
        is_wrong = number % 2 == 1 and source.image_ids.index(box["image_id"]) % 2 == 1
        category = ids[(ids.index(box["category_id"]) + is_wrong) % len(ids)]
        score = 0.3 + 0.6 * (number % 7) / 7
        detections.append(
            {"image_id": box["image_id"], "category_id": category, "bbox": [x + 1, y, width, height], "score": score}
        )
    return detections
