"""The benchmarks run and write records that say what they ran on; a few steps, not the recorded numbers."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_overfit_writes_a_whole_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    output = tmp_path / "results" / "overfit.json"
    importlib.import_module("overfit").main(["--max_steps", "2", "--output", str(output)])
    record = json.loads(output.read_text())
    assert {"command", "seed", "date", "versions", "hardware", "settings", "metrics"} <= set(record)
    assert record["hardware"]["threads"] >= 1
    settings = {"digits": 8, "size": "nano", "image_size": 96, "max_steps": 2, "batch_size": 8, "learning_rate": 1e-3}
    assert record["settings"] == settings
    assert len(record["losses"]) == 2
    assert 0 <= record["metrics"]["ap"] < 0.9  # two steps do not memorize anything
    assert len(record["metrics"]["per_class"]) == 10
