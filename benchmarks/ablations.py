"""Every table of the paper's ablation, one command each: equal steps on the same labeled images, several seeds.

    python benchmarks/ablations.py --table modules                    # embedded digits, 5 and 10 % labels, 3 seeds
    python benchmarks/ablations.py --table filters --seeds 0 1
    python benchmarks/ablations.py --table first_stage --data coco10.yaml --percents 10 --jobs 1

Tables: `modules` (supervised, supervised with stage-wise hybrid matching SHM, mean teacher, + SHM, + query consistency
CQC, + label mining CPM), `filters` (which candidates become consistency queries), `one_to_many` (rule of the first
stage), `first_stage` (its length). `--data` is the config.yaml of a run, such as those that
`semidetr_hf.training.presets` writes; the arms change only the fields of their table.

A burn-in on the labeled images is done once for all arms that begin with the same matching; every arm starts from
its averaged network. A run that is finished is not made again, so the command goes on where it was stopped. Every arm
is a run of examples/train_ssod.py, and `--work` keeps its configuration, log and checkpoints.

Writes benchmarks/results/ablations/<name>/: one json per arm, table.md and pictures.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablation_report import write_report
from hardware import describe_machine
from tqdm.auto import tqdm

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.baseline import start_from
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.metrics import JsonlLog

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import demo  # noqa: E402 - an example is not part of the package

Changes = dict[str, dict[str, Any]]  # section -> field -> value

ONE_TO_ONE = {"one_to_many_steps": 0}
SUPERVISED = {"unsupervised_weight": 0.0}
WITHOUT_CONSISTENCY: Changes = {"consistency": {"consistency_weight": 0.0}}
TABLES: dict[str, dict[str, Changes]] = {
    "modules": {
        "supervised": {"schedule": {**ONE_TO_ONE, **SUPERVISED}, **WITHOUT_CONSISTENCY},
        "supervised + SHM": {"schedule": SUPERVISED, **WITHOUT_CONSISTENCY},
        "mean teacher": {"schedule": ONE_TO_ONE, **WITHOUT_CONSISTENCY},
        "+ SHM": WITHOUT_CONSISTENCY,
        "+ SHM + CQC": {"consistency": {"candidate_filter": "none"}},
        "+ SHM + CQC + CPM": {},
    },
    "filters": {name: {"consistency": {"candidate_filter": name}} for name in ("none", "top_k", "mean_std", "cost")},
    "one_to_many": {
        name: {"matching": {"one_to_many_assigner": name}} for name in ("max_iou", "atss", "sim_ota", "alignment")
    },
    "first_stage": {
        f"{percent} %": {"schedule": {"one_to_many_fraction": percent / 100, "one_to_many_steps": None}}
        for percent in (0, 25, 50, 75, 100)
    },
}
BASELINES = {"modules": "supervised", "filters": "none", "one_to_many": "alignment", "first_stage": "0 %"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of a table."""

    name: str
    percent: float | None
    seed: int
    config: TrainingConfig

    @property
    def file_name(self) -> str:
        """Name of the arm without ending, fit for a file."""
        words = "".join(c if c.isalnum() else " " for c in self.name).split()
        return "_".join([*words, f"{self.percent:g}pct" if self.percent else "given", f"seed{self.seed}"])


def changed(config: TrainingConfig, changes: Changes) -> TrainingConfig:
    """Return a configuration with some fields replaced."""
    values = config.to_dict()
    for section, fields in changes.items():
        values[section] = {**values[section], **fields}
    return TrainingConfig.from_dict(values)


