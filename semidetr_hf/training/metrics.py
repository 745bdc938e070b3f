"""Numbers of a run: means between two log lines, and a file with one JSON object per line."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from semidetr_hf.data.splits import open_whole


class RunningMeans:
    """Means of named numbers since the last reset; tensors are summed on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def update(self, values: Mapping[str, Tensor | float]) -> None:
        """Add one number per name; a name may be absent from some updates and is averaged over the ones it is in.

        Args:
            values: name -> number or () tensor; a tensor is detached.
        """
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def compute(self) -> dict[str, float]:
        """Return the means by name, in the order of their first update; empty when nothing was added."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, dict[str, float]]:
        """Return sums and counts as plain numbers, from which `restore` goes on to the same means."""
        return {"sums": {name: float(total) for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take back what `state` returned."""
        self._sums = dict(state["sums"])
        self._counts = {name: int(count) for name, count in state["counts"].items()}

    @classmethod
    def merged(cls, states: Sequence[Mapping[str, Mapping[str, float]]]) -> Self:
        """Return the means over several processes, from the `state` of each."""
        means = cls()
        for state in states:
            for name, total in state["sums"].items():
                means._sums[name] = means._sums.get(name, 0.0) + total
                means._counts[name] = means._counts.get(name, 0) + int(state["counts"][name])
        return means

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.clear()


class JsonlLog:
    """A file that grows by one JSON object per line and is complete after every line.

    Opened on an existing file it goes on at its end; a last line that was cut off, as by a crash, is removed first.

    Raises:
        OSError: if it cannot be opened, as when it is a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: a folder is where this file of the run belongs; move it away")
        if self.path.exists():
            whole = self.path.read_bytes()
            complete = whole[: whole.rfind(b"\n") + 1]
            if complete != whole:
                os.truncate(self.path, len(complete))  # at no moment are there fewer lines than before

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line.

        Args:
            row: `step`, losses, learning rate and the like; values as JSON has them, at any depth.

        Raises:
            ValueError: if a number is nan or infinite; the message names it and nothing is written.
            OSError: if the file cannot be written.
        """
        for name, value in _numbers("", row):
            if not math.isfinite(value):
                raise ValueError(
                    f"{self.path}: {name}={value} at step {row.get('step')} is not finite; nothing written"
                )
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(row)) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be written ({error.strerror}); make room or restore the folder, and go on from "
                "the last checkpoint"
            ) from error

    def cut_after(self, step: int) -> None:
        """Remove the rows of later steps, such as a run wrote after the checkpoint from which it goes on.

        Raises:
            OSError: if the file cannot be written; it stays as it was.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line, row in zip(lines, self.rows(), strict=True) if row["step"] <= step]
        if len(kept) < len(lines):
            with open_whole(self.path) as file:
                file.writelines(kept)

    def rows(self) -> list[dict[str, Any]]:
        """Return what was written so far, oldest first; empty if nothing was.

        Raises:
            ValueError: if a line is not JSON; the message names file and line.
        """
        if not self.path.exists():
            return []
        rows = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {number}: not JSON ({error}); mend or delete the line") from error
        return rows


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{name}.", value)
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def flatten(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, int | float | str | bool]:
    """Flatten a configuration for trackers, which take plain values only; names become "part.name"."""
    return {
        f"{part}.{name}": value if isinstance(value, (int, float, str, bool)) else str(value)
        for part, values in nested.items()
        for name, value in values.items()
    }
