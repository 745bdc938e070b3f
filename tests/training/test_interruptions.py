"""Runs that are killed or stopped go on from their newest checkpoint as if nothing had happened.

The runs are those of `examples/train_ssod.py`, so that what is asserted is what its user gets.
"""

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from example_modules import EXAMPLES
from interruptions import (
    NUM_STEPS,
    RESUME,
    arguments,
    assert_same_run,
    newest_step,
    steps_logged,
    steps_with_a_line,
    write_config,
)

from semidetr_hf.training.checkpoints import RunCheckpoints


class Processes:
    """A run of the program in processes of its own.

    Attributes:
        pids: of the processes, by rank.
    """

    def __init__(self, server: subprocess.Popen[str], printed: Path, order: list[str], processes: int) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.answers, self.printed = server.stdout, printed
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        values = {"arguments": order, "processes": processes, "port": port, "output": str(printed)}
        print(json.dumps(values), file=server.stdin, flush=True)
        self.pids: list[int] = json.loads(self.answers.readline())

    @property
    def stderr(self) -> str:
        return self.printed.with_suffix(".err").read_text()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that happens while all processes are there."""
        deadline = time.monotonic() + 120
        while not reached():
            assert not select.select([self.answers], [], [], 0.001)[0], self.stderr
            assert time.monotonic() < deadline, self.stderr

    def finish(self, expected: int) -> str:
        """What was printed to stdout by processes that all end with this status."""
        assert json.loads(self.answers.readline()) == [expected] * len(self.pids), self.stderr
        return self.printed.with_suffix(".out").read_text()


class Starter(Protocol):
    def __call__(self, config: Path, output: Path, *flags: str, processes: int = 1) -> Processes: ...


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Starter]:
    """Starts the program."""
    program = Path(__file__).with_name("interrupted_run.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, program.parents[1:3]))}
    printed = tmp_path_factory.mktemp("printed")
    runs: list[Processes] = []
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:

        def start(config: Path, output: Path, *flags: str, processes: int = 1) -> Processes:
            order = arguments(config, output, *flags)
            runs.append(Processes(server, printed / f"run{len(runs)}", order, processes))
            return runs[-1]

        yield start
        # After a test that failed, one may still be there.
        for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def config(digits, tmp_path_factory) -> Path:
    return write_config(digits, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def undisturbed(start, config, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    start(config, output).finish(0)
    return output


def draw_moments(output: Path) -> list[Callable[[], bool]]:
    """Five moments in the order in which a run comes to them, drawn once and for all."""
    draw = random.Random(4)
    checkpoint = output / "checkpoints" / f"step_{draw.choice([3, 6]):08d}"
    unfinished = checkpoint.with_name(f".{checkpoint.name}-unfinished")
    network = output / f".{draw.choice(['student', 'teacher'])}-unfinished"
    between, late = draw.choice([3, 4]), draw.choice([10, 11])
    log = output / "log.jsonl"
    return [
        lambda: log.exists() and b'"step": 2' in log.read_bytes(),  # the first checkpoint is that of step 3
        lambda: unfinished.exists() or checkpoint.exists(),
        lambda: steps_logged(output) >= between,
        lambda: newest_step(output) >= 9 and (network.exists() or steps_logged(output) > 12 - 4),
        lambda: steps_logged(output) >= late,
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_ends_as_one_that_was_not(start, config, undisturbed, tmp_path) -> None:
    output = tmp_path / "out"
    delays = random.Random(1)
    reached = []
    for moment in draw_moments(output):
        run = start(config, output, *RESUME)
        run.wait_until(moment)
        time.sleep(delays.uniform(0, 0.02))
        os.kill(run.pids[0], signal.SIGKILL)
        run.finish(-signal.SIGKILL)
        reached.append(newest_step(output))
    # All over the run, none at its end.
    assert reached[0] == 0
    assert sorted(reached) == reached
    assert len(set(reached)) >= 3
    assert reached[-1] < NUM_STEPS
    start(config, output, *RESUME).finish(0)
    # What was made without a checkpoint had to make room.
    assert steps_with_a_line(output / "earlier_1" / "log.jsonl") == [2]
    for earlier in output.glob("earlier_*"):
        shutil.rmtree(earlier)
    assert_same_run(output, undisturbed)


@pytest.mark.slow
def test_a_run_that_is_stopped_three_times_ends_as_one_that_was_not(start, config, undisturbed, tmp_path) -> None:
    output = tmp_path / "out"
    # SIGTERM to the whole process group, twice: launchers pass on what the group has got already.
    run = start(config, output, "--num_workers", "2")
    run.wait_until(lambda: steps_logged(output) >= 2)
    for _ in range(2):
        os.killpg(run.pids[0], signal.SIGTERM)
        time.sleep(0.02)
    shown = run.finish(128 + signal.SIGTERM)
    first = newest_step(output)
    assert 6 <= first < NUM_STEPS
    assert (
        shown.splitlines()[-1]
        == f"stopped by SIGTERM after {first} steps of the run in {output}; --resume auto goes on from there"
    )
    assert "\nSIGTERM: the run ends after this step, with a checkpoint; Ctrl-C ends it at once\n" in run.stderr
    assert "Traceback" not in run.stderr

    # Ctrl-C.
    run = start(config, output, *RESUME)
    run.wait_until(lambda: steps_logged(output) > first - 4)
    os.kill(run.pids[0], signal.SIGINT)
    shown = run.finish(128 + signal.SIGINT)
    second = newest_step(output)
    assert first < second < NUM_STEPS
    assert (
        shown.splitlines()[-1]
        == f"stopped by SIGINT after {second} steps of the run in {output}; --resume auto goes on from there"
    )
    assert "Traceback" not in run.stderr

    # Ctrl-C twice.
    run = start(config, output, *RESUME)
    run.wait_until(lambda: steps_logged(output) > second - 4)
    os.kill(run.pids[0], signal.SIGINT)
    run.wait_until(lambda: "\nSIGINT: the run ends after this step" in run.stderr)
    os.kill(run.pids[0], signal.SIGINT)
    run.finish(128 + signal.SIGINT)
    advice = "ended at once; the same command with --resume auto goes on from the last checkpoint"
    assert run.stderr.splitlines()[-1] == f"train_ssod.py: {advice}"
    assert "Traceback" not in run.stderr

    start(config, output, *RESUME).finish(0)
    assert_same_run(output, undisturbed)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(start, config, tmp_path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    start(config, whole, processes=2).finish(0)
    # On CPUs `accelerate launch` needs MPI to start several processes; torch's own launcher does not.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(EXAMPLES / "train_ssod.py"), *arguments(config, output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            while steps_logged(output) < 2:
                assert launcher.poll() is None
                time.sleep(0.01)
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            (second,) = [int(pid) for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
            os.kill(second, signal.SIGTERM)
            shown, errors = launcher.communicate(timeout=120)
        finally:
            launcher.terminate()
    checkpoint = RunCheckpoints(output / "checkpoints", 2).newest()
    assert checkpoint is not None
    assert 6 <= checkpoint.step < NUM_STEPS
    assert len(checkpoint.state["processes"]) == 2
    stopped = (
        f"stopped by SIGTERM after {checkpoint.step} steps of the run in {output}; --resume auto goes on from there"
    )
    assert stopped in shown.splitlines()
    assert launcher.returncode == 1
    assert "exitcode  : 143" in errors  # of the processes, as the launcher tells it
    start(config, output, *RESUME, processes=2).finish(0)
    assert_same_run(output, whole)
