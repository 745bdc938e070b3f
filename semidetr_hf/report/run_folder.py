"""What a run left in its folder, read back: settings, logs, stages, and which network was kept."""

import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from semidetr_hf.training.baseline import FOLDER
from semidetr_hf.training.changed_fields import changed_fields
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run.

    Attributes:
        folder: where it is.
        config: its settings.
        log: rows of `log.jsonl`.
        resources: rows of `resources.jsonl`; empty where it is missing.
        result: content of `result.json`; None where it is missing.
        baseline: the supervised run that it is compared with; None where there is none.
    """

    folder: Path
    config: TrainingConfig
    log: list[dict[str, Any]]
    resources: list[dict[str, Any]]
    result: dict[str, Any] | None
    baseline: "RunFolder | None"

    @property
    def last_step(self) -> int:
        """Number of the last optimizer step that is in the log; 0 without one."""
        return max((row["step"] for row in self.log), default=0)

    @property
    def networks(self) -> dict[str, Path]:
        """The folders of the saved detectors that are there, by name: `best`, `teacher`, `student`."""
        folders = {name: self.folder / name for name in ("best", "teacher", "student")}
        return {name: folder for name, folder in folders.items() if (folder / "config.json").is_file()}

    @property
    def events(self) -> list[str]:
        """What the run warned of: lines about its teacher, steps left out, unreadable images, an early end."""
        found = [f"step {row['step']}: {row['event']}" for row in self.log if "event" in row]
        skipped = max((row.get("skipped_steps", 0) for row in self.log), default=0)
        if skipped:
            found.append(f"{skipped} optimizer steps were left out, since a loss or gradient was not finite")
        unreadable = max((row.get("unreadable_images", 0) for row in self.log), default=0)
        if unreadable:
            found.append(f"{unreadable} training images could not be read; others were taken instead")
        wanted = self.config.schedule.num_steps
        if self.last_step < wanted:
            found.append(f"the log ends at step {self.last_step:,} of {wanted:,}")
        return found


@dataclass(frozen=True)
class Phase:
    """A part of the run: the optimizer steps from `start` to below `end`."""

    name: str
    start: int
    end: int


def read_run(folder: str | Path) -> RunFolder:
    """Read the folder of a run; one that is still going on is read up to its last whole line.

    Args:
        folder: the `output_dir` of a run.

    Raises:
        FileNotFoundError: if there is no run in it.
        ValueError: if a file of the run is not what a run writes; names it.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise FileNotFoundError(
            f"{folder}: no run in this folder, it has no config.yaml and log.jsonl; give the output_dir of a training"
        )
    return _read(folder, with_baseline=True)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "log.jsonl").is_file()


def _read(folder: Path, *, with_baseline: bool) -> RunFolder:
    config = _read_config(folder / "config.yaml")
    # A run may have reused the baseline of another one.
    baseline = folder / FOLDER if config.recipe.baseline in ("train", "none") else Path(config.recipe.baseline)
    return RunFolder(
        folder=folder,
        config=config,
        log=_read_rows(folder / "log.jsonl"),
        resources=_read_rows(folder / "resources.jsonl"),
        result=_read_result(folder / "result.json"),
        baseline=_read(baseline, with_baseline=False) if with_baseline and _is_run(baseline) else None,
    )


def _read_config(path: Path) -> TrainingConfig:
    try:
        return TrainingConfig.from_dict(read_yaml(path))
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ValueError(f"{where}{error}") from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line break is still being written
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); mend or delete the line") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {number}: has no `step`; mend or delete the line")
        rows.append(row)
    return rows


def _read_result(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); mend or delete the file") from error
    return result if isinstance(result, dict) else None


def changed_settings(config: TrainingConfig) -> list[tuple[str, str, str]]:
    """Return what a run chose otherwise than by default: rows of field, value and default, as text.

    Fields without a default, such as the paths of the data, are always among them.
    """
    return [
        (f"{part}.{field}", _shown(value), "" if default is MISSING else _shown(default))
        for part, field, value, default in changed_fields(config)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)


def phases_of(config: TrainingConfig, *, has_unlabeled: bool) -> list[Phase]:
    """Return the phases of a run in their order; those without a step are left out.

    Args:
        config: of the run.
        has_unlabeled: whether it has unlabeled images: without them there is no burn-in.
    """
    schedule = config.schedule
    end, first_stage = schedule.num_steps, schedule.first_stage_steps
    burn_in = schedule.burn_in_steps if has_unlabeled else 0
    phases = [
        Phase("burn-in", 0, burn_in),
        Phase("one-to-many", burn_in, max(first_stage, burn_in)),
        Phase("one-to-one", max(first_stage, burn_in), end),
    ]
    return [phase for phase in phases if phase.start < phase.end]


def uses_unlabeled(config: TrainingConfig) -> bool:
    """Return whether a run learns from unlabeled images."""
    data = config.data
    return config.schedule.unsupervised_weight > 0 and not (data.unlabeled is None and data.label_fraction is None)
