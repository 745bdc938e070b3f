"""Mining by matching cost against hand-worked and recorded numbers. Run as a program it is one of two processes."""

import json
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded import load_recorded
from sklearn.mixture import GaussianMixture
from torch import Tensor

from semidetr_hf.model.matching import HungarianMatcher, pad_targets
from semidetr_hf.ssod import label_mining
from semidetr_hf.ssod.label_mining import (
    fit_cost_mixture,
    fit_cost_threshold,
    gather_costs,
    keep_all,
    keep_top_k,
    matched_costs,
    mine_pseudo_labels,
)
from semidetr_hf.structures import PseudoLabels, Target

RULES = ["mean", "densest"]
INF = float("inf")
# Costs of which the component that starts at the least one ends with the larger mean, as the broad one of the two.
CROSSED = [-1.9, 0.2, 0.2, 0.3, 0.3, 0.6, 0.6, 1.3, 1.7, 1.7, 2.9]
# What each of two processes gathers in three rounds, per image; in the first two rounds one process has no cost.
ROUNDS: list[list[list[list[float]]]] = [
    [[[-1.5, INF], [0.25]], []],
    [[[], [INF]], [[3.5]]],
    [[[2.0], [-1.0]], [[], [-3.0, -2.5]]],
]


def two_clusters(seed: int, low: int = 20, high: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.cat([torch.randn(low, generator=generator) * 0.4 - 2, torch.randn(high, generator=generator) + 2])
    return costs[torch.randperm(len(costs), generator=generator)]


def matcher() -> HungarianMatcher:
    return HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)


