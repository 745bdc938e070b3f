"""How much labels matter on the embedded digits: the demo's supervised run with a tenth and with all of the labels.

If a tenth were as good as all, unlabeled images could not help and the data set would show nothing.

    python benchmarks/label_fractions.py        # about eight minutes on two cores: two runs side by side

Writes benchmarks/results/label_fractions.json.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from hardware import describe_machine

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.metrics import JsonlLog

RESULTS = Path(__file__).parent / "results" / "label_fractions.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/label_fractions"), help="folder for data and runs")
    parser.add_argument("--steps", type=int, default=demo.NUM_STEPS, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    data = args.work / "data"
    write_digits_dataset(
        data, num_train=demo.NUM_TRAIN, num_val=demo.NUM_VAL, image_size=demo.IMAGE_SIZE, seed=args.seed
    )
    base = demo.configure(data, args.work / "run", seed=args.seed, num_steps=args.steps, burn_in_steps=0)
    base = demo.supervised_baseline(base, args.work / "run")
    configs = {
        name: replace(
            base,
            data=replace(base.data, label_fraction=fraction),
            run=replace(base.run, output_dir=str(args.work / name)),
        )
        for name, fraction in (("tenth", 0.1), ("all", None))
    }
    demo.train_side_by_side(configs["tenth"], configs["all"])
    logs = {name: JsonlLog(args.work / name / "log.jsonl").rows() for name in configs}
    table = {
        name: {network: demo.evaluations(log, network)[-1] for network in ("student", "teacher")}
        for name, log in logs.items()
    }
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "steps": args.steps,
        "scenes": demo.NUM_TRAIN,
        **describe_machine(),
        "supervised": table,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
