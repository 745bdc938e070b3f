"""Tens of labels: each switch of the preset small-data, against the paper's settings and supervised training.

    python benchmarks/small_data.py                 # 10, 20 and 50 labeled scenes; 3 seeds, of the switches 1
    python benchmarks/small_data.py --scenes 10 --seeds 0 --arms supervised paper small-data

Embedded digits, the small detector. Every arm begins with a supervised run on the labeled scenes, and all make the
same number of steps after it; so a supervised arm has as many steps in all as a semi-supervised one. What differs in
the supervised part of some arms:

- `warm start`: from a detector of letters on the same photographs (benchmarks/letters.py), as one starts from a
  detector of COCO; else from random weights.
- `moved labels`: labeled scenes are turned, sheared or shifted as the unlabeled ones are.

Then there are `one stage`, one-to-many to the end and so with NMS, which the paper's settings leave after a quarter of
the steps; `class thresholds` that follow how frequent classes are; and `mixing`, mixup and mosaic of pseudo-labeled
scenes.

A run that is finished is not made again. Writes benchmarks/results/small_data/: one json per run, and table.md.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ablation_report import ap_of, best_of, spread
from ablations import ROOT, SUPERVISED, WITHOUT_CONSISTENCY, Arm, Changes, changed, has_result, run_arm, run_burn_in
from letters import write_letters
from tqdm.auto import tqdm

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.config import TrainingConfig

sys.path.insert(0, str(ROOT / "examples"))
import demo  # noqa: E402 - an example is not part of the package

MOVED: Changes = {"data": {"labeled_geometry": True}}
ONE_STAGE: Changes = {"schedule": {"one_to_many_steps": None, "one_to_many_fraction": 1.0}}
ADAPTIVE, MIXING = {"class_thresholds": "adaptive"}, {"mixing": "both"}
BOTH: Changes = {"pseudo_labels": {**ADAPTIVE, **MIXING}}
PLAIN: Changes = {"schedule": {**SUPERVISED, "one_to_many_steps": 0}, **WITHOUT_CONSISTENCY}
# arm -> whether it starts from letters, and what it changes of the paper's settings
ARMS: dict[str, tuple[bool, Changes]] = {
    "supervised": (False, PLAIN),
    "paper": (False, {}),
    "supervised, warm start": (True, PLAIN),
    "paper, warm start": (True, {}),
    "small-data": (True, {**ONE_STAGE, **BOTH}),
    "supervised, moved labels": (True, {**MOVED, **PLAIN}),
    "all switches": (True, {**MOVED, **ONE_STAGE, **BOTH}),
    "without warm start": (False, {**MOVED, **ONE_STAGE, **BOTH}),
    "without one stage": (True, {**MOVED, **BOTH}),
    "without class thresholds": (True, {**MOVED, **ONE_STAGE, "pseudo_labels": MIXING}),
    "without mixing": (True, {**MOVED, **ONE_STAGE, "pseudo_labels": ADAPTIVE}),
}
# The supervised arm that has the same start and the same views of labeled scenes.
BASELINES: dict[str, str | None] = {name: "supervised, moved labels" for name in ARMS} | {
    "without warm start": None,
    "paper": "supervised",
    "paper, warm start": "supervised, warm start",
    "small-data": "supervised, warm start",
}
SWITCHES = [name for name in ARMS if name.startswith("without")]
LETTER_SEED = 7


def base_config(args: argparse.Namespace, scenes: int, seed: int) -> TrainingConfig:
    """Return the paper's settings for the digits, after the burn-in."""
    data = args.work / f"digits_seed{seed}"
    write_digits_dataset(data, num_train=demo.NUM_TRAIN, num_val=demo.NUM_VAL, image_size=demo.IMAGE_SIZE, seed=seed)
    config = demo.configure(data, args.work, seed=seed, num_steps=args.steps, burn_in_steps=0)
    return changed(
        config,
        {
            "data": {"label_fraction": scenes / demo.NUM_TRAIN, "labeled_batch_size": args.labeled_batch},
            "schedule": {"one_to_many_steps": args.steps // 4},
            "run": {"eval_every": max(1, args.steps // 3), "evaluated_networks": ["teacher"], "overwrite": False},
        },
    )


def burn_in_of(config: TrainingConfig, args: argparse.Namespace, scenes: int, seed: int, warm: bool) -> TrainingConfig:
    """Return the supervised run with which an arm begins."""
    start = "letters" if warm else "scratch"
    views = "moved" if config.data.labeled_geometry else "plain"
    folder = args.work / "burn_in" / f"{start}_{views}_{scenes}scenes_seed{seed}"
    burn_in = demo.supervised_baseline(config, folder)
    changes: Changes = {"schedule": {"num_steps": args.burn_in}, "run": {"eval_every": args.burn_in}}
    if warm:
        changes["model"] = {"init_from": str(letters_run(args).run.output_dir) + "/teacher"}
    return changed(burn_in, changes)


def letters_run(args: argparse.Namespace) -> TrainingConfig:
    """Return the supervised run on letters."""
    folder = args.work / "letters_run"
    config = demo.configure(args.work / "letters", folder, seed=0, num_steps=args.letter_steps, burn_in_steps=0)
    return changed(
        demo.supervised_baseline(config, folder),
        {
            "data": {"val": None, "label_fraction": None},
            "run": {"eval_every": args.letter_steps, "seed": LETTER_SEED, "overwrite": False},
        },
    )


def plan(args: argparse.Namespace) -> tuple[dict[str, TrainingConfig], list[tuple[Arm, TrainingConfig, Path]]]:
    """Return the burn-ins by folder, and the arms that are not finished with their files."""
    burn_ins: dict[str, TrainingConfig] = {}
    todo = []
    for seed in args.seeds:
        for scenes in args.scenes:
            for name in args.arms:
                if name in SWITCHES and seed not in args.switch_seeds:
                    continue
                warm, changes = ARMS[name]
                config = changed(base_config(args, scenes, seed), changes)
                burn_in = burn_in_of(config, args, scenes, seed, warm)
                percent = 100 * scenes / demo.NUM_TRAIN
                arm = Arm(name=name, percent=percent, seed=seed, config=config)
                start = {"init_from": f"{burn_in.run.output_dir}/teacher"}
                folder = str(args.work / "arms" / f"{arm.file_name}")
                config = changed(config, {"run": {"output_dir": folder}, "model": start})
                path = args.results / f"{arm.file_name}.json"
                if not has_result(config, path):
                    todo.append((arm, config, path))
                    burn_ins[burn_in.run.output_dir] = burn_in
    return burn_ins, todo


def read_results(folder: Path) -> dict[tuple[int, str], dict[int, dict[str, Any]]]:
    """Return the results by number of scenes and arm, and by seed."""
    found: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        scenes = round(record["percent"] / 100 * demo.NUM_TRAIN)
        found.setdefault((scenes, record["arm"]), {})[record["seed"]] = record
    return dict(sorted(found.items(), key=lambda item: (item[0][0], list(ARMS).index(item[0][1]))))


def table(folder: Path) -> str:
    """Return the markdown table of all results."""
    found = read_results(folder)
    lines = [
        "| scenes | arm | AP | AP50 | over its supervised run, best evaluation | lowest | seeds |",
        "|" + "---|" * 7,
    ]
    for (scenes, arm), by_seed in found.items():
        base = found.get((scenes, BASELINES[arm] or ""), {})
        gains = [ap_of(by_seed[seed]) - best_of(base[seed]) for seed in by_seed if seed in base]
        compared = bool(gains) and arm != BASELINES[arm] and not arm.startswith("supervised")
        cells = [
            str(scenes),
            arm,
            spread([ap_of(record) for record in by_seed.values()]),
            spread([100 * record["teacher"]["ap50"] for record in by_seed.values()]),
            f"{statistics.mean(gains):+.1f}" if compared else "",
            f"{min(gains):+.1f}" if compared else "",
            " ".join(map(str, sorted(by_seed))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, nargs="+", default=[10, 20, 50], help="labeled, of 4,000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--switch-seeds", type=int, nargs="*", default=[0], help="of the arms that leave one out")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--letter-steps", type=int, default=1200, help="optimizer steps of the detector of letters")
    parser.add_argument("--burn-in", type=int, default=400, help="supervised steps before each arm")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each arm after them")
    parser.add_argument("--labeled-batch", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "small_data", help="folder for data and runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "small_data")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/small_data.py", *sys.argv[1:]])
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    burn_ins, todo = plan(args)
    if any("letters" in folder for folder in burn_ins):
        write_letters(args.work / "letters", num_scenes=demo.NUM_TRAIN, image_size=demo.IMAGE_SIZE, seed=LETTER_SEED)
        run_burn_in(letters_run(args), os.cpu_count() or 1)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = pool.map(lambda config: run_burn_in(config, threads), burn_ins.values())
        list(tqdm(jobs, total=len(burn_ins), desc="supervised", disable=not burn_ins))
        jobs = pool.map(lambda run: run_arm(*run, threads=threads, command=command), todo)
        list(tqdm(jobs, total=len(todo), desc="arms", disable=not todo))
    text = table(args.results)
    (args.results / "table.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