def base_config(args: argparse.Namespace, percent: float | None, seed: int) -> TrainingConfig:
    """Return the run that the arms of one seed and share of labels change."""
    if args.data is not None:
        config = TrainingConfig.from_dict(read_yaml(args.data))
    else:
        data = args.work / f"digits_seed{seed}"
        write_digits_dataset(
            data, num_train=demo.NUM_TRAIN, num_val=demo.NUM_VAL, image_size=demo.IMAGE_SIZE, seed=seed
        )
        config = demo.configure(data, args.work, seed=seed, num_steps=args.steps, burn_in_steps=args.burn_in)
        config = changed(config, {"run": {"cpu": not torch.cuda.is_available()}})
    eval_every = max(1, (config.schedule.num_steps - config.schedule.burn_in_steps) // 4)
    alone = {"baseline": "none", "warm_start": False, "estimate": False}
    run = {"seed": seed, "instruments": config.data.label_fraction is not None, "eval_every": eval_every}
    label = {} if percent is None else {"label_fraction": percent / 100, "fold": seed + 1}
    run |= {"evaluated_networks": ["teacher"], "overwrite": False}  # `train` goes on with what is there
    return changed(config, {"run": run, "data": label, "recipe": alone})


def arms_of(args: argparse.Namespace) -> Iterator[Arm]:
    """Yield the arms of a table, seed after seed, so that a stopped command leaves whole comparisons."""
    for seed in args.seeds:
        for percent in args.percents or [None]:
            base = base_config(args, percent, seed)
            for name, changes in TABLES[args.table].items():
                arm = Arm(name=name, percent=percent, seed=seed, config=changed(base, changes))
                folder = str(args.work / args.name / arm.file_name)
                yield replace(arm, config=changed(arm.config, {"run": {"output_dir": folder}}))


def burn_in_of(arm: Arm, work: Path) -> TrainingConfig | None:
    """Return the supervised run from which an arm starts; None if it has no burn-in."""
    config, steps = arm.config, arm.config.schedule.burn_in_steps
    if steps == 0:
        return None
    first_stage = min(steps, config.schedule.first_stage_steps)
    first = f"{config.matching.one_to_many_assigner}{first_stage}_of_{steps}" if first_stage else f"one_to_one{steps}"
    share = "given" if arm.percent is None else f"{arm.percent:g}pct"
    return changed(
        config,
        {
            "schedule": {
                "num_steps": steps,
                "burn_in_steps": 0,
                "unsupervised_weight": 0.0,
                "one_to_many_steps": first_stage,
            },
            "optimizer": {"lr_schedule": "constant", "lr_drop_steps": []},
            "consistency": {"consistency_weight": 0.0},
            "run": {
                "output_dir": str(work / "burn_in" / f"{first}_{share}_seed{arm.seed}"),
                "eval_every": steps,
                "instruments": False,
            },
        },
    )


def after_burn_in(arm: Arm, burn_in: TrainingConfig | None) -> TrainingConfig:
    """Return the rest of an arm's run; first stage and drops of the learning rate lose the steps of the burn-in."""
    if burn_in is None:
        return arm.config
    teacher = Path(burn_in.run.output_dir) / "teacher"
    return start_from(arm.config, teacher, steps_done=burn_in.schedule.num_steps)


def train(config: TrainingConfig, threads: int) -> None:
    """Run examples/train_ssod.py, from where it was interrupted; its output goes to console.txt in the run's folder.

    Raises:
        RuntimeError: if it fails; says where its output is.
    """
    folder = Path(config.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "run.yaml")
    command = [sys.executable, str(ROOT / "examples" / "train_ssod.py"), "--config", str(folder / "run.yaml")]
    command += ["--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / "console.txt").open("w", encoding="utf-8") as console:
        status = subprocess.run(command, env=environment, stdout=console, stderr=subprocess.STDOUT).returncode
    if status:
        raise RuntimeError(f"a run failed with status {status}, see {folder / 'console.txt'}")


def run_burn_in(config: TrainingConfig, threads: int) -> None:
    """Train a burn-in, unless its files are there already."""
    if not is_finished(config):
        train(config, threads)


def is_finished(config: TrainingConfig) -> bool:
    """Return whether this very run has made its last step."""
    folder = Path(config.run.output_dir)
    if not (folder / "config.yaml").is_file() or not (folder / "teacher").is_dir():
        return False
    rows = JsonlLog(folder / "log.jsonl").rows()
    same = read_yaml(folder / "config.yaml") == config.to_dict()
    return same and bool(rows) and rows[-1]["step"] == config.schedule.num_steps


def has_result(config: TrainingConfig, path: Path) -> bool:
    """Return whether a result was written, and for these settings.

    Raises:
        ValueError: if the result is that of other settings.
    """
    if not path.exists():
        return False
    # Fields that are younger than the result have had their default.
    recorded = TrainingConfig.from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    if _without_paths(recorded.to_dict()) != _without_paths(config.to_dict()):
        raise ValueError(f"{path} holds the result of other settings; remove it or give another --results folder")
    return True


def run_arm(arm: Arm, config: TrainingConfig, path: Path, *, threads: int, command: str) -> None:
    """Train one arm, unless its files are there already, and write its result."""
    if not is_finished(config):
        train(config, threads)
    folder = Path(config.run.output_dir)
    rows = JsonlLog(folder / "log.jsonl").rows()
    costs = JsonlLog(folder / "costs.jsonl").rows()
    evaluations = [
        {"step": row["step"], **{key.removeprefix("teacher/"): row[key] for key in row if key.startswith("teacher/")}}
        for row in rows
        if "teacher/ap" in row
    ]
    record = {
        "command": command,
        "arm": arm.name,
        "percent": arm.percent,
        "seed": arm.seed,
        "seconds": JsonlLog(folder / "resources.jsonl").rows()[-1]["seconds"],
        **describe_machine(),
        "teacher": evaluations[-1],
        "evaluations": [{key: row.get(key) for key in _KEPT} for row in evaluations],
        "log": [{key: value for key, value in row.items() if _is_logged(key)} for row in rows if "loss" in row],
        "costs": costs[:: max(1, len(costs) // 6)],
        "config": _without_paths(config.to_dict()),
    }
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(path)


_KEPT = ("step", "ap", "ap50", "ap75", "ap_nms", "ap_no_nms")


def _is_logged(key: str) -> bool:
    return key in ("step", "loss", "pseudo_labels", "mined", "cost_threshold") or key.startswith("quality/")


def _without_paths(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    paths = {
        "labeled",
        "labeled_images",
        "unlabeled",
        "unlabeled_images",
        "val",
        "val_images",
        "output_dir",
        "init_from",
    }
    return {
        section: {
            key: Path(value).name if key in paths and isinstance(value, str) else value
            for key, value in fields.items()
        }
        for section, fields in config.items()
        if section != "recipe"  # decides nothing about an arm, which is one run
    }


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--percents", type=float, nargs="*", help="of labels (default: 5 10 on the digits, else as given)"
    )
    parser.add_argument("--data", type=Path, help="config.yaml of a run; default: the embedded digits")
    parser.add_argument("--steps", type=int, default=demo.NUM_STEPS, help="optimizer steps of a run on the digits")
    parser.add_argument("--burn-in", type=int, default=demo.BURN_IN_STEPS, help="of them, on labeled scenes alone")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: one per core, one on a GPU)")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "ablations", help="folder for data and runs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "ablations")
    args = parser.parse_args(arguments)
    args.jobs = args.jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    if args.percents is None and args.data is None:
        args.percents = [5.0, 10.0]
    data = "digits" if args.data is None else args.data.stem if args.data.stem != "config" else args.data.parent.name
    args.name = f"{args.table}_{data}"
    return args


def main() -> None:
    args = parse_args()
    results = args.results / args.name
    results.mkdir(parents=True, exist_ok=True)

    command = " ".join(["python", "benchmarks/ablations.py", *sys.argv[1:]])
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    burn_ins, todo = {}, []
    for arm in arms_of(args):
        burn_in = burn_in_of(arm, args.work / args.name)
        config, path = after_burn_in(arm, burn_in), results / f"{arm.file_name}.json"
        if not has_result(config, path):
            todo.append((arm, config, path))
            if burn_in is not None:
                burn_ins[burn_in.run.output_dir] = burn_in
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = pool.map(lambda config: run_burn_in(config, threads), burn_ins.values())
        list(tqdm(jobs, total=len(burn_ins), desc="burn-in", disable=not burn_ins))
        jobs = pool.map(lambda run: run_arm(*run, threads=threads, command=command), todo)
        list(tqdm(jobs, total=len(todo), desc=args.name, disable=not todo))
    write_report(results, baseline=BASELINES[args.table], arms=list(TABLES[args.table]))


if __name__ == "__main__":
    main()
