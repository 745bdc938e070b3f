"""What was found so far, in a file that grows by a line per batch; a run that was killed goes on behind the last."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self


class Totals(NamedTuple):
    """What the lines of a journal hold together."""

    batches: int
    images: int
    unreadable: int
    detections: int


class Journal:
    """A file of json lines: the settings of the run, then one record per batch, in their order.

    A record has `images`, a list of `{"image_id", "file_name", "width", "height", "detections"}`, and `unreadable`, a
    list of messages. To be used as a context manager, which closes the file, and removes it if nothing was added.

    Args:
        path: the file.
        settings: all that the records depend on; strings, numbers and truth values.
        resume: whether to go on with the file, if it is there. What follows its last whole line is cut off.

    Attributes:
        totals: of the records that are in the file.

    Raises:
        FileExistsError: if the file is there and `resume` is False.
        ValueError: if it belongs to a run with other settings, or is none; names the first that differs.
        OSError: if it cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.totals = Totals(0, 0, 0, 0)
        if path.exists() and not resume:
            raise FileExistsError(
                f"{path}: a run that was interrupted; go on with --resume, or delete this file to begin again"
            )
        end = self._read_on(settings) if path.exists() else 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, which would be written a second time, in vain, when a file on a full disk is closed.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(end)
        except OSError as error:
            raise _cannot_be_written(path, error) from error
        if end == 0:
            try:
                self._append({"settings": dict(settings)})
            except OSError:
                self.remove()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self.totals.batches == 0:
            self.remove()

    def add(self, record: Mapping[str, Any]) -> None:
        """Append the record of the next batch; it survives the end of this process.

        Raises:
            OSError: if it cannot be written.
        """
        self._append(record)
        self._count(record)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records from the first to the last, one at a time in memory."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """Close and delete the file, if that has not been done."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read_on(self, settings: Mapping[str, Any]) -> int:
        """Count what is in the file and return where its whole lines end."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    content = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    content = None
                if content is None:
                    break  # torn by the interruption
                if end == 0:
                    self._require_same(content, settings)
                else:
                    self._count(content)
                end += len(line)
        return end

    def _require_same(self, head: Any, settings: Mapping[str, Any]) -> None:
        before = head.get("settings") if isinstance(head, dict) else None
        if not isinstance(before, dict):
            raise ValueError(f"{self.path}: not written by a run like this; move it, or give another output folder")
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self.path}: the run that was interrupted had another {name} ({before.get(name)}, now {value}); "
                    "go on with the same, or delete this file to begin again"
                )

    def _count(self, record: Mapping[str, Any]) -> None:
        batches, images, unreadable, detections = self.totals
        self.totals = Totals(
            batches + 1,
            images + len(record["images"]),
            unreadable + len(record["unreadable"]),
            detections + sum(len(image["detections"]) for image in record["images"]),
        )

    def _append(self, content: Mapping[str, Any]) -> None:
        try:
            rest = memoryview(f"{json.dumps(content)}\n".encode())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _cannot_be_written(self.path, error) from error


def _cannot_be_written(path: Path, error: OSError) -> OSError:
    reason = error.strerror or os.strerror(error.errno or 0)
    return type(error)(f"{path}: cannot be written ({reason}); make room, or give another folder")
