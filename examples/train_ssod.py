# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train]"]
# ///
"""Train a detector from a few labeled and many unlabeled images.

Every field of `semidetr_hf.training.config` is a flag; a YAML file gives the ones that are not on the command line.
The output folder receives the best network in `best/`, the last ones in `student/` and `teacher/`, `log.jsonl`, and
`config.yaml`, with which the run can be repeated:

    accelerate launch examples/train_ssod.py --config runs/coco10/config.yaml --output_dir runs/again

A run of the paper (Semi-DETR, arXiv 2307.08095) from its preset: 10 percent of COCO with labels. `coco_full` and `voc`
are the other two; ImageNet weights are downloaded:

    python -m semidetr_hf.training.presets coco_partial --percent 10 --fold 1 --coco coco --output_dir runs/coco10 \
        --save coco10.yaml
    accelerate launch --num_processes 8 examples/train_ssod.py --config coco10.yaml

Where the paper and its released code differ, the defaults follow the paper. `--method reference` takes the other side
for every field that neither the file nor a flag gives; the file of a preset or an earlier run gives them all, so a
preset has a `--method` of its own.

A detector for small images from scratch, on a CPU (files as `semidetr_hf.data.digits` writes them):

    python examples/train_ssod.py --labeled digits/train.json --label_fraction 0.1 --val digits/val.json \
        --size nano --backbone_weights random --short_edges 96 --long_edge 96 --labeled_batch_size 4 \
        --learning_rate 4e-4 --backbone_lr_factor 1 --num_steps 3000 --eval_every 1000 --output_dir runs/digits

At the end it prints a table with AP, AP50 and AP75 of student and teacher.
"""

import logging
import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from semidetr_hf.training.setup import build_image_processor, build_model, open_sources, parse_config
from semidetr_hf.training.trainer import SemiDetrTrainer, TrainingResult


def print_table(result: TrainingResult) -> None:
    print(f"\n{'':8} {'AP':>6} {'AP50':>6} {'AP75':>6}")
    for name, metrics in (("student", result.student), ("teacher", result.teacher), ("best", result.best)):
        if metrics is not None:
            print(f"{name:8} {metrics.ap:6.3f} {metrics.ap50:6.3f} {metrics.ap75:6.3f}")
    if result.best is not None:
        print(f"best: the {result.best_network} after {result.best_step} steps")
    print(f"{result.seconds:.0f} seconds, {result.num_unreadable} unreadable images skipped")


def train(arguments: Sequence[str] | None) -> None:
    config = parse_config(arguments, description=__doc__)
    sources = open_sources(config)
    trainer = SemiDetrTrainer(
        config,
        build_model(config, sources.labeled),
        build_image_processor(config),
        labeled=sources.labeled,
        unlabeled=sources.unlabeled,
        val=sources.val,
    )
    result = trainer.train()
    if trainer.accelerator.is_main_process:
        print_table(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong and the way out."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stdout)
    disable_progress_bar()  # of saving; the one of training stays
    try:
        train(arguments)
    except (ValueError, OSError, FloatingPointError) as error:  # others are bugs, and show where they happened
        print(f"train_ssod.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
