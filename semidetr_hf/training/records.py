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

from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog, RunningMeans, flatten
from semidetr_hf.training.processes import gather_from_all
from semidetr_hf.training.pseudo_label_pictures import PseudoLabelPictures, build_pictures
from semidetr_hf.training.resources import ResourceMeter
from semidetr_hf.training.tracking import TAKE_PICTURES, show_picture, start_trackers


class RunRecords:
    """The records of one run.

    Args:
        accelerator: says which process this is, and talks to the trackers.
        folder: of the files.
        pictures: of pseudo-labels, for the trackers; None where none of them takes any.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, pictures: PseudoLabelPictures | None = None) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.pictures = pictures
        self.means = RunningMeans()
        self.meter = ResourceMeter(accelerator.device)
        self._files: dict[str, JsonlLog] = {}

    def begin(self, config: TrainingConfig, step: int) -> None:
        """Write `config.yaml`, open files and trackers; lines of later steps than `step`, made again, are removed."""
        if self.accelerator.is_main_process:
            config = replace(config, run=replace(config.run, resume=None, overwrite=False))
            config.save(self.folder / "config.yaml")
            self._files = {name: JsonlLog(self.folder / f"{name}.jsonl") for name in ("log", "resources")}
            for file in self._files.values():
                file.cut_after(step)
        start_trackers(self.accelerator, self.folder, flatten(config.to_dict()), step)

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

    def write_evaluation(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the line of an evaluation; trackers that take pictures receive the pseudo-labels of the last step.

        Raises:
            OSError: if the file cannot be written.
        """
        self.write(step, row)
        if self.pictures is not None and (sheet := self.pictures.draw()) is not None:
            show_picture(self.accelerator, sheet, step)

    def measure(self, step: int) -> dict[str, Any]:
        """Write down what this process takes of the machine, and return it.

        Raises:
            OSError: if the file cannot be written.
        """
        measured = self.meter.measure(step)
        if "resources" in self._files:
            self._files["resources"].append({"step": step, **measured})
        return measured


def build_records(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: SemiDetrForObjectDetection,
    image_processor: SemiDetrImageProcessor,
) -> RunRecords:
    """Return the records of a run; pictures are kept only where a tracker takes them."""
    wanted = accelerator.is_main_process and not TAKE_PICTURES.keys().isdisjoint(config.run.trackers)
    pictures = build_pictures(config, model, image_processor) if wanted else None
    return RunRecords(accelerator, Path(config.run.output_dir), pictures)
