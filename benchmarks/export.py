"""Exported detectors beside the detector itself, on the CPU: how equal, fast and large, and what int8 costs in AP.

A small detector is trained on all labels of the embedded digits, exported as ONNX, as int8 ONNX and as a program of
torch.export, and each is scored on the same scenes by the same code, and timed. All ways are called in turns in one
process; a ratio is the median of the ratios of neighbours, above 1 where the export is faster than eager PyTorch.

    python benchmarks/export.py                           # about five minutes on a core
    python benchmarks/export.py --base                    # the base size with random weights as well; ten more
    python benchmarks/export.py --model runs/mine/best    # a detector of the digits that is there

Writes benchmarks/results/export.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns
from torch import Tensor, nn
from transformers.utils import ModelOutput

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.export import ExportedDetector, export_detector, noise_batch, open_exported
from semidetr_hf.training.evaluation import evaluate
from semidetr_hf.training.saved_detectors import load_detector

RESULTS = Path(__file__).parent / "results" / "export.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package

EAGER = "PyTorch"
# size -> (height, width) of the images of each timed batch
SHAPES = {"nano": [[[96, 96]], [[96, 96]] * 8], "base": [[[480, 640]], [[640, 480]]]}


class Adapter(nn.Module):
    """An exported network in the place of a detector, for `evaluate`."""

    def __init__(self, run: ExportedDetector, config: SemiDetrConfig) -> None:
        super().__init__()
        self.run, self.config = run, config

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> ModelOutput:
        """Return logits (B, Q, C) and boxes (B, Q, 4) under the names of a detector."""
        logits, boxes = self.run(pixel_values, pixel_mask)
        return ModelOutput(logits=logits, pred_boxes=boxes)


def train(data: Path, work: Path, steps: int) -> Path:
    """Train the demo's detector on all labels; return its folder."""
    config = demo.configure(data, work / "run", seed=0, num_steps=steps, burn_in_steps=0)
    config = demo.supervised_baseline(config, work / "run")
    config = replace(
        config,
        data=replace(config.data, label_fraction=None),
        run=replace(config.run, eval_every=steps, log_every=max(1, steps // 4)),
    )
    if demo.start(config, None).wait():
        raise subprocess.SubprocessError("the training failed, see above")
    return work / "run" / "best"


def export_all(model: Any, processor: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """Write all formats; return size in MB and largest difference on noise of each."""
    written = export_detector(model, processor, folder, file_formats=("onnx", "torch"), int8=True)
    return {
        file.path.name: {"megabytes": round(file.megabytes, 1), "difference": float(f"{file.difference:.2g}")}
        for file in written
    }


def time_all(model: nn.Module, runs: Mapping[str, ExportedDetector], sizes: list[list[int]], rounds: int) -> list:
    """Return a row for every way to detect the objects of a batch of noise."""
    batch = noise_batch(sizes, torch.Generator().manual_seed(1))
    calls: dict[str, Callable[[], object]] = {EAGER: lambda: model(*batch)}
    calls |= {name: lambda run=run: run(*batch) for name, run in runs.items()}
    with torch.inference_mode():
        seconds = time_in_turns(calls, rounds)
    shape = "x".join(map(str, batch[1].shape))
    return [
        {
            "input": shape,
            "way": name,
            "ms": round(1e3 * median_seconds(times), 1),
            "speed_over_pytorch": median_ratio(seconds[EAGER], times),
        }
        for name, times in seconds.items()
    ]


def trained(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return AP, difference and time of a detector of the digits in every format."""
    data = work / "data"
    write_digits_dataset(
        data, num_train=args.scenes, num_val=args.val_scenes, image_size=demo.IMAGE_SIZE, seed=args.seed
    )
    model, processor = load_detector("--model", args.model or train(data, work, args.steps))
    files = export_all(model, processor, work / "nano")
    runs = {name: open_exported(work / "nano" / name) for name in files}
    networks = {EAGER: model} | {name: Adapter(run, model.config) for name, run in runs.items()}
    val, accelerator = CocoSource(data / "val.json"), Accelerator(cpu=True)
    scores = {}
    for name, network in networks.items():
        metrics, _ = evaluate(network, processor, val, batch_size=8, accelerator=accelerator, desc=name)
        scores[name] = {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75}
    timing = [row for sizes in SHAPES["nano"] for row in time_all(model, runs, sizes, args.rounds)]
    return {"files": files, "scores": scores, "timing": timing}


def untrained_base(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return difference and time of the base size with random weights."""
    torch.manual_seed(args.seed)
    model = SemiDetrForObjectDetection(SemiDetrConfig.base(num_labels=80)).eval()
    with torch.no_grad():
        for parameter in (
            model.model.decoder.box_head.layers[-1].weight,
            model.model.proposal_box_head.layers[-1].weight,
        ):
            parameter.normal_(std=0.05)  # as they are filled, these heads move no box
    files = export_all(model, SemiDetrImageProcessor(), work / "base")
    runs = {name: open_exported(work / "base" / name) for name in files}
    timing = [row for sizes in SHAPES["base"] for row in time_all(model, runs, sizes, args.base_rounds)]
    return {"files": files, "timing": timing}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a saved detector of the digits, instead of training one")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of the training")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on")
    parser.add_argument("--val_scenes", type=int, default=demo.NUM_VAL, help="to score on")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each way")
    parser.add_argument("--base", action="store_true", help="the base size with random weights as well")
    parser.add_argument("--base_rounds", type=int, default=3, help="timed calls of each way with the base size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        record: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "seed": args.seed,
            **describe_machine(),
            "export_versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
            "trained": trained(args, Path(folder)),
        }
        if args.base:
            record["base_with_random_weights"] = untrained_base(args, Path(folder))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name in ("trained", "base_with_random_weights"):
        if name in record:
            print(f"\n{name}\n{json.dumps(record[name]['files'], indent=1)}\n{markdown(record[name]['timing'])}")
    print(json.dumps(record["trained"]["scores"], indent=1))


if __name__ == "__main__":
    main()
