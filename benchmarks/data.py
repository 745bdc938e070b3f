"""The data side: how fast views are made and batches scored, and how soon a run on many images starts.

Five parts, `--parts` chooses:

* `loading`: images per second from file to batch, with loader workers, beside what training steps consume.
* `decoding`: JPEG files of 12 megapixels decoded whole or no larger than their views need, and how the views differ.
* `padding`: the share of padded pixels in batches, with and without groups of similar shape, by cause.
* `scoring`: pycocotools and faster-coco-eval on 100 detections of each image.
* `start`: time and peak memory of every stage until the first batch of 500,000 unlabeled images.

    python benchmarks/data.py             # about five minutes on two cores
    python benchmarks/data.py --quick     # tiny, to see whether it runs

What is compared runs in turn within one process; medians of the rounds, ratios of neighbours. Pictures are made on the
spot: discs of all sizes with noise. Writes benchmarks/results/data.json.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_pictures import draw_sizes, write_pictures
from data_start import compare_starts
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.data.aspect_ratio import AspectRatioSampler
from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import Sample, ViewSize
from semidetr_hf.data.loading import LabeledDataset, PassSampler, UnlabeledDataset, view_loader
from semidetr_hf.metrics.coco_detection import coco_metrics as scoring

RESULTS = Path(__file__).parent / "results" / "data.json"
IN_GRAY_LEVELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
COCO_VIEWS = AugmentConfig()
# images -> (width, height) or COCO's mix, views, detector and input (batch, height, width) of the training step
KINDS: dict[str, tuple[tuple[int, int] | None, AugmentConfig, str, tuple[int, int, int]]] = {
    "96 px": ((96, 96), AugmentConfig(short_edges=(96,), long_edge=96), "nano", (8, 96, 96)),
    "320 px": ((427, 320), AugmentConfig(short_edges=(320,), long_edge=533), "small", (2, 320, 427)),
    "COCO": (None, COCO_VIEWS, "small", (1, 640, 853)),
}


class Sizes:
    """A source of which nothing but the sizes of the images is known."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = sizes

    def read_for_view(self, index: int, largest_view: ViewSize | None) -> Sample:
        """There is nothing to read."""
        raise NotImplementedError

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width)."""
        width, height = self.sizes[index]
        return height, width


class WholePictures:
    """The images of a source, always decoded whole."""

    def __init__(self, source: FolderSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]


def training_step(size: str, shape: tuple[int, int, int]) -> Callable[[], None]:
    """Return a function that makes one supervised step: an unlabeled image also costs the teacher, so takes longer."""
    torch.manual_seed(0)
    model = SemiDetrForObjectDetection(getattr(SemiDetrConfig, size)(num_labels=80)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch, height, width = shape
    pixel_values, pixel_mask = torch.randn(batch, 3, height, width), torch.ones(batch, height, width, dtype=torch.long)
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.3, 0.6, 0.1, 0.4], [0.7, 0.2, 0.2, 0.2]])
    labels = [{"class_labels": torch.tensor([0, 5, 9]), "boxes": boxes} for _ in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        model(pixel_values, pixel_mask, labels=labels).loss.backward()
        optimizer.step()

    return step


def compare_loading(folder: Path, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return images per second of every kind, role and number of workers, and those that training steps take."""
    rows = []
    for kind, (size, views, detector, shape) in list(KINDS.items())[: 1 if quick else None]:
        num_files, num_images = (4, 8) if quick else (32, 96 if kind == "COCO" else 256)
        sizes = draw_sizes(num_files, seed=0) if size is None else [size] * num_files
        source = FolderSource(write_pictures(folder / kind, sizes))
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for role, kind_of_dataset in (("labeled", LabeledDataset), ("unlabeled", UnlabeledDataset)):
            dataset = kind_of_dataset(source, views, *IN_GRAY_LEVELS)
            for workers in (0, 1, 2):
                order = PassSampler(num_files, num_images, seed=0)
                loader = view_loader(dataset, order, batch_size=4, num_workers=workers)
                # The workers stay, so that their start is not counted.
                calls[role, workers] = lambda loader=loader: [None for _ in loader]
        names = {key: f"{key[0]}, {key[1]}" for key in calls}
        timed = {names[key]: call for key, call in calls.items()} | {"step": training_step(detector, shape)}
        seconds = time_in_turns(timed, rounds)
        consumed = shape[0] / median_seconds(seconds["step"])
        for role, workers in calls:
            loaded = num_images / median_seconds(seconds[names[role, workers]])
            rows.append(
                {
                    "images": kind,
                    "role": role,
                    "workers": workers,
                    "images_per_second": round(loaded, 1),
                    "training_step": f"{detector} {'x'.join(map(str, shape))}",
                    "step_images_per_second": round(consumed, 2),
                    "loading_over_step": round(loaded / consumed, 1),
                }
            )
    return rows


