"""What a bad input is made of: how it comes about, what a user sees, and the row of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Program -> how its messages begin.
PROGRAMS = {
    "train_ssod": "train_ssod.py",
    "train_supervised": "train_supervised.py",
    "predict": "predict.py",
    "evaluate": "evaluate.py",
    "make_splits": "make_splits.py",
    "conversion": "semidetr_hf.conversion",
}

# What most programs do, for the table.
FILE_NAMED = "ends before anything is computed; names the file and what is wrong in it"
FIELD_NAMED = "ends before anything is computed; names the setting and the wrong value"
FLAG_NAMED = "shows the usage and names the flag that is wrong"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way in which data, settings or the machine can be wrong.

    Attributes:
        title: what is wrong, in the words of a user.
        make: prepares an empty folder and returns the command line.
        says: regular expression that the one line of the error matches, or, of a run that goes on, its output.
        happens: what the program does about it, for the table.
        program: one of PROGRAMS.
        status: of the program when it ends.
        started: whether work had begun by then; if not, no file may be new.
        finished_run: the output folder of a training holds an earlier run, which must stay as it is.
        after_check: called with the folder when a training has checked its data and is about to begin.
        environment: variables to set.
        missing_package: one that cannot be imported; the program gets a process of its own, as with `own_process`.
        own_process: for what is read as early as when libraries are imported.
        largest_file: bytes; no file can grow beyond, as on a full disk.
    """

    title: str
    make: Callable[[Path], list[str]]
    says: str
    happens: str
    program: str = "train_ssod"
    status: int = 1
    started: bool = False
    finished_run: bool = False
    after_check: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    missing_package: str | None = None
    own_process: bool = False
    largest_file: int | None = None

    def __post_init__(self) -> None:
        if self.program not in PROGRAMS:
            raise ValueError(f"program={self.program!r}: must be one of {', '.join(PROGRAMS)}")
