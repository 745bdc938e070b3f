"""The report at the end of a training. Nothing that goes wrong in it harms the run, which is written by then."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from semidetr_hf.report.page import FILE_NAME, write_report

logger = logging.getLogger(__name__)

# By these variables a launcher tells a process that it is one of several.
_OF_A_LAUNCHER = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PMI_", "OMPI_")
_NAMES_OF_A_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
}


def report_after_training(run_folder: str | Path) -> Path | None:
    """Write the report of a run that has just ended; the first process alone calls this.

    One of several processes lets a new one write it, which belongs to no group: the other ones have ended.

    Args:
        run_folder: its `output_dir`.

    Returns:
        The file; None if it could not be written, which a warning tells.
    """
    try:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return write_report(run_folder)
        return _write_in_new_process(Path(run_folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        logger.warning("no report of the run (%s); `semidetr report %s` writes it", reason, run_folder)
        return None


def _write_in_new_process(run_folder: Path) -> Path:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NAMES_OF_A_LAUNCHER and not name.startswith(_OF_A_LAUNCHER)
    }
    command = [sys.executable, "-m", "semidetr_hf.cli", "report", str(run_folder)]
    ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode != 0:
        said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"status {ended.returncode}")
    return run_folder / FILE_NAME