def target(labels: list[int], boxes: list[list[float]]) -> Target:
    return {"class_labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(boxes).reshape(-1, 4)}


def random_case(*counts: int, queries: int = 9, labels: int = 3) -> tuple[Tensor, Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(len(counts), queries, labels, generator=generator)
    boxes = torch.rand(len(counts), queries, 4, generator=generator) * 0.4 + 0.3
    targets: list[Target] = [
        {
            "class_labels": torch.randint(0, labels, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]
    return logits, boxes, targets


def scored(*scores: float) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.zeros(len(scores), 4),
        class_labels=torch.zeros(len(scores), dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def as_lists(masks: list[Tensor]) -> list[list[bool]]:
    assert all(mask.dtype == torch.bool for mask in masks)
    return [mask.tolist() for mask in masks]


# ---- fit_cost_mixture and fit_cost_threshold


def test_a_mixture_by_hand() -> None:
    # The clusters are far apart, so that each sample belongs to one component: weights 2/3 and 1/3, means
    # (-2 - 1.9) / 2 and 1, variances 0.05^2 + 1e-5 and 0 + 1e-5.
    mixture = fit_cost_mixture(torch.tensor([1.0, -2.0, -1.9]), rule="mean")
    assert mixture is not None
    assert mixture.weights == pytest.approx((2 / 3, 1 / 3))
    assert mixture.means == pytest.approx((-1.95, 1.0))
    assert mixture.variances == pytest.approx((0.00251, 1e-5), rel=1e-3)
    assert mixture.threshold == pytest.approx(-1.95)


@pytest.mark.parametrize(
    ("costs", "mean", "densest"),
    [
        # -2 and -1.9 lie as far from the mean -1.95: equally dense but for rounding.
        ([-2.0, -1.9, 1.0], [-1.95], [-2.0, -1.9]),
        ([-2.0, 1.0], [-2.0], [-2.0]),
        ([-2.0, -2.0], [-2.0], [-2.0]),
        ([0.37], [0.37], [0.37]),
    ],
)
def test_thresholds_by_hand(costs: list[float], mean: list[float], densest: list[float]) -> None:
    assert any(fit_cost_threshold(torch.tensor(costs), rule="mean") == pytest.approx(value) for value in mean)
    assert any(fit_cost_threshold(torch.tensor(costs), rule="densest") == pytest.approx(value) for value in densest)


@pytest.mark.parametrize("rule", RULES)
def test_without_costs_nothing_is_cheap_enough(rule) -> None:
    assert fit_cost_threshold(torch.zeros(0), rule=rule) == -INF
    assert fit_cost_mixture(torch.zeros(0), rule=rule) is None


@pytest.mark.parametrize("rule", RULES)
def test_without_a_difference_there_is_no_mixture(rule) -> None:
    assert fit_cost_mixture(torch.tensor([1.5]), rule=rule) is None
    assert fit_cost_mixture(torch.full((6,), 0.75), rule=rule) is None
    assert fit_cost_threshold(torch.full((6,), 0.75), rule=rule) == 0.75


@pytest.mark.parametrize(
    "name",
    ["one", "two", "three", "bimodal8", "bimodal40", "bimodal150", "unimodal", "far_outlier", "all_equal", "empty"],
)
def test_thresholds_as_recorded_from_the_released_code(name: str) -> None:
    recorded = load_recorded("gmm_threshold.npz")[name]
    assert recorded["stable"] == 1
    costs = recorded["costs"]
    threshold = fit_cost_threshold(costs, rule="densest")
    if name == "empty":
        # Here we differ on purpose: its 0 would select cheap boxes if there were any.
        assert (recorded["threshold"].item(), threshold) == (0.0, -INF)
    else:
        assert threshold == pytest.approx(recorded["threshold"].item(), rel=1e-6)
    [mined] = mine_pseudo_labels([costs], [torch.zeros_like(costs, dtype=torch.bool)], threshold)
    assert mined.tolist() == recorded["accepted"].tolist()


def test_the_cheap_component_is_the_one_of_the_smaller_mean() -> None:
    # scikit-learn numbers the broad component 0: mean 0.7655, variance 2.842, weight 0.410.
    for rule in RULES:
        mixture = fit_cost_mixture(torch.tensor(CROSSED), rule=rule)  # type: ignore[arg-type]
        assert mixture is not None
        assert mixture.means == pytest.approx((0.6853, 0.7655), abs=1e-3)
        assert mixture.variances == pytest.approx((0.300, 2.842), abs=1e-2)
        assert mixture.weights == pytest.approx((0.590, 0.410), abs=1e-2)
    assert fit_cost_threshold(torch.tensor(CROSSED), rule="mean") == pytest.approx(0.6853, abs=1e-3)


def test_of_equally_dense_samples_the_cheapest_counts_in_any_order() -> None:
    # -1 and 1 make up the cheap component, and are equally far from its mean.
    for costs in ([1.0, 9.0, -1.0], [-1.0, 9.0, 1.0], [9.0, 1.0, -1.0]):
        assert fit_cost_threshold(torch.tensor(costs), rule="densest") == -1.0


def test_the_densest_sample_is_sought_in_the_component_that_started_at_the_least_cost() -> None:
    # The broad component holds -1.9, 1.7, 1.7 and 2.9, of mixture densities 0.028, 0.161, 0.161 and 0.044.
    assert fit_cost_threshold(torch.tensor(CROSSED), rule="densest") == pytest.approx(1.7)


def test_the_other_component_stands_in_for_an_empty_one() -> None:
    samples = np.array([[1.0], [2.0], [3.0]])
    mixture = SimpleNamespace(
        predict=lambda x: np.ones(len(x), dtype=int), score_samples=lambda x: -((x[:, 0] - 2) ** 2)
    )
    assert label_mining._densest_sample(mixture, samples) == 2.0


@pytest.mark.parametrize("costs", [[-2.0, 1.0], [2.0, 5.0], [0.1, 7.3, 7.4], [-0.3, -0.3, 9.0]])
def test_a_mean_of_equal_costs_selects_them(costs: list[float]) -> None:
    # In float64 the fitted mean of the single sample 2 is 2 - 4e-15.
    threshold = fit_cost_threshold(torch.tensor(costs), rule="mean")
    selected = torch.tensor(costs).double() <= threshold
    assert selected.tolist() == [cost == min(costs) for cost in costs]


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_lie_among_the_costs_and_forget_their_order(seed: int) -> None:
    costs = two_clusters(seed)
    mean, densest = (fit_cost_threshold(costs, rule=rule) for rule in ("mean", "densest"))
    assert -2.5 < mean < -1.5
    assert densest in costs.tolist()
    assert -2.8 < densest < -1.2
    assert fit_cost_threshold(costs.sort().values, rule="mean") == pytest.approx(mean, abs=1e-6)
    assert fit_cost_threshold(costs.sort().values, rule="densest") == densest


@pytest.mark.parametrize("rule", RULES)
def test_a_threshold_moves_with_the_costs(rule) -> None:
    costs = two_clusters(7)
    moved = fit_cost_threshold(costs + 50, rule=rule)
    assert moved == pytest.approx(fit_cost_threshold(costs, rule=rule) + 50, abs=1e-3)


def test_high_equal_costs_leave_a_variance() -> None:
    # In float32, 21.7^2 - 21.7^2 comes out below -1e-5, and scikit-learn refuses the negative variance.
    mixture = fit_cost_mixture(torch.tensor([21.7] * 5 + [33.3]), rule="mean")
    assert mixture is not None
    assert mixture.means == pytest.approx((21.7, 33.3))
    assert mixture.variances == pytest.approx((1e-5, 1e-5), rel=1e-3)


def test_the_precision_of_costs_does_not_matter() -> None:
    costs = torch.tensor([-2.0, -1.5, 1.0, 4.0])  # all are exact in bfloat16
    assert fit_cost_threshold(costs.bfloat16(), rule="mean") == fit_cost_threshold(costs, rule="mean")


def test_a_fit_that_ran_out_of_iterations_is_used_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GaussianMixture] = []

    def one_iteration(**options) -> GaussianMixture:
        made.append(GaussianMixture(**(options | {"max_iter": 1})))
        return made[-1]

    monkeypatch.setattr(label_mining, "GaussianMixture", one_iteration)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold = fit_cost_threshold(two_clusters(0), rule="mean")
    assert not made[0].converged_
    assert -2.5 < threshold < 0


@pytest.mark.parametrize("fit", [fit_cost_mixture, fit_cost_threshold])
def test_bad_input_of_a_fit_is_named(fit) -> None:
    with pytest.raises(ValueError, match="2 of 3 costs are NaN or infinite"):
        fit(torch.tensor([float("nan"), 1.0, INF]), rule="mean")
    with pytest.raises(ValueError, match="rule must be one of .*'mean'.*, got 'median'"):
        fit(torch.tensor([1.0, 2.0]), rule="median")


# ---- matched_costs


def test_matched_costs_by_hand() -> None:
    # Image 0, query 0: p = .9 on the very box: 2 (-.25 * .1^2 * ln .9 + .75 * .9^2 * ln .1) = -2.797114, L1 0, GIoU
    # -2 * 1. Image 1, query 1: p = .3, (.5, .5, .2, .4) on (.55, .5, .3, .4): .246822 + 5 * .15 - 2 * 2/3 = -.336511.
    # The other queries are unsure and far away.
    logits = torch.tensor([[[0.9], [0.01]], [[0.01], [0.3]]]).logit()
    box, far = [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]
    boxes = torch.tensor([[box, far], [far, box]])
    targets = [target([0], [box]), target([0], [[0.55, 0.5, 0.3, 0.4]])]
    first, second = matched_costs(logits, boxes, targets, matcher())
    assert first.tolist() == pytest.approx([-4.797114], abs=1e-5)
    assert second.tolist() == pytest.approx([-0.336511], abs=1e-5)


def test_matched_costs_are_those_of_the_matched_pairs() -> None:
    logits, boxes, targets = random_case(4, 2, 0)
    costs = matched_costs(logits, boxes, targets, matcher())
    padded = pad_targets(targets, logits.device)  # type: ignore[arg-type]
    labels = padded.class_labels[None]
    table = matcher().cost(logits[None], boxes[None], class_labels=labels, target_boxes=padded.boxes)[0]
    matches = matcher()(logits[None], boxes[None], class_labels=labels, targets=padded)
    assert [len(image) for image in costs] == [4, 2, 0]
    for i, q, g in zip(matches.image_index, matches.query_index, matches.target_index, strict=True):
        torch.testing.assert_close(costs[i][g], table[i, q, g])


def test_two_images_cost_what_each_costs_alone() -> None:
    logits, boxes, targets = random_case(4, 2)
    both = matched_costs(logits, boxes, targets, matcher())
    for i in range(2):
        [alone] = matched_costs(logits[i : i + 1], boxes[i : i + 1], targets[i : i + 1], matcher())
        torch.testing.assert_close(both[i], alone)


def test_costs_do_not_depend_on_the_order_of_queries_and_follow_that_of_boxes() -> None:
    logits, boxes, [labels] = random_case(4)
    [costs] = matched_costs(logits, boxes, [labels], matcher())
    order = torch.tensor([3, 0, 2, 1])
    turned: Target = {"class_labels": labels["class_labels"][order], "boxes": labels["boxes"][order]}
    [again] = matched_costs(logits.flip(1), boxes.flip(1), [turned], matcher())
    torch.testing.assert_close(again, costs[order])


def test_a_box_without_a_query_costs_infinitely_much() -> None:
    # One query on two boxes, p = .9: it takes the box it covers, see test_matched_costs_by_hand.
    box = [0.5, 0.5, 0.2, 0.4]
    targets = [target([0, 0], [[0.2, 0.2, 0.1, 0.1], box])]
    [costs] = matched_costs(torch.tensor([[[0.9]]]).logit(), torch.tensor([[box]]), targets, matcher())
    assert costs.tolist() == [INF, pytest.approx(-4.797114, abs=1e-5)]


def test_no_box_and_no_image_have_no_cost() -> None:
    logits, boxes, targets = random_case(0, 0)
    assert [image.shape for image in matched_costs(logits, boxes, targets, matcher())] == [(0,), (0,)]
    assert matched_costs(logits[:0], boxes[:0], [], matcher()) == []


def test_costs_are_float32_and_carry_no_gradient() -> None:
    logits, boxes, targets = random_case(3)
    [exact] = matched_costs(logits.requires_grad_(), boxes.requires_grad_(), targets, matcher())
    assert (exact.dtype, exact.requires_grad) == (torch.float32, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [autocast] = matched_costs(logits, boxes, targets, matcher())
        [rounded] = matched_costs(logits.bfloat16(), boxes, targets, matcher())
    torch.testing.assert_close(autocast, exact, rtol=0, atol=0)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize(("which", "bad"), [("logits", float("nan")), ("boxes", float("nan")), ("boxes", INF)])
def test_boxes_whose_prediction_diverged_are_not_mined(bad: float, which: str) -> None:
    """Not an error: other processes wait for these costs. The loss is not finite either, and tells."""
    logits, boxes, targets = random_case(2, 0)
    {"logits": logits, "boxes": boxes}[which][0] = bad
    costs = matched_costs(logits, boxes, targets, matcher())
    assert [image.tolist() for image in costs] == [[INF, INF], []]
    assert {image.dtype for image in costs} == {torch.float32}
    assert gather_costs(costs).shape == (0,)


# ---- gather_costs


def test_a_single_process_gathers_its_own_finite_costs() -> None:
    gathered = gather_costs([torch.tensor([0.5, INF, -2.0]), torch.zeros(0), torch.tensor([3.0])])
    assert (gathered.tolist(), gathered.dtype) == ([0.5, -2.0, 3.0], torch.float32)
    for nothing in ([], [torch.zeros(0)], [torch.tensor([INF])]):
        assert gather_costs(nothing).shape == (0,)


def test_nan_is_not_swept_under_the_rug() -> None:
    with pytest.raises(ValueError, match="1 of 2 costs are NaN"):
        fit_cost_threshold(gather_costs([torch.tensor([float("nan"), INF, 1.0])]), rule="mean")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_gather_the_same_costs_even_if_one_has_none(tmp_path: Path) -> None:
    program = Path(__file__)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, program.parents[1:3]))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process{rank}.json").read_text()) for rank in (0, 1))
    assert first == [[-1.5, 0.25], [3.5], [2.0, -1.0, -3.0, -2.5]]
    assert second == first


def gather_in_one_of_two_processes(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = torch.distributed.get_rank()
    gathered = [gather_costs([torch.tensor(image) for image in images[rank]]) for images in ROUNDS]
    (folder / f"process{rank}.json").write_text(json.dumps([costs.tolist() for costs in gathered]))
    torch.distributed.destroy_process_group()


# ---- mine_pseudo_labels and the filters it is compared with


def test_mining_by_hand() -> None:
    costs = [torch.tensor([-1.0, 0.5, 0.51, 2.0]), torch.zeros(0), torch.tensor([INF, INF])]
    confident = [
        torch.tensor([False, False, False, True]),
        torch.zeros(0, dtype=torch.bool),
        torch.tensor([True, False]),
    ]
    mined = mine_pseudo_labels(costs, confident, 0.5)
    assert as_lists(mined) == [[True, True, False, True], [], [True, False]]
    assert as_lists(mine_pseudo_labels(costs[:1], confident[:1], 0.5)) == as_lists(mined[:1])
    assert mine_pseudo_labels([], [], 0.5) == []


@pytest.mark.parametrize(("cost", "threshold"), [(1.0, -INF), (INF, INF), (-INF, -INF), (INF, -INF), (INF, 1e30)])
def test_infinity_never_selects(cost: float, threshold: float) -> None:
    assert as_lists(mine_pseudo_labels([torch.tensor([cost])], [torch.tensor([False])], threshold)) == [[False]]


def test_a_higher_threshold_only_adds_and_confident_ones_always_stay() -> None:
    costs, confident = [two_clusters(1)], [torch.arange(50) % 9 == 0]
    masks = [mine_pseudo_labels(costs, confident, t)[0] for t in (-INF, -2.0, 0.0, 2.0, 99.0)]
    assert masks[0].equal(confident[0])
    assert all(
        (low & ~high).sum() == 0 and high.sum() > low.sum() for low, high in zip(masks, masks[1:], strict=False)
    )
    assert masks[-1].all()


def test_mining_needs_both_lists_to_describe_the_same_boxes() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\(1,\)\] and is_confident \[\(2,\)\]"):
        mine_pseudo_labels([torch.zeros(1)], [torch.ones(2, dtype=torch.bool)], 0.0)
    with pytest.raises(ValueError, match="both must describe the same candidates"):
        mine_pseudo_labels([torch.zeros(1)], [], 0.0)


def test_the_best_scores_are_kept_and_of_equal_ones_the_first() -> None:
    candidates = [scored(0.2, 0.9, 0.5, 0.5), scored(), scored(0.1)]
    assert as_lists(keep_top_k(candidates, 2)) == [[False, True, True, False], [], [True]]
    assert as_lists(keep_top_k(candidates, 0)) == [[False] * 4, [], [False]]
    assert as_lists(keep_top_k(candidates, 9)) == as_lists(keep_all(candidates)) == [[True] * 4, [], [True]]
    assert as_lists(keep_top_k(candidates[:1], 2)) == as_lists(keep_top_k(candidates, 2)[:1])
    with pytest.raises(ValueError, match="k must be at least 0, got -1"):
        keep_top_k(candidates, -1)


if __name__ == "__main__":
    gather_in_one_of_two_processes(Path(sys.argv[1]))
