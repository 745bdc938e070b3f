"""What a user gets to see for bad inputs: one line that names the culprit, and nothing is lost."""

import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState, GradientState
from bad_inputs.case import PROGRAMS, Case
from bad_inputs.folders import finished_run
from bad_inputs.write_table import ALL_CASES, TABLE, table
from example_modules import EXAMPLES, load_example

from semidetr_hf import conversion
from semidetr_hf.training import recipe

MAINS = {name: conversion.main if name == "conversion" else load_example(name).main for name in PROGRAMS}
BLOCKED = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')\n"


class Ending(NamedTuple):
    status: int
    out: str
    err: str


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Return what is in a folder by name: bytes of files, targets of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


@contextmanager
def file_size_limited(largest: int | None) -> Iterator[None]:
    """Let no file grow beyond so many bytes, which is what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_here(case: Case, arguments: list[str], capsys: pytest.CaptureFixture, caplog) -> Ending:
    with file_size_limited(case.largest_file):
        try:
            status = MAINS[case.program](arguments)
        except SystemExit as ended:
            status = ended.code
    captured = capsys.readouterr()
    return Ending(status, caplog.text + captured.out, captured.err)


def run_apart(case: Case, arguments: list[str], environment: dict[str, str], folder: Path) -> Ending:
    if case.missing_package is not None:
        package = folder / "blocked" / case.missing_package
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(BLOCKED.format(case.missing_package))
        environment = environment | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, str(EXAMPLES / PROGRAMS[case.program]), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Ending(done.returncode, done.stdout, done.stderr)


def check_ending(case: Case, ending: Ending) -> None:
    assert ending.status == case.status, ending.err
    assert "Traceback" not in ending.out + ending.err
    # Names of files may hold what is no text, but can be printed all the same.
    (ending.out + ending.err).encode("utf-8")
    # Progress bars go back to the beginning of their line.
    lines = [line for line in re.split(r"[\r\n]+", ending.err) if line.strip()]
    errors = [line for line in lines if f"{PROGRAMS[case.program]}: error: " in line]
    if case.status == 0:
        assert errors == []
        assert re.search(case.says, ending.out + ending.err)
        return
    [error] = errors
    assert lines[-1] == error
    assert error.startswith(PROGRAMS[case.program])
    assert re.search(case.says, error), error
    if case.status == 1 and not case.started:
        assert lines == [error]


@pytest.mark.parametrize("case", ALL_CASES, ids=[case.title for case in ALL_CASES])
def test_bad_input(case: Case, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = case.make(folder)
    if case.finished_run:
        finished_run(folder)
    before = contents(folder)
    check_sources = recipe.check_sources

    def check_and_spoil(*sources, **options) -> list[str]:
        warnings = check_sources(*sources, **options)
        if case.after_check is not None:
            case.after_check(folder)
            before.update(contents(folder))
        return warnings

    monkeypatch.setattr(recipe, "check_sources", check_and_spoil)
    monkeypatch.setattr(sys, "argv", [PROGRAMS[case.program]])
    caplog.set_level(logging.INFO)
    capsys.readouterr()
    # Of an earlier run in this process.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    environment = {name: value.format(folder=tmp_path) for name, value in case.environment.items()}
    if case.own_process or case.missing_package is not None:
        ending = run_apart(case, arguments, environment, tmp_path)
    else:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ending = run_here(case, arguments, capsys, caplog)
    check_ending(case, ending)

    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    new = [name for name, content in after.items() if name not in before and content is not None]
    assert not [name for name in new if "partial" in name]
    if case.status != 0 and not case.started:
        assert new == []


def test_the_table_is_of_today() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run python tests/bad_inputs/write_table.py"


def test_the_table_is_long_and_says_nothing_twice() -> None:
    titles = [case.title for case in ALL_CASES]
    assert len(titles) >= 60
    assert len(set(titles)) == len(titles)
