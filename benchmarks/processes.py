"""One process against two on the same cores, and what logging and checkpoints cost a step.

The small detector on the embedded digits, semi-supervised steps with the same images in a step: one process with all
threads, and two with half of the threads and half of the images each. Then, in one process, steps that log, or write a
checkpoint, beside steps that do neither. All variants in turn, several rounds; medians and ratios.

    python benchmarks/processes.py        # about ten minutes on two cores

Writes benchmarks/results/processes.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardware import describe_machine

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.recipe import build_trainer

RESULTS = Path(__file__).parent / "results" / "processes.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package

WARMUP = 5
NEVER = 1_000_000
# What is run: number of processes, steps between two log lines, steps between two checkpoints.
VARIANTS = {
    "one process": (1, NEVER, NEVER),
    "two processes": (2, NEVER, NEVER),
    "log every step": (1, 1, NEVER),
    "log every 50 steps": (1, 50, NEVER),
    "checkpoint every 10 steps": (1, NEVER, 10),
}


def configure(
    data: Path, folder: Path, *, processes: int, log_every: int, save_every: int, steps: int
) -> TrainingConfig:
    config = demo.configure(data, folder, seed=0, num_steps=steps + WARMUP + 1, burn_in_steps=0)
    share = config.data.labeled_batch_size // processes
    return replace(
        config,
        data=replace(config.data, val=None, labeled_batch_size=share, unlabeled_batch_size=share),
        # Every detection counts, as late in a training: random networks would leave the unlabeled part without work.
        pseudo_labels=replace(config.pseudo_labels, score_threshold=0.0, mean_std_filter=False, max_detections=5),
        run=replace(config.run, log_every=log_every, save_every=save_every, eval_every=NEVER),
    )


def work(config_file: Path, report: Path) -> None:
    """Train, and write how long a step took after the warm-up; on the main process."""
    config = TrainingConfig.from_dict(json.loads(config_file.read_text(encoding="utf-8")))
    trainer = build_trainer(config)
    began: list[float] = []
    train_step = trainer.train_step

    def timed() -> dict[str, float]:
        began.append(time.perf_counter())
        return train_step()

    trainer.train_step = timed  # type: ignore[method-assign]
    trainer.train()
    if trainer.accelerator.is_main_process:
        # The last step logs and saves in every variant: it is not among those that are timed.
        seconds = (began[-1] - began[WARMUP]) / (len(began) - 1 - WARMUP)
        report.write_text(json.dumps({"seconds": seconds, "processes": trainer.accelerator.num_processes}))


def measure(work_folder: Path, data: Path, name: str, steps: int) -> float:
    """Run one variant in processes of its own and return the seconds of a step."""
    processes, log_every, save_every = VARIANTS[name]
    folder = work_folder / name.replace(" ", "_")
    config = configure(data, folder, processes=processes, log_every=log_every, save_every=save_every, steps=steps)
    work_folder.mkdir(parents=True, exist_ok=True)
    config_file, report = folder.with_suffix(".json"), folder.with_suffix(".report.json")
    config_file.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    report.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), "--worker", str(config_file), str(report)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: failed with status {done.returncode}: {done.stderr[-2000:]}")
    measured = json.loads(report.read_text(encoding="utf-8"))
    if measured["processes"] != processes:
        raise RuntimeError(f"{name}: ran on {measured['processes']} processes")
    return measured["seconds"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/processes"), help="folder for data and runs")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed in each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        work(*args.worker)
        return
    data = args.work / "data"
    write_digits_dataset(data, num_train=400, num_val=1, image_size=demo.IMAGE_SIZE, seed=0)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, values in seconds.items():
            values.append(measure(args.work, data, name, args.steps))
            print(f"{name}: {values[-1]:.4f} s a step", flush=True)
    base = seconds["one process"]
    table: dict[str, dict[str, Any]] = {
        name: {
            "seconds_per_step": [round(value, 5) for value in values],
            "median": round(statistics.median(values), 5),
            "ratio_to_one_process": round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3),
        }
        for name, values in seconds.items()
    }
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "steps": args.steps,
        "images_per_step": {"labeled": 8, "unlabeled": 8},
        **describe_machine(),
        "variants": table,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
