"""Memory that a training step needs: the paper's detector on images of 800 x 1333 pixels, with and without help.

Steps on two labeled images, and on one labeled and one unlabeled image with the EMA teacher, denoising and consistency
queries; in bfloat16 (autocast) or not, with gradient checkpointing or not. Optimizer states exist before the step.

On a CUDA device the peak is measured: `torch.cuda.max_memory_allocated`. Elsewhere it is an estimate: the same step
runs on the CPU, and all tensors it makes are counted (allocations.py). Norms compute in float32 under autocast there
as they do on CUDA. Left out: fragmentation of the allocator, workspaces inside operations (cuDNN, cuBLAS), and the
CUDA context of about 0.5 GB. Attention is once that of devices without kernels (grid_sample) and once that of the CPU,
which keeps as little as the kernels of deformops do. A step that does not fit into the memory of this machine is
counted on smaller images, and a straight line through two numbers of pixels gives the rest.

    python benchmarks/memory.py                # half an hour on two cores
    python benchmarks/memory.py --quick        # does it run?

Writes benchmarks/results/memory.json.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from allocations import KINDS, AllocationLog, Peak
from hardware import describe_machine
from semi_step import EVERY_DETECTION, WEIGHTS, given_attention, make_view
from timing import markdown
from torch import Tensor

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.model import deformable_attention
from semidetr_hf.model.deformable_attention import sample_by_grid
from semidetr_hf.ssod.objective import SemiDetrObjective
from semidetr_hf.ssod.one_to_many import OneToManyAssigner, OneToManyCriterion
from semidetr_hf.ssod.query_consistency import QueryProjector
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, SemiBatch, Stage, Target, UnlabeledBatch

RESULTS = Path(__file__).parent / "results" / "memory.json"
LEFT_OUT = "fragmentation of the allocator, workspaces inside operations, CUDA context (about 0.5 GB)"
STAGE = Stage.ONE_TO_ONE  # the one with denoising queries of pseudo-labels


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training step: sizes, and what saves memory.

    Attributes:
        size: of the model.
        height: of the images, in pixels.
        width: likewise.
        queries: matching queries; None = those of the size.
        classes: labels of the model.
        boxes: of every image; pseudo-labels of an unlabeled image, too.
        labeled: images.
        unlabeled: images; 0 = supervised training, without a teacher.
        bf16: whether the forward pass is under autocast.
        checkpointing: whether layers compute again in the backward pass what they have not kept.
    """

    size: str = "base"
    height: int = 800
    width: int = 1333
    queries: int | None = None
    classes: int = 80
    boxes: int = 7
    labeled: int = 2
    unlabeled: int = 0
    bf16: bool = False
    checkpointing: bool = False

    def scaled(self, factor: float) -> "Setting":
        """Return the same step on images with edges times a factor."""
        return replace(self, height=round(self.height * factor), width=round(self.width * factor))

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.height * self.width


FULL = {
    "bf16, checkpointing": Setting(bf16=True, checkpointing=True),
    "bf16": Setting(bf16=True),
    "float32, checkpointing": Setting(checkpointing=True),
    "float32": Setting(),
    "1 + 1 unlabeled, bf16, checkpointing": Setting(labeled=1, unlabeled=1, bf16=True, checkpointing=True),
    "1 + 1 unlabeled, bf16": Setting(labeled=1, unlabeled=1, bf16=True),
}
_SMALL = {"size": "nano", "height": 64, "width": 96}
QUICK = {
    "nano": Setting(**_SMALL),
    "nano, 1 + 1 unlabeled, bf16": Setting(**_SMALL, labeled=1, unlabeled=1, bf16=True, checkpointing=True),
}


