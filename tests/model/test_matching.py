"""One-to-one matching against hand-worked and recorded numbers."""

import pytest
import torch
from recorded import load_recorded
from torch.testing import assert_close

from semidetr_hf.model.matching import HungarianMatcher, focal_cost, pad_targets


@pytest.fixture(scope="module")
def matcher():
    return HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)


def targets(*images):
    return [
        {"class_labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(boxes).reshape(-1, 4)}
        for labels, boxes in images
    ]


def match(matcher, logits, boxes, wanted):
    """Match one prediction set."""
    padded = pad_targets(wanted, logits.device)
    return matcher(logits[None], boxes[None], class_labels=padded.class_labels[None], targets=padded)


def random_case(num_images=2, queries=7, labels=4, counts=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, queries, labels, generator=generator)
    boxes = torch.rand(num_images, queries, 4, generator=generator) * 0.4 + 0.3
    wanted = [
        {
            "class_labels": torch.randint(0, labels, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]
    return logits, boxes, wanted


def test_cost_by_hand(matcher):
    # p = .9 and the same box: class 2 (-.25 * .1^2 * ln .9 + .75 * .9^2 * ln .1) = -2.797114, L1 0, GIoU -2 * 1.
    # p = .3, (.5, .5, .2, .4) against (.55, .5, .3, .4): .246822 + 5 (.05 + .1) - 2 * 2/3 = -.336511.
    logits = torch.tensor([[[[0.9], [0.3]]]]).logit()
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4]]]])
    target_boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.55, 0.5, 0.3, 0.4]]])
    cost = matcher.cost(logits, boxes, class_labels=torch.zeros(1, 1, 2, dtype=torch.int64), target_boxes=target_boxes)
    assert cost[0, 0, 0, 0].item() == pytest.approx(-4.797114, abs=1e-5)
    assert cost[0, 0, 1, 1].item() == pytest.approx(-0.336511, abs=1e-5)


def test_focal_cost_falls_with_the_probability():
    cost = focal_cost(torch.linspace(0, 1, 50), alpha=0.25, gamma=2.0, eps=1e-8)
    assert (cost.diff() < 0).all() and cost.isfinite().all()


@pytest.mark.parametrize("case", ["plain", "more_gt_than_pred", "empty"])
def test_recorded_matches_of_official_dino(matcher, case):
    recorded = load_recorded("hungarian.npz")[case]
    wanted = [{"class_labels": recorded["gt_labels"], "boxes": recorded["gt_cxcywh"]}]
    logits, boxes = recorded["logits"][None], recorded["pred_cxcywh"][None]
    padded = pad_targets(wanted, torch.device("cpu"))
    cost = matcher.cost(logits[None], boxes[None], class_labels=padded.class_labels[None], target_boxes=padded.boxes)
    assert_close(cost[0, 0, :, : padded.counts[0]], recorded["dino"]["cost"], rtol=1e-4, atol=1e-4)
    matches = match(matcher, logits, boxes, wanted)
    assert matches.query_index.tolist() == recorded["dino"]["rows"].tolist()
    assert matches.target_index.tolist() == recorded["dino"]["cols"].tolist()


def test_more_boxes_than_queries_uses_every_query(matcher):
    logits, boxes, wanted = random_case(num_images=1, queries=3, counts=(8,))
    matches = match(matcher, logits, boxes, wanted)
    assert matches.query_index.tolist() == [0, 1, 2]
    assert len(set(matches.target_index.tolist())) == 3


def test_no_boxes_no_images(matcher):
    logits, boxes, wanted = random_case(counts=(0, 0))
    assert len(match(matcher, logits, boxes, wanted).query_index) == 0
    assert len(match(matcher, logits[:0], boxes[:0], []).query_index) == 0


def test_batch_and_sets_are_matched_alone(matcher):
    logits, boxes, wanted = random_case(counts=(3, 1))
    both = match(matcher, logits, boxes, wanted)
    for i in range(2):
        alone = match(matcher, logits[i : i + 1], boxes[i : i + 1], wanted[i : i + 1])
        here = both.image_index == i
        assert torch.equal(both.query_index[here], alone.query_index)
        assert torch.equal(both.target_index[here], alone.target_index)
    # Two prediction sets, the second with the queries in reverse order.
    padded = pad_targets(wanted, torch.device("cpu"))
    labels = padded.class_labels.expand(2, -1, -1)
    stacked = matcher(
        torch.stack([logits, logits.flip(1)]),
        torch.stack([boxes, boxes.flip(1)]),
        class_labels=labels,
        targets=padded,
    )
    first, second = stacked.set_index == 0, stacked.set_index == 1
    pairs = [
        {
            (int(i), int(q), int(g))
            for i, q, g in zip(stacked.image_index[s], q_index, stacked.target_index[s], strict=True)
        }
        for s, q_index in ((first, stacked.query_index[first]), (second, 6 - stacked.query_index[second]))
    ]
    assert pairs[0] == pairs[1]


def test_permuted_boxes_find_the_same_queries(matcher):
    logits, boxes, wanted = random_case(num_images=1, counts=(5,))
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = [{name: value[order] for name, value in wanted[0].items()}]
    plain, other = match(matcher, logits, boxes, wanted), match(matcher, logits, boxes, permuted)
    assert torch.equal(plain.query_index, other.query_index)
    assert torch.equal(plain.target_index, order[other.target_index])


def test_encoder_may_match_other_labels(matcher):
    """Labels are given per prediction set: two equal sets with different labels are matched differently."""
    logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
    boxes = torch.full((1, 2, 4), 0.5)
    padded = pad_targets(targets(([1], [[0.5, 0.5, 0.5, 0.5]])), torch.device("cpu"))
    labels = torch.tensor([[[1]], [[0]]])
    matches = matcher(logits.expand(2, 1, 2, 2), boxes.expand(2, 1, 2, 4), class_labels=labels, targets=padded)
    assert matches.query_index.tolist() == [1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_predictions_that_are_not_finite_are_matched_last(matcher, bad):
    logits, boxes, wanted = random_case(num_images=1, counts=(3,))
    before = match(matcher, logits, boxes, wanted)
    query = int(before.query_index[0])
    boxes[0, query] = bad
    after = match(matcher, logits, boxes, wanted)
    assert len(after.query_index) == 3 and query not in after.query_index.tolist()
    boxes[:] = bad
    assert len(match(matcher, logits, boxes, wanted).query_index) == 3  # there are no others


def test_targets_are_padded_with_zeros():
    padded = pad_targets(targets(([4, 2], [[0.1] * 4, [0.2] * 4]), ([], [])), torch.device("cpu"))
    assert padded.class_labels.tolist() == [[4, 2], [0, 0]]
    assert padded.counts == [2, 0]
    assert padded.boxes.shape == (2, 2, 4) and not padded.boxes[1].any()
    assert pad_targets([], torch.device("cpu")).boxes.shape == (0, 1, 4)
    assert pad_targets(targets(([], [])), torch.device("cpu")).class_labels.tolist() == [[0]]
