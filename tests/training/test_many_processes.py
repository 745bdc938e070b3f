"""Several processes on one machine, joined by gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from equal_processes import busiest_image, without_noise
from small_runs import build, configure

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.training.metrics import JsonlLog

HERE = Path(__file__).parent


def start(program: str, arguments: Sequence[object], processes: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
    }
    # On CPUs `accelerate launch` needs MPI to start several processes; torch's own launcher does not.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(HERE / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)


def losses_of(digits: DigitsPaths, folder: Path, *flags: object, processes: int = 1) -> list[dict[str, float]]:
    arguments = [digits.train_json, folder, "--processes", processes, *flags]
    done = start("equal_processes.py", arguments, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return JsonlLog(folder / "out" / "log.jsonl").rows()


def assert_equal(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    """All losses, counts and thresholds agree to 1e-5, relative above 1.

    Gradients of |difference| have kinks, where rounding decides: their norm is left out.
    """
    assert len(first) == len(second) == 20
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        ours, theirs = ({k: v for k, v in row.items() if k != "gradient_norm"} for row in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def assert_covers_everything(rows: list[dict[str, float]]) -> None:
    """There was something to compare: a burn-in, then pseudo-labels and consistency in 8 steps of each stage."""
    assert ["pseudo_loss_ce" in row for row in rows] == [False] * 4 + [True] * 16
    assert {row["pseudo_labels"] for row in rows[4:]} == {3.0}
    assert all(row["consistency"] > 0 and row["gradient_norm"] > 0 for row in rows[4:])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_equal_one_with_all_their_images(digits, tmp_path) -> None:
    one = losses_of(digits, tmp_path / "one")
    two = losses_of(digits, tmp_path / "two", processes=2)
    assert_covers_everything(one)
    assert_equal(one, two)


@pytest.mark.slow
def test_four_accumulated_images_equal_four_at_once(digits, tmp_path) -> None:
    schedule = {"num_steps": 150, "one_to_many_fraction": 1.0}
    config = configure(tmp_path / "first", schedule=schedule, optimizer={"learning_rate": 2e-3})
    build(config, without_noise(), labeled=busiest_image(CocoSource(digits.train_json))).train()
    flags = ["--one_image", "--init_from", tmp_path / "first" / "out" / "student"]
    at_once = losses_of(digits, tmp_path / "once", *flags)
    one_by_one = losses_of(digits, tmp_path / "accumulated", *flags, "--accumulation", 4)
    assert_covers_everything(at_once)
    assert_equal(at_once, one_by_one)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_trouble_of_one_process_makes_both_leave_out_the_step(digits, tmp_path) -> None:
    done = start("broken_process.py", [digits.train_json, tmp_path, "nan"], 2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    students, teachers, troubles = zip(*first["weights"], strict=True)
    assert [trouble is not None for trouble in troubles] == [False, False, True, False, False, False]
    # The images are those of the second process, and the first one knows them too.
    assert str(second["images"][2][1]) in troubles[2]
    assert "losses pseudo_" in troubles[2]
    assert students[1] == students[2]
    assert teachers[1] == teachers[2]
    assert len(set(students)) == 5
    assert JsonlLog(tmp_path / "out" / "log.jsonl").rows()[-1]["skipped_steps"] == 1
    assert done.stdout.count("step 2 skipped") + done.stderr.count("step 2 skipped") == 1


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_with_different_settings_stop_at_once(digits, tmp_path) -> None:
    done = start("broken_process.py", [digits.train_json, tmp_path, "seed"], 2)
    assert done.returncode == 1
    assert "the processes of rank 0 and 1 differ in run.seed" in done.stderr
    assert not (tmp_path / "out").exists()
