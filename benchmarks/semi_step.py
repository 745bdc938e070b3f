"""A semi-supervised step beside a supervised one, and beside the released code's schedule of passes.

1. One step with B labeled and 4 B unlabeled images, gradients and optimizer included, against a supervised step on the
   same number of student images (5 B), in both stages: what the teacher and its labels cost.
2. The unlabeled part of a step (losses and gradients), against the passes that the released code makes of it: teacher
   backbone three times, its encoder and decoder twice, the student's encoder and decoder once more without gradient,
   with attention by grid_sample. Emulated with the same modules, so that only the schedule and the attention differ;
   what comes between the passes is left out there, to its advantage. The gains are shown one after the other.

All variants in turn in one process; ratios are medians of the ratios of neighbours. The networks are random, so the
best few detections of each image are taken as pseudo-labels: as many as COCO has boxes.

    python benchmarks/semi_step.py                        # about fifteen minutes on two cores
    python benchmarks/semi_step.py --quick                # does it run?

Writes benchmarks/results/semi_step.json.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from attention import transformers_attention
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns
from torch import Tensor

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.model import deformable_attention
from semidetr_hf.model.outputs import EncodedImages
from semidetr_hf.ssod.objective import SemiDetrObjective, StepLosses
from semidetr_hf.ssod.one_to_many import OneToManyAssigner, OneToManyCriterion
from semidetr_hf.ssod.query_consistency import QueryProjector
from semidetr_hf.ssod.rules import PseudoLabelRules
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, LossWeights, SemiBatch, Stage, Target, UnlabeledBatch, View
from semidetr_hf.training.precision import has_fast_bf16

RESULTS = Path(__file__).parent / "results" / "semi_step.json"
NUM_BOXES = 7  # COCO has 7.3 of an image
EVERY_DETECTION = PseudoLabelRules(score_threshold=0.0, mean_std_filter=False, max_detections=NUM_BOXES)
WEIGHTS = {
    Stage.ONE_TO_MANY: LossWeights(pseudo=4.0, consistency=1.0, denoises_pseudo_labels=False),
    Stage.ONE_TO_ONE: LossWeights(pseudo=4.0, consistency=1.0, denoises_pseudo_labels=True),
}


@dataclass(frozen=True)
class Case:
    """What is trained on what: size of the model, height and width of the images, B."""

    size: str
    height: int
    width: int
    num_labeled: int

    @property
    def num_unlabeled(self) -> int:
        """Four for every labeled image, as in the paper."""
        return 4 * self.num_labeled


CASES = [Case("base", 384, 512, 1), Case("nano", 96, 96, 4)]
QUICK = [Case("nano", 64, 64, 1)]


class Step:
    """Networks and batches of one case, and what is timed of them."""

    def __init__(self, case: Case, device: torch.device, teacher_dtype: torch.dtype | None = None) -> None:
        torch.manual_seed(0)
        config = getattr(SemiDetrConfig, case.size)(num_labels=80 if case.size == "base" else 10)
        config.freeze_backbone_norm, config.num_frozen_backbone_stages = True, 2
        student = SemiDetrForObjectDetection(config).to(device)
        self.student, self.device = student, device
        self.teacher = EMATeacher(student, teacher_dtype)
        self.objective = SemiDetrObjective(
            student,
            EVERY_DETECTION,
            one_to_many=OneToManyCriterion(OneToManyAssigner(), student.criterion),
            projector=QueryProjector(config.d_model).to(device),
        ).train()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-6, fused=True)
        many = case.num_labeled + case.num_unlabeled
        self.labeled = labeled_batch(case, case.num_labeled, config.num_labels).to(device)
        self.supervised = SemiBatch(labeled=labeled_batch(case, many, config.num_labels).to(device))
        views = [make_view(case, case.num_unlabeled, seed).to(device) for seed in (1, 2)]
        self.unlabeled = UnlabeledBatch(weak=views[0], strong=views[1], image_ids=list(range(case.num_unlabeled)))

    def parameters(self) -> list[Tensor]:
        """Return what is trained."""
        return [parameter for parameter in self.objective.parameters() if parameter.requires_grad]

    def total(self, losses: StepLosses) -> Tensor:
        """Return one number that depends on every loss."""
        total = self.student.weigh(losses.supervised | losses.pseudo)
        return total + sum(losses.consistency.values(), torch.zeros((), device=self.device))

    def optimize(self, loss: Tensor) -> None:
        """Go back through the graph and make an optimizer step."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)
        self.optimizer.step()
        wait(self.device)

    def supervised_step(self, stage: Stage) -> None:
        """Train on labeled images alone."""
        self.optimize(self.total(self.objective(self.supervised, self.teacher, stage, WEIGHTS[stage])))

    def semi_supervised_step(self, stage: Stage) -> None:
        """Train on labeled and unlabeled images, and let the teacher follow."""
        batch = SemiBatch(labeled=self.labeled, unlabeled=self.unlabeled)
        self.optimize(self.total(self.objective(batch, self.teacher, stage, WEIGHTS[stage])))
        self.teacher.update(self.student, 0.999)

    def unlabeled_part(self) -> None:
        """Compute losses and gradients of the unlabeled images as the package does."""
        stage = Stage.ONE_TO_ONE
        losses = self.objective.unlabeled_losses(self.unlabeled, self.teacher, stage, WEIGHTS[stage])
        torch.autograd.grad(self.total(losses), self.parameters(), allow_unused=True)
        wait(self.device)

    def released_schedule(self) -> None:
        """Make the passes of the released code; losses and queries between them are those of our own pass."""
        weak, strong = self.unlabeled.weak, self.unlabeled.strong
        model, teacher_model = self.student.model, self.teacher.detector.model
        with torch.no_grad():
            encoded = self.teacher.detector.encode(weak.pixel_values, weak.pixel_mask)
            self.teacher.detector.decode(encoded)  # detects
            teacher_model.project(weak.pixel_values)  # features of boxes
        pyramid = model.project(strong.pixel_values)
        with torch.no_grad(), given_pyramid(model, pyramid):
            self.student.decode(self.student.encode(strong.pixel_values, strong.pixel_mask))  # costs
        with given_pyramid(model, pyramid):
            student_features = self.student.encode(strong.pixel_values, strong.pixel_mask)
        with torch.no_grad():  # answers of the teacher
            self.teacher.detector.decode(self.teacher.detector.encode(weak.pixel_values, weak.pixel_mask))
        torch.autograd.grad(self.train_on(student_features), self.parameters(), allow_unused=True)
        wait(self.device)

    def train_on(self, features: EncodedImages) -> Tensor:
        """Return the loss of one decoding with as many queries as our own step has."""
        targets = self.supervised.labeled.targets[: len(self.unlabeled.strong)]
        predictions, states = self.objective.decode(features, targets, denoise=True)
        losses = self.objective.compare(predictions, targets, Stage.ONE_TO_ONE)
        return self.student.weigh({f"pseudo_{name}": loss for name, loss in losses.items()})


