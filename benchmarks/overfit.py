"""Proof that everything learns: examples/train_supervised.py memorizes eight scenes of the embedded digits.

Expected: AP above 0.9 on the same eight scenes, after about a minute on one core of a CPU.

    OMP_NUM_THREADS=1 python benchmarks/overfit.py

Writes benchmarks/results/overfit_8_scenes.json and prints its metrics.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hardware import describe_machine

NUM_SCENES = 8
RESULTS = Path(__file__).parent / "results" / "overfit_8_scenes.json"
EXAMPLE = Path(__file__).parents[1] / "examples" / "train_supervised.py"
# Folders of this one run, which would only be noise in the record.
PATHS = {"train_json", "val_json", "output_dir"}


def load_example() -> ModuleType:
    """Return the example as a module; the examples are no package."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{EXAMPLE}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(max_steps: int) -> dict[str, object]:
    """Train and evaluate on the same scenes, and return the record."""
    example = load_example()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--digits", str(NUM_SCENES), "--max_steps", str(max_steps), "--output_dir", folder]
        args = example.parse_args(flags)
        outcome = example.train(args)
    return {
        "command": " ".join(["python", *sys.argv]),
        "seed": example.SEED,
        **describe_machine(),
        "settings": {name: value for name, value in vars(args).items() if name not in PATHS},
        "metrics": outcome.metrics.to_dict(),
        "losses": outcome.losses,
        "training_seconds": round(outcome.seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    record = measure(args.max_steps)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{json.dumps(record['metrics'], indent=2)}\n\nwritten to {args.output}")


if __name__ == "__main__":
    main()
