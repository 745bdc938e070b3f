"""The benchmark of images per second: it runs, and all ways find the same."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_its_record_says_how_fast_every_way_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    output = tmp_path / "results" / "batch_inference.json"
    importlib.import_module("batch_inference").main(["--quick", "--output", str(output)])
    record = json.loads(output.read_text())
    assert {"command", "seed", "date", "versions", "hardware"} <= record.keys()
    rows = {row["way"]: row for row in record["rows"]}
    assert list(rows) == ["plain loop", "predict, 0 workers", "predict, 1 workers", "predict, 2 workers"]
    assert rows["plain loop"]["speed_over_plain_loop"] == 1
    assert all(row["images_per_second"] > 0 and row["speed_over_plain_loop"] > 0 for row in rows.values())
