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
begins the run where there is none. `semidetr train` is the same program.
"""

import logging
import signal
import sys
from collections.abc import Sequence

try:
    from semidetr_hf.cli.train import ENDED_AT_ONCE, reason, run, show_log
    from semidetr_hf.training.command_line import parse_config
except ModuleNotFoundError as error:
    # transformers says that one of its own modules is missing, and only as the cause which library is.
    missing = error.__cause__ or error
    sys.exit(f"train_ssod.py: error: {missing}; install what it needs: pip install 'semidetr-hf[train]'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 128 + number of the signal that stopped the run; 1 after one line on stderr that tells the way out."""
    show_log(logging.INFO)
    try:
        return run(parse_config(arguments, description=__doc__))
    except KeyboardInterrupt:  # before the first step, or for the second time
        print(f"train_ssod.py: {ENDED_AT_ONCE}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        print(f"train_ssod.py: error: {reason(error)}", file=sys.stderr)  # bugs are raised again, and show where
        return 1


if __name__ == "__main__":
    sys.exit(main())
