# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train,viz]"]
# ///
"""What unlabeled images are worth: one label in twenty, with and without the rest of the images.

Writes a data set of handwritten digits on photographs to disk, trains the same small detector from scratch twice with
the same labels, augmentation, optimizer and number of steps - once on the labeled scenes alone, once with the
unlabeled ones as well - and shows what each finds. The two trainings are two runs of train_ssod.py, side by side, each
on half of the processor cores: so small a network gains little from more of them.

    python examples/demo.py
    python examples/demo.py --seed 1

Writes to outputs/demo: the table (result.json), detections.png, curves.png, and both runs with their checkpoints.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
from transformers.utils import logging as transformers_logging

import semidetr_hf
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.baseline import supervised_baseline
from semidetr_hf.training.config import (
    ConsistencyConfig,
    DataConfig,
    MatchingConfig,
    ModelConfig,
    OptimizerConfig,
    PseudoLabelConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.recipe_config import RecipeConfig
from semidetr_hf.visualization import detection_sheet, training_curves

IMAGE_SIZE, NUM_TRAIN, NUM_VAL, LABEL_FRACTION = 96, 4000, 200, 0.05
# A detector from scratch needs the burn-in; then a quarter of the other steps are one-to-many.
NUM_STEPS, BURN_IN_STEPS, ONE_TO_MANY_STEPS = 1100, 700, 800
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
            learning_rate=1.6e-3,
            backbone_lr_factor=1.0,
            max_grad_norm=0.5,
            lr_schedule="constant",
            warmup_steps=min(50, num_steps // 10),
        ),
        schedule=ScheduleConfig(
            num_steps=num_steps,
            burn_in_steps=burn_in_steps,
            one_to_many_steps=min(ONE_TO_MANY_STEPS, num_steps),
            unsupervised_weight=1.0,
            ema_momentum=0.99,
        ),
        # 20 queries: the paper's 13 of 900 for every box would be more than there are.
        matching=MatchingConfig(one_to_many_top_k=2),
        # Scores of so small a detector stay low: of 0.4, the value of the paper, few pseudo-labels are left in the
        # one-to-one stage, and everything else in the image counts as background.
        pseudo_labels=PseudoLabelConfig(score_threshold=0.3),
        consistency=ConsistencyConfig(projector_width=256),
        recipe=RecipeConfig(baseline="none", estimate=False),  # the baseline is trained beside it
        run=RunConfig(
            output_dir=str(output_dir),
            seed=seed,
            log_every=50,
            eval_every=275,
            cpu=True,
            overwrite=True,
            teacher_precision="same",  # so small a network gains nothing, and all CPUs give the same numbers
        ),
    )


def start(config: TrainingConfig, console: Path | None) -> subprocess.Popen:
    """Start one training; its output goes to a file, or to this terminal if none is given."""
    folder = Path(config.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "run.yaml")
    command = [sys.executable, str(Path(__file__).with_name("train_ssod.py")), "--config", str(folder / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    if console is None:
        return subprocess.Popen(command, env=environment)
    with console.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def train_side_by_side(quiet: TrainingConfig, shown: TrainingConfig) -> None:
    """Run two trainings to their end; stop both when one fails or on Ctrl-C.

    Args:
        quiet: its output goes to a file beside its folder.
        shown: its output goes to this terminal.

    Raises:
        RuntimeError: if one fails; says where its output is.
    """
    console = Path(quiet.run.output_dir).with_suffix(".txt")
    print(f"training {quiet.run.output_dir} (output: {console}) and, beside it, {shown.run.output_dir} (output: here)")
    runs = {quiet.run.output_dir: start(quiet, console), shown.run.output_dir: start(shown, None)}
    try:
        while any(run.poll() is None for run in runs.values()) and not any(run.poll() for run in runs.values()):
            time.sleep(0.5)
        failed = [name for name, run in runs.items() if run.poll()]
        if failed:
            raise RuntimeError(f"the training {failed[0]} failed, see above or {console}")
    finally:
        for run in runs.values():
            run.terminate()


def reload_and_evaluate(folder: Path, val: CocoSource) -> DetectionMetrics:
    """Load a checkpoint as any user of transformers would, and score it."""
    model = AutoModelForObjectDetection.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    return evaluate(model, processor, val, batch_size=8, accelerator=Accelerator(cpu=True), desc="reloaded")[0]


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


def evaluations(log: list[dict], network: str) -> list[dict[str, float]]:
    """Return AP, AP50 and AP75 of a network at every evaluation of a run."""
    names = ("ap", "ap50", "ap75")
    return [{name: row[f"{network}/{name}"] for name in names} for row in log if f"{network}/ap" in row]


def compare(logs: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Return the rows of the table; the third one is chosen in favor of the supervised run."""
    student, averaged = evaluations(logs["supervised"], "student"), evaluations(logs["supervised"], "teacher")
    return {
        "supervised": student[-1],
        "supervised, averaged": averaged[-1],
        "supervised, best evaluation": max(student + averaged, key=lambda row: row["ap"]),
        "semi-supervised, student": evaluations(logs["semi"], "student")[-1],
        "semi-supervised, teacher": evaluations(logs["semi"], "teacher")[-1],
    }


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    output = Path(args.output)
    write_digits_dataset(output / "data", num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=IMAGE_SIZE, seed=args.seed)
    num_labeled = round(LABEL_FRACTION * NUM_TRAIN)
    print(f"{NUM_TRAIN} scenes in {output / 'data'}, {num_labeled} of them labeled, and {NUM_VAL} to evaluate")
    semi = configure(
        output / "data", output / "semi", seed=args.seed, num_steps=args.steps, burn_in_steps=args.burn_in
    )
    train_side_by_side(supervised_baseline(semi, output / "supervised"), semi)

    val = CocoSource(output / "data" / "val.json")
    reloaded = reload_and_evaluate(output / "semi" / "best", val)
    draw_detections(output / "semi" / "best", val, output / "detections.png")
    logs = {name: JsonlLog(output / name / "log.jsonl").rows() for name in ("supervised", "semi")}
    training_curves(logs, output / "curves.png")
    table = compare(logs)
    gain = table["semi-supervised, teacher"]["ap"] - table["supervised, best evaluation"]["ap"]
    seconds = round(time.monotonic() - started)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "steps": args.steps,
        "burn_in_steps": args.burn_in,
        "labeled": num_labeled,
        "unlabeled": NUM_TRAIN - num_labeled,
        "versions": {
            "semidetr_hf": semidetr_hf.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        "cores": os.cpu_count(),
        "table": table,
        "reloaded_best_ap": reloaded.ap,
        "gain_ap": gain,
        "seconds": seconds,
    }
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'':28} {'AP':>6} {'AP50':>6} {'AP75':>6}")
    for name, row in table.items():
        print(f"{name:28} {row['ap']:6.3f} {row['ap50']:6.3f} {row['ap75']:6.3f}")
    print(f"\ngain of the teacher over the best supervised evaluation: {gain:+.3f} AP")
    print(
        f"best checkpoint: {output / 'semi' / 'best'}, reloaded by AutoModelForObjectDetection: AP {reloaded.ap:.3f}"
    )
    print(f"pictures: {output / 'detections.png'}, {output / 'curves.png'}")
    print(f"{seconds} seconds in all")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/demo", help="folder for data, runs and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the choice of labels and the training")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="optimizer steps of each of the two trainings")
    parser.add_argument("--burn-in", type=int, default=BURN_IN_STEPS, help="steps before unlabeled scenes are used")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    transformers_logging.disable_progress_bar()
    try:
        run(parser.parse_args(arguments))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"demo.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
