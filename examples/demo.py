# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train,viz]"]
# ///
"""What unlabeled images are worth: one label in twenty, with and without the rest of the images.

Writes a data set of handwritten digits on photographs to disk, trains the same small detector from scratch twice with
the same labels, augmentation, optimizer and number of steps - once on the labeled scenes alone, once with the
unlabeled ones as well - and shows what each finds.

    python examples/demo.py
    python examples/demo.py --seed 1

Writes to outputs/demo: the table (result.json), detections.png, curves.png, and both runs with their checkpoints.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
from transformers.utils import logging as transformers_logging

import semidetr_hf
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PseudoLabelConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.setup import build_image_processor, build_model, open_sources
from semidetr_hf.training.trainer import SemiDetrTrainer, TrainingResult
from semidetr_hf.visualization import detection_sheet, training_curves

IMAGE_SIZE, NUM_TRAIN, NUM_VAL, LABEL_FRACTION = 96, 4000, 200, 0.05
NUM_PICTURES = 12


def configure(data_folder: Path, output_dir: Path, *, seed: int, num_steps: int, burn_in_steps: int) -> TrainingConfig:
    """Return the semi-supervised run; a detector from scratch needs a burn-in, or the teacher has nothing to teach."""
    return TrainingConfig(
        data=DataConfig(
            labeled=str(data_folder / "train.json"),
            val=str(data_folder / "val.json"),
            label_fraction=LABEL_FRACTION,
            fold=seed + 1,
            labeled_batch_size=8,
            unlabeled_batch_size=8,
            num_workers=0,
            short_edges=[IMAGE_SIZE],
            long_edge=IMAGE_SIZE,
            flip_probability=0.0,  # a mirrored 2 is no 2
        ),
        model=ModelConfig(size="nano", backbone_weights="random"),
        optimizer=OptimizerConfig(
            learning_rate=1.6e-3, backbone_lr_factor=1.0, max_grad_norm=0.5, lr_schedule="cosine", warmup_steps=50
        ),
        schedule=ScheduleConfig(
            num_steps=num_steps, burn_in_steps=burn_in_steps, unsupervised_weight=1.0, ema_momentum=0.99
        ),
        pseudo_labels=PseudoLabelConfig(),
        run=RunConfig(output_dir=str(output_dir), seed=seed, log_every=50, eval_every=400, cpu=True),
    )


def train(config: TrainingConfig, *, use_unlabeled: bool) -> TrainingResult:
    """Run one of the two trainings."""
    sources = open_sources(config)
    trainer = SemiDetrTrainer(
        config,
        build_model(config, sources.labeled),
        build_image_processor(config),
        labeled=sources.labeled,
        unlabeled=sources.unlabeled if use_unlabeled else None,
        val=sources.val,
    )
    return trainer.train()


def reload_and_evaluate(folder: Path, val: CocoSource) -> DetectionMetrics:
    """Load a checkpoint as any user of transformers would, and score it."""
    model = AutoModelForObjectDetection.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    accelerator = Accelerator(cpu=True)
    return evaluate(model, processor, val, batch_size=8, accelerator=accelerator, desc="reloaded")[0]


def draw_detections(folder: Path, val: CocoSource, path: Path) -> None:
    """Write a sheet of validation scenes: what is there, and what the pipeline finds."""
    detector = pipeline("object-detection", model=str(folder), device="cpu")
    samples = [val[i] for i in range(NUM_PICTURES)]
    label_of = {name: label for label, name in enumerate(val.category_names)}
    predictions = []
    for sample in samples:
        found = detector(sample.image, threshold=0.3)
        boxes = [[d["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for d in found]
        predictions.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([label_of[d["label"]] for d in found], dtype=torch.int64),
                "scores": torch.tensor([d["score"] for d in found], dtype=torch.float32),
            }
        )
    ground_truth = [{"boxes": sample.boxes_xyxy, "labels": sample.class_labels} for sample in samples]
    detection_sheet([sample.image for sample in samples], predictions, ground_truth, val.category_names, path)


def describe(supervised: TrainingResult, semi: TrainingResult) -> list[tuple[str, DetectionMetrics]]:
    """Return the rows of the table; `best` of the supervised run is its best evaluation, chosen in its favor."""
    rows = [
        ("supervised", supervised.student),
        ("supervised, averaged", supervised.teacher),
        ("supervised, best evaluation", supervised.best),
        ("semi-supervised, student", semi.student),
        ("semi-supervised, teacher", semi.teacher),
    ]
    return [(name, metrics) for name, metrics in rows if metrics is not None]


def run(args: argparse.Namespace) -> dict:
    started = time.monotonic()
    output = Path(args.output)
    data = write_digits_dataset(
        output / "data", num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=IMAGE_SIZE, seed=args.seed
    )
    data_folder = data.train_json.parent
    num_labeled = round(LABEL_FRACTION * NUM_TRAIN)
    print(f"{NUM_TRAIN} scenes, {num_labeled} of them labeled, {NUM_VAL} to evaluate: {data_folder}")
    semi_config = configure(
        data_folder, output / "semi", seed=args.seed, num_steps=args.steps, burn_in_steps=args.burn_in
    )
    supervised_config = replace(
        semi_config,
        schedule=replace(semi_config.schedule, burn_in_steps=0),
        run=replace(semi_config.run, output_dir=str(output / "supervised")),
    )
    for config in (supervised_config, semi_config):
        # A log is continued where it stands, which is right for a resumed run and wrong for a new one.
        (Path(config.run.output_dir) / "log.jsonl").unlink(missing_ok=True)
    supervised = train(supervised_config, use_unlabeled=False)
    semi = train(semi_config, use_unlabeled=True)

    val = open_sources(semi_config).val
    reloaded = reload_and_evaluate(output / "semi" / "best", val)
    draw_detections(output / "semi" / "best", val, output / "detections.png")
    logs = {name: JsonlLog(output / name / "log.jsonl").rows() for name in ("supervised", "semi")}
    training_curves(logs, output / "curves.png")

    rows = describe(supervised, semi)
    gain = semi.teacher.ap - max(metrics.ap for name, metrics in rows if name.startswith("supervised"))
    result = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "steps": args.steps,
        "burn_in_steps": args.burn_in,
        "labeled": num_labeled,
        "unlabeled": NUM_TRAIN - num_labeled,
        "versions": {"semidetr_hf": semidetr_hf.__version__, "torch": torch.__version__},
        "metrics": {name: metrics.to_dict() for name, metrics in rows},
        "reloaded_best_ap": reloaded.ap,
        "gain_ap": gain,
        "seconds": {
            "supervised": round(supervised.seconds),
            "semi-supervised": round(semi.seconds),
            "all": round(time.monotonic() - started),
        },
    }
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'':28} {'AP':>6} {'AP50':>6} {'AP75':>6}")
    for name, metrics in rows:
        print(f"{name:28} {metrics.ap:6.3f} {metrics.ap50:6.3f} {metrics.ap75:6.3f}")
    print(f"\ngain of the teacher over the best supervised row: {gain:+.3f} AP")
    best = f"{semi.best_network} after {semi.best_step} steps"
    print(f"best checkpoint: {output / 'semi' / 'best'} ({best}), reloaded: AP {reloaded.ap:.3f}")
    print(f"pictures: {output / 'detections.png'}, {output / 'curves.png'}")
    print(f"{result['seconds']['all']} seconds in all")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/demo", help="folder for data, runs and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the choice of labels and the training")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps of each of the two trainings")
    parser.add_argument("--burn-in", type=int, default=800, help="steps before unlabeled scenes are used")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    transformers_logging.disable_progress_bar()
    run(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
