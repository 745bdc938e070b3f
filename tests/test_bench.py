"""The benchmarks of speed: they run, and the README shows what was recorded last."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("bench")


@pytest.mark.parametrize("name", ["attention", "step_parts", "semi_step"])
def test_it_runs_and_its_result_has_lines_of_the_table(bench, tmp_path, name: str) -> None:
    importlib.import_module(name).main(["--quick", "--output", str(tmp_path / f"{name}.json")])
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"command", "seed", "versions", "hardware", "rows"} <= record.keys()
    rows = bench.put_together(tmp_path)
    assert rows and {row["benchmark"] for row in rows} == {name}
    assert all(row["measured"] and row["what"] for row in rows)


def test_the_readme_shows_the_recorded_results(bench) -> None:
    rows = bench.put_together(ROOT / "benchmarks" / "results")
    assert {row["benchmark"] for row in rows} == set(bench.BENCHMARKS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench.with_table(readme, bench.markdown(rows)) == readme
    recorded = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text(encoding="utf-8"))
    assert recorded == rows


def test_the_table_replaces_the_one_before_and_nothing_else(bench) -> None:
    readme = f"before\n{bench.BEGIN}\n\n| old |\n\n{bench.END}\nafter\n"
    assert bench.with_table(readme, "| new |") == readme.replace("old", "new")
    with pytest.raises(ValueError, match="lacks the lines"):
        bench.with_table("no marks", "| new |")


def test_a_benchmark_that_fails_is_named_and_the_others_are_run(bench, monkeypatch, tmp_path, capsys) -> None:
    ran = []
    monkeypatch.setattr(bench, "run", lambda name, _results, _quick: ran.append(name) or name != "data")
    assert bench.main(["--quick", "--results", str(tmp_path)]) == 1
    assert ran == list(bench.BENCHMARKS)
    assert capsys.readouterr().err == "failed: data\n"