class Run:
    """Networks, optimizer and batch of a setting."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        torch.manual_seed(0)
        self.setting, self.device = setting, device
        config = getattr(SemiDetrConfig, setting.size)(num_labels=setting.classes)
        if setting.queries is not None:
            config.num_queries = setting.queries
        self.student = SemiDetrForObjectDetection(config).to(device).train()
        if setting.checkpointing:
            # The second name is that of transformers below 5.23.
            student = self.student
            enable = getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        images = labeled_batch(setting)
        self.teacher: EMATeacher | None = None
        self.objective: torch.nn.Module = self.student
        self.batch = SemiBatch(labeled=images).to(device)
        if setting.unlabeled:
            self.teacher = EMATeacher(self.student, torch.bfloat16 if setting.bf16 else None)
            self.objective = SemiDetrObjective(
                self.student,
                replace(EVERY_DETECTION, max_detections=setting.boxes),
                one_to_many=OneToManyCriterion(OneToManyAssigner(), self.student.criterion),
                projector=QueryProjector(config.d_model).to(device),
            ).train()
            weak, strong = (make_view(setting, setting.unlabeled, seed) for seed in (1, 2))
            pair = UnlabeledBatch(weak=weak, strong=strong, image_ids=list(range(setting.unlabeled)))
            self.batch = SemiBatch(labeled=images, unlabeled=pair).to(device)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # makes its states
        self.optimizer.zero_grad()

    def forward(self) -> Tensor:
        """Return the loss."""
        precision = torch.autocast(self.device.type, torch.bfloat16) if self.setting.bf16 else nullcontext()
        labeled = self.batch.labeled
        with precision:
            if self.teacher is None:
                return self.student(labeled.view.pixel_values, labeled.view.pixel_mask, labels=labeled.targets).loss
            losses = self.objective(self.batch, self.teacher, STAGE, WEIGHTS[STAGE])
            detection = self.student.weigh(losses.supervised | losses.pseudo)
            return detection + torch.stack(list(losses.consistency.values())).sum()

    def update(self) -> None:
        """Make the optimizer step, and let the teacher follow."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.student, 0.999)

    def step(self) -> None:
        """Make a whole step."""
        self.forward().backward()
        self.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def labeled_batch(setting: Setting) -> LabeledBatch:
    """Return noise with boxes of moderate size."""
    generator = torch.Generator().manual_seed(3)
    targets: list[Target] = [
        {
            "class_labels": torch.randint(0, setting.classes, (setting.boxes,), generator=generator),
            "boxes": torch.rand(setting.boxes, 4, generator=generator) * 0.2 + torch.tensor([0.4, 0.4, 0.05, 0.05]),
        }
        for _ in range(setting.labeled)
    ]
    view = make_view(setting, setting.labeled, 0)
    return LabeledBatch(view=view, targets=targets, image_ids=list(range(setting.labeled)))


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Let norms compute in float32 under autocast, as autocast for CUDA does and that for the CPU does not."""
    layer_norm, group_norm = F.layer_norm, F.group_norm
    F.layer_norm = lambda input, *args, **kwargs: layer_norm(input.float(), *args, **kwargs)
    F.group_norm = lambda input, *args, **kwargs: group_norm(input.float(), *args, **kwargs)
    try:
        yield
    finally:
        F.layer_norm, F.group_norm = layer_norm, group_norm


def count_step(run: Run) -> Peak:
    """Make one step on the CPU and return its largest sum of living tensors."""
    log, batch = AllocationLog(), run.batch
    log.label([*run.objective.parameters(), *run.objective.buffers()], "parameters")
    log.label([] if run.teacher is None else [*run.teacher.parameters(), *run.teacher.buffers()], "teacher")
    log.label((value for state in run.optimizer.state.values() for value in state.values()), "optimizer")
    views = [batch.labeled.view, *([] if batch.unlabeled is None else [batch.unlabeled.weak, batch.unlabeled.strong])]
    log.label((tensor for view in views for tensor in (view.pixel_values, view.pixel_mask)), "inputs")
    with log, norms_in_float32() if run.setting.bf16 else nullcontext():
        log.mark("forward")
        loss = run.forward()
        log.mark("backward")
        loss.backward()
        log.label((parameter.grad for parameter in run.parameters), "gradients")
        log.mark("update")
        run.update()
    return log.peak()


def measure_step(run: Run) -> Peak:
    """Make two steps on CUDA and return the peak of its allocator."""
    run.step()
    torch.cuda.reset_peak_memory_stats()
    run.step()
    return Peak(torch.cuda.max_memory_allocated(), "", {})


def count_or_extrapolate(setting: Setting, budget: int) -> tuple[Peak, bool]:
    """Count a step on the CPU.

    Args:
        setting: of the step.
        budget: bytes that the step may take here.

    Returns:
        The peak, and whether it is a straight line through the counts on smaller images.
    """
    if setting.size == "nano":
        return count_step(Run(setting, torch.device("cpu"))), False
    # Not below: on smaller images the largest sum is elsewhere in the step, and a line through 0.3 and 0.4 of the
    # edges is 4 to 12 % low. These two give 3.21 and 2.97 GB where whole counts of two cases give 3.20 and 2.96.
    smaller = [setting.scaled(factor) for factor in (0.5, 0.7)]
    peaks = [count_step(Run(small, torch.device("cpu"))) for small in smaller]

    def line(first: int, second: int) -> int:
        slope = (second - first) / (smaller[1].pixels - smaller[0].pixels)
        return round(second + slope * (setting.pixels - smaller[1].pixels))

    expected = line(peaks[0].size, peaks[1].size)
    if expected <= budget:
        return count_step(Run(setting, torch.device("cpu"))), False
    kinds = {kind: line(peaks[0].kinds[kind], peaks[1].kinds[kind]) for kind in KINDS}
    return Peak(expected, peaks[1].phase, kinds, peaks[1].largest), True


def row_of(name: str, attention: str, peak: Peak, extrapolated: bool) -> dict[str, object]:
    """Return a line of the table, in GB of 1e9 bytes."""
    return {
        "step": name,
        "attention": attention,
        "peak_gb": round(peak.size / 1e9, 2),
        "at": peak.phase,
        **{kind: round(size / 1e9, 3) for kind, size in peak.kinds.items()},
        "estimate": bool(peak.kinds),
        "extrapolated": extrapolated,
    }


def largest_of(peak: Peak, limit: int = 12) -> list[dict[str, object]]:
    """Return what takes most at the peak, by the operation that made it."""
    return [
        {"kind": kind, "operation": operation, "place": place, "mb": round(size / 1e6, 1)}
        for (kind, operation, place), size in list(peak.largest.items())[:limit]
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--quick", action="store_true", help="tiny model and images")
    parser.add_argument("--budget_gb", type=float, help="memory to use here (default: 0.7 of what is free)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    by_grid = partial(given_attention, sample_by_grid)
    ways = {"grid_sample": by_grid, "as on the CPU": nullcontext}
    if device.type == "cuda":
        ways = {"grid_sample": by_grid}
        if deformable_attention.deformops_attention is not None:
            ways = {"deformops": nullcontext}
    budget = round(1e9 * args.budget_gb) if args.budget_gb else int(0.7 * psutil.virtual_memory().available)
    rows, largest = [], {}
    for name in QUICK if args.quick else args.cases:
        setting = (QUICK if args.quick else FULL)[name]
        for attention, way in ways.items():
            with way():
                if device.type == "cuda":
                    peak, extrapolated = measure_step(Run(setting, device)), False
                else:
                    peak, extrapolated = count_or_extrapolate(setting, budget)
            rows.append(row_of(name, attention, peak, extrapolated))
            largest[f"{name}, {attention}"] = largest_of(peak)
            print(markdown(rows[-1:]), flush=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "device": device.type,
        "left_out": None if device.type == "cuda" else LEFT_OUT,
        **describe_machine(),
        "rows": rows,
        "largest": largest,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))
    if device.type != "cuda":
        print(f"\nCounted, an estimate; left out: {LEFT_OUT}")


if __name__ == "__main__":
    main()
