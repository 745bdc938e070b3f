"""What a run takes of the machine: time, memory, open files, threads."""

import os
import time
from typing import Any

import psutil
import torch

MEGABYTE = 2**20


class ResourceMeter:
    """Measures a run from its start on, over all its sessions.

    Args:
        device: that of the networks.
        seconds_before: wall-clock time of earlier sessions of the run.
        step: number of optimizer steps made before.
    """

    def __init__(self, device: torch.device, *, seconds_before: float = 0.0, step: int = 0) -> None:
        self.device = device
        self.waited = 0.0  # seconds that were spent waiting for data since the last `measure`
        self._process = psutil.Process(os.getpid())
        self._started = time.monotonic() - seconds_before
        self._last_step, self._last_seconds = step, self.seconds

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run."""
        return time.monotonic() - self._started

    def measure(self, step: int) -> dict[str, Any]:
        """Return what the process holds now, and how fast it was since the last call.

        Args:
            step: number of optimizer steps made.

        Returns:
            `seconds` of the run, `seconds_per_step`, `waiting` (share of the time spent waiting for data), `memory_mb`
            (resident), `open_files`, `threads`; on CUDA `cuda_mb` (allocated by tensors) too.
        """
        now = self.seconds
        passed = max(now - self._last_seconds, 1e-9)
        numbers = {
            "seconds": round(now, 3),
            "seconds_per_step": round(passed / max(step - self._last_step, 1), 5),
            "waiting": round(min(self.waited / passed, 1.0), 4),
            "memory_mb": round(self._process.memory_info().rss / MEGABYTE, 1),
            "open_files": self._process.num_fds() if hasattr(self._process, "num_fds") else None,
            "threads": self._process.num_threads(),
        }
        if self.device.type == "cuda":
            numbers["cuda_mb"] = round(torch.cuda.memory_allocated(self.device) / MEGABYTE, 1)
        self.waited, self._last_step, self._last_seconds = 0.0, step, now
        return numbers
