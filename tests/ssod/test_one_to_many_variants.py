"""Other assignment strategies: each by hand, and what all of them promise."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from semidetr_hf.model.criterion import DetectorPredictions, SetCriterion
from semidetr_hf.model.matching import HungarianMatcher, pad_targets
from semidetr_hf.ssod.one_to_many import (
    Assigner,
    Assignment,
    OneToManyAssigner,
    OneToManyCriterion,
    measure_alignment,
)
from semidetr_hf.ssod.one_to_many_variants import ATSSAssigner, MaxIoUAssigner, SimOTAAssigner

CPU = torch.device("cpu")
ALL = [OneToManyAssigner(top_k=4), MaxIoUAssigner(), ATSSAssigner(top_k=6), SimOTAAssigner()]
NAMES = ["own", "max_iou", "atss", "simota"]


def shifted(*shifts: tuple[float, float]) -> Tensor:
    """Boxes of .4 x .4 whose centers lie (x, y) from the middle of the image.

    Two of them that lie d apart along one axis have IoU (.4 - d) / (.4 + d).
    """
    return torch.tensor([[0.5 + x, 0.5 + y, 0.4, 0.4] for x, y in shifts])


def target(labels: list[int], boxes: Tensor) -> dict[str, Tensor]:
    return {"class_labels": torch.tensor(labels, dtype=torch.int64), "boxes": boxes}


def assign(assigner: Assigner, scores: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Assignment:
    """Assign (P, B, Q, C) scores, or (Q, C) scores of one image and set."""
    while scores.dim() < 4:
        scores, boxes = scores[None], boxes[None]
    padded = pad_targets(targets, CPU)
    labels = padded.class_labels.expand(len(scores), -1, -1)
    return assigner(scores, boxes, class_labels=labels, targets=padded)


def random_case(*counts: int, queries: int = 30, seed: int = 0) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, len(counts), queries, 3, generator=generator)
    boxes = torch.rand(2, len(counts), queries, 4, generator=generator) * 0.4 + 0.3
    targets = [
        {
            "class_labels": torch.randint(0, 3, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]
    return scores, boxes, targets


# ---- maximum IoU


def test_maximum_iou_by_hand() -> None:
    # Box 0 in the middle, box 1 .34 to the right. IoU with box 0: 1, .904762, .454545; with box 1: .06 / .74 = .0811,
    # .08 / .72 = .1111, 0. Query 1 is the best of box 1 and goes there, although it overlaps box 0 more.
    queries, scores = shifted((0, 0), (0.02, 0), (-0.15, 0)), torch.full((3, 1), 0.5)
    targets = [target([0, 0], shifted((0, 0), (0.34, 0)))]
    found = assign(MaxIoUAssigner(), scores, queries, targets)
    assert found.target_index.tolist() == [[[0, 1, -1]]]
    assert_close(found.iou[0, 0], torch.tensor([1.0, 0.111111, 0.0]), rtol=1e-4, atol=1e-6)
    # Box 1 has the metric .5 * .1111^6 = 9.408e-7; 9.408e-7 / (9.408e-7 + 1e-7) * .1111 = .100436.
    assert_close(found.quality[0, 0], torch.tensor([1.0, 0.100436, 0.0]), rtol=1e-3, atol=1e-6)
    lower = assign(MaxIoUAssigner(threshold=0.4), scores, queries, targets)
    assert lower.target_index.tolist() == [[[0, 1, 0]]]


def test_a_query_above_the_threshold_goes_to_the_box_that_it_overlaps_most() -> None:
    # Query 2 overlaps box 0 (.1 away, .6) more than box 1 (.12 away, .5385); both boxes have a better query.
    queries = shifted((0, 0), (0.22, 0), (0.1, 0))
    targets = [target([0, 0], shifted((0, 0), (0.22, 0)))]
    found = assign(MaxIoUAssigner(), torch.full((3, 1), 0.5), queries, targets)
    assert found.target_index.tolist() == [[[0, 1, 0]]]


def test_a_box_that_nothing_overlaps_gets_no_query() -> None:
    far = torch.tensor([[0.05, 0.05, 0.02, 0.02]])
    for assigner in ALL:
        found = assign(assigner, torch.full((2, 1), 0.5), shifted((0, 0), (0.1, 0)), [target([0], far)])
        assert found.target_index.tolist() == [[[-1, -1]]]


# ---- ATSS


def test_atss_by_hand() -> None:
    # IoU 1, .904762 and four times .21 / .59 = .355932 (shifts of .19 in four directions): mean .554748, unbiased
    # deviation .309474, bar .864222. The last query is the seventh by distance and no candidate.
    queries = shifted((0, 0), (0.02, 0), (0.19, 0), (-0.19, 0), (0, 0.19), (0, -0.19), (0.195, 0))
    found = assign(ATSSAssigner(top_k=6), torch.full((7, 1), 0.5), queries, [target([0], shifted((0, 0)))])
    assert found.target_index.tolist() == [[[0, 0, -1, -1, -1, -1, -1]]]
    # .904762^6 = .548537 of the best metric, times the best IoU of 1.
    assert_close(found.quality[0, 0, :2], torch.tensor([1.0, 0.548537]), rtol=1e-4, atol=1e-5)
    # With two candidates: mean .952381, deviation .067344, bar 1.0197, above both.
    two = assign(ATSSAssigner(top_k=2), torch.full((7, 1), 0.5), queries, [target([0], shifted((0, 0)))])
    assert (two.target_index == -1).all()


def test_atss_wants_the_center_inside_the_box() -> None:
    # One candidate is its own bar; .19 and .21 lie on either side of the border at .2.
    assigner, scores = ATSSAssigner(top_k=1), torch.full((1, 1), 0.5)
    assert assign(assigner, scores, shifted((0.19, 0)), [target([0], shifted((0, 0)))]).target_index.item() == 0
    assert assign(assigner, scores, shifted((0.21, 0)), [target([0], shifted((0, 0)))]).target_index.item() == -1


# ---- SimOTA


def test_simota_by_hand() -> None:
    # IoU 1, .6, .454545 within the box; the centers of the last five queries (.25 away, IoU .230769) lie outside. The
    # sum of the first three, 2.0545, gives two queries; the sum of all would give three. Costs: -ln .8 = .2231;
    # -ln .9 - 3 ln .6 = 1.6379; -ln .99 - 3 ln .4545 = 2.3754.
    queries = shifted((0, 0), (0.1, 0), (0.15, 0), *[(0.25, 0)] * 5)
    scores = torch.tensor([[0.8], [0.9], [0.99], *[[0.99]] * 5])
    found = assign(SimOTAAssigner(), scores, queries, [target([0], shifted((0, 0)))])
    assert found.target_index.tolist() == [[[0, 0, *[-1] * 6]]]
    # Metrics .8 and .9 * .6^6 = .041990; .041990 / .8 * 1 = .052488.
    assert_close(found.quality[0, 0, :2], torch.tensor([1.0, 0.052488]), rtol=1e-4, atol=1e-6)
    one = assign(SimOTAAssigner(candidates=1), scores, queries, [target([0], shifted((0, 0)))])
    assert one.target_index.tolist() == [[[0, *[-1] * 7]]]


def test_simota_gives_a_badly_predicted_box_one_query() -> None:
    # An IoU of .454545 is less than one query, .230769 has its center outside.
    assigner, scores = SimOTAAssigner(), torch.full((1, 1), 0.5)
    found = assign(assigner, scores, shifted((0.15, 0)), [target([0], shifted((0, 0)))])
    assert found.target_index.item() == 0
    outside = assign(assigner, scores, shifted((0.25, 0)), [target([0], shifted((0, 0)))])
    assert outside.target_index.item() == -1


def test_simota_gives_a_query_to_the_box_that_it_costs_least() -> None:
    # IoU with box 0 .818182 (.04 away), with box 1 .666667 (.08 away). Costs: box 0: -ln .05 - ln .1 - 3 ln .8182 =
    # 2.9957 + 2.3026 + .6020 = 5.9003; box 1: -ln .9 - ln .95 - 3 ln .6667 = .1054 + .0513 + 1.2164 = 1.3731.
    targets = [target([0, 1], shifted((-0.04, 0), (0.08, 0)))]
    found = assign(SimOTAAssigner(), torch.tensor([[0.05, 0.9]]), shifted((0, 0)), targets)
    assert found.target_index.item() == 1
    assert assign(ALL[0], torch.tensor([[0.05, 0.9]]), shifted((0, 0)), targets).target_index.item() == 0


def test_simota_cost_is_the_cross_entropy_over_all_labels() -> None:
    scores, boxes, targets = random_case(4, 2)
    scores[0, 0, 0] = torch.tensor([0.0, 1.0, 0.5])  # logarithms of 0 are bounded
    padded = pad_targets(targets, CPU)
    labels = padded.class_labels.expand(2, -1, -1)
    alignment = measure_alignment(scores, boxes, class_labels=labels, targets=padded, alpha=1, beta=6)
    cost = SimOTAAssigner(iou_weight=0.0).cost(scores, labels, alignment)
    is_class = F.one_hot(labels, 3)[:, :, None].float()  # (P, B, 1, M, C)
    pairs = scores[..., None, :].expand(-1, -1, -1, 4, -1)
    expected = F.binary_cross_entropy(pairs, is_class.expand_as(pairs), reduction="none").sum(-1)
    assert_close(cost, expected, rtol=1e-4, atol=1e-5)


# ---- what all promise


@pytest.mark.parametrize("assigner", ALL, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_queries_does_not_matter(assigner: Assigner, seed: int) -> None:
    scores, boxes, targets = random_case(6, 3, seed=seed)
    found, order = assign(assigner, scores, boxes, targets), torch.randperm(30)
    moved = assign(assigner, scores[:, :, order], boxes[:, :, order], targets)
    assert moved.target_index.equal(found.target_index[:, :, order])
    assert_close(moved.quality, found.quality[:, :, order])
    assert (found.target_index >= 0).any(-1).all()


@pytest.mark.parametrize("assigner", ALL, ids=NAMES)
def test_padding_of_another_image_changes_nothing(assigner: Assigner) -> None:
    scores, boxes, targets = random_case(2, 40, 0)
    every = assign(assigner, scores, boxes, targets)
    for i in range(3):
        alone = assign(assigner, scores[:, i : i + 1], boxes[:, i : i + 1], targets[i : i + 1])
        assert alone.target_index.equal(every.target_index[:, i : i + 1])
        assert_close(alone.quality, every.quality[:, i : i + 1])
        assert_close(alone.iou, every.iou[:, i : i + 1])
    assert (every.target_index[:, 2] == -1).all()


@pytest.mark.parametrize("assigner", ALL, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_soft_targets_lie_below_the_largest_overlap_of_the_box(assigner: Assigner, seed: int) -> None:
    scores, boxes, targets = random_case(5, seed=seed)
    found = assign(assigner, scores, boxes, targets)
    background = found.target_index == -1
    assert (found.quality[background] == 0).all() and (found.iou[background] == 0).all()
    assert (found.quality[~background] > 0).all() and (found.iou[~background] > 0).all()
    for p in range(2):
        for j in range(5):
            own = found.target_index[p, 0] == j
            if own.any():
                assert found.quality[p, 0, own].max() <= found.iou[p, 0, own].max()


@pytest.mark.parametrize("assigner", ALL, ids=NAMES)
def test_one_query_is_enough(assigner: Assigner) -> None:
    found = assign(assigner, torch.full((1, 1), 0.5), shifted((0.02, 0)), [target([0], shifted((0, 0)))])
    assert found.target_index.item() == 0
    assert found.quality.item() == pytest.approx(0.904762, abs=1e-5)


@pytest.mark.parametrize("assigner", ALL, ids=NAMES)
def test_criterion_takes_every_assigner(assigner: Assigner) -> None:
    scores, boxes, targets = random_case(3, 2)
    logits = scores.logit().requires_grad_()
    predictions = DetectorPredictions(logits[:1], boxes[:1], logits[1], boxes[1], logits[:1, :, :0], boxes[:1, :, :0])
    one_to_one = SetCriterion(HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2))
    losses = OneToManyCriterion(assigner, one_to_one)(predictions, targets, 5.0)
    assert list(losses) == list(one_to_one(predictions, targets, 5.0))
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MaxIoUAssigner, {"threshold": 0.0}),
        (MaxIoUAssigner, {"threshold": 1.5}),
        (ATSSAssigner, {"top_k": 0}),
        (SimOTAAssigner, {"candidates": 0}),
        (SimOTAAssigner, {"beta": 0.0}),
        (ATSSAssigner, {"alpha": -1.0}),
    ],
)
def test_arguments_out_of_range_are_named(kind: Any, options: dict[str, float]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        kind(**options)
