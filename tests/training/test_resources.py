import os

import pytest
import torch

from semidetr_hf.training import resources
from semidetr_hf.training.resources import ResourceMeter


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A list whose last element is the time."""
    times = [1000.0]
    monkeypatch.setattr(resources.time, "monotonic", lambda: times[-1])
    return times


def test_speed_and_waiting_are_those_since_the_last_call(clock) -> None:
    meter = ResourceMeter(torch.device("cpu"))
    clock.append(1008.0)
    meter.waited += 2.0
    first = meter.measure(4)
    # 8 seconds for 4 steps, a quarter of them waiting.
    assert (first["seconds"], first["seconds_per_step"], first["waiting"]) == (8.0, 2.0, 0.25)
    clock.append(1009.0)
    second = meter.measure(6)
    assert (second["seconds"], second["seconds_per_step"], second["waiting"]) == (9.0, 0.5, 0.0)


def test_earlier_sessions_count_as_time_but_not_as_speed(clock) -> None:
    meter = ResourceMeter(torch.device("cpu"), seconds_before=600.0, step=100)
    assert meter.seconds == 600.0
    clock.append(1003.0)
    measured = meter.measure(103)
    assert (measured["seconds"], measured["seconds_per_step"]) == (603.0, 1.0)


def test_no_time_and_no_step_are_no_division_by_zero(clock) -> None:
    meter = ResourceMeter(torch.device("cpu"), step=5)
    meter.waited = 0.5
    measured = meter.measure(5)
    assert (measured["seconds_per_step"], measured["waiting"]) == (0.0, 1.0)


def test_memory_and_open_files_are_those_of_this_process(tmp_path) -> None:
    meter = ResourceMeter(torch.device("cpu"))
    before = meter.measure(1)
    files = [(tmp_path / str(i)).open("w") for i in range(5)]
    block = torch.ones(64 * 2**20 // 4)  # 64 MB
    after = meter.measure(2)
    assert after["open_files"] == before["open_files"] + len(files)
    assert after["memory_mb"] > before["memory_mb"] + 32
    assert before["threads"] >= 1
    assert "cuda_mb" not in after
    del block
    for file in files:
        file.close()
    assert os.getpid() == meter._process.pid
