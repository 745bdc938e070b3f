"""The results of benchmarks/ablations.py as a markdown table and pictures.

python benchmarks/ablation_report.py benchmarks/results/ablations/modules_digits    # again, from the json files
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semidetr_hf.visualization import ablation_bars, cost_histograms, nms_curves, quality_curves

Records = dict[str, dict[str, dict[int, dict[str, Any]]]]  # share of labels -> arm -> seed -> record


def read_records(folder: Path, arms: Sequence[str]) -> Records:
    """Return the results of a table in the order of its arms."""
    found: Records = {}
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda record: (record["percent"] or 0, arms.index(record["arm"]), record["seed"]))
    for record in records:
        share = "labels as given" if record["percent"] is None else f"{record['percent']:g} % labels"
        found.setdefault(share, {}).setdefault(record["arm"], {})[record["seed"]] = record
    return found


def ap_of(record: dict[str, Any]) -> float:
    """Return the AP of the averaged network after the last step, 0 to 100."""
    return 100 * record["teacher"]["ap"]


def best_of(record: dict[str, Any]) -> float:
    """Return the best AP of all evaluations, 0 to 100."""
    return 100 * max(row["ap"] for row in record["evaluations"])


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def difference(records: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Return the paired difference of AP to the best evaluation of a baseline, over the seeds that both have."""
    values = [ap_of(records[seed]) - best_of(base[seed]) for seed in records if seed in base]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{deviation}"


def table(records: Records, baseline: str) -> str:
    """Return the markdown table."""
    lines = [
        f"| labels | arm | AP | best AP | AP50 | AP75 | AP over best {baseline} | seeds | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for share, by_arm in records.items():
        for arm, by_seed in by_arm.items():
            rows = list(by_seed.values())
            cells = [
                share,
                arm,
                spread([ap_of(row) for row in rows]),
                spread([best_of(row) for row in rows]),
                spread([100 * row["teacher"]["ap50"] for row in rows]),
                spread([100 * row["teacher"]["ap75"] for row in rows]),
                "" if arm == baseline else difference(by_seed, by_arm.get(baseline, {})),
                " ".join(map(str, by_seed)),
                f"{statistics.mean(row['seconds'] for row in rows) / 60:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def nms_table(records: Records) -> str:
    """Return a markdown table of what NMS changes at every evaluation, mean over seeds."""
    lines = ["| labels | arm | step | AP without NMS | AP with NMS | difference |", "|---|---|---|---|---|---|"]
    for share, by_arm in records.items():
        for arm, by_seed in by_arm.items():
            evaluations = [row["evaluations"] for row in by_seed.values()]
            for rows in zip(*evaluations, strict=False):
                if any(row.get("ap_nms") is None for row in rows):
                    continue
                without = 100 * statistics.mean(row["ap_no_nms"] for row in rows)
                with_nms = 100 * statistics.mean(row["ap_nms"] for row in rows)
                step = f"{rows[0]['step']}"
                lines.append(
                    f"| {share} | {arm} | {step} | {without:.1f} | {with_nms:.1f} | {with_nms - without:+.1f} |"
                )
    return "\n".join(lines)


def mean_rows(records: Sequence[dict[str, Any]], key: str) -> list[dict[str, float]]:
    """Return the rows of one list of several seeds, averaged step by step; what a seed lacks is left out."""
    steps: dict[int, list[dict[str, float]]] = {}
    for record in records:
        for row in record[key]:
            steps.setdefault(row["step"], []).append(row)
    merged = []
    for step, rows in sorted(steps.items()):
        names = {name for row in rows for name, value in row.items() if name != "step" and value is not None}
        means = {
            name: statistics.mean(row[name] for row in rows if row.get(name) is not None) for name in sorted(names)
        }
        merged.append({"step": step, **means})
    return merged


def draw(records: Records, folder: Path, baseline: str) -> list[str]:
    """Write the pictures, and return their names."""
    aps = {
        share: {arm: [row["teacher"]["ap"] for row in by_seed.values()] for arm, by_seed in by_arm.items()}
        for share, by_arm in records.items()
    }
    ablation_bars(aps, folder / "bars.png", baseline=baseline)
    names = ["bars.png"]
    for share, by_arm in records.items():
        ending = f"{share.replace(' ', '').replace('%', 'pct')}.png"
        logs = {arm: mean_rows(list(by_seed.values()), "log") for arm, by_seed in by_arm.items()}
        logs = {arm: rows for arm, rows in logs.items() if any("quality/candidates_recall" in row for row in rows)}
        if logs:
            quality_curves(logs, folder / f"quality_{ending}")
            names.append(f"quality_{ending}")
        curves = {arm: mean_rows(list(by_seed.values()), "evaluations") for arm, by_seed in by_arm.items()}
        curves = {arm: rows for arm, rows in curves.items() if any("ap_nms" in row for row in rows)}
        if curves:
            named = {
                arm: [
                    {"step": row["step"], "teacher/ap": row["ap_no_nms"], "teacher/ap_nms": row["ap_nms"]}
                    for row in rows
                ]
                for arm, rows in curves.items()
            }
            nms_curves(named, folder / f"nms_{ending}", switch_steps=switches(by_arm))
            names.append(f"nms_{ending}")
        for arm, by_seed in by_arm.items():
            rows = next(iter(by_seed.values())).get("costs")
            if rows:
                cost_histograms(rows, folder / f"costs_{''.join(filter(str.isalnum, arm))}_{ending}")
                names.append(f"costs_{''.join(filter(str.isalnum, arm))}_{ending}")
    return names


def switches(by_arm: dict[str, dict[int, dict[str, Any]]]) -> dict[str, int]:
    """Return the step at which each arm changes from one-to-many to one-to-one, for those that do."""
    found = {}
    for arm, by_seed in by_arm.items():
        schedule = next(iter(by_seed.values()))["config"]["schedule"]
        steps = schedule["one_to_many_steps"]
        if steps is None:
            steps = math.floor(schedule["one_to_many_fraction"] * schedule["num_steps"] + 0.5)
        if 0 < steps < schedule["num_steps"]:
            found[arm] = steps
    return found


def write_report(folder: Path, *, baseline: str, arms: Sequence[str]) -> None:
    """Write table.md and the pictures of a folder of results, and print the table."""
    records = read_records(folder, arms)
    if not records:
        print(f"{folder}: no results yet")
        return
    pictures = draw(records, folder, baseline)
    text = "\n".join(
        [
            f"# {folder.name}",
            "",
            "AP of the averaged network (teacher) after the last step on the validation scenes, in percent; mean and",
            "standard deviation over seeds. The difference is paired by seed, to the *best* evaluation of",
            f"{baseline}.",
            "",
            table(records, baseline),
            "",
            "What NMS changes over the training (steps after the burn-in, mean over seeds):",
            "",
            nms_table(records),
            "",
            *(f"![{name}]({name})" for name in pictures),
            "",
        ]
    )
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(table(records, baseline))


def main() -> None:
    from ablations import BASELINES, TABLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="such as benchmarks/results/ablations/modules_digits")
    folder = parser.parse_args().folder
    name = next(name for name in TABLES if folder.name.startswith(f"{name}_"))
    write_report(folder, baseline=BASELINES[name], arms=list(TABLES[name]))


if __name__ == "__main__":
    main()
