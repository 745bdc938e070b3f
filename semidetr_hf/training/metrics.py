"""Numbers of a run: means between two log lines, and a file with one JSON object per line."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from semidetr_hf.data.splits import open_whole


class RunningMeans:
    """Means of named numbers since the last reset.

    Tensors that are given together stay together, one vector on their device: it is read only when the means are,
    since to read a number makes the host wait for the device.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._unread: dict[tuple[str, ...], Tensor] = {}  # names -> their sums, which `_sums` does not have yet

    def update(self, values: Mapping[str, Tensor | float]) -> None:
        """Add one number per name; a name may be absent from some updates and is averaged over the ones it is in.

        Args:
            values: name -> number or () tensor; a tensor is detached.
        """
        tensors = {name: value.detach().float() for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            names, vector = tuple(tensors), torch.stack(list(tensors.values()))
            before = self._unread.get(names)
            self._unread[names] = vector if before is None else before.to(vector.device) + vector
        for name, value in values.items():
            self._counts[name] = self._counts.get(name, 0) + 1
            self._sums[name] = self._sums.get(name, 0.0) + (0.0 if isinstance(value, Tensor) else value)

    def averages(self) -> dict[str, Tensor | float]:
        """Return the means by name without reading tensors, in the order of their first update."""
        means: dict[str, Tensor | float] = {name: total / self._counts[name] for name, total in self._sums.items()}
        for names, vector in self._unread.items():
            for name, total in zip(names, vector.unbind(), strict=True):
                means[name] = means[name] + (total if self._counts[name] == 1 else total / self._counts[name])
        return means

    def compute(self) -> dict[str, float]:
        """Return the means by name, in the order of their first update; empty when nothing was added."""
        return {name: total / self._counts[name] for name, total in self.totals()["sums"].items()}

    def totals(self) -> dict[str, dict[str, float]]:
        """Return sums and counts of all numbers, for `merged`; tensors are read in one transfer."""
        sums = dict(self._sums)
        if self._unread:
            names = [name for group in self._unread for name in group]
            # After a resume some may lie on the CPU, until the same names are given again.
            device = next(reversed(self._unread.values())).device
            together = torch.cat([vector.to(device) for vector in self._unread.values()])
            for name, total in zip(names, together.tolist(), strict=True):
                sums[name] += total
        return {"sums": sums, "counts": dict(self._counts)}

    @classmethod
    def merged(cls, totals: Sequence[Mapping[str, Mapping[str, float]]]) -> Self:
        """Return the means over several processes, from the `totals` of each."""
        means = cls()
        for own in totals:
            for name, total in own["sums"].items():
                means._sums[name] = means._sums.get(name, 0.0) + total
                means._counts[name] = means._counts.get(name, 0) + int(own["counts"][name])
        return means

    def state(self) -> dict[str, Any]:
        """Return plain values, from which `restore` goes on to the same means, bit for bit."""
        unread = [[list(names), vector.tolist()] for names, vector in self._unread.items()]
        return {"sums": dict(self._sums), "counts": dict(self._counts), "unread": unread}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
        self._unread = {tuple(names): torch.tensor(totals) for names, totals in state["unread"]}

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.clear()
        self._unread.clear()


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
