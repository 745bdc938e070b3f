"""Parts of a training step beside their usual forms: matching, optimizer, average of the teacher.

Matching is that of one step: 7 prediction sets, 8 images, 900 queries, about 20 boxes an image, 80 classes; the peer
is the matcher of transformers' DeformableDetr, called once for every set as its loss does. Optimizer and average are
those of the base model; their peers are AdamW with one group per tensor, as the released code configures it, and a
loop over the tensors.

    python benchmarks/step_parts.py            # about a minute
    python benchmarks/step_parts.py --quick    # does it run?

Writes benchmarks/results/step_parts.json.
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
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.model.matching import HungarianMatcher, pad_targets
from semidetr_hf.ssod.one_to_many import OneToManyAssigner
from semidetr_hf.ssod.teacher import EMATeacher

RESULTS = Path(__file__).parent / "results" / "step_parts.json"
Calls = dict[str, Callable[[], object]]


def matching(num_queries: int, num_images: int) -> Calls:
    """Return our matching and assignment of one step, and the peer's matching, which comes first."""
    generator = torch.Generator().manual_seed(0)
    sets, labels = 7, 80
    logits = torch.randn(sets, num_images, num_queries, labels, generator=generator)
    boxes = torch.rand(sets, num_images, num_queries, 4, generator=generator) * 0.4 + 0.3
    targets = [
        {
            "class_labels": torch.randint(0, labels, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in torch.randint(10, 31, (num_images,), generator=generator).tolist()
    ]
    peer = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    ours, assigner = HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2), OneToManyAssigner()

    def theirs() -> list[list[tuple[Tensor, Tensor]]]:
        return [peer({"logits": logits[i], "pred_boxes": boxes[i]}, targets) for i in range(sets)]

    def match() -> object:
        padded = pad_targets(targets, logits.device)
        return ours(logits, boxes, class_labels=padded.class_labels.expand(sets, -1, -1), targets=padded)

    def assign() -> object:
        padded = pad_targets(targets, logits.device)
        return assigner(logits.sigmoid(), boxes, class_labels=padded.class_labels.expand(sets, -1, -1), targets=padded)

    require_same_matches(theirs(), match(), num_images)
    return {"transformers": theirs, "one-to-one": match, "one-to-many": assign}


def require_same_matches(theirs: list[list[tuple[Tensor, Tensor]]], ours: object, num_images: int) -> None:
    """Stop if the two matchers disagree: what differs cannot be compared."""
    for i, of_set in enumerate(theirs):
        for image in range(num_images):
            chosen = (ours.set_index == i) & (ours.image_index == image)
            pairs = sorted(zip(ours.query_index[chosen].tolist(), ours.target_index[chosen].tolist(), strict=True))
            if pairs != sorted(zip(*(index.tolist() for index in of_set[image]), strict=True)):
                raise RuntimeError(f"prediction set {i}, image {image}: matched differently")


def updates(size: str) -> tuple[Calls, Calls]:
    """Return the optimizer step and the average of a model, each with its peer first."""
    torch.manual_seed(0)
    student = SemiDetrForObjectDetection(getattr(SemiDetrConfig, size)(num_labels=80))
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    one_group_each = torch.optim.AdamW([{"params": [parameter]} for parameter in parameters], lr=1e-6)
    fused = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    teacher, loop_teacher = EMATeacher(student), EMATeacher(student)

    @torch.no_grad()
    def loop() -> None:
        theirs = dict(student.named_parameters())
        for name, average in loop_teacher.detector.named_parameters():
            average.mul_(0.999).add_(theirs[name], alpha=0.001)

    return (
        {"one group per tensor": one_group_each.step, "fused AdamW": fused.step},
        {"loop over tensors": loop, "average of the teacher": lambda: teacher.update(student, 0.999)},
    )


def rows_of(part: str, calls: Calls, rounds: int) -> list[dict]:
    seconds = time_in_turns(calls, rounds)
    peer = next(iter(calls))
    return [
        {
            "part": part,
            "way": way,
            "milliseconds": round(1e3 * median_seconds(times), 2),
            "speed": median_ratio(seconds[peer], times),
            "over": peer,
        }
        for way, times in seconds.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each way")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    rounds = 2 if args.quick else args.rounds
    rows = rows_of("matching", matching(*((50, 2) if args.quick else (900, 8))), rounds)
    optimizer, average = updates("nano" if args.quick else "base")
    rows += rows_of("optimizer", optimizer, rounds) + rows_of("average", average, rounds)
    record = {"command": " ".join(["python", *sys.argv]), "seed": 0, **describe_machine(), "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
