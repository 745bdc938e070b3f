"""Which candidates a step mines, what its consistency queries hold, and what their loss is."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_step import WEIGHTS, build, give_detections, mirrored, semi_batch
from torch import Tensor
from torch.testing import assert_close

from semidetr_hf.model.decoder_queries import DecoderQueries
from semidetr_hf.model.outputs import EncodedImages
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.ssod.query_consistency import roi_features
from semidetr_hf.ssod.rules import ConsistencyRules, PseudoLabelRules
from semidetr_hf.structures import Stage

# Boxes of 24 x 24 pixels and more, so that features are cut from cells of 8 x 8 pixels.
BOXES = [[8.0, 8.0, 40.0, 40.0], [40.0, 16.0, 88.0, 60.0], [4.0, 30.0, 28.0, 62.0]]


# ---- Which candidates become consistency queries


def mine(rules: ConsistencyRules, scores: list[float]) -> tuple[StepLosses, list[float]]:
    """Return the losses of one image with these detections, of which those from 0.5 on are confident."""
    objective, teacher = build(PseudoLabelRules(score_threshold=0.5, mean_std_filter=False), rules)
    give_detections(teacher, (scores, BOXES[: len(scores)]))
    losses = objective(semi_batch(1), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    return losses, losses.mined[0].scores.tolist()


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (ConsistencyRules(candidate_filter="none"), [0.9]),
        (ConsistencyRules(candidate_filter="top_k", top_k=0), [0.9]),
        (ConsistencyRules(candidate_filter="top_k", top_k=2), [0.4, 0.9]),
        (ConsistencyRules(candidate_filter="top_k", top_k=10), [0.4, 0.1, 0.9]),
        (ConsistencyRules(candidate_filter="mean_std"), [0.4, 0.1, 0.9]),
    ],
)
def test_filters_without_costs_by_hand(rules: ConsistencyRules, expected: list[float]) -> None:
    losses, mined = mine(rules, [0.4, 0.1, 0.9])
    assert mined == pytest.approx(expected)
    assert losses.confident[0].scores.tolist() == pytest.approx([0.9])
    assert (losses.costs, losses.cost_threshold) == ([], None)


@pytest.mark.parametrize("rule", ["mean", "densest"])
def test_cheap_candidates_are_mined_besides_the_confident_ones(rule: Any) -> None:
    scores = [0.4, 0.1, 0.9]
    losses, mined = mine(ConsistencyRules(cost_threshold=rule), scores)
    threshold = losses.cost_threshold
    assert threshold is not None
    costs = losses.costs[0].tolist()
    expected = [s for s, cost in zip(scores, costs, strict=True) if cost <= threshold or s >= 0.5]
    assert mined == pytest.approx(expected)
    assert 1 <= len(mined) < 3  # something is left out, or the test would not see the threshold


def test_costs_are_those_of_the_student_in_the_strong_view() -> None:
    """A teacher that equals its student finds boxes that cost it nothing in place, unless they are mirrored."""
    objective, teacher = build(num_denoising_queries=0)
    objective.eval()
    straight, turned = (
        torch.cat(objective(batch, teacher, Stage.ONE_TO_ONE, WEIGHTS).costs)
        for batch in (semi_batch(), mirrored(semi_batch()))
    )
    assert len(straight) == len(turned)
    # There are more candidates than queries: the rest cost infinitely much.
    assert straight[straight.isfinite()].mean() < turned[turned.isfinite()].mean() - 1


# ---- Consistency


@pytest.mark.parametrize("source", ["teacher", "exchanged"])
def test_equal_networks_agree_on_equal_views(source: Any) -> None:
    objective, teacher = build(consistency=ConsistencyRules(source=source))
    objective.eval()
    losses = objective(semi_batch(), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    assert sum(map(len, losses.mined)) > 0
    assert [loss.item() for loss in losses.consistency.values()] == pytest.approx([0, 0], abs=1e-9)
    # And not because the loss were always 0.
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    give_detections(teacher, ([0.9], BOXES[:1]), ([0.8], BOXES[1:2]))
    other = objective(semi_batch(), teacher, Stage.ONE_TO_MANY, WEIGHTS).consistency
    assert all(loss.item() > 1e-4 for loss in other.values())


def test_contents_are_exchanged_or_both_of_the_weak_view() -> None:
    batch = mirrored(semi_batch(1))
    unlabeled = batch.unlabeled
    assert unlabeled is not None
    objective, teacher = build()
    objective.eval()
    projector = objective.projector
    assert projector is not None
    for module in (projector.bn1, projector.bn2):
        torch.nn.init.constant_(module.bias, 0.3)  # features of a random projector are small
    weak, strong = torch.tensor([BOXES[0]]), torch.tensor([[56.0, 8.0, 88.0, 40.0]])  # x -> 96 - x
    give_detections(teacher, ([0.9], BOXES[:1]))
    teacher_features = teacher.encode(unlabeled.weak)
    student_features = objective.student.encode(unlabeled.strong.pixel_values, unlabeled.strong.pixel_mask)
    candidates, _ = objective.find_candidates(teacher, teacher_features, unlabeled)
    assert_close(candidates[0].strong.boxes_xyxy, strong)
    from_weak = projector(roi_features(teacher_features.pyramid, [weak], (64, 96)))
    from_strong = projector(roi_features(student_features.pyramid, [strong], (64, 96)))
    assert not torch.allclose(from_weak, from_strong)
    for source, for_student, for_teacher in (("exchanged", from_weak, from_strong), ("teacher", from_weak, from_weak)):
        objective.consistency = ConsistencyRules(source=source)  # type: ignore[arg-type]
        queries = objective.consistency_queries(candidates, unlabeled, student_features, teacher_features)
        assert_close(queries.strong.content[0], for_student)
        assert_close(queries.weak.content[0], for_teacher)
        # Positions are those of each network's own view: centers (24, 24) and (72, 24) in 96 x 64 pixels.
        assert_close(queries.weak.reference_logits[0, 0, :2].sigmoid(), torch.tensor([24 / 96, 24 / 64]))
        assert_close(queries.strong.reference_logits[0, 0, :2].sigmoid(), torch.tensor([72 / 96, 24 / 64]))
        assert queries.strong.content.requires_grad
        if source == "exchanged":
            # What the teacher reads is a constant: the projector learns through the student's queries alone.
            assert not queries.weak.content.requires_grad


REFERENCE = ConsistencyRules(cost_threshold="densest", source="teacher", copies=5, rows="all", unit_length=True)


@pytest.mark.parametrize("rows", ["real", "all"])
def test_five_copies_of_the_reference_cost_what_one_costs(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, teacher = build(PseudoLabelRules())
    objective.eval()
    give_detections(teacher, ([0.9, 0.5], BOXES[:2]), ([], []))
    slots: list[tuple[int, ...]] = []
    answer = teacher.answer

    def spy(encoded: EncodedImages, queries: DecoderQueries) -> Tensor:
        slots.append(queries.group_sizes)
        return answer(encoded, queries)

    monkeypatch.setattr(teacher, "answer", spy)
    found = []
    for copies in (1, 5):
        objective.consistency = replace(REFERENCE, copies=copies, rows=rows)
        found.append(objective(mirrored(semi_batch()), teacher, Stage.ONE_TO_MANY, WEIGHTS).consistency)
    assert slots == [(2,), (2,) * 5]
    for name, loss in found[0].items():
        assert loss > 1e-6
        assert_close(loss, found[1][name], rtol=1e-4, atol=1e-7)


def test_rows_of_images_without_boxes_count_only_in_the_reference() -> None:
    objective, teacher = build(PseudoLabelRules())
    objective.eval()
    batch = mirrored(semi_batch())

    def loss(rows: Any) -> float:
        objective.consistency = replace(REFERENCE, rows=rows)
        return objective(batch, teacher, Stage.ONE_TO_MANY, WEIGHTS).consistency["consistency"].item()

    give_detections(teacher, ([0.9, 0.5], BOXES[:2]), ([0.8], BOXES[2:]))
    assert loss("all") == pytest.approx(loss("real"), rel=1e-4)
    give_detections(teacher, ([0.9, 0.5], BOXES[:2]), ([], []))
    # The dummy box is in the center of equal pictures: equal networks agree on it. Of three rows two are real: 2/3 of
    # the mean over all three, which is 2/3 of the mean over the real ones.
    assert loss("all") == pytest.approx(4 / 9 * loss("real"), rel=1e-4)
