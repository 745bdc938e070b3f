"""What a run writes down: `config.yaml`, `log.jsonl`, `resources.jsonl`, and what the trackers are told.

`log.jsonl` depends on settings, seed, libraries and number formats alone, so that the log of a resumed run equals that
of an undisturbed one; what depends on the machine besides stands in `resources.jsonl`. Only the main process writes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog, RunningMeans, flatten
from semidetr_hf.training.processes import gather_from_all
from semidetr_hf.training.resources import ResourceMeter


class RunRecords:
    """The records of one run.

    Args:
        accelerator: says which process this is, and talks to the trackers.
        folder: of the files.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.means = RunningMeans()
        self.meter = ResourceMeter(accelerator.device)
        self._files: dict[str, JsonlLog] = {}

    def begin(self, config: TrainingConfig, step: int) -> None:
        """Write `config.yaml`, open files and trackers; lines of later steps than `step`, made again, are removed."""
        if self.accelerator.is_main_process:
            run = replace(config.run, resume=None, overwrite=False)
            replace(config, run=run).save(self.folder / "config.yaml")
            self._files = {name: JsonlLog(self.folder / f"{name}.jsonl") for name in ("log", "resources")}
            for file in self._files.values():
                file.cut_after(step)
        self.accelerator.init_trackers("semidetr", config=flatten(config.to_dict()))

    def add(self, numbers: Mapping[str, Tensor | float]) -> None:
        """Add the numbers of one step of this process to the means."""
        self.means.update(numbers)

    def take_means(self) -> dict[str, Any]:
        """Return the means over all processes and the steps since the last time; all processes must ask."""
        means = RunningMeans.merged(gather_from_all(self.accelerator, self.means.totals())).compute()
        self.means.reset()
        return dict(means)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Write a line of the log; trackers receive its plain numbers.

        Raises:
            OSError: if the file cannot be written.
        """
        if "log" in self._files:
            self._files["log"].append({"step": step, **row})
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=step)

    def measure(self, step: int) -> dict[str, Any]:
        """Write down what this process takes of the machine, and return it.

        Raises:
            OSError: if the file cannot be written.
        """
        measured = self.meter.measure(step)
        if "resources" in self._files:
            self._files["resources"].append({"step": step, **measured})
        return measured
