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

At the end it prints a table with AP, AP50 and AP75 of student and teacher. Checkpoints are written at every evaluation
(or `--save_every`), and on SIGTERM and Ctrl-C; the same command with `--resume auto` goes on from the newest one, and
begins the run where there is none.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

try:
    from accelerate.utils.memory import should_reduce_batch_size

    from semidetr_hf.training.processes import is_lost_process
    from semidetr_hf.training.setup import build_image_processor, build_model, open_sources, parse_config
    from semidetr_hf.training.trainer import SemiDetrTrainer, TrainingResult
except ModuleNotFoundError as error:
    sys.exit(f"train_ssod.py: error: {error}; install what it needs: pip install 'semidetr-hf[train]'")


def print_table(result: TrainingResult) -> None:
    print(f"\n{'':8} {'AP':>6} {'AP50':>6} {'AP75':>6}")
    best = None if result.best is None else result.best.metrics
    for name, metrics in (("student", result.student), ("teacher", result.teacher), ("best", best)):
        if metrics is not None:
            print(f"{name:8} {metrics.ap:6.3f} {metrics.ap50:6.3f} {metrics.ap75:6.3f}")
    if result.best is not None:
        print(f"best: the {result.best.network} after {result.best.step} steps")
    print(f"{result.seconds:.0f} seconds, {result.num_unreadable} unreadable images skipped")


def train(arguments: Sequence[str] | None) -> int:
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
        if result.stopped_by is not None:
            text = f"stopped by {result.stopped_by} after {result.step} steps; --resume auto goes on from there"
            print(text, flush=True)  # a launcher may end this process as soon as another one has ended
    # As if the signal had ended the process: who started it sees that the run is not complete.
    return 0 if result.stopped_by is None else 128 + signal.Signals[result.stopped_by]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 128 + number of the signal that stopped the run; 1 after one line on stderr that tells the way out."""
    # The first of several processes speaks for all of them; errors may be of one alone.
    rank = os.environ.get("RANK", "0")
    level = logging.INFO if rank == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stdout)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file of a checkpoint
    disable_progress_bar()  # of saving; the one of training stays
    try:
        return train(arguments)
    except KeyboardInterrupt:  # before the first step, or for the second time
        advice = "the same command with --resume auto goes on from the last checkpoint"
        print(f"train_ssod.py: ended at once; {advice}", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError, FloatingPointError) as error:  # others are bugs, and show where
        reason = " ".join(str(error).split())
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            reason = f"out of memory ({reason}); lower labeled_batch_size, unlabeled_batch_size, short_edges and "
            reason += "long_edge, or projector_width"
        elif is_lost_process(error):
            reason = f"another process has ended ({reason}); what it says of itself is the cause"
        else:
            raise
    where = "" if rank == "0" else f"process {rank}: "
    print(f"train_ssod.py: error: {where}{reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
