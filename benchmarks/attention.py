"""Deformable attention beside that of transformers: time, and memory kept for the backward pass.

Sizes are those of an image of 800 x 1066 pixels in the encoder (every token is a query) and the decoder (1,100
queries), and those of the nano model on 96 x 96 pixels. All ways are called in turns in one process; the ratio is the
median of the ratios of neighbours. On CUDA, `deformops` is among the ways when it is installed, in float32 and bf16.

    python benchmarks/attention.py            # about two minutes on two cores
    python benchmarks/attention.py --quick    # does it run?

Writes benchmarks/results/attention.json.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from semidetr_hf.model import deformable_attention
from semidetr_hf.model.deformable_attention import multi_scale_deformable_attention

RESULTS = Path(__file__).parent / "results" / "attention.json"
PEER = "transformers"
LARGE, SMALL = [(100, 134), (50, 67), (25, 34), (13, 17)], [(12, 12), (6, 6), (3, 3), (2, 2)]
# name -> images, levels, queries (None: one per token), heads, channels per head
CASES = {
    "encoder 800x1066": (1, LARGE, None, 8, 32),
    "decoder 800x1066": (1, LARGE, 1100, 8, 32),
    "encoder 96x96, 8 images": (8, SMALL, None, 4, 32),
    "decoder 96x96, 8 images": (8, SMALL, 98, 4, 32),
}
QUICK = {"encoder 96x96": (1, SMALL, None, 2, 8)}
Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(case: tuple, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return value, locations and weights; locations lie around that of the query, as in a trained encoder."""
    images, levels, queries, heads, width = case
    generator = torch.Generator().manual_seed(0)
    centers = torch.cat(
        [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in levels]
    )
    if queries is not None:
        centers = centers[torch.randint(len(centers), (queries,), generator=generator)]
    shape = (images, len(centers), heads, len(levels), 4)
    offsets = (torch.rand(*shape, 2, generator=generator) - 0.5) * 0.1
    value = torch.randn(images, sum(h * w for h, w in levels), heads, width, generator=generator)
    weights = torch.randn(*shape[:3], 4 * len(levels), generator=generator).softmax(-1).view(shape)
    locations = centers.flip(-1)[None, :, None, None, None] + offsets
    return value.to(device, dtype), locations.to(device), weights.to(device)


def transformers_attention(value: Tensor, levels: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Call transformers' module, which has no parameters; off the Hub it samples by grid_sample."""
    shapes = torch.tensor(levels, device=value.device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(-1).cumsum(0)[:-1]])
    module = MultiScaleDeformableAttention()
    return module(value.float(), shapes, levels, starts, locations, weights, 64)


def our_attention(value: Tensor, levels: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    return multi_scale_deformable_attention(value, levels, sampling_locations=locations, attention_weights=weights)


def ways(device: torch.device) -> dict[str, tuple[Callable[..., Tensor], torch.dtype]]:
    """Return what is compared on a device: name -> function and dtype of the value."""
    found = {PEER: (transformers_attention, torch.float32), "semidetr_hf": (our_attention, torch.float32)}
    if device.type == "cuda":
        found["semidetr_hf, bf16"] = (our_attention, torch.bfloat16)
    return found


def kept_megabytes(function: Callable[[], Tensor]) -> float:
    """Return the size of what autograd keeps of a call for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function()
    del output
    return sum(storages.values()) / 1e6


def compare(name: str, case: tuple, rounds: int, device: torch.device) -> list[dict]:
    """Measure all ways of one case and return a row each."""
    levels, wait = case[1], torch.cuda.synchronize if device.type == "cuda" else lambda: None
    forward: dict[str, Callable[[], object]] = {}
    training: dict[str, Callable[[], object]] = {}
    outputs, kept = {}, {}
    for way, (function, dtype) in ways(device).items():
        inputs = make_inputs(case, device, dtype)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]

        def infer(function=function, inputs=inputs) -> Tensor:
            with torch.no_grad():
                output = function(inputs[0], levels, *inputs[1:])
            wait()
            return output

        def train(function=function, leaves=leaves) -> None:
            output = function(leaves[0], levels, *leaves[1:])
            torch.autograd.grad(output, leaves, torch.ones_like(output))
            wait()

        forward[way], training[way] = infer, train
        outputs[way] = infer().float()
        kept[way] = kept_megabytes(lambda f=function, t=leaves: f(t[0], levels, *t[1:]))
    times, times_training = time_in_turns(forward, rounds), time_in_turns(training, rounds)
    return [
        {
            "case": name,
            "way": way,
            "forward_ms": round(1e3 * median_seconds(times[way]), 2),
            "forward_speed": median_ratio(times[PEER], times[way]),
            "forward_backward_ms": round(1e3 * median_seconds(times_training[way]), 2),
            "forward_backward_speed": median_ratio(times_training[PEER], times_training[way]),
            "kept_mb": round(kept[way], 1),
            "largest_difference": float((outputs[way] - outputs[PEER]).abs().max()),
        }
        for way in forward
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each way")
    parser.add_argument("--quick", action="store_true", help="one tiny case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, case in (QUICK if args.quick else CASES).items():
        rows += compare(name, case, 2 if args.quick else args.rounds, device)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "device": device.type,
        "deformops": deformable_attention.deformops_attention is not None,
        "speed_over": PEER,
        **describe_machine(),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
