"""Small runs of `examples/train_ssod.py` that are interrupted, and what must be left of them."""

import json
from pathlib import Path

from small_runs import ANYTHING, SIZE, configure, detector

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.training.checkpoints import RunCheckpoints
from semidetr_hf.training.metrics import JsonlLog

NUM_STEPS = 16
RESUME = ("--resume", "auto")
TIMES_AND_FLAGS = {"resources.jsonl", "config.yaml", "recipe.yaml", "result.json", "report.html"}
LOGS = ("log.jsonl", "pseudo_labels.jsonl", "costs.jsonl")


def write_config(digits: DigitsPaths, folder: Path) -> Path:
    """Burn-in until step 4, the first stage until step 9; logs, evaluations and checkpoints at different steps."""
    detector().save_pretrained(folder / "init")
    SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE}).save_pretrained(folder / "init")
    values = configure(
        folder,
        data={"labeled": str(digits.train_json), "label_fraction": 0.5, "val": str(digits.val_json)},
        model={"init_from": str(folder / "init")},
        schedule={"num_steps": NUM_STEPS, "burn_in_steps": 4, "one_to_many_steps": 9},
        pseudo_labels=ANYTHING,
        recipe={"baseline": "none", "estimate": False},
        run={"instruments": True, "log_every": 2, "eval_every": 6, "save_every": 3},
    )
    values.save(folder / "config.yaml")
    return folder / "config.yaml"


def arguments(config: Path, output: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--output_dir", str(output), *flags]


def steps_with_a_line(log: Path) -> list[int]:
    return [row["step"] for row in JsonlLog(log).rows()]


def steps_logged(output: Path) -> int:
    """Steps with pseudo-labels that have their line, of which there is one for each after the burn-in."""
    path = output / "pseudo_labels.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest_step(output: Path) -> int:
    checkpoint = RunCheckpoints(output / "checkpoints", 2).newest()
    return 0 if checkpoint is None else checkpoint.step


def files_of(folder: Path) -> dict[str, bytes]:
    """What every file holds, by its path; what time and processes a run took is left out."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in [name for name in files if name.endswith("run.json")]:
        state = json.loads(files[name])
        assert state.pop("seconds") > 0
        files[name] = json.dumps(state).encode()
    return files


def assert_same_run(output: Path, undisturbed: Path) -> None:
    """All but the time it took is the same, byte for byte, and nothing else lies about."""
    left, right = files_of(output), files_of(undisturbed)
    for files in (left, right):
        # They depend on time and flags; the code beside the weights may be in the works.
        for name in [name for name in files if name in TIMES_AND_FLAGS or name.endswith(".py")]:
            del files[name]
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []
    # There was something to compare.
    assert {*LOGS, "student/model.safetensors", "teacher/model.safetensors", "best/model.safetensors"} <= left.keys()
    last = f"checkpoints/step_{NUM_STEPS:08d}"
    assert {f"{last}/{name}" for name in ("model.safetensors", "optimizer.bin", "teacher.safetensors")} <= left.keys()
    assert steps_logged(output) == NUM_STEPS - 4
