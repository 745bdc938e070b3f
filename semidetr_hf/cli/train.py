"""`semidetr train`: a run from its flags to its table; `examples/train_ssod.py` is the same."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from semidetr_hf.training.config import TrainingConfig

# The flags are those of `parse_config`, one per field of the configuration, and so is the help.
TAKES_ANY_FLAG: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    "add_help_option": False,
    "options_metavar": "[--config RUN.yaml] [--FIELD VALUE ...]",
}
DESCRIPTION = """\
Train a detector from a few labeled and many unlabeled images.

Example: semidetr train --labeled my/train.json --unlabeled my/photos --val my/val.json --output-dir runs/mine

Every flag may be written with - or _ between its words. The same command with --resume auto goes on with an
interrupted run. On several GPUs: accelerate launch -m semidetr_hf.cli train ...
"""
ENDED_AT_ONCE = "ended at once; the same command with --resume auto goes on from the last checkpoint"


def train(context: typer.Context) -> int:
    """Train from few labeled and many unlabeled images.

    Every setting of the run is a flag; `semidetr train --help` lists them by section.
    """
    from semidetr_hf.training.command_line import parse_config

    show_log(logging.ERROR if context.obj.quiet else logging.INFO)
    try:
        return run(parse_config(context.args, program="semidetr train", description=DESCRIPTION))
    except KeyboardInterrupt:  # before the first step, or for the second time
        typer.echo(f"semidetr: {ENDED_AT_ONCE}", err=True)
        return 128 + signal.SIGINT
    except SystemExit as ended:  # after the help, or a flag that is unknown
        return int(ended.code or 0)
    except (RuntimeError, MemoryError, FloatingPointError) as error:
        typer.echo(f"semidetr: error: {reason(error)}", err=True)
        return 1


def show_log(level: int) -> None:
    """Send what a run tells of itself to stdout; the first of several processes speaks for all of them."""
    from transformers.utils.logging import disable_progress_bar

    level = level if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stdout)
    for talkative in ("accelerate", "faster_coco_eval"):  # of every file of a checkpoint, of every evaluation
        logging.getLogger(talkative).setLevel(logging.WARNING)
    disable_progress_bar()  # of saving; the one of training stays


def run(config: TrainingConfig) -> int:
    """Train as the configuration says, with a supervised baseline beside it; show plan, results and report.

    Returns:
        0, or 128 + the number of the signal that stopped the run, as if it had ended the process.

    Raises:
        ValueError: if settings, data or weights are wrong.
        OSError: if a file cannot be read or written.
        KeyboardInterrupt: before the first step, or for the second time; `ENDED_AT_ONCE` is the advice.
        FloatingPointError: if too many steps in a row were not finite.
        RuntimeError: of torch; `reason` tells what is behind it.
    """
    from semidetr_hf.report.after_training import report_after_training
    from semidetr_hf.training.recipe import train_with_baseline

    result = train_with_baseline(config, say=typer.echo)
    if result.stopped_by is None and os.environ.get("RANK", "0") == "0":
        report = report_after_training(config.run.output_dir)
        if report is not None:
            typer.echo(f"the report: {report}")
    sys.stdout.flush()  # a launcher may end this process as soon as another one has ended
    return 0 if result.stopped_by is None else 128 + signal.Signals[result.stopped_by]


def reason(error: Exception) -> str:
    """Return why a run has ended, in one line with the way out, after "process 2: " where it is not the first.

    Raises:
        Exception: the error itself, where it is a bug, which shows where.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    from semidetr_hf.training.processes import is_lost_process

    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and should_reduce_batch_size(error)):
        text = f"out of memory ({text[:200]}); lower labeled_batch_size, unlabeled_batch_size, short_edges and "
        text += "long_edge, or projector_width"
    elif isinstance(error, RuntimeError) and is_lost_process(error):
        text = f"another process has ended ({text[:200]}); what it says of itself is the cause"
    elif not isinstance(error, ValueError | OSError | FloatingPointError):
        raise error
    rank = os.environ.get("RANK", "0")
    return text if rank == "0" else f"process {rank}: {text}"
