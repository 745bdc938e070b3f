# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train]"]
# ///
"""Train a detector on labeled images with the stock `transformers.Trainer`.

Nothing here is special to this package but the model, its image processor and the reading of COCO files: that is the
point. There is no augmentation. The detector is built with random weights.

    python examples/train_supervised.py --train_json coco/train.json --val_json coco/val.json --output_dir runs/coco

A check that everything learns: eight scenes of the embedded digits, memorized. Expected: AP above 0.9 on the same
eight scenes, after about a minute on one core of a CPU.

    OMP_NUM_THREADS=1 python examples/train_supervised.py --digits 8 --output_dir runs/overfit
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource

try:
    from semidetr_hf.data.digits import write_digits_dataset
    from semidetr_hf.data.validation import check_sources
    from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
except ModuleNotFoundError as error:
    sys.exit(f"train_supervised.py: error: {error}; install what it needs: pip install 'semidetr-hf[train]'")

SEED = 0


class CocoImages(Dataset[dict[str, Any]]):
    """Images with annotations as the image processors of detectors take them; `category_id` is the class label."""

    def __init__(self, source: CocoSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        boxes = zip(sample.boxes_xyxy.tolist(), sample.class_labels.tolist(), strict=True)
        objects = [{"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": label} for (x1, y1, x2, y2), label in boxes]
        return {"image": sample.image, "annotations": {"image_id": index, "annotations": objects}}


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; give a whole number from 1")
    return int(text)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--train_json", help="COCO json of the training images")
    data.add_argument("--digits", type=int, metavar="N", help="train and evaluate on the same N scenes of digits")
    parser.add_argument("--val_json", help="COCO json to evaluate on (default: the training images)")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--size", choices=["nano", "small", "base"], default="nano")
    parser.add_argument("--image_size", type=at_least_one, default=96, help="shorter edge in pixels")
    parser.add_argument("--max_steps", type=at_least_one, default=300)
    parser.add_argument("--batch_size", type=at_least_one, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    return parser.parse_args(arguments)


def build(args: argparse.Namespace, source: CocoSource) -> tuple[SemiDetrForObjectDetection, Any]:
    sizes = {"nano": SemiDetrConfig.nano, "small": SemiDetrConfig.small, "base": SemiDetrConfig.base}
    names = source.category_names
    config = sizes[args.size](
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        category_ids=list(source.category_ids),
    )
    size = {"shortest_edge": args.image_size, "longest_edge": 2 * args.image_size}
    return SemiDetrForObjectDetection(config), SemiDetrImageProcessor(size=size)


class Outcome(NamedTuple):
    """What a run ends with; `losses` are means over a tenth of the run each."""

    metrics: DetectionMetrics
    losses: list[float]
    seconds: float


def train(args: argparse.Namespace) -> Outcome:
    """Train, save and evaluate."""
    set_seed(SEED)
    if args.digits is not None:
        folder = Path(args.output_dir) / "digits"
        args.train_json = write_digits_dataset(folder, num_train=args.digits, num_val=1, image_size=96).train_json
    train_source = CocoSource(args.train_json)
    val_source = CocoSource(args.val_json or args.train_json)
    for warning in check_sources(train_source, None, val_source):
        print(f"warning: {warning}")
    model, processor = build(args, train_source)

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        images, annotations = [item["image"] for item in items], [item["annotations"] for item in items]
        return dict(processor(images=images, annotations=annotations, return_tensors="pt"))

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(50, args.max_steps // 10),
            weight_decay=1e-4,
            max_grad_norm=0.1,
            logging_steps=max(1, args.max_steps // 10),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            # The columns are images and annotations, which the model does not take; the collator makes what it takes.
            remove_unused_columns=False,
        ),
        data_collator=collate,
        train_dataset=CocoImages(train_source),
        processing_class=processor,
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    trainer.save_model()
    metrics, _ = evaluate(model, processor, val_source, batch_size=args.batch_size, accelerator=trainer.accelerator)
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return Outcome(metrics, losses, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        outcome = train(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"train_supervised.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    metrics = outcome.metrics
    print(f"AP {metrics.ap:.3f}, AP50 {metrics.ap50:.3f}, AP75 {metrics.ap75:.3f} after {outcome.seconds:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
