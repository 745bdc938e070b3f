"""Steps that go wrong easily: nothing found, almost nothing, all alike, boxes without area, tiny images.

Every one of them has finite losses of the usual names, and a backward pass that leaves finite gradients.
"""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tiny_step import EVERYTHING, WEIGHTS, build, give_detections, mirrored, semi_batch, total
from torch import Tensor

from semidetr_hf.geometry import translation
from semidetr_hf.ssod import objective as objective_module
from semidetr_hf.ssod.objective import SemiDetrObjective, StepLosses
from semidetr_hf.ssod.rules import ConsistencyRules, PseudoLabelRules
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import SemiBatch, Stage, Target, View

FILTERS = get_args(ConsistencyRules.__annotations__["candidate_filter"])
ENDINGS = ("", "_0", "_enc", "_dn", "_dn_0")
NAMES = {kind + ending for kind in ("loss_ce", "loss_bbox", "loss_giou") for ending in ENDINGS}
BOX, OTHER = [8.0, 8.0, 40.0, 40.0], [40.0, 16.0, 88.0, 60.0]

in_both_stages_with_every_filter = pytest.mark.parametrize(
    ("stage", "rules"),
    [
        pytest.param(stage, ConsistencyRules(candidate_filter=name), id=f"{stage.value}-{name}")
        for stage in Stage
        for name in FILTERS
    ],
)


