"""Time and peak memory of the detector beside transformers' DeformableDetr of the same size, on the CPU.

Both have the same backbone (stem, first stage and norms frozen), width, layers, queries, two stages and refinement,
and score the same auxiliary outputs. The timed calls alternate within one process, so that a busy machine slows both;
the ratio is the median of the ratios of neighbours. Peak memory is that of a fresh process that does nothing else.

    python benchmarks/model_speed.py                        # about ten minutes on two cores
    python benchmarks/model_speed.py --sizes nano --rounds 5

Writes benchmarks/results/model_speed.json and prints the table of the README.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection

RESULTS = Path(__file__).parent / "results" / "model_speed.json"
# size -> (batch, height, width) of inference and of a training step
SHAPES = {"nano": ((8, 96, 96), (8, 96, 96)), "base": ((1, 640, 640), (2, 512, 512))}
NUM_LABELS = {"nano": 10, "base": 80}


def build_ours(size: str, denoising: bool = True) -> torch.nn.Module:
    """Return our detector of a size, frozen like the peer."""
    config = getattr(SemiDetrConfig, size)(num_labels=NUM_LABELS[size])
    config.freeze_backbone_norm = True
    config.num_frozen_backbone_stages = 2
    if not denoising:
        config.num_denoising_queries = 0
    return SemiDetrForObjectDetection(config)


def build_peer(size: str) -> torch.nn.Module:
    """Return transformers' DeformableDetr with the sizes of ours."""
    ours = getattr(SemiDetrConfig, size)(num_labels=NUM_LABELS[size])
    config = DeformableDetrConfig(
        backbone_config=ours.backbone_config.to_dict(),
        num_labels=ours.num_labels,
        d_model=ours.d_model,
        encoder_layers=ours.encoder_layers,
        decoder_layers=ours.decoder_layers,
        encoder_attention_heads=ours.encoder_attention_heads,
        decoder_attention_heads=ours.decoder_attention_heads,
        encoder_ffn_dim=ours.encoder_ffn_dim,
        decoder_ffn_dim=ours.decoder_ffn_dim,
        num_queries=ours.num_queries,
        two_stage_num_proposals=ours.num_queries,
        two_stage=True,
        with_box_refine=True,
        auxiliary_loss=True,
        dropout=0.0,
    )
    return DeformableDetrForObjectDetection(config)


BUILDERS: dict[str, Callable[[str], torch.nn.Module]] = {
    "ours": build_ours,
    "ours, no denoising": lambda size: build_ours(size, denoising=False),
    "DeformableDetr": build_peer,
}


def make_call(name: str, size: str, mode: str) -> Callable[[], None]:
    """Return a function that runs one inference or one training step of a detector."""
    torch.manual_seed(0)
    model = BUILDERS[name](size)
    batch, height, width = SHAPES[size][mode == "training"]
    pixel_values, pixel_mask = torch.randn(batch, 3, height, width), torch.ones(batch, height, width, dtype=torch.long)
    if mode == "inference":
        model.eval()

        def infer() -> None:
            with torch.inference_mode():
                model(pixel_values, pixel_mask)

        return infer

    num_boxes = 3 if size == "nano" else 7
    labels = [
        {
            "class_labels": torch.randint(0, NUM_LABELS[size], (num_boxes,)),
            "boxes": torch.cat([torch.rand(num_boxes, 2) * 0.6 + 0.2, torch.rand(num_boxes, 2) * 0.2 + 0.1], dim=-1),
        }
        for _ in range(batch)
    ]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    model.train()

    def train() -> None:
        optimizer.zero_grad()
        model(pixel_values, pixel_mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return train


def peak_memory_mb(name: str, size: str, mode: str) -> float:
    """Return the largest resident memory of a process that makes two calls, in MB."""
    command = [sys.executable, __file__, "--memory", name, size, mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def own_peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB.

    Linux hands `ru_maxrss` of the parent down through exec; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def compare(size: str, mode: str, rounds: int) -> list[dict]:
    """Time all detectors in turns and return one row each."""
    calls = {name: make_call(name, size, mode) for name in BUILDERS if mode == "training" or "denoising" not in name}
    seconds = time_in_turns(calls, rounds)
    peer = seconds["DeformableDetr"]
    return [
        {
            "size": size,
            "mode": mode,
            "input": "x".join(map(str, SHAPES[size][mode == "training"])),
            "detector": name,
            "seconds": round(median_seconds(times), 4),
            "speed_over_DeformableDetr": median_ratio(peer, times),
            "peak_memory_mb": round(peak_memory_mb(name, size, mode)),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--quick", action="store_true", help="the small model alone, two rounds")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each detector")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=3, metavar=("NAME", "SIZE", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        call = make_call(*args.memory)
        call()
        call()
        print(own_peak_memory_mb())
        return
    rows = []
    for size in ["nano"] if args.quick else args.sizes:
        for mode in ("inference", "training"):
            rows += compare(size, mode, 2 if args.quick else args.rounds)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(["python", *sys.argv]), "seed": 0, **describe_machine(), "rows": rows}
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{markdown(rows)}\n\nwritten to {args.output}")


if __name__ == "__main__":
    main()
