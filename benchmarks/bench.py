"""All benchmarks of speed and memory, one after the other, each in a process of its own.

    make bench                                           # about an hour on two cores; nothing else should run
    python benchmarks/bench.py --only attention data     # some of them, the other results stay
    python benchmarks/bench.py --quick --results outputs/quick  # do they run?
    python benchmarks/bench.py --only                    # none: put together again what was measured

Every benchmark writes benchmarks/results/NAME.json with its command, seed, versions and hardware. From all of them
follows the table that this program prints, writes to benchmarks/results/bench.json, and puts into the README. Exit
status 1 if one of them failed; the others are run nevertheless.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timing import markdown

HERE = Path(__file__).parent
README, RESULTS = HERE.parent / "README.md", HERE / "results"
BEGIN, END = "<!-- measured by `make bench`: begin -->", "<!-- measured by `make bench`: end -->"
Row = dict[str, Any]


def row(what: str, where: str, against: str, ratio: object, unit: str = "x") -> Row:
    """Return a line of the table."""
    return {"what": what, "where": where, "measured": f"{ratio}{unit}", "against": against}


def attention(record: Row) -> Iterator[Row]:
    for case in dict.fromkeys(found["case"] for found in record["rows"]):
        ways = {found["way"]: found for found in record["rows"] if found["case"] == case}
        ours, peer = ways["semidetr_hf"], ways["transformers"]
        memory = round(ours["kept_mb"] / peer["kept_mb"], 2)
        speeds = f"{ours['forward_speed']} x as fast, training {ours['forward_backward_speed']} x, memory {memory}"
        yield row("deformable attention", case, "transformers' (grid_sample)", speeds, "")


def step_parts(record: Row) -> Iterator[Row]:
    for found in record["rows"]:
        if found["way"] != found["over"]:
            over = "transformers' matcher" if found["over"] == "transformers" else found["over"]
            yield row(f"{found['part']}: {found['way']}", "base model, one step", over, found["speed"], " x as fast")


def semi_step(record: Row) -> Iterator[Row]:
    for found in record["rows"]:
        stage, _, way = found["compared"].partition(": ")
        if found["cost"] not in ("", 1.0):
            against = "supervised step, as many images"
            yield row(f"{way}, {stage}", found["case"], against, found["cost"], " of its time")
        elif found["speed"] not in ("", 1.0):
            against = "released code's passes, grid_sample"
            yield row(f"unlabeled part: {way}", found["case"], against, found["speed"], " x as fast")


def model_speed(record: Row) -> Iterator[Row]:
    for found in record["rows"]:
        if found["detector"] != "DeformableDetr":
            name = "" if found["detector"] == "ours" else ", no denoising"
            where = f"{found['size']}, {found['input']}"
            speed = round(found["speed_over_DeformableDetr"], 2)
            yield row(f"{found['mode']}{name}", where, "transformers' DeformableDetr", speed, " x as fast")


def inference(record: Row) -> Iterator[Row]:
    for found in record["rows"]:
        speed = found.get("speed_over_peer")
        if found["way"].startswith("semidetr_hf") and isinstance(speed, (int, float)):
            way = found["way"].removeprefix("semidetr_hf, ")
            where = f"{found['size']}, {found['input']}"
            yield row(f"inference, {way}", where, "transformers' DeformableDetr, eager", speed, " x as fast")


def data(record: Row) -> Iterator[Row]:
    for found in record["decoding"]:
        where = f"JPEG {found['picture']} to short edge {found['short_edge']}"
        yield row("reading a labeled view", where, "decoding all of it", found["speed_over_whole"], " x as fast")
    for found in record["scoring"]:
        if found["scorer"] != "pycocotools":
            where = f"{found['images']} images, {found['detections']} detections"
            speed = found["speed_over_pycocotools"]
            yield row("scoring by faster-coco-eval", where, "pycocotools", speed, " x as fast")
    for found in record["loading"]:
        where, against = f"{found['images']}, {found['workers']} workers", f"training step, {found['training_step']}"
        yield row(f"loading {found['role']} views", where, against, found["loading_over_step"], " x as fast")
    for found in record["padding"]:
        where, before = f"batch of {found['batch_size']}, {found['cause']}", f"{100 * found['plain']:.1f} % at random"
        yield row("padded pixels, grouped by shape", where, before, round(100 * found["grouped"], 1), " %")
    for found in record["start"]:
        if found["stage"] == "all":
            where = f"{found['images']:,} unlabeled images, {found['source']}"
            yield row("start until the first batch", where, "", round(found["seconds"], 1), " s")
            yield row("resident memory by then", where, "", found["peak_memory_mb"], " MB")


def memory(record: Row) -> Iterator[Row]:
    for found in record["rows"]:
        how = f"attention {found['attention']}; {'counted, an estimate' if found['estimate'] else 'measured'}"
        yield row("memory of a step, base, 2 images of 800x1333", found["step"], how, found["peak_gb"], " GB")


def growth(record: Row) -> Iterator[Row]:
    for found in record["exponents"]:
        against = "2 = proportional to pixels" if found["axis"].startswith("short edge") else "1 = proportional"
        exponents = f"time {found['time']}, memory {found['memory']}"
        yield row("growth, exponent at the end", f"{found['axis']}, {found['mode']}", against, exponents, "")


# In the order of the table; what a record says in it.
BENCHMARKS: dict[str, Callable[[Row], Iterator[Row]]] = {
    "attention": attention,
    "semi_step": semi_step,
    "model_speed": model_speed,
    "inference": inference,
    "step_parts": step_parts,
    "data": data,
    "memory": memory,
    "growth": growth,
}


def run(name: str, results: Path, quick: bool) -> bool:
    """Run one benchmark and return whether it ended well."""
    # As one would type it: the record keeps the command, and no path of this machine.
    command = [sys.executable, f"{HERE.name}/{name}.py"]
    if results != RESULTS:
        command += ["--output", str(results.resolve() / f"{name}.json")]
    started = time.perf_counter()
    status = subprocess.run([*command, *["--quick"] * quick], cwd=HERE.parent, check=False).returncode
    print(f"{name}: status {status} after {time.perf_counter() - started:.0f} s\n", flush=True)
    return status == 0


def put_together(results: Path) -> list[Row]:
    """Return the table of what was measured; a benchmark without a result is left out."""
    rows = []
    for name, read in BENCHMARKS.items():
        file = results / f"{name}.json"
        if file.exists():
            rows += [{"benchmark": name, **found} for found in read(json.loads(file.read_text(encoding="utf-8")))]
    return rows


def with_table(readme: str, table: str) -> str:
    """Return the text of the README with the table between the two marks.

    Raises:
        ValueError: if it lacks the marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the lines {BEGIN} and {END}, between which the table belongs")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the README stays as it is")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(arguments)
    args.results.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.only if not run(name, args.results, args.quick)]
    rows = put_together(args.results)
    (args.results / "bench.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))
    if not args.quick:
        README.write_text(with_table(README.read_text(encoding="utf-8"), markdown(rows)), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
