import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_batch, tiny_model

from semidetr_hf.geometry import horizontal_flip
from semidetr_hf.ssod.objective import PseudoLabelRules, SemiDetrObjective, StepLosses
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, SemiBatch, Target, UnlabeledBatch, View

EVERYTHING = PseudoLabelRules(score_threshold=0.0, mean_std_filter=False)
NOTHING = PseudoLabelRules(score_threshold=1.0)
KINDS, SETS = ("loss_ce", "loss_bbox", "loss_giou"), ("", "_0", "_enc", "_dn", "_dn_0")
NAMES = {kind + which for kind in KINDS for which in SETS}


def view(num_images: int, seed: int) -> View:
    pixel_values, _, _ = tiny_batch(num_images, seed=seed)
    return View(
        pixel_values=pixel_values,
        pixel_mask=torch.ones(num_images, 64, 96, dtype=torch.int64),
        image_sizes=torch.tensor([[64, 96]] * num_images),
        homographies=torch.eye(3, dtype=torch.float64).repeat(num_images, 1, 1),
    )


def batch(num_images: int = 2, *, unlabeled: bool = True) -> SemiBatch:
    targets = tiny_batch(num_images)[2]
    labeled = LabeledBatch(view=view(num_images, seed=0), targets=targets, image_ids=list(range(num_images)))
    if not unlabeled:
        return SemiBatch(labeled=labeled)
    pair = UnlabeledBatch(weak=view(num_images, 1), strong=view(num_images, 1), image_ids=list(range(num_images)))
    return SemiBatch(labeled=labeled, unlabeled=pair)


def build(rules: PseudoLabelRules, **overrides) -> tuple[SemiDetrObjective, EMATeacher]:
    student = tiny_model(**overrides)
    return SemiDetrObjective(student, rules).train(), EMATeacher(student)


def total(objective: SemiDetrObjective, losses: StepLosses) -> torch.Tensor:
    return objective.student.weigh(losses.supervised | losses.pseudo)


def test_names_of_a_semi_supervised_step() -> None:
    objective, teacher = build(EVERYTHING)
    losses = objective(batch(), teacher)
    assert set(losses.supervised) == {f"sup_{name}" for name in NAMES}
    assert set(losses.pseudo) == {f"pseudo_{name}" for name in NAMES}
    assert len(losses.confident) == 2
    assert all(len(labels) > 0 for labels in losses.confident)


def test_without_unlabeled_images_there_are_supervised_losses_only() -> None:
    objective, teacher = build(EVERYTHING)
    losses = objective(batch(unlabeled=False), teacher)
    assert set(losses.supervised) == {f"sup_{name}" for name in NAMES}
    assert (losses.pseudo, losses.confident) == ({}, [])


def test_without_a_single_pseudo_label_the_names_are_the_same_and_all_is_finite() -> None:
    objective, teacher = build(NOTHING)
    losses = objective(batch(), teacher)
    assert [len(labels) for labels in losses.confident] == [0, 0]
    assert set(losses.pseudo) == {f"pseudo_{name}" for name in NAMES}
    # Nothing to find: the class loss pushes all scores down, there is no box to compare with.
    values = {name: loss.item() for name, loss in losses.pseudo.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert values["pseudo_loss_ce"] > 0
    assert values["pseudo_loss_bbox"] == values["pseudo_loss_giou"] == values["pseudo_loss_ce_dn"] == 0
    total(objective, losses).backward()


def test_labeled_images_without_boxes() -> None:
    objective, teacher = build(NOTHING)
    nothing: Target = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    full = batch(unlabeled=False)
    losses = objective(SemiBatch(labeled=replace(full.labeled, targets=[nothing, nothing])), teacher)
    assert set(losses.supervised) == {f"sup_{name}" for name in NAMES}
    assert all(math.isfinite(loss.item()) for loss in losses.supervised.values())


def test_gradients_reach_every_part_of_the_student_and_nothing_of_the_teacher() -> None:
    objective, teacher = build(EVERYTHING)
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    total(objective, objective(batch(), teacher)).backward()
    without = [name for name, p in objective.student.named_parameters() if p.grad is None or not p.grad.any()]
    # The tiny backbone ends in layers that the pyramid uses wholly; what may stay without is listed here: nothing.
    assert without == []
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in teacher.named_parameters())


