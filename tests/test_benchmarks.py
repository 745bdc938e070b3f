"""The benchmarks run and write records that say what they ran on; a few steps, not the recorded numbers."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers.utils import ModelOutput

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.config import TrainingConfig

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


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ablations")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ablation_report")


@pytest.fixture
def base_yaml(tmp_path: Path) -> Path:
    config = TrainingConfig.from_dict(
        {
            "data": {"labeled": "a.json", "val": "b.json", "label_fraction": 0.5},
            "schedule": {"num_steps": 100, "burn_in_steps": 40, "one_to_many_steps": 60},
            "run": {"output_dir": "x"},
        }
    )
    config.save(tmp_path / "mine.yaml")
    return tmp_path / "mine.yaml"


def arms(ablations: ModuleType, base_yaml: Path, table: str, *flags: str) -> list:
    args = ablations.parse_args(["--table", table, "--data", str(base_yaml), "--seeds", "0", "1", *flags])
    return list(ablations.arms_of(args))


def test_arms_of_the_modules_differ_in_nothing_but_the_modules(ablations: ModuleType, base_yaml: Path) -> None:
    found = arms(ablations, base_yaml, "modules", "--percents", "5", "10")
    assert len(found) == 2 * 2 * 6
    assert len({arm.file_name for arm in found}) == len(found)
    first = {arm.name: arm.config for arm in found if arm.seed == 1 and arm.percent == 5}
    for config in first.values():
        assert (config.data.label_fraction, config.data.fold, config.run.seed) == (0.05, 2, 1)
        assert (config.schedule.num_steps, config.schedule.burn_in_steps) == (100, 40)
    summary = {
        name: (
            config.schedule.unsupervised_weight > 0,
            config.schedule.first_stage_steps,
            config.consistency.consistency_weight > 0,
            config.consistency.candidate_filter == "cost",
        )
        for name, config in first.items()
    }
    assert summary == {
        "supervised": (False, 0, False, True),
        "supervised + SHM": (False, 60, False, True),
        "mean teacher": (True, 0, False, True),
        "+ SHM": (True, 60, False, True),
        "+ SHM + CQC": (True, 60, True, False),
        "+ SHM + CQC + CPM": (True, 60, True, True),
    }


@pytest.mark.parametrize("table", ["filters", "one_to_many", "first_stage"])
def test_every_other_table_has_distinct_arms(ablations: ModuleType, base_yaml: Path, table: str) -> None:
    found = arms(ablations, base_yaml, table)
    assert len(found) == 2 * len(ablations.TABLES[table])
    # Also after the burn-in, which is where the arms of `first_stage` could fall together.
    runs = set()
    for arm in (arm for arm in found if arm.seed == 0):
        burn_in = ablations.burn_in_of(arm, base_yaml.parent)
        rest = ablations.after_burn_in(arm, burn_in)
        runs.add(str(replace(rest, run=found[0].config.run)))
    assert len(runs) == len(ablations.TABLES[table])
    assert ablations.BASELINES[table] in ablations.TABLES[table]


def test_arms_with_the_same_first_stage_share_a_burn_in(
    ablations: ModuleType, base_yaml: Path, tmp_path: Path
) -> None:
    found = [arm for arm in arms(ablations, base_yaml, "modules") if arm.seed == 0]
    burn_ins = {arm.name: ablations.burn_in_of(arm, tmp_path) for arm in found}
    folders = {name: config.run.output_dir for name, config in burn_ins.items()}
    assert folders["supervised"] == folders["mean teacher"]
    assert folders["supervised + SHM"] == folders["+ SHM"] == folders["+ SHM + CQC + CPM"]
    assert len(set(folders.values())) == 2
    for config in burn_ins.values():
        assert (config.schedule.num_steps, config.schedule.unsupervised_weight) == (40, 0.0)
    assert burn_ins["supervised"].schedule.first_stage_steps == 0
    assert burn_ins["+ SHM"].schedule.first_stage_steps == 40

    rest = {arm.name: ablations.after_burn_in(arm, burn_ins[arm.name]) for arm in found}
    assert {config.schedule.num_steps for config in rest.values()} == {60}
    # 60 steps of the first stage, 40 of them in the burn-in.
    assert rest["+ SHM"].schedule.first_stage_steps == 20
    assert rest["mean teacher"].schedule.first_stage_steps == 0
    assert rest["+ SHM"].model.init_from == str(Path(folders["+ SHM"]) / "teacher")


def test_without_a_burn_in_an_arm_is_one_run(ablations: ModuleType, base_yaml: Path, tmp_path: Path) -> None:
    arm = arms(ablations, base_yaml, "filters")[0]
    arm = replace(arm, config=ablations.changed(arm.config, {"schedule": {"burn_in_steps": 0}}))
    assert ablations.burn_in_of(arm, tmp_path) is None
    assert ablations.after_burn_in(arm, None) == arm.config


def test_a_run_counts_as_finished_after_its_last_step_only(
    ablations: ModuleType, base_yaml: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arm = arms(ablations, base_yaml, "filters")[0]
    config = ablations.changed(arm.config, {"run": {"output_dir": str(folder)}})
    assert not ablations.is_finished(config)
    (folder / "teacher").mkdir(parents=True)
    config.save(folder / "config.yaml")
    assert not ablations.is_finished(config)
    (folder / "log.jsonl").write_text('{"step": 99}\n')
    assert not ablations.is_finished(config)
    (folder / "log.jsonl").write_text('{"step": 99}\n{"step": 100}\n')
    assert ablations.is_finished(config)
    assert not ablations.is_finished(ablations.changed(config, {"run": {"seed": 7}}))


def result(arm: str, seed: int, *aps: float) -> dict:
    evaluations = [{"step": 10 * i, "ap": ap, "ap_nms": ap, "ap_no_nms": ap / 2} for i, ap in enumerate(aps, 1)]
    log = [{"step": 10, "loss": 1.0, "quality/candidates_recall": 0.5}]
    teacher = {"ap": aps[-1], "ap50": 0.5, "ap75": 0.25}
    schedule = {"num_steps": 20, "one_to_many_steps": 10, "one_to_many_fraction": 0.5}
    return {
        "arm": arm,
        "percent": 5.0,
        "seed": seed,
        "seconds": 60.0,
        "teacher": teacher,
        "evaluations": evaluations,
        "log": log,
        "costs": [{"step": 3, "costs": [-1.0, 1.0], "correct": [True, False], "threshold": -1.0}],
        "config": {"schedule": schedule},
    }


def test_report_by_hand(report: ModuleType, tmp_path: Path) -> None:
    results = [
        result("base", 0, 0.30, 0.20),
        result("base", 1, 0.10, 0.40),
        result("more", 0, 0.10, 0.50),
        result("more", 1, 0.10, 0.40),
    ]
    for number, record in enumerate(results):
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
    report.write_report(tmp_path, baseline="base", arms=["base", "more"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    # Best of base: 30 and 40. Last of more against it: 50 - 30 = 20 and 40 - 40 = 0, mean 10, deviation 14.1.
    assert "| 5 % labels | base | 30.0 ± 14.1 | 35.0 ± 7.1 | 50.0 ± 0.0 | 25.0 ± 0.0 |  | 0 1 | 1.0 |" in lines
    assert (
        "| 5 % labels | more | 45.0 ± 7.1 | 45.0 ± 7.1 | 50.0 ± 0.0 | 25.0 ± 0.0 | +10.0 ± 14.1 | 0 1 | 1.0 |" in lines
    )
    # NMS of more at step 20: mean of 50 and 40 against half of it.
    assert "| 5 % labels | more | 20 | 22.5 | 45.0 | +22.5 |" in lines
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert {"bars.png", "quality_5pctlabels.png", "nms_5pctlabels.png", "costs_more_5pctlabels.png"} <= pictures
    assert all(f"![{name}]({name})" in lines for name in pictures)


def test_a_report_of_nothing_says_so(report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report.write_report(tmp_path, baseline="base", arms=["base"])
    assert "no results yet" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_endurance_compares_the_end_with_the_beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    endurance = importlib.import_module("endurance")
    output = tmp_path / "endurance.json"
    flags = ["--steps", "6", "--from_step", "2", "--scenes", "40", "--num_workers", "0", "--output", str(output)]
    endurance.main(["--work", str(tmp_path), *flags])
    record = json.loads(output.read_text())
    assert {"command", "seed", "steps", "date", "versions", "hardware", "growth", "rows"} <= set(record)
    assert [row["step"] for row in record["rows"]] == [1, 2, 3, 4, 5, 6]
    assert set(record["growth"]) >= {"memory_mb", "objects", "open_files", "threads"}
    assert record["growth"]["memory_mb"]["at_step_2"] == record["rows"][1]["memory_mb"] > 100
    rows = [{"step": step, "x": value} for step, value in enumerate([9.0, 2.0, 3.0, 2.5])]
    assert endurance.growth(rows, "x", 1) == {"at_step_1": 2.0, "at_the_end": 2.5, "largest": 3.0, "growth": 0.5}


@pytest.mark.multiprocess
def test_a_run_on_two_processes_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    processes = importlib.import_module("processes")
    write_digits_dataset(tmp_path / "data", num_train=40, num_val=1, image_size=96)
    assert 0 < processes.measure(tmp_path / "work", tmp_path / "data", "two processes", 1) < 60


def test_variants_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    processes = importlib.import_module("processes")
    # Three rounds on a machine that gets slower: one process takes 1, 2, 4 seconds, every other variant twice that.
    speeds = iter([factor * base for base in (1.0, 2.0, 4.0) for factor in (1, 2, 2, 2, 2)])
    monkeypatch.setattr(processes, "measure", lambda *_args: next(speeds))
    monkeypatch.setattr(processes, "write_digits_dataset", lambda *_args, **_kwargs: None)
    output = tmp_path / "processes.json"
    processes.main(["--work", str(tmp_path), "--rounds", "3", "--output", str(output)])
    variants = json.loads(output.read_text())["variants"]
    assert variants["two processes"] == {
        "seconds_per_step": [2.0, 4.0, 8.0],
        "median": 4.0,
        "ratio_to_one_process": 2.0,
    }
    assert set(variants) == set(processes.VARIANTS)


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("inference")


def detections(tokens: list[float], logits: list[float]) -> ModelOutput:
    """Detections of tokens that are told apart by the first number of their proposal."""
    proposals = torch.tensor([[[token, 0.5, 0.1, 0.1] for token in tokens]])
    return ModelOutput(
        encoder_pred_boxes=proposals, logits=torch.tensor(logits)[None, :, None], pred_boxes=proposals / 2
    )


def test_detections_of_the_same_tokens_are_compared(inference: ModuleType) -> None:
    reference = detections([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
    # In another order, one token chosen instead of the last, one logit a quarter off.
    found = detections([0.2, 0.1, 0.9, 0.3], [2.0, 1.25, 7.0, 3.0])
    apart = inference.differences(reference, found)
    assert apart == {"same_tokens": 0.75, "logits_off": 0.25, "boxes_off": 0.0}
    assert inference.within_tolerance(inference.Way(precision="bfloat16"), apart)
    assert not inference.within_tolerance(inference.Way(), apart)
    nothing = inference.differences(reference, detections([0.6, 0.7, 0.8, 0.9], [0.0] * 4))
    assert nothing["same_tokens"] == 0
    assert not inference.within_tolerance(inference.Way(), nothing)


def test_ways_of_inference_agree(inference: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "inference.json"
    inference.main(["--quick", "--output", str(output)])
    record = json.loads(output.read_text())
    assert {"command", "seed", "tolerances", "date", "versions", "hardware", "rows"} <= set(record)
    rows = {row["way"]: row for row in record["rows"]}
    assert rows["semidetr_hf, eager"]["logits_off"] == 0
    assert rows["DeformableDetr, eager"]["speed_over_peer"] == 1
    timed = [row for row in record["rows"] if row["ms"] != ""]
    assert len(timed) >= 3
    assert all(row["same_detections"] is True for row in timed if row["way"].startswith("semidetr_hf"))


def test_ways_that_a_machine_cannot_take_are_one_line(inference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference.shutil, "which", lambda _name: None)
    monkeypatch.setattr(inference, "has_fast_bf16", lambda _device: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = inference.reason_against(inference.Way(compiled=True))
    assert "no-such-compiler not found" in reason
    assert "\n" not in reason
    assert "bfloat16" in inference.reason_against(inference.Way(precision="autocast"))
    assert inference.reason_against(inference.EAGER) is None
    ways = [inference.PEER_EAGER, inference.EAGER, inference.Way(compiled=True)]
    rows = inference.compare("nano", (1, 64, 64), ways, 1)
    assert [row["note"] for row in rows] == ["", "", reason]
    assert rows[2]["ms"] == ""


def test_what_cannot_be_compiled_is_one_line(inference: ModuleType) -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def broken() -> None:
        torch._dynamo.graph_break()

    output, note = inference.first_call(broken)
    assert output is None
    assert note.startswith("does not compile: ")
    assert "\n" not in note
