"""A run over a folder that is killed in its midst and goes on ends like one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bad_inputs.folders import detector
from PIL import Image

from semidetr_hf.cli import main

NUM_IMAGES = 41
SIZES = ((64, 64), (96, 64), (64, 90))  # of other shapes: in other batches they would get other scores


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("interrupted")
    detector(work)
    (work / "photos" / "deep").mkdir(parents=True)
    for i in range(NUM_IMAGES):
        size = SIZES[i % 3]
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(work / "photos" / ("deep" if i % 2 else "") / f"{i:03}.png")
    for name in ("deep/009.png", "020.png"):
        (work / "photos" / name).write_bytes(b"no picture")
    return work


def arguments(work: Path, output: str, *more: str) -> list[str]:
    """Return a command line whose batches hold images of several sizes."""
    flags = f"--model {work / 'detector'} --output {work / output} --device cpu --threshold 0 --batch-size 3"
    return ["-q", "predict", str(work / "photos"), *flags.split(), *more]


def kill_after(lines: int, command: list[str], journal: Path) -> int:
    """Start the program, kill it when its journal has so many lines more, and return how many it had then."""
    before = count_lines(journal)
    process = subprocess.Popen(
        [sys.executable, "-m", "semidetr_hf.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while count_lines(journal) < before + lines:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return count_lines(journal)


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_files(work: Path, capsys) -> None:
    assert main(arguments(work, "whole", "--workers", "0")) == 0
    told = capsys.readouterr().out
    whole, journal = contents(work / "whole"), work / "killed" / "predictions.partial.jsonl"
    assert 4 <= kill_after(4, arguments(work, "killed", "--workers", "2"), journal) < 12, "not in its midst"
    # As if it had been killed while it wrote a line.
    with journal.open("ab") as file:
        file.write(b'{"images": [{"image_id": "deep/0')
    lines = kill_after(2, arguments(work, "killed", "--workers", "0", "--resume"), journal)
    assert 6 <= lines < 15, "not in its midst"
    assert not (work / "killed" / "predictions.json").exists()
    assert main(arguments(work, "killed", "--workers", "1", "--resume")) == 0
    assert capsys.readouterr().out.split(",")[:2] == told.split(",")[:2]
    assert contents(work / "killed") == whole
    assert len(json.loads(whole["predictions.json"])) > NUM_IMAGES
    assert len(whole["unreadable.txt"].splitlines()) == 2
    assert sum(name.endswith(".png.png") for name in whole) == NUM_IMAGES - 2