def read_all(dataset: LabeledDataset) -> None:
    """Make one view of every image."""
    for index in range(len(dataset)):
        dataset[index, 0]


def compare_decoding(folder: Path, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return seconds per view of large JPEG files, decoded whole and reduced, and the difference of the pixels."""
    size = (1600, 1200) if quick else (4000, 3000)
    source = FolderSource(write_pictures(folder / "large", [size] * (1 if quick else 3)))
    rows = []
    for short_edge, long_edge in ((800, 1333), (480, 800), (320, 533)):
        views = AugmentConfig(short_edges=(short_edge,), long_edge=long_edge, color=False)
        reduced = LabeledDataset(source, views, *IN_GRAY_LEVELS)
        whole = LabeledDataset(WholePictures(source), views, *IN_GRAY_LEVELS)  # type: ignore[arg-type]
        pairs = [(reduced[i, 0].view, whole[i, 0].view) for i in range(len(source))]
        differences = [(own.pixel_values - other.pixel_values).abs().mean().item() for own, other in pairs]
        seconds = time_in_turns({"whole": partial(read_all, whole), "reduced": partial(read_all, reduced)}, rounds)
        rows.append(
            {
                "picture": f"{size[0]}x{size[1]}",
                "short_edge": short_edge,
                "reduction": source.read_for_view(0, views.largest_view).reduction,
                "seconds_whole": round(median_seconds(seconds["whole"]) / len(source), 4),
                "seconds_reduced": round(median_seconds(seconds["reduced"]) / len(source), 4),
                "speed_over_whole": median_ratio(seconds["whole"], seconds["reduced"]),
                "mean_difference_of_255": round(sum(differences) / len(differences), 2),
            }
        )
    return rows


def padded_share(views: Sequence[tuple[int, int]], batch_size: int) -> float:
    """Return the share of pixels that are padding when (width, height) in this order are cut into batches."""
    real = padded = 0
    for start in range(0, len(views), batch_size):
        batch = views[start : start + batch_size]
        real += sum(width * height for width, height in batch)
        padded += len(batch) * max(width for width, _ in batch) * max(height for _, height in batch)
    return 1 - real / padded


def compare_padding(*, quick: bool) -> list[dict[str, Any]]:
    """Return the share of padded pixels for every cause: shapes that differ, short edges that are drawn, and both."""
    count = 320 if quick else 20_000
    coco, equal = draw_sizes(count, seed=0), [(640, 480)] * count
    one_edge = (max(COCO_VIEWS.short_edges),)
    causes = {
        "shape and short edge": (coco, COCO_VIEWS.short_edges),
        "shape": (coco, one_edge),
        "short edge": (equal, COCO_VIEWS.short_edges),
    }
    rows = []
    for batch_size in (2, 4, 8):
        draws = PassSampler(count, count // batch_size * batch_size, seed=0)
        for cause, (sizes, edges) in causes.items():
            shares = {}
            for name, order in (
                ("plain", draws),
                ("grouped", AspectRatioSampler(draws, Sizes(sizes), batch_size)),  # type: ignore[arg-type]
            ):
                views = []
                for index, seed in order:
                    short_edge = random.Random(seed).choice(edges)
                    scale = ViewSize(short_edge, COCO_VIEWS.long_edge).scale(*sizes[index])
                    views.append((round(sizes[index][0] * scale), round(sizes[index][1] * scale)))
                shares[name] = round(padded_share(views, batch_size), 4)
            rows.append({"batch_size": batch_size, "cause": cause, **shares})
    return rows


def synthetic_scenes(num_images: int, num_detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a COCO dict with about seven boxes of 80 classes on an image, and detections, a third near one."""
    rng = random.Random(0)
    images = [{"id": i, "width": 640, "height": 480} for i in range(num_images)]
    boxes: list[dict[str, Any]] = []
    detections = []
    for image in images:
        own = [
            {"category_id": rng.randint(1, 80), "bbox": [rng.uniform(0, 400), rng.uniform(0, 300), *_two_edges(rng)]}
            for _ in range(rng.randint(1, 13))
        ]
        boxes += [{"id": len(boxes) + place, "image_id": image["id"], **box} for place, box in enumerate(own, 1)]
        for number in range(num_detections):
            near = rng.choice(own)
            bbox = [value + abs(rng.gauss(0, 5)) for value in near["bbox"]]
            found = {"category_id": near["category_id"], "bbox": bbox}
            if number % 3:
                found = {
                    "category_id": rng.randint(1, 80),
                    "bbox": [rng.uniform(0, 400), rng.uniform(0, 300), *_two_edges(rng)],
                }
            detections.append({"image_id": image["id"], "score": rng.random(), **found})
    categories = [{"id": i, "name": str(i)} for i in range(1, 81)]
    return {"images": images, "annotations": boxes, "categories": categories}, detections


def _two_edges(rng: random.Random) -> list[float]:
    return [rng.uniform(8, 200), rng.uniform(8, 150)]


def compare_scoring(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return the seconds of both scorers; the numbers must be equal to 1e-6."""
    fast = scoring.faster_coco_eval
    if fast is None:
        raise SystemExit(
            "faster-coco-eval is not installed: pip install semidetr-hf[fast-eval], or leave out the part"
        )
    num_images = 20 if quick else 500
    labeled, detections = synthetic_scenes(num_images, 100)
    found: dict[str, scoring.DetectionMetrics] = {}

    def score(name: str, package: Any) -> None:
        scoring.faster_coco_eval = package
        found[name] = scoring.coco_metrics(labeled, detections)

    scorers = {"pycocotools": None, "faster-coco-eval": fast}
    calls = {name: lambda name=name, package=package: score(name, package) for name, package in scorers.items()}
    seconds = time_in_turns(calls, rounds)
    numbers = [
        torch.tensor([*m.per_class.values(), *(value for value in vars(m).values() if isinstance(value, float))])
        for m in found.values()
    ]
    torch.testing.assert_close(*numbers, rtol=0, atol=1e-6, equal_nan=True)
    return [
        {
            "scorer": name,
            "images": num_images,
            "detections": len(detections),
            "seconds": round(median_seconds(seconds[name]), 3),
            "speed_over_pycocotools": median_ratio(seconds["pycocotools"], seconds[name]),
            "ap": round(found[name].ap, 6),
        }
        for name in scorers
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parts = ("loading", "decoding", "padding", "scoring", "start")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each variant")
    parser.add_argument("--num_paths", type=int, default=500_000, help="images of the part `start`")
    parser.add_argument("--quick", action="store_true", help="tiny pictures and sets, to see whether it runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    rounds, quick = (1, True) if args.quick else (args.rounds, False)
    num_paths = min(args.num_paths, 2_000) if quick else args.num_paths
    with tempfile.TemporaryDirectory() as folder:
        measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "loading": lambda: compare_loading(Path(folder), rounds, quick=quick),
            "decoding": lambda: compare_decoding(Path(folder), rounds, quick=quick),
            "padding": lambda: compare_padding(quick=quick),
            "scoring": lambda: compare_scoring(rounds, quick=quick),
            "start": lambda: compare_starts(Path(folder), num_paths),
        }
        results = {}
        for part in args.parts:
            results[part] = measure[part]()
            print(f"\n{part}\n\n{markdown(results[part])}", flush=True)
    command = " ".join(["python", *(sys.argv if arguments is None else ["benchmarks/data.py", *arguments])])
    record = {"command": command, "seed": 0, "rounds": rounds, "quick": quick, **describe_machine(), **results}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
