"""How time and memory of a training step and of inference grow with images, queries, classes and boxes.

One thing grows at a time, from the values of `BASE`, with the small detector on one core: short edge of the images,
queries, classes, boxes of each image, and unlabeled images of a semi-supervised step. Memory is the largest sum of all
tensors (allocations.py), without what is there before: weights, optimizer states, images. Times are medians; all
points of an axis are called in turns. The exponent of a curve is its slope in a log-log plot between its last two
points: 1 = proportional, 0 = flat. Queries attend to each other, matching and denoising ones (at least two for every
box of the fullest image), so that their share grows with the square.

    python benchmarks/growth.py            # three minutes
    python benchmarks/growth.py --quick    # does it run?

Writes benchmarks/results/growth.json and growth.png.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from allocations import AllocationLog, Peak
from hardware import describe_machine
from memory import Run, Setting, count_step
from timing import markdown, median_seconds, time_in_turns

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "growth.json"
BASE = Setting(size="nano", height=128, width=128, queries=100, classes=20, boxes=5, labeled=1)
TRAINING, INFERENCE = "training step", "inference"
COLORS = {TRAINING: "tab:blue", INFERENCE: "tab:orange"}


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        name: of the axis in table and picture.
        field: of `Setting`; "edge" for both edges of the images.
        values: what it takes, ascending.
        modes: which of training and inference depend on it.
        base: everything else.
    """

    name: str
    field: str
    values: tuple[int, ...]
    modes: tuple[str, ...] = (TRAINING, INFERENCE)
    base: Setting = BASE

    @property
    def natural(self) -> int:
        """The exponent that is to be expected at most: pixels grow with the square of an edge."""
        return 2 if self.field == "edge" else 1

    @property
    def reference(self) -> str:
        """What a curve with this exponent is proportional to."""
        return "proportional to pixels" if self.field == "edge" else "proportional"

    def setting(self, value: int) -> Setting:
        """Return the base with one thing changed."""
        if self.field == "edge":
            return replace(self.base, height=value, width=value)
        return replace(self.base, **{self.field: value})


AXES = [
    Axis("short edge of the image (pixels)", "edge", (64, 128, 256, 512, 1024)),
    # There are no more queries than tokens: 3,343 for images of this size.
    Axis("queries", "queries", (200, 400, 800, 1600, 3200), base=replace(BASE, height=400, width=400)),
    Axis("classes", "classes", (10, 80, 365, 1200, 4800)),
    Axis("boxes of each image", "boxes", (4, 16, 64, 256, 1024), (TRAINING,)),
    Axis("unlabeled images of a step", "unlabeled", (1, 2, 4, 8, 16), (TRAINING,)),
]
TINY = replace(BASE, height=64, width=64, queries=20)
QUICK = [
    Axis("classes", "classes", (10, 20), base=TINY),
    Axis("unlabeled images of a step", "unlabeled", (1, 2), (TRAINING,), base=TINY),
]


def infer(run: Run) -> None:
    """Detect the objects of the labeled images."""
    view = run.batch.labeled.view
    with torch.inference_mode():
        run.student(view.pixel_values, view.pixel_mask)


def count_inference(run: Run) -> Peak:
    """Return the largest sum of living tensors of one inference."""
    log, view = AllocationLog(), run.batch.labeled.view
    log.label([*run.student.parameters(), *run.student.buffers()], "parameters")
    log.label([view.pixel_values, view.pixel_mask], "inputs")
    with log:
        log.mark("forward")
        infer(run)
    return log.peak()


def work_bytes(peak: Peak) -> int:
    """Return what a peak holds beyond weights, optimizer states and images."""
    return peak.size - sum(peak.kinds[kind] for kind in ("parameters", "teacher", "optimizer", "inputs"))


def measure(axis: Axis, mode: str, rounds: int) -> list[dict]:
    """Return a point for every value of an axis."""
    runs = {str(value): Run(axis.setting(value), torch.device("cpu")) for value in axis.values}
    if mode == INFERENCE:
        for run in runs.values():
            run.student.eval()
    count = count_step if mode == TRAINING else count_inference
    peaks = {name: count(run) for name, run in runs.items()}
    calls = {name: run.step if mode == TRAINING else lambda run=run: infer(run) for name, run in runs.items()}
    seconds = time_in_turns(calls, rounds)
    return [
        {
            "axis": axis.name,
            "mode": mode,
            "value": value,
            "ms": round(1e3 * median_seconds(seconds[str(value)]), 2),
            "memory_mb": round(work_bytes(peaks[str(value)]) / 1e6, 2),
        }
        for value in axis.values
    ]


def exponent(points: list[dict], key: str) -> float:
    """Return the slope of a curve in a log-log plot between its last two points."""
    first, second = points[-2:]
    return round(math.log(second[key] / first[key]) / math.log(second["value"] / first["value"]), 2)


def draw(axes: list[Axis], curves: dict[tuple[str, str], list[dict]], path: Path) -> None:
    """Draw a panel for every axis: time and memory as multiples of the first point, dotted what is proportional."""
    columns = min(3, len(axes))
    lines = math.ceil(len(axes) / columns)
    size = (5.2 * columns, 4.2 * lines)
    figure, grid = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in grid.flat[len(axes) :]:
        panel.remove()
    for panel, axis in zip(grid.flat, axes, strict=False):
        for mode in axis.modes:
            points = curves[axis.name, mode]
            for key, what, style in (("ms", "time", "-o"), ("memory_mb", "memory", "--s")):
                multiples = [point[key] / points[0][key] for point in points]
                label = f"{mode}: {what}, exponent {exponent(points, key)}"
                panel.plot(axis.values, multiples, style, color=COLORS[mode], label=label)
        grown = axis.values[-1] / axis.values[0]
        panel.plot(
            axis.values[:: len(axis.values) - 1], [1, grown**axis.natural], ":", color="gray", label=axis.reference
        )
        panel.set(xscale="log", yscale="log", xlabel=axis.name, ylabel="multiple of the first point")
        panel.set_xticks(axis.values, [str(value) for value in axis.values])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.legend(fontsize=8, loc="upper left")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=[axis.field for axis in AXES], default=None)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each point")
    parser.add_argument("--quick", action="store_true", help="two axes of two points, two rounds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the picture has the same name, ending in .png")
    args = parser.parse_args(arguments)
    chosen = QUICK if args.quick else [axis for axis in AXES if args.axes is None or axis.field in args.axes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # where something else runs, threads of small operations wait for each other
    curves = {
        (axis.name, mode): measure(axis, mode, 2 if args.quick else args.rounds)
        for axis in chosen
        for mode in axis.modes
    }
    machine = describe_machine()
    torch.set_num_threads(threads)
    exponents = [
        {"axis": axis, "mode": mode, "time": exponent(points, "ms"), "memory": exponent(points, "memory_mb")}
        for (axis, mode), points in curves.items()
    ]
    rows = [point for points in curves.values() for point in points]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(chosen, curves, args.output.with_suffix(".png"))
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "base": {axis.field: vars(axis.base) for axis in chosen},
        **machine,
        "exponents": exponents,
        "rows": rows,
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{markdown(rows)}\n\n{markdown(exponents)}")


if __name__ == "__main__":
    main()
