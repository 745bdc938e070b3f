"""Whether a long training takes more and more of the machine: memory, open files and threads over 2,000 steps.

The small detector on the embedded digits, semi-supervised from the first step, with loader workers, logging,
evaluation and checkpoints as in a real run. Resident memory goes up and down with what the C library keeps of freed
memory for later; `live_mb` is what is left when it has given that back, and shows whether anything piles up.

    python benchmarks/endurance.py        # about eight minutes on two cores

Writes benchmarks/results/endurance.json.
"""

import argparse
import ctypes
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from hardware import describe_machine

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.recipe import build_trainer
from semidetr_hf.training.resources import MEGABYTE
from semidetr_hf.training.trainer import SemiDetrTrainer

RESULTS = Path(__file__).parent / "results" / "endurance.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package


def growth(rows: list[dict[str, Any]], key: str, first: int) -> dict[str, float]:
    """Return the value at step `first`, at the end, the largest from there on, and its growth."""
    values = [row[key] for row in rows if row["step"] >= first]
    return {
        f"at_step_{first}": values[0],
        "at_the_end": values[-1],
        "largest": max(values),
        "growth": round(max(values) / values[0] - 1, 4),
    }


def measure_live_memory(trainer: SemiDetrTrainer) -> None:
    """Let every line of resources.jsonl have `live_mb` and the number of Python's objects, too."""
    measure = trainer.records.meter.measure
    c_library = ctypes.CDLL(None)

    def measure_both(step: int) -> dict[str, Any]:
        measured = measure(step)
        gc.collect()
        if hasattr(c_library, "malloc_trim"):  # that of glibc
            c_library.malloc_trim(0)
            measured["live_mb"] = round(psutil.Process().memory_info().rss / MEGABYTE, 1)
        return measured | {"objects": len(gc.get_objects())}

    trainer.records.meter.measure = measure_both  # type: ignore[method-assign]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/endurance"), help="folder for data and run")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--from_step", type=int, default=200, help="what is compared with the rest of the run")
    parser.add_argument("--scenes", type=int, default=1000, help="images to train on")
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    data = args.work / "data"
    write_digits_dataset(data, num_train=args.scenes, num_val=20, image_size=demo.IMAGE_SIZE, seed=0)
    config = demo.configure(data, args.work / "run", seed=0, num_steps=args.steps, burn_in_steps=0)
    every = max(1, args.steps // 40)
    config = replace(
        config,
        data=replace(config.data, num_workers=args.num_workers),
        pseudo_labels=replace(config.pseudo_labels, score_threshold=0.0, mean_std_filter=False, max_detections=5),
        run=replace(config.run, log_every=every, eval_every=5 * every, save_every=2 * every),
    )
    trainer = build_trainer(config)
    measure_live_memory(trainer)
    trainer.train()
    rows = JsonlLog(Path(config.run.output_dir) / "resources.jsonl").rows()
    keys = [
        key
        for key in ("memory_mb", "live_mb", "cuda_mb", "objects", "open_files", "threads")
        if rows[-1].get(key) is not None
    ]
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "steps": args.steps,
        **describe_machine(),
        "growth": {key: growth(rows, key, args.from_step) for key in keys},
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["growth"], indent=2))


if __name__ == "__main__":
    main()
