"""Ways to run the detector on the CPU, beside transformers' DeformableDetr of the same size.

Eager, with channels last, compiled, in bfloat16 (autocast, or all weights), and combinations; also the peer compiled
and in bfloat16. All ways are called in turns in one process; a ratio is the median of the ratios of neighbours.

Every way of ours is compared with eager float32, detection by detection: two detections belong together if they come
from the same token. The weights are random, so a rounding error may change which tokens become queries; for the
comparison queries have no content of their own, which would depend on their order. `same_tokens` is the share of
tokens chosen by both, `logits_off` and `boxes_off` the largest difference among those (boxes are shares of the image).

    python benchmarks/inference.py                        # about half an hour on two cores, most of it compilation
    python benchmarks/inference.py --sizes nano --rounds 5
    python benchmarks/inference.py --quick                # does it run? Nothing is compiled

Writes benchmarks/results/inference.json.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from hardware import describe_machine
from model_speed import build_ours, build_peer
from timing import markdown, median_ratio, median_seconds, time_in_turns
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from transformers.utils import ModelOutput

from semidetr_hf import SemiDetrForObjectDetection
from semidetr_hf.training.precision import has_fast_bf16

RESULTS = Path(__file__).parent / "results" / "inference.json"
OURS, PEER = "semidetr_hf", "DeformableDetr"
# size -> (images, height, width)
SHAPES = {"nano": [(8, 96, 96)], "base": [(1, 640, 640), (1, 800, 1066)]}
QUICK = {"nano": [(2, 64, 64)]}
# Largest difference of logits and boxes to eager float32 that counts as the same detections.
TOLERANCES = {"float32": (1e-3, 1e-4), "bfloat16": (0.25, 0.05)}
SAME_TOKEN = 1e-3  # the centres of two tokens of a level are further apart, as shares of the image


@dataclass(frozen=True)
class Way:
    """How a detector is run.

    Attributes:
        detector: ours or the peer.
        precision: "float32", "autocast" (to bfloat16) or "bfloat16" (weights and pixels).
        channels_last: memory format of weights and pixels.
        compiled: by torch.compile; ours has to be a single graph.
    """

    detector: str = OURS
    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        precision = {"float32": [], "autocast": ["bf16 autocast"], "bfloat16": ["bf16 weights"]}[self.precision]
        others = ["channels last"] * self.channels_last + ["compiled"] * self.compiled
        return ", ".join([self.detector, *(precision + others or ["eager"])])


EAGER, PEER_EAGER = Way(), Way(PEER)
WAYS = [
    PEER_EAGER,
    Way(PEER, compiled=True),
    Way(PEER, precision="autocast"),
    Way(PEER, precision="bfloat16"),
    EAGER,
    Way(channels_last=True),
    Way(compiled=True),
    Way(channels_last=True, compiled=True),
    Way(precision="autocast"),
    Way(precision="autocast", channels_last=True),
    Way(precision="autocast", compiled=True),
    Way(precision="bfloat16"),
    Way(precision="bfloat16", channels_last=True),
    Way(precision="bfloat16", channels_last=True, compiled=True),
]


def reason_against(way: Way) -> str | None:
    """Return in one line why a way cannot be taken on this machine; None if it can."""
    if way.compiled:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"no C++ compiler: {compiler} not found; install it, or name another one in the variable CXX"
    if way.precision != "float32" and not has_fast_bf16(torch.device("cpu")):
        return "this CPU does not multiply bfloat16 (neither avx512_bf16 nor amx_bf16)"
    return None


def build(detector: str, size: str) -> nn.Module:
    """Return a detector with random weights, the same at every call."""
    torch.manual_seed(0)
    if detector == PEER:
        return build_peer(size).eval()
    model = build_ours(size).eval()
    if not isinstance(model, SemiDetrForObjectDetection):
        raise TypeError(f"the comparison needs the query contents of our detector, not {type(model).__name__}")
    with torch.no_grad():
        model.model.query_content.weight.zero_()
        # As it is filled, this head moves no box, and boxes could not differ. The head of the proposals stays as it
        # is: their boxes tell which token they come from.
        model.model.decoder.box_head.layers[-1].weight.normal_(std=0.05)
    return model


def make_call(way: Way, size: str, shape: tuple[int, int, int]) -> Callable[[], ModelOutput]:
    """Return a function that detects the objects of a batch of noise."""
    images, height, width = shape
    pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(images, height, width, dtype=torch.long)
    model = build(way.detector, size)
    if way.precision == "bfloat16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    if way.channels_last:
        model, pixels = model.to(memory_format=torch.channels_last), pixels.to(memory_format=torch.channels_last)
    if way.compiled:
        model = torch.compile(model, dynamic=False, fullgraph=way.detector == OURS)
    autocast = way.precision == "autocast"

    def infer() -> ModelOutput:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return model(pixels, mask)

    return infer


def differences(reference: ModelOutput, found: ModelOutput) -> dict[str, float]:
    """Return how far the detections of the same tokens are apart; see the description of this file."""
    distances = torch.cdist(reference.encoder_pred_boxes.float(), found.encoder_pred_boxes.float(), p=torch.inf)
    distance, nearest = distances.min(-1)  # (B, Q)
    same = distance < SAME_TOKEN

    def largest(ours: Tensor, theirs: Tensor) -> float:
        theirs = theirs.float().gather(1, nearest[..., None].expand_as(ours))
        return float((ours.float() - theirs).abs()[same].max()) if same.any() else float("nan")

    return {
        "same_tokens": round(float(same.float().mean()), 4),
        "logits_off": largest(reference.logits, found.logits),
        "boxes_off": largest(reference.pred_boxes, found.pred_boxes),
    }


def within_tolerance(way: Way, apart: dict[str, float]) -> bool:
    """Return whether two sets of detections count as the same."""
    logits, boxes = TOLERANCES["float32" if way.precision == "float32" else "bfloat16"]
    return apart["logits_off"] <= logits and apart["boxes_off"] <= boxes


def first_call(call: Callable[[], ModelOutput]) -> tuple[ModelOutput | None, str]:
    """Compile, if there is something to compile.

    Returns:
        What was detected, and how many graphs there are; or None and in one line what cannot be compiled.
    """
    before = counters["stats"]["unique_graphs"]
    try:
        output = call()
    except TorchDynamoException as error:
        reason = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]  # what follows is about debugging torch
        return None, f"does not compile: {' '.join(reason.split())[:200]}"
    graphs = counters["stats"]["unique_graphs"] - before
    return output, f"{graphs} graph{'s' * (graphs != 1)}" if graphs else ""


def compare(size: str, shape: tuple[int, int, int], ways: Iterable[Way], rounds: int) -> list[dict]:
    """Run all ways on one batch and return a row each."""
    calls: dict[str, Callable[[], ModelOutput]] = {}
    apart: dict[Way, dict[str, float]] = {}
    notes: dict[Way, str] = {}
    reference = make_call(EAGER, size, shape)()
    for way in ways:
        reason = reason_against(way)
        if reason is not None:
            notes[way] = reason
            continue
        call = make_call(way, size, shape)
        output, notes[way] = first_call(call)
        if output is None:
            continue
        calls[str(way)] = call
        if way.detector == OURS:
            apart[way] = differences(reference, output)
    seconds = time_in_turns(calls, rounds)
    torch.compiler.reset()  # graphs of other shapes count towards a limit
    rows = []
    for way, note in notes.items():
        row: dict[str, object] = {"size": size, "input": "x".join(map(str, shape)), "way": str(way)}
        times = seconds.get(str(way))
        row["ms"] = "" if times is None else round(1e3 * median_seconds(times), 1)
        for name, base in (("speed_over_peer", PEER_EAGER), ("speed_over_eager", EAGER)):
            row[name] = "" if times is None else median_ratio(seconds[str(base)], times)
        off = apart.get(way)
        for name in ("same_tokens", "logits_off", "boxes_off"):
            row[name] = "" if off is None else float(f"{off[name]:.2g}")
        row["same_detections"] = "" if off is None else within_tolerance(way, off)
        rows.append({**row, "note": note})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each way")
    parser.add_argument("--no_compile", action="store_true", help="leave out what is compiled, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="tiny images, two rounds, nothing compiled")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    ways = [way for way in WAYS if not (way.compiled and (args.quick or args.no_compile))]
    rows = []
    for size, shapes in QUICK.items() if args.quick else SHAPES.items():
        for shape in shapes if size in args.sizes else ():
            rows += compare(size, shape, ways, 2 if args.quick else args.rounds)
            print(markdown(rows), flush=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "speed_over": {"speed_over_peer": str(PEER_EAGER), "speed_over_eager": str(EAGER)},
        "tolerances": {name: {"logits": pair[0], "boxes": pair[1]} for name, pair in TOLERANCES.items()},
        **describe_machine(),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
