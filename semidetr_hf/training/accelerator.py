"""Accelerate, fitted to a run: device, precision, the other processes."""

import tempfile
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.sharding import set_up_sharding
from semidetr_hf.training.tracking import FOLDER, require_trackers


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Return what knows device, precision and the other processes.

    Raises:
        OSError: if nothing can be written to the output folder.
        ValueError: if a tracker is unknown or not installed, the device cannot compute in the precision, or the
            networks cannot be sharded in the way asked for; names it.
    """
    run = config.run
    require_trackers(run.trackers)
    _try_to_write(run.output_dir)
    accelerator = Accelerator(
        cpu=run.cpu,
        mixed_precision=run.mixed_precision,
        # The trainer counts batches: that one of the two loaders comes to its end is no reason for a step.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=run.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=run.trackers or None,
        project_config=ProjectConfiguration(run.output_dir, logging_dir=str(Path(run.output_dir) / FOLDER)),
        # Images without boxes leave some parameters without a gradient in a step.
        # The others wait while the main process scores an evaluation or writes a checkpoint, which may take long.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )
    if run.mixed_precision != "no" and not accelerator.native_amp:
        # Accelerate computes in full precision then, without a word.
        raise ValueError(
            f"mixed_precision={run.mixed_precision!r}: not possible on the device {accelerator.device}; use bf16 or no"
        )
    set_up_sharding(accelerator, config)
    return accelerator


def _try_to_write(output_dir: str) -> None:
    """Find out before hours of training whether they can be saved; leaves nothing behind."""
    folder = Path(output_dir).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"output_dir={output_dir!r}: nothing can be written there ({place}: {error.strerror}); give another folder"
        ) from error