def test_only_the_student_is_trained_by_the_objective() -> None:
    objective, _ = build(EVERYTHING)
    assert [name.split(".")[0] for name, _ in objective.named_parameters()].count("student") == len(
        list(objective.parameters())
    )


def test_supervised_losses_are_those_of_the_detector() -> None:
    objective, teacher = build(NOTHING, num_denoising_queries=0)
    student = objective.eval().student  # batch norms give the same numbers twice
    labeled = batch().labeled
    losses = objective(batch(), teacher).supervised
    outputs = student(labeled.view.pixel_values, labeled.view.pixel_mask, labels=labeled.targets)
    assert {name.removeprefix("sup_") for name in losses} == set(outputs.loss_dict)
    for name, expected in outputs.loss_dict.items():
        torch.testing.assert_close(losses[f"sup_{name}"], expected)


def test_a_student_that_equals_its_teacher_finds_its_own_boxes_again() -> None:
    """Weak and strong view are the same picture, so the pseudo-labels are predictions of the student itself."""
    objective, teacher = build(EVERYTHING, num_denoising_queries=0)
    objective.eval()
    # Suppress hard: what remains are boxes of different queries, at most as many as there are.
    objective.rules = replace(EVERYTHING, nms_iou=0.0, max_detections=1)
    losses = objective(batch(1), teacher)
    assert [len(labels) for labels in losses.confident] == [1]
    # The best box is a prediction of the last layer, so its L1 distance to the nearest prediction is rounding.
    assert losses.pseudo["pseudo_loss_bbox"].item() == pytest.approx(0, abs=1e-5)
    assert losses.pseudo["pseudo_loss_giou"].item() == pytest.approx(0, abs=1e-4)


def test_pseudo_labels_follow_the_image_into_a_mirrored_strong_view() -> None:
    objective, teacher = build(EVERYTHING)
    plain = batch(1)
    assert plain.unlabeled is not None
    flip = horizontal_flip(96)[None]
    strong = replace(plain.unlabeled.strong, homographies=flip)
    mirrored = replace(plain, unlabeled=replace(plain.unlabeled, strong=strong))
    [straight], [turned] = (objective(each, teacher).confident for each in (plain, mirrored))
    x1, y1, x2, y2 = straight.boxes_xyxy.unbind(-1)
    torch.testing.assert_close(turned.boxes_xyxy, torch.stack([96 - x2, y1, 96 - x1, y2], dim=-1))
    assert turned.class_labels.tolist() == straight.class_labels.tolist()


def test_higher_bars_leave_fewer_pseudo_labels() -> None:
    objective, teacher = build(EVERYTHING)
    counts = []
    for threshold in (0.0, 0.2, 0.5, 0.8, 1.0):
        objective.rules = replace(EVERYTHING, score_threshold=threshold)
        counts.append(sum(map(len, objective(batch(), teacher).confident)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0
    assert counts[-1] == 0


def test_a_batch_of_two_is_the_mean_of_two_batches_of_one() -> None:
    """With the same number of boxes in both; one box per image, so that the normalizer is 2 against twice 1."""
    objective, teacher = build(NOTHING, num_denoising_queries=0)
    objective.eval()
    both = batch(2, unlabeled=False).labeled
    one_box: list[Target] = [
        {"class_labels": target["class_labels"][:1], "boxes": target["boxes"][:1]} for target in both.targets
    ]
    assert [len(target["boxes"]) for target in one_box] == [1, 1]

    def losses(rows: slice) -> dict[str, torch.Tensor]:
        part = View(**{name: value[rows] for name, value in vars(both.view).items()})
        labeled = LabeledBatch(view=part, targets=one_box[rows], image_ids=both.image_ids[rows])
        return objective(SemiBatch(labeled=labeled), teacher).supervised

    together, first, second = losses(slice(0, 2)), losses(slice(0, 1)), losses(slice(1, 2))
    for name, loss in together.items():
        torch.testing.assert_close(loss, (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-5)
