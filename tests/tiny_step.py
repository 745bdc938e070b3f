"""A tiny semi-supervised step for tests: batch, objective and teacher, detections that are given, calls that count."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor

from semidetr_hf.geometry import horizontal_flip
from semidetr_hf.ssod.objective import SemiDetrObjective, StepLosses
from semidetr_hf.ssod.one_to_many import OneToManyAssigner, OneToManyCriterion
from semidetr_hf.ssod.query_consistency import QueryProjector
from semidetr_hf.ssod.rules import ConsistencyRules, PseudoLabelRules
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, LossWeights, PseudoLabels, SemiBatch, UnlabeledBatch, View

# Every detection becomes a target; none does.
EVERYTHING = PseudoLabelRules(score_threshold=0.0, mean_std_filter=False)
NOTHING = PseudoLabelRules(score_threshold=1.0)

WEIGHTS = LossWeights(pseudo=4.0, consistency=1.0, denoises_pseudo_labels=True)
WITHOUT_CONSISTENCY = LossWeights(pseudo=4.0, consistency=0.0, denoises_pseudo_labels=True)


def view(num_images: int, seed: int, size: tuple[int, int] = (64, 96)) -> View:
    """Random images without padding that are their own originals."""
    return View(
        pixel_values=tiny_batch(num_images, size, seed=seed)[0],
        pixel_mask=torch.ones(num_images, *size, dtype=torch.int64),
        image_sizes=torch.tensor([size] * num_images),
        homographies=torch.eye(3, dtype=torch.float64).repeat(num_images, 1, 1),
    )


def semi_batch(num_images: int = 2, *, unlabeled: bool = True, size: tuple[int, int] = (64, 96)) -> SemiBatch:
    """Labeled images, and unlabeled ones whose strong view equals the weak one."""
    targets = tiny_batch(num_images)[2]
    ids = list(range(num_images))
    labeled = LabeledBatch(view=view(num_images, 0, size), targets=targets, image_ids=ids)
    if not unlabeled:
        return SemiBatch(labeled=labeled)
    pair = UnlabeledBatch(weak=view(num_images, 1, size), strong=view(num_images, 1, size), image_ids=ids)
    return SemiBatch(labeled=labeled, unlabeled=pair)


def mirrored(batch: SemiBatch) -> SemiBatch:
    """Return a batch whose strong views say that they are the weak ones turned around."""
    assert batch.unlabeled is not None
    flips = horizontal_flip(96).repeat(len(batch.unlabeled.strong), 1, 1)
    strong = replace(batch.unlabeled.strong, homographies=flips)
    return replace(batch, unlabeled=replace(batch.unlabeled, strong=strong))


def build(
    rules: PseudoLabelRules = EVERYTHING, consistency: ConsistencyRules | None = None, **overrides: Any
) -> tuple[SemiDetrObjective, EMATeacher]:
    """Return an objective with a projector, in training mode, and a teacher that equals its student."""
    student = tiny_model(**overrides)
    torch.manual_seed(5)
    objective = SemiDetrObjective(
        student,
        rules,
        one_to_many=OneToManyCriterion(OneToManyAssigner(), student.criterion),
        projector=QueryProjector(student.config.d_model, hidden=16),
        consistency=consistency,
    )
    return objective.train(), EMATeacher(student)


def give_detections(teacher: EMATeacher, *images: tuple[list[float], list[list[float]]]) -> None:
    """Let the teacher detect these (scores, xyxy boxes in pixels of the weak view) of label 0 in every image."""
    found = [
        PseudoLabels(
            boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            class_labels=torch.zeros(len(scores), dtype=torch.int64),
            scores=torch.tensor(scores, dtype=torch.float32),
        )
        for scores, boxes in images
    ]
    teacher.detect = lambda *args, **kwargs: found  # type: ignore[method-assign]


def total(objective: SemiDetrObjective, losses: StepLosses) -> Tensor:
    """Return one number that depends on every loss."""
    detection = objective.student.weigh(losses.supervised | losses.pseudo)
    return detection + sum(losses.consistency.values(), torch.zeros(()))


def count_calls(objective: SemiDetrObjective, teacher: EMATeacher) -> Counter[str]:
    """Return a counter that follows which parts of both networks run."""
    calls: Counter[str] = Counter()
    for owner, network in (("student", objective.student), ("teacher", teacher.detector)):
        for part in ("backbone", "encoder", "decoder"):
            network.model.get_submodule(part).register_forward_hook(
                lambda *args, name=f"{owner} {part}": calls.update([name])
            )
    if objective.projector is not None:
        objective.projector.register_forward_hook(lambda *args: calls.update(["projector"]))
    return calls