@contextmanager
def given_pyramid(model: torch.nn.Module, pyramid: list[Tensor]) -> Iterator[None]:
    """Let a model take features instead of computing them."""
    model.project = lambda _pixels: pyramid
    try:
        yield
    finally:
        del model.project


@contextmanager
def given_attention(sample: Callable[..., Tensor]) -> Iterator[None]:
    """Let deformable attention sample by a function, whatever the device."""
    chosen = deformable_attention.choose_sampling
    deformable_attention.choose_sampling = lambda _device: sample
    try:
        yield
    finally:
        deformable_attention.choose_sampling = chosen


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_view(case: Case, num_images: int, seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    return View(
        pixel_values=torch.randn(num_images, 3, case.height, case.width, generator=generator),
        pixel_mask=torch.ones(num_images, case.height, case.width, dtype=torch.int64),
        image_sizes=torch.tensor([[case.height, case.width]] * num_images),
        homographies=torch.eye(3, dtype=torch.float64).repeat(num_images, 1, 1),
    )


def labeled_batch(case: Case, num_images: int, num_labels: int) -> LabeledBatch:
    generator = torch.Generator().manual_seed(3)
    targets: list[Target] = [
        {
            "class_labels": torch.randint(0, num_labels, (NUM_BOXES,), generator=generator),
            "boxes": torch.rand(NUM_BOXES, 4, generator=generator) * 0.2 + torch.tensor([0.4, 0.4, 0.05, 0.05]),
        }
        for _ in range(num_images)
    ]
    return LabeledBatch(view=make_view(case, num_images, 0), targets=targets, image_ids=list(range(num_images)))


def compare(case: Case, rounds: int, device: torch.device) -> list[dict]:
    """Return the rows of one case."""
    low = torch.bfloat16 if has_fast_bf16(device) else None
    step, low_step = Step(case, device), Step(case, device, low)
    name = f"{case.size}, {case.num_labeled} + {case.num_unlabeled} images of {case.height}x{case.width}"
    rows = []
    for stage in Stage:
        calls: dict[str, Callable[[], object]] = {
            "supervised step": lambda s=stage: step.supervised_step(s),
            "semi-supervised step": lambda s=stage: step.semi_supervised_step(s),
        }
        if low is not None:
            calls["semi-supervised step, bf16 teacher"] = lambda s=stage: low_step.semi_supervised_step(s)
        seconds = time_in_turns(calls, rounds)
        rows += [
            {
                "case": name,
                "compared": f"{stage.value.replace('_', '-')}: {way}",
                "seconds": round(median_seconds(times), 4),
                "cost": round(1 / median_ratio(seconds["supervised step"], times, digits=6), 3),
                "speed": "",
            }
            for way, times in seconds.items()
        ]

    def by_grid(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            # That of the released code without its CUDA extension; our own `sample_by_grid` is faster.
            with given_attention(transformers_attention):
                call()

        return run

    calls = {
        "released schedule, grid_sample": by_grid(step.released_schedule),
        "passes shared, grid_sample": by_grid(step.unlabeled_part),
        "passes shared, our attention": step.unlabeled_part,
    }
    if low is not None:
        calls["passes shared, our attention, bf16 teacher"] = low_step.unlabeled_part
    seconds = time_in_turns(calls, rounds)
    released = seconds["released schedule, grid_sample"]
    rows += [
        {
            "case": name,
            "compared": f"unlabeled part: {way}",
            "seconds": round(median_seconds(times), 4),
            "cost": "",
            "speed": median_ratio(released, times),
        }
        for way, times in seconds.items()
    ]
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each variant")
    parser.add_argument("--sizes", nargs="+", choices=[case.size for case in CASES], default=None)
    parser.add_argument("--quick", action="store_true", help="tiny images, two rounds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case in QUICK if args.quick else CASES:
        if args.sizes is None or case.size in args.sizes:
            rows += compare(case, 2 if args.quick else args.rounds, device)
            print(markdown(rows), flush=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "device": device.type,
        "cost": "seconds over those of the supervised step on as many student images",
        "speed": "over the released schedule",
        **describe_machine(),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