def step(objective: SemiDetrObjective, teacher: EMATeacher, batch: SemiBatch, stage: Stage) -> StepLosses:
    """Run a step with everything switched on and look for what must hold in any case."""
    losses = objective(batch, teacher, stage, WEIGHTS)
    assert set(losses.supervised) == {f"sup_{name}" for name in NAMES}
    assert set(losses.pseudo) == {f"pseudo_{name}" for name in NAMES}
    assert set(losses.consistency) == {"consistency", "consistency_0"}
    every: dict[str, Tensor] = losses.supervised | losses.pseudo | losses.consistency
    assert [name for name, loss in every.items() if not loss.isfinite() or loss.shape != ()] == []
    total(objective, losses).backward()
    bad = [name for name, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert bad == []
    assert all(parameter.grad is not None for parameter in objective.student.parameters())
    return losses


def zeros(*losses: Tensor) -> bool:
    return all(loss.item() == 0 for loss in losses)


@in_both_stages_with_every_filter
def test_without_a_single_pseudo_label_there_is_only_background(stage: Stage, rules: ConsistencyRules) -> None:
    objective, teacher = build(PseudoLabelRules(), rules)
    give_detections(teacher, ([], []), ([], []))
    losses = step(objective, teacher, semi_batch(), stage)
    assert [len(labels) for labels in losses.confident + losses.candidates + losses.mined] == [0] * 6
    # Nothing to find: the class loss pushes all scores down, there is no box to compare with.
    assert losses.pseudo["pseudo_loss_ce"] > 0
    boxes = [f"pseudo_{kind}{ending}" for kind in ("loss_bbox", "loss_giou") for ending in ENDINGS]
    assert zeros(*(losses.pseudo[name] for name in boxes), losses.pseudo["pseudo_loss_ce_dn"])
    assert zeros(*losses.consistency.values())


@in_both_stages_with_every_filter
def test_a_lone_detection_is_a_target_of_its_own(stage: Stage, rules: ConsistencyRules) -> None:
    objective, teacher = build(PseudoLabelRules(), rules)
    give_detections(teacher, ([], []), ([0.9], [BOX]))
    losses = step(objective, teacher, semi_batch(), stage)
    assert [len(labels) for labels in losses.confident] == [len(labels) for labels in losses.mined] == [0, 1]


@in_both_stages_with_every_filter
@pytest.mark.parametrize(("source", "count"), [("detections", 2), ("candidates", 0)])
def test_two_sure_detections_are_kept_or_lost_to_the_filter(
    stage: Stage, rules: ConsistencyRules, source: Any, count: int
) -> None:
    # Of two different scores none reaches mean + deviation.
    objective, teacher = build(PseudoLabelRules(confident_source=source), rules)
    give_detections(teacher, ([0.95, 0.9], [BOX, OTHER]))
    losses = step(objective, teacher, semi_batch(1), stage)
    assert [len(labels) for labels in losses.confident + losses.mined] == [count, count]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("rule", ["mean", "densest"])
def test_candidates_that_all_cost_the_same_are_all_mined(
    stage: Stage, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        objective_module, "matched_costs", lambda *args: [torch.full((2,), 0.7), torch.full((1,), 0.7)]
    )
    objective, teacher = build(PseudoLabelRules(mean_std_filter=False), ConsistencyRules(cost_threshold=rule))
    give_detections(teacher, ([0.3, 0.2], [BOX, OTHER]), ([0.1], [BOX]))
    losses = step(objective, teacher, semi_batch(), stage)
    assert losses.cost_threshold == pytest.approx(0.7)
    assert [len(labels) for labels in losses.mined] == [2, 1]
    assert [len(labels) for labels in losses.confident] == [0, 0]


@in_both_stages_with_every_filter
def test_detections_that_are_all_alike_do_no_harm(stage: Stage, rules: ConsistencyRules) -> None:
    objective, teacher = build(PseudoLabelRules(), rules)
    give_detections(teacher, ([0.5] * 3, [BOX] * 3), ([0.5] * 3, [BOX] * 3))
    losses = step(objective, teacher, semi_batch(), stage)
    # Equal scores have no deviation: all reach their mean.
    assert [len(labels) for labels in losses.confident + losses.mined] == [3, 3, 3, 3]


@in_both_stages_with_every_filter
@pytest.mark.parametrize(("min_box_size", "count"), [(None, 2), (1.0, 1)])
def test_boxes_that_leave_the_strong_view_have_no_area_and_do_no_harm(
    stage: Stage, rules: ConsistencyRules, min_box_size: float | None, count: int
) -> None:
    objective, teacher = build(replace(EVERYTHING, min_box_size=min_box_size), rules)
    batch = semi_batch(1)
    assert batch.unlabeled is not None
    # 60 pixels to the left: the box from 8 to 40 ends left of the image, that from 40 to 88 keeps its right part.
    moved = replace(batch.unlabeled.strong, homographies=translation(-60, 0)[None])
    give_detections(teacher, ([0.9, 0.8], [BOX, OTHER]))
    losses = step(objective, teacher, replace(batch, unlabeled=replace(batch.unlabeled, strong=moved)), stage)
    [confident] = losses.confident
    assert confident.boxes_xyxy.tolist() == [[0, 8, 0, 40], [0, 16, 28, 60]][-count:]
    assert len(losses.mined[0]) == count


@in_both_stages_with_every_filter
def test_a_detector_of_one_class(stage: Stage, rules: ConsistencyRules) -> None:
    objective, teacher = build(EVERYTHING, rules, id2label={0: "thing"}, label2id={"thing": 0})
    batch = semi_batch()
    one_class: list[Target] = [
        {"class_labels": torch.zeros_like(target["class_labels"]), "boxes": target["boxes"]}
        for target in batch.labeled.targets
    ]
    losses = step(objective, teacher, replace(batch, labeled=replace(batch.labeled, targets=one_class)), stage)
    assert all(len(labels) > 0 for labels in losses.mined)


@in_both_stages_with_every_filter
@pytest.mark.parametrize("counts", [(0, 0), (300, 0), (300, 1)])
def test_labeled_images_of_no_box_and_of_300(stage: Stage, rules: ConsistencyRules, counts: tuple[int, int]) -> None:
    objective, teacher = build(EVERYTHING, rules)
    targets: list[Target] = [
        {
            "class_labels": torch.randint(0, 5, (count,)),
            "boxes": torch.cat([torch.rand(count, 2) * 0.6 + 0.2, torch.rand(count, 2) * 0.3], dim=-1),
        }
        for count in counts
    ]
    batch = semi_batch()
    losses = step(objective, teacher, replace(batch, labeled=replace(batch.labeled, targets=targets)), stage)
    assert (losses.supervised["sup_loss_bbox_dn"].item() > 0) is (sum(counts) > 0)


@in_both_stages_with_every_filter
def test_images_with_fewer_tokens_than_queries(stage: Stage, rules: ConsistencyRules) -> None:
    # 32 x 32 pixels have 16 + 4 + 1 + 1 tokens.
    objective, teacher = build(EVERYTHING, rules, num_queries=300)
    losses = step(objective, teacher, semi_batch(size=(32, 32)), stage)
    assert all(len(labels) > 0 for labels in losses.mined)
    # Pseudo-labels of 22 queries and 5 labels; those beyond the queries have no match and are not cheap.
    assert all(len(labels) <= 22 * 5 for labels in losses.candidates)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("rows", ["real", "all"])
def test_the_reference_with_and_without_dummies(stage: Stage, rows: Any) -> None:
    rules = ConsistencyRules(cost_threshold="densest", source="teacher", copies=5, rows=rows, unit_length=True)
    objective, teacher = build(PseudoLabelRules(confident_source="candidates", min_box_size=None), rules)
    give_detections(teacher, ([], []), ([0.9], [BOX]))
    some = step(objective, teacher, mirrored(semi_batch()), stage)
    assert some.consistency["consistency"] > 0
    give_detections(teacher, ([], []), ([], []))
    none = step(objective, teacher, mirrored(semi_batch()), stage)
    # Without a real box the share of real ones, 0, is a factor.
    assert zeros(*none.consistency.values())


def test_a_padded_image_beside_a_larger_one() -> None:
    objective, teacher = build(EVERYTHING)
    batch = semi_batch()
    assert batch.unlabeled is not None
    mask = batch.unlabeled.weak.pixel_mask.clone()
    mask[1, :, 48:] = 0
    sizes = torch.tensor([[64, 96], [64, 48]])

    def narrow(view: View) -> View:
        return replace(view, pixel_mask=mask, pixel_values=view.pixel_values * mask[:, None], image_sizes=sizes)

    pair = replace(batch.unlabeled, weak=narrow(batch.unlabeled.weak), strong=narrow(batch.unlabeled.strong))
    losses = step(objective, teacher, replace(batch, unlabeled=pair), Stage.ONE_TO_MANY)
    assert losses.confident[1].boxes_xyxy[:, 2].max() <= 48
