from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_runs import configure

from semidetr_hf.training import records as records_module
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.records import RunRecords


@pytest.fixture
def records(tmp_path, monkeypatch) -> RunRecords:
    """Records that are open; what trackers are told is in `told`."""
    found = RunRecords(Accelerator(cpu=True), tmp_path / "out")
    found.told = []  # type: ignore[attr-defined]
    monkeypatch.setattr(found.accelerator, "log", lambda row, step: found.told.append((step, row)))  # type: ignore[attr-defined]
    found.begin(configure(tmp_path), 0)
    return found


def rows(records: RunRecords, name: str) -> list[dict[str, Any]]:
    return JsonlLog(records.folder / f"{name}.jsonl").rows()


def test_a_line_has_the_step_and_trackers_get_its_plain_numbers(records) -> None:
    records.write(3, {"loss": 0.5, "event": "text", "per_class": {"1": 0.25}, "ap_large": None, "count": 2})
    assert rows(records, "log") == [
        {"step": 3, "loss": 0.5, "event": "text", "per_class": {"1": 0.25}, "ap_large": None, "count": 2}
    ]
    assert records.told == [(3, {"loss": 0.5, "count": 2})]


def test_means_are_taken_once(records) -> None:
    records.add({"loss": torch.tensor(1.0), "mined": 2.0})
    records.add({"loss": torch.tensor(2.0)})
    assert records.take_means() == {"loss": 1.5, "mined": 2.0}
    assert records.take_means() == {}


def test_means_are_those_of_all_processes(records, monkeypatch) -> None:
    # The other process made as many steps but saw the second name in one of them only.
    other = {"sums": {"loss": 9.0, "mined": 4.0}, "counts": {"loss": 2, "mined": 1}}
    monkeypatch.setattr(records_module, "gather_from_all", lambda _accelerator, own: [own, other])
    records.add({"loss": 1.0})
    records.add({"loss": 2.0})
    assert records.take_means() == {"loss": 3.0, "mined": 4.0}


def test_what_depends_on_the_machine_has_a_file_of_its_own(records) -> None:
    measured = records.measure(5)
    assert rows(records, "log") == []
    assert rows(records, "resources") == [{"step": 5, **measured}]
    assert measured["memory_mb"] > 0


def test_lines_of_steps_that_are_made_again_are_removed(records, tmp_path) -> None:
    for step in (1, 2, 3):
        records.write(step, {"loss": float(step)})
        records.measure(step)
    again = RunRecords(records.accelerator, records.folder)
    again.begin(configure(tmp_path), 2)
    again.write(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in rows(again, "log")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [row["step"] for row in rows(again, "resources")] == [1, 2]


def test_only_the_main_process_writes(tmp_path) -> None:
    accelerator: Any = SimpleNamespace(
        is_main_process=False, device=torch.device("cpu"), log=lambda *_args, **_options: None
    )
    accelerator.log_with = []
    records = RunRecords(accelerator, tmp_path / "out")
    records.begin(configure(tmp_path), 0)
    records.write(1, {"loss": 1.0})
    assert records.measure(1)["threads"] >= 1
    assert not Path(tmp_path / "out").exists()
