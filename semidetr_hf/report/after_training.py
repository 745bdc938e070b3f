"""The report at the end of a training, by a process of its own: nothing that goes wrong in it can harm the run."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from semidetr_hf.report.page import FILE_NAME

logger = logging.getLogger(__name__)

# By these variables a launcher tells a process that it is one of several.
_OF_A_LAUNCHER = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PMI_", "OMPI_")
_NAMES_OF_A_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
}


def report_after_training(run_folder: str | Path) -> Path | None:
    """Write the report of a run that has just ended; the main process alone calls this.

    Args:
        run_folder: its `output_dir`.

    Returns:
        The file; None if it could not be written, which a warning tells.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NAMES_OF_A_LAUNCHER and not name.startswith(_OF_A_LAUNCHER)
    }
    command = [sys.executable, "-m", "semidetr_hf.cli", "report", str(run_folder)]
    ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode == 0:
        return Path(run_folder) / FILE_NAME
    said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = said[-1] if said else f"status {ended.returncode}"
    logger.warning("no report of the run (%s); `semidetr report %s` writes it", reason, run_folder)
    return None
