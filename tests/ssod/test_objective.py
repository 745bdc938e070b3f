"""What one step computes, what it leaves out, and where its gradients go."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_step import (
    EVERYTHING,
    NOTHING,
    WEIGHTS,
    WITHOUT_CONSISTENCY,
    build,
    count_calls,
    give_detections,
    mirrored,
    semi_batch,
)
from torch import Tensor
from torch.testing import assert_close

from semidetr_hf.geometry import translation
from semidetr_hf.model.criterion import average_num_boxes
from semidetr_hf.ssod.class_thresholds import ClassThresholds
from semidetr_hf.ssod.objective import SemiDetrObjective, StepLosses
from semidetr_hf.ssod.one_to_many import OneToManyAssigner, OneToManyCriterion
from semidetr_hf.ssod.pseudo_labels import to_targets
from semidetr_hf.ssod.rules import ConsistencyRules
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, SemiBatch, Stage, Target, UnlabeledBatch, View

KINDS, MATCHED, DENOISED = ("loss_ce", "loss_bbox", "loss_giou"), ("", "_0", "_enc"), ("_dn", "_dn_0")
CONSISTENCY = {"consistency", "consistency_0"}
# Boxes of 24 x 24 pixels and more, so that features are cut from cells of 8 x 8 pixels.
BOXES = [[8.0, 8.0, 40.0, 40.0], [40.0, 16.0, 88.0, 60.0], [4.0, 30.0, 28.0, 62.0]]


def names(prefix: str, endings: tuple[str, ...]) -> set[str]:
    return {f"{prefix}_{kind}{ending}" for kind in KINDS for ending in endings}


def rows_of(view: View, rows: slice | list[int]) -> View:
    return View(**{name: value[rows] for name, value in vars(view).items()})


# ---- Names, and what is not computed


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("consistency", [0.0, 1.0])
@pytest.mark.parametrize("denoises", [False, True])
def test_names_of_a_semi_supervised_step(stage: Stage, consistency: float, denoises: bool) -> None:
    objective, teacher = build()
    weights = replace(WEIGHTS, consistency=consistency, denoises_pseudo_labels=denoises)
    losses = objective(semi_batch(), teacher, stage, weights)
    assert set(losses.supervised) == names("sup", MATCHED + DENOISED)
    assert set(losses.pseudo) == names("pseudo", MATCHED + (DENOISED if denoises else ()))
    assert set(losses.consistency) == (CONSISTENCY if consistency else set())
    assert len(losses.confident) == len(losses.candidates) == 2
    assert all(len(labels) > 0 for labels in losses.confident)
    assert len(losses.mined) == len(losses.costs) == (2 if consistency else 0)
    assert (losses.cost_threshold is None) is (consistency == 0)


@pytest.mark.parametrize("stage", Stage)
def test_without_unlabeled_images_there_are_supervised_losses_only(stage: Stage) -> None:
    objective, teacher = build()
    calls = count_calls(objective, teacher)
    losses = objective(semi_batch(unlabeled=False), teacher, stage, WEIGHTS)
    assert set(losses.supervised) == names("sup", MATCHED + DENOISED)
    assert losses == StepLosses(supervised=losses.supervised)
    assert calls == {"student backbone": 1, "student encoder": 1, "student decoder": 1}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(
    ("consistency", "rules", "student_decodes", "teacher_decodes", "projections"),
    [
        (0.0, ConsistencyRules(), 2, 1, 0),
        # Mining by cost looks at the matching queries first; the exchange projects the features of both views.
        (1.0, ConsistencyRules(), 3, 2, 2),
        (1.0, ConsistencyRules(candidate_filter="none"), 2, 2, 2),
        (1.0, ConsistencyRules(candidate_filter="top_k", source="teacher"), 2, 2, 1),
        (1.0, ConsistencyRules(source="teacher"), 3, 2, 1),
    ],
)
def test_every_view_is_encoded_once_and_decoded_as_often_as_needed(
    stage: Stage,
    consistency: float,
    rules: ConsistencyRules,
    student_decodes: int,
    teacher_decodes: int,
    projections: int,
) -> None:
    objective, teacher = build(consistency=rules)
    calls = count_calls(objective, teacher)
    objective(semi_batch(), teacher, stage, replace(WEIGHTS, consistency=consistency))
    assert calls == {
        "student backbone": 2,
        "student encoder": 2,
        "student decoder": student_decodes,
        "teacher backbone": 1,
        "teacher encoder": 1,
        "teacher decoder": teacher_decodes,
        **({"projector": projections} if projections else {}),
    }


@pytest.mark.parametrize("denoises", [False, True])
def test_pseudo_labels_are_denoised_only_where_the_weights_say_so(
    denoises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, teacher = build()
    given: list[list[Any]] = []
    make = objective.student.denoising_queries

    def spy(targets: list[dict[str, Tensor]]) -> Any:
        given.append(targets)
        return make(targets)

    monkeypatch.setattr(objective.student, "denoising_queries", spy)
    batch = semi_batch()
    losses = objective(batch, teacher, Stage.ONE_TO_MANY, replace(WEIGHTS, denoises_pseudo_labels=denoises))
    assert given[0] is batch.labeled.targets
    assert [[len(t["boxes"]) for t in targets] for targets in given[1:]] == (
        [[len(labels) for labels in losses.confident]] if denoises else []
    )


def test_consistency_without_a_projector_is_an_error() -> None:
    complete, teacher = build()
    student = complete.student
    criterion = OneToManyCriterion(OneToManyAssigner(), student.criterion)
    objective = SemiDetrObjective(student, EVERYTHING, one_to_many=criterion)
    with pytest.raises(ValueError, match="without a projector"):
        objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WEIGHTS)
    assert objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WITHOUT_CONSISTENCY).consistency == {}


def test_numbers_for_the_log_by_hand() -> None:
    one, two = (build(NOTHING)[1] for _ in range(2))
    give_detections(one, ([0.9] * 3, BOXES))
    give_detections(two, ([], []))
    [three], [none] = one.detect(None, None), two.detect(None, None)  # type: ignore[call-arg, arg-type]
    assert StepLosses(supervised={}).pseudo_label_numbers() == {"pseudo_labels": 0.0}
    some = StepLosses(supervised={}, confident=[none, none], mined=[three, none], cost_threshold=-1.5)
    assert some.pseudo_label_numbers() == {"pseudo_labels": 0.0, "mined": 1.5, "cost_threshold": -1.5}
    # Without any candidate the threshold is -inf, which no log can hold.
    assert replace(some, cost_threshold=-math.inf).pseudo_label_numbers() == {"pseudo_labels": 0.0, "mined": 1.5}


# ---- The losses on labeled images and on pseudo-labels


@pytest.mark.parametrize("stage", Stage)
def test_the_stage_chooses_the_criterion_of_labeled_and_unlabeled_images(stage: Stage) -> None:
    objective, teacher = build(num_denoising_queries=0)
    objective.eval()  # batch norms give the same numbers twice
    batch = semi_batch()
    assert batch.unlabeled is not None
    losses = objective(batch, teacher, stage, WITHOUT_CONSISTENCY)
    criterion = objective.one_to_many if stage is Stage.ONE_TO_MANY else objective.student.criterion
    pseudo_targets = to_targets(losses.confident, batch.unlabeled.strong)
    for prefix, view, targets, found in (
        ("sup", batch.labeled.view, batch.labeled.targets, losses.supervised),
        ("pseudo", batch.unlabeled.strong, pseudo_targets, losses.pseudo),
    ):
        encoded = objective.student.encode(view.pixel_values, view.pixel_mask)
        labels: list[Any] = list(targets)
        expected = criterion(
            objective.student.decode(encoded)[0], labels, average_num_boxes(labels, torch.device("cpu"))
        )
        assert set(found) == {f"{prefix}_{name}" for name in expected}
        for name, loss in expected.items():
            assert_close(found[f"{prefix}_{name}"], loss)


def test_the_stages_differ() -> None:
    objective, teacher = build(num_denoising_queries=0)
    many, one = (objective.eval()(semi_batch(), teacher, stage, WITHOUT_CONSISTENCY) for stage in Stage)
    for name in ("loss_ce", "loss_bbox", "loss_ce_enc"):
        assert not torch.isclose(many.supervised[f"sup_{name}"], one.supervised[f"sup_{name}"])
        assert not torch.isclose(many.pseudo[f"pseudo_{name}"], one.pseudo[f"pseudo_{name}"])


def test_supervised_losses_are_those_of_the_detector() -> None:
    objective, teacher = build(NOTHING, num_denoising_queries=0)
    student = objective.eval().student
    labeled = semi_batch().labeled
    losses = objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WEIGHTS).supervised
    outputs = student(labeled.view.pixel_values, labeled.view.pixel_mask, labels=labeled.targets)
    assert {name.removeprefix("sup_") for name in losses} == set(outputs.loss_dict)
    for name, expected in outputs.loss_dict.items():
        assert_close(losses[f"sup_{name}"], expected)


@pytest.mark.parametrize("stage", Stage)
def test_a_student_that_equals_its_teacher_finds_its_own_boxes_again(stage: Stage) -> None:
    """Weak and strong view are the same picture, so the pseudo-label is a prediction of the student itself."""
    objective, teacher = build(replace(EVERYTHING, nms_iou=0.0, max_detections=1), num_denoising_queries=0)
    if stage is Stage.ONE_TO_MANY:
        # With one query per box it is that prediction alone which answers.
        objective.one_to_many.assigner = OneToManyAssigner(top_k=1)
    losses = objective.eval()(semi_batch(1), teacher, stage, WEIGHTS)
    assert [len(labels) for labels in losses.confident] == [1]
    # The best box is a prediction of the last layer, so its distance to the nearest prediction is rounding.
    assert losses.pseudo["pseudo_loss_bbox"].item() == pytest.approx(0, abs=1e-5)
    assert losses.pseudo["pseudo_loss_giou"].item() == pytest.approx(0, abs=1e-4)


def test_pseudo_labels_follow_the_image_into_a_mirrored_strong_view() -> None:
    objective, teacher = build()
    plain = semi_batch(1)
    [straight], [turned] = (
        objective(each, teacher, Stage.ONE_TO_ONE, WEIGHTS).confident for each in (plain, mirrored(plain))
    )
    x1, y1, x2, y2 = straight.boxes_xyxy.unbind(-1)
    assert_close(turned.boxes_xyxy, torch.stack([96 - x2, y1, 96 - x1, y2], dim=-1))
    assert turned.class_labels.tolist() == straight.class_labels.tolist()


def test_confident_labels_are_known_in_both_views() -> None:
    objective, teacher = build()
    losses = objective(mirrored(semi_batch(1)), teacher, Stage.ONE_TO_ONE, WEIGHTS)
    [weak], [strong] = losses.confident_weak, losses.confident
    x1, y1, x2, y2 = weak.boxes_xyxy.unbind(-1)
    assert len(weak) > 0
    assert_close(strong.boxes_xyxy, torch.stack([96 - x2, y1, 96 - x1, y2], dim=-1))
    assert weak.class_labels.tolist() == strong.class_labels.tolist()


def test_higher_bars_leave_fewer_pseudo_labels() -> None:
    objective, teacher = build()
    counts = []
    for threshold in (0.0, 0.2, 0.5, 0.8, 1.0):
        objective.pseudo_labels = replace(EVERYTHING, score_threshold=threshold)
        losses = objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WITHOUT_CONSISTENCY)
        counts.append(sum(map(len, losses.confident)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0
    assert counts[-1] == 0


# ---- Batches


def test_a_batch_of_two_is_the_mean_of_two_batches_of_one() -> None:
    """With one box per image: the normalizer is 2 against twice 1, and consistency is a mean over boxes."""
    objective, teacher = build(num_denoising_queries=0)
    objective.eval()
    both = mirrored(semi_batch(2))
    assert both.unlabeled is not None
    one_box: list[Target] = [
        {"class_labels": target["class_labels"][:1], "boxes": target["boxes"][:1]} for target in both.labeled.targets
    ]
    assert [len(target["boxes"]) for target in one_box] == [1, 1]
    weak, strong, view = both.unlabeled.weak, both.unlabeled.strong, both.labeled.view

    def losses(rows: slice) -> dict[str, Tensor]:
        ids = [0, 1][rows]
        part = SemiBatch(
            labeled=LabeledBatch(view=rows_of(view, rows), targets=one_box[rows], image_ids=ids),
            unlabeled=UnlabeledBatch(weak=rows_of(weak, rows), strong=rows_of(strong, rows), image_ids=ids),
        )
        give_detections(teacher, *[([0.9], [box]) for box in BOXES[rows]])
        found = objective(part, teacher, Stage.ONE_TO_ONE, WEIGHTS)
        return found.supervised | found.pseudo | found.consistency

    together, first, second = losses(slice(0, 2)), losses(slice(0, 1)), losses(slice(1, 2))
    assert CONSISTENCY < set(together)
    for name, loss in together.items():
        assert_close(loss, (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", Stage)
def test_an_image_twice_in_a_batch_costs_what_it_costs_once(stage: Stage) -> None:
    objective, teacher = build(num_denoising_queries=0)
    objective.eval()
    plain = semi_batch(1)
    assert plain.unlabeled is not None
    # A little apart, so that consistency costs something, but with soft targets that add up to more than 1 per image.
    moved = replace(plain.unlabeled.strong, homographies=translation(2, 1)[None])
    single = replace(plain, unlabeled=replace(plain.unlabeled, strong=moved))
    assert single.unlabeled is not None
    weak, strong = (rows_of(v, [0, 0]) for v in (single.unlabeled.weak, single.unlabeled.strong))
    twice = replace(single, unlabeled=UnlabeledBatch(weak=weak, strong=strong, image_ids=[0, 0]))
    once, both = (objective(batch, teacher, stage, WEIGHTS) for batch in (single, twice))
    assert both.cost_threshold == pytest.approx(once.cost_threshold, abs=1e-3)
    for name, loss in (once.pseudo | once.consistency).items():
        assert_close((both.pseudo | both.consistency)[name], loss, rtol=1e-3, atol=1e-5)


def test_the_teacher_is_asked_and_never_trained_or_switched() -> None:
    objective, teacher = build()
    assert isinstance(teacher, EMATeacher)
    buffers = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    objective(semi_batch(), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in teacher.named_buffers())
    assert teacher.num_updates == 0


# ---- What is added for few labels


@pytest.mark.parametrize(("mixing", "num_images"), [("mixup", 2), ("mosaic", 1), ("both", 3)])
def test_mixed_images_are_a_third_pass_of_the_student(mixing: str, num_images: int) -> None:
    objective, teacher = build(replace(EVERYTHING, mixing=mixing))
    calls = count_calls(objective, teacher)
    sizes = []
    objective.student.model.backbone.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    losses = objective(semi_batch(4), teacher, Stage.ONE_TO_ONE, WEIGHTS)
    assert set(losses.mixed) == names("mixed", MATCHED + DENOISED)
    assert calls["student backbone"] == 3 and calls["teacher backbone"] == 1 and calls["student decoder"] == 4
    assert sizes == [4, 4, num_images]
    plain, _ = build()
    without = plain(semi_batch(4), teacher, Stage.ONE_TO_ONE, WEIGHTS)
    assert without.mixed == {} and set(without.pseudo) == set(losses.pseudo)


def test_adaptive_thresholds_decide_what_is_confident() -> None:
    objective, teacher = build(replace(EVERYTHING, score_threshold=1.0))
    give_detections(teacher, ([0.8, 0.6, 0.2], BOXES), ([0.7, 0.5, 0.3], BOXES))
    assert sum(map(len, objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WITHOUT_CONSISTENCY).confident)) == 0
    # Two boxes of label 0 in an image, four in both: 0.8, 0.7, 0.6 and 0.5.
    rates = [2.0] + [0.0] * (objective.student.config.num_labels - 1)
    objective.class_thresholds = ClassThresholds(rates, lowest=0.0)
    losses = objective(semi_batch(), teacher, Stage.ONE_TO_ONE, WITHOUT_CONSISTENCY)
    scores = [labels.scores.tolist() for labels in losses.confident]
    assert scores == [pytest.approx([0.8, 0.6]), pytest.approx([0.7, 0.5])]
    # Above 0.3, and for the class of which nothing is seen and nothing expected 0.
    numbers = losses.pseudo_label_numbers()
    assert numbers["score_threshold_highest"] == pytest.approx(0.305) and numbers["score_threshold_lowest"] == 0
    assert numbers["score_threshold"] == pytest.approx(0.305 / objective.student.config.num_labels)
