"""One-to-many assignment and its losses against hand-worked, recorded and naively computed numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from recorded import load_recorded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from semidetr_hf.model import criterion as criterion_module
from semidetr_hf.model.box_ops import iou, xyxy_to_cxcywh
from semidetr_hf.model.criterion import DetectorPredictions, SetCriterion
from semidetr_hf.model.denoising import build_denoising_queries, draw_noise
from semidetr_hf.model.matching import HungarianMatcher, PaddedTargets, pad_targets
from semidetr_hf.ssod.one_to_many import Assignment, OneToManyAssigner, OneToManyCriterion, task_aligned_focal_loss

CPU = torch.device("cpu")
# Six queries and two boxes in an image of 100 x 100 pixels.
QUERIES = torch.tensor(
    [[10, 10, 50, 50], [12, 10, 52, 50], [10, 14, 50, 54], [30, 10, 70, 50], [40, 10, 80, 50], [60, 60, 90, 90]]
)
SCORES = torch.tensor([[0.1, 0.6], [0.2, 0.9], [0.1, 0.5], [0.7, 0.2], [0.8, 0.1], [0.5, 0.5]])
OBJECTS = torch.tensor([[10, 10, 50, 50], [32, 10, 72, 50]])
LABELS = torch.tensor([1, 0])
# Shifted boxes of 40 x 40: IoU = (40 - d) / (40 + d), d = 0, 2, 4 for box 0 and 2, 8 for box 1. Metrics: .6 * 1,
# .9 * .904762^6 = .493683, .5 * .818182^6 = .149992; .7 * .904762^6 = .383976, .8 * .666667^6 = .070233.
# Soft targets: metric / .6 * 1 for box 0, metric / .383976 * .904762 for box 1.
ASSIGNED = torch.tensor([0, 0, 0, 1, 1, -1])
QUALITY = torch.tensor([1.0, 0.822805, 0.249987, 0.904762, 0.165490, 0.0])
OVERLAP = torch.tensor([1.0, 0.904762, 0.818182, 0.904762, 0.666667, 0.0])


def normalised(boxes_xyxy: Tensor, width: float = 100.0, height: float = 100.0) -> Tensor:
    return xyxy_to_cxcywh(boxes_xyxy.float() / torch.tensor([width, height, width, height]))


def target(labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    return {"class_labels": labels, "boxes": boxes}


def by_hand() -> list[dict[str, Tensor]]:
    return [target(LABELS, normalised(OBJECTS))]


def assign(scores: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], **options: Any) -> Assignment:
    """Assign (P, B, Q, C) scores with the true labels in every set."""
    padded = pad_targets(targets, CPU)
    labels = padded.class_labels.expand(len(scores), -1, -1)
    return OneToManyAssigner(**options)(scores, boxes, class_labels=labels, targets=padded)


def random_case(
    *counts: int, sets: int = 2, queries: int = 20, labels: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Logits, boxes and targets; half of the queries lie near a box of their image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sets, len(counts), queries, labels, generator=generator)
    boxes = torch.rand(sets, len(counts), queries, 4, generator=generator) * 0.4 + 0.3
    targets = []
    for i, count in enumerate(counts):
        wanted = torch.rand(count, 4, generator=generator) * 0.4 + 0.3
        targets.append(target(torch.randint(0, labels, (count,), generator=generator), wanted))
        if count:
            near = wanted[torch.arange(queries // 2) % count]
            noise = torch.randn(sets, queries // 2, 4, generator=generator) * 0.03
            boxes[:, i, : queries // 2] = (near + noise).clamp(0.05, 0.95)
    return logits, boxes, targets


def predictions_of(logits: Tensor, boxes: Tensor) -> DetectorPredictions:
    """Use the last set as encoder proposals, the others as decoder layers."""
    return DetectorPredictions(logits[:-1], boxes[:-1], logits[-1], boxes[-1], logits[:-1, :, :0], boxes[:-1, :, :0])


def with_denoising(predictions: DetectorPredictions, targets: list[dict[str, Tensor]]) -> DetectorPredictions:
    most = max(len(one["class_labels"]) for one in targets)
    noise = draw_noise(len(targets), 2 if most else 0, most, num_labels=3, label_noise=0.5, device=CPU)
    denoising = build_denoising_queries(targets, nn.Embedding(3, 8), noise=noise, box_noise=0.4, eps=1e-5)
    layers, count = len(predictions.logits), len(denoising.queries)
    boxes = denoising.queries.reference_logits.sigmoid().expand(layers, -1, -1, -1)
    logits = torch.randn(layers, len(targets), count, 3)
    return replace(predictions, denoising_logits=logits, denoising_boxes=boxes, denoising=denoising)


def criterion(top_k: int = 13, **one_to_one: Any) -> OneToManyCriterion:
    matcher = HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    return OneToManyCriterion(OneToManyAssigner(top_k=top_k), SetCriterion(matcher, **one_to_one))


def assert_same(found: Assignment, expected: Assignment) -> None:
    assert found.target_index.equal(expected.target_index)
    assert_close(found.quality, expected.quality, rtol=1e-4, atol=1e-7)
    assert_close(found.iou, expected.iou, rtol=1e-5, atol=1e-7)


# ---- assignment


def test_assignment_by_hand() -> None:
    found = assign(SCORES[None, None], normalised(QUERIES)[None, None], by_hand(), top_k=3)
    assert found.target_index.tolist() == [[ASSIGNED.tolist()]]
    assert_close(found.quality[0, 0], QUALITY, rtol=1e-4, atol=1e-5)
    assert_close(found.iou[0, 0], OVERLAP, rtol=1e-4, atol=1e-5)
    assert found.quality.sum().item() == pytest.approx(3.143044, abs=1e-4)
    best = assign(SCORES[None, None], normalised(QUERIES)[None, None], by_hand(), top_k=1)
    assert best.target_index.tolist() == [[[0, -1, -1, 1, -1, -1]]]


@pytest.mark.parametrize("name", ["plain", "conflict", "empty", "far", "exact13"])
def test_assignment_as_recorded_from_the_released_code(name: str) -> None:
    recorded = load_recorded("o2m_assigner.npz")[name]
    height, width = recorded["image_hw"].tolist()
    targets = [target(recorded["gt_labels"], normalised(recorded["gt_xyxy_pixels"], width, height))]
    found = assign(
        recorded["cls_logits"].sigmoid()[None, None],
        recorded["pred_cxcywh"][None, None],
        targets,
        top_k=int(recorded["candidate_topk"]),
        alpha=float(recorded["alpha"]),
        beta=float(recorded["beta"]),
    )
    assert (found.target_index[0, 0] + 1).tolist() == recorded["gt_inds"].tolist()
    assert_close(found.quality[0, 0], recorded["norm_metrics"], rtol=1e-3, atol=1e-7)
    assert_close(found.iou[0, 0], recorded["max_overlaps"].clamp(min=0), rtol=1e-3, atol=1e-6)


def naive(scores: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor, *, top_k: int) -> tuple[list[int], Tensor]:
    """Assign the (Q, C) scores and (Q, 4) xyxy boxes of one image, query by query."""
    overlap = iou(boxes[:, None], wanted[None])
    metric = scores[:, labels] * overlap**6
    claims: dict[int, list[int]] = {}
    for j in range(len(labels)):
        for q in metric[:, j].argsort(descending=True)[:top_k].tolist():
            if metric[q, j] > 0:
                claims.setdefault(q, []).append(j)
    assigned = [max(claims[q], key=overlap[q].tolist().__getitem__) if q in claims else -1 for q in range(len(boxes))]
    quality = torch.zeros(len(boxes))
    for j in set(assigned) - {-1}:
        own = [q for q, box in enumerate(assigned) if box == j]
        quality[own] = metric[own, j] / (metric[own, j].max() + 1e-7) * overlap[own, j].max()
    return assigned, quality


@pytest.mark.parametrize("seed", range(5))
def test_all_sets_and_images_at_once_are_assigned_as_one_by_one(seed: int) -> None:
    logits, boxes, targets = random_case(0, 4, 9, sets=3, queries=30, seed=seed)
    found = assign(logits.sigmoid(), boxes, targets, top_k=5)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    for p in range(3):
        for b, one in enumerate(targets):
            x, y, w, h = one["boxes"].unbind(-1)
            wanted = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
            assigned, quality = naive(logits[p, b].sigmoid(), corners[p, b], one["class_labels"], wanted, top_k=5)
            assert found.target_index[p, b].tolist() == assigned
            assert_close(found.quality[p, b], quality, rtol=1e-3, atol=1e-7)


def test_a_query_wanted_twice_goes_to_the_larger_overlap_not_the_larger_metric() -> None:
    # Box 0: IoU 9/11 with score .01, metric .003; box 1: IoU 3/5 with score .9, metric .042.
    boxes = normalised(torch.tensor([[10, 10, 50, 50]]))
    targets = [target(torch.tensor([0, 1]), normalised(torch.tensor([[14, 10, 54, 50], [20, 10, 60, 50]])))]
    found = assign(torch.tensor([[[[0.01, 0.9]]]]), boxes[None, None], targets)
    assert found.target_index.item() == 0
    assert found.iou.item() == pytest.approx(9 / 11, abs=1e-5)
    # The only query of its box: the metric cancels, the overlap stays.
    assert found.quality.item() == pytest.approx(9 / 11, abs=1e-4)


def test_padding_of_another_image_changes_nothing_in_an_image() -> None:
    logits, boxes, targets = random_case(2, 300, sets=2, queries=60)
    both = assign(logits.sigmoid(), boxes, targets)
    for i in range(2):
        alone = assign(logits[:, i : i + 1].sigmoid(), boxes[:, i : i + 1], targets[i : i + 1])
        assert_same(Assignment(**{k: v[:, i : i + 1] for k, v in vars(both).items()}), alone)
    assert both.target_index[:, 0].max() == 1
    assert both.target_index[:, 1].max() > 50


def test_padding_is_never_assigned_whatever_it_holds() -> None:
    # All images hold the same two boxes, but only the first `count` of each are real.
    padded = PaddedTargets(LABELS.expand(3, 2), normalised(OBJECTS).expand(3, 2, 4), counts=[2, 1, 0])
    scores, boxes = SCORES.expand(1, 3, 6, 2), normalised(QUERIES).expand(1, 3, 6, 4)
    found = OneToManyAssigner(top_k=3)(scores, boxes, class_labels=padded.class_labels[None], targets=padded)
    assert found.target_index[0].tolist() == [[0, 0, 0, 1, 1, -1], [0, 0, 0, -1, -1, -1], [-1] * 6]


@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0)])
def test_an_image_without_boxes_is_all_background(counts: tuple[int, ...]) -> None:
    logits, boxes, targets = random_case(*counts)
    found = assign(logits.sigmoid(), boxes, targets)
    assert found.target_index.shape == found.quality.shape == found.iou.shape == (2, len(counts), 20)
    assert (found.target_index.dtype, found.quality.dtype) == (torch.int64, torch.float32)
    assert (found.target_index[:, -1] == -1).all()
    assert (found.quality[:, -1] == 0).all() and (found.iou[:, -1] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_order_of_queries_and_of_boxes_does_not_matter(seed: int) -> None:
    logits, boxes, targets = random_case(6, 3, seed=seed)
    found = assign(logits.sigmoid(), boxes, targets, top_k=4)
    order = torch.randperm(20)
    moved = assign(logits[:, :, order].sigmoid(), boxes[:, :, order], targets, top_k=4)
    assert_same(moved, Assignment(**{k: v[:, :, order] for k, v in vars(found).items()}))
    reverse = [target(one["class_labels"].flip(0), one["boxes"].flip(0)) for one in targets]
    turned = assign(logits.sigmoid(), boxes, reverse, top_k=4)
    last = torch.tensor([5, 2])[None, :, None]
    expected = torch.where(found.target_index >= 0, last - found.target_index, -1)
    assert_same(turned, Assignment(expected, found.quality, found.iou))


def test_fewer_queries_than_candidates_are_all_taken() -> None:
    boxes = normalised(QUERIES[:3])[None, None]
    found = assign(SCORES[None, None, :3], boxes, [target(LABELS[:1], normalised(OBJECTS[:1]))], top_k=13)
    assert found.target_index.tolist() == [[[0, 0, 0]]]
    assert_close(found.quality[0, 0], QUALITY[:3], rtol=1e-4, atol=1e-5)


def test_of_identical_predictions_exactly_so_many_as_wanted_are_taken() -> None:
    boxes = normalised(QUERIES[1:2]).expand(1, 1, 30, 4)
    found = assign(torch.full((1, 1, 30, 1), 0.5), boxes, [target(LABELS[1:], normalised(OBJECTS[:1]))])
    chosen = found.target_index >= 0
    assert chosen.sum() == 13
    assert_close(found.quality[chosen], torch.full((13,), 0.904762), rtol=1e-4, atol=1e-5)


def test_boxes_of_half_a_pixel_have_true_overlaps() -> None:
    # Area 2.5e-7 of the image, below the bound of areas that suits pixels.
    boxes = torch.tensor([[0.1, 0.1, 5e-4, 5e-4]])
    overlap = assign(torch.ones(1, 1, 1, 1), boxes[None, None], [target(LABELS[1:], boxes)]).iou
    assert overlap.item() == pytest.approx(1.0, abs=1e-3)


def test_queries_that_are_not_numbers_answer_no_box() -> None:
    boxes = normalised(QUERIES)[None, None]
    before = assign(SCORES[None, None], boxes, by_hand())
    query = int((before.target_index[0, 0] >= 0).nonzero()[0])
    boxes[0, 0, query, 1] = torch.nan
    after = assign(SCORES[None, None], boxes, by_hand())
    assert after.target_index[0, 0, query] == -1
    assert after.quality.isfinite().all() and after.iou.isfinite().all()


@pytest.mark.parametrize("options", [{"top_k": 0}, {"alpha": -0.5}, {"beta": 0.0}])
def test_arguments_out_of_range_are_named(options: dict[str, float]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        OneToManyAssigner(**options)  # type: ignore[arg-type]


# ---- classification loss


def test_task_aligned_focal_loss_by_hand() -> None:
    # p = .5: target 1: .5^2 * ln 2 = .173287; target 0 the same; target .5: 0. p = .9, target .4:
    # .5^2 * -(.4 ln .9 + .6 ln .1) = .25 * (.042144 + 1.381551) = .355924.
    logits = torch.tensor([0.0, 0.0, 0.0, 2.197225])
    loss = task_aligned_focal_loss(logits, torch.tensor([1.0, 0.0, 0.5, 0.4]), gamma=2.0)
    assert_close(loss, torch.tensor([0.173287, 0.173287, 0.0, 0.355924]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", range(3))
def test_task_aligned_focal_loss_as_recorded_from_the_released_code(case: int) -> None:
    recorded = load_recorded("task_aligned_focal_loss.npz")["cases"][case]
    logits = recorded["logits"].requires_grad_()
    is_class = F.one_hot(recorded["labels"], logits.shape[1] + 1)[:, :-1]  # the last label is background
    quality = is_class * recorded["metric"][:, None]
    loss = task_aligned_focal_loss(logits, quality, gamma=float(recorded["gamma"])) * float(recorded["loss_weight"])
    assert_close(loss, recorded["elementwise"], rtol=1e-4, atol=1e-5)
    factor = float(recorded["avg_factor"])
    value = loss.mean() if factor < 0 else loss.sum() / factor
    assert_close(value, recorded["value"], rtol=1e-4, atol=1e-5)
    value.backward()
    assert_close(logits.grad, recorded["grad_logits"], rtol=1e-4, atol=1e-5)


def test_task_aligned_focal_loss_is_float32_and_finite_for_wide_logits() -> None:
    logits = torch.tensor([-300.0, 300.0]).bfloat16().requires_grad_()
    loss = task_aligned_focal_loss(logits, torch.tensor([1.0, 0.0]), gamma=2.0)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor([300.0, 300.0]), rtol=1e-2, atol=0)
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


# ---- criterion


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["logits", "boxes"])
def test_predictions_that_are_not_finite_make_the_loss_nan(which: str, bad: float) -> None:
    logits, boxes = SCORES.logit().repeat(2, 1, 1, 1), normalised(QUERIES).repeat(2, 1, 1, 1)
    {"logits": logits, "boxes": boxes}[which][0, 0, 5, 0] = bad
    assert criterion(top_k=3)(predictions_of(logits, boxes), by_hand(), torch.tensor(2.0))["loss_ce"].isnan()


def test_losses_by_hand() -> None:
    logits, boxes = SCORES.logit().expand(2, 1, 6, 2), normalised(QUERIES).expand(2, 1, 6, 4)
    losses = criterion(top_k=3)(predictions_of(logits, boxes), by_hand(), 2.0)
    # |y - p|^2 * BCE summed over the twelve entries is 1.069578, twice that (the weight) by 3.143044 is .6806.
    assert 2 * losses["loss_ce"].item() == pytest.approx(0.6806, abs=1e-4)
    # Shifts .02, .04, .02, .08 times soft targets: .016456 + .009999 + .018095 + .013239 = .057790, by 3.143044.
    assert losses["loss_bbox"].item() == pytest.approx(0.018387, abs=2e-6)
    # The hull of boxes shifted along an axis is their union: .822805 * .095238 + .249987 * .181818 +
    # .904762 * .095238 + .165490 * .333333 = .265145, by 3.143044.
    assert losses["loss_giou"].item() == pytest.approx(0.084360, abs=1e-5)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert_close(losses[f"{name}_enc"], losses[name])


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("counts", [(0, 0), (3, 1), (9, 0)])
def test_names_and_denoising_losses_are_those_of_the_one_to_one_criterion(
    counts: tuple[int, ...], auxiliary: bool
) -> None:
    logits, boxes, targets = random_case(*counts, sets=3)
    predictions = predictions_of(logits, boxes)
    both = criterion(auxiliary=auxiliary)
    assert list(both(predictions, targets, 3.0)) == list(both.one_to_one(predictions, targets, 3.0))
    predictions = with_denoising(predictions, targets)
    losses, expected = both(predictions, targets, 3.0), both.one_to_one(predictions, targets, 3.0)
    assert list(losses) == list(expected)
    denoising = [name for name in losses if "_dn" in name]
    assert len(denoising) == (6 if auxiliary else 3)
    for name in denoising:
        assert_close(losses[name], expected[name])


def test_class_agnostic_encoder_sees_label_zero() -> None:
    logits, boxes, targets = random_case(4, 3)
    zeros = [target(torch.zeros_like(one["class_labels"]), one["boxes"]) for one in targets]
    predictions = predictions_of(logits, boxes)
    agnostic = criterion(class_agnostic_encoder=True)(predictions, targets, 4.0)
    plain, relabeled = criterion()(predictions, targets, 4.0), criterion()(predictions, zeros, 4.0)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert_close(agnostic[f"{name}_enc"], relabeled[f"{name}_enc"])
        assert_close(agnostic[name], plain[name])
    assert not torch.isclose(agnostic["loss_ce_enc"], plain["loss_ce_enc"])


def test_batch_of_two_is_the_sum_of_its_images_up_to_the_normaliser() -> None:
    logits, boxes, targets = random_case(4, 2)
    total = assign(logits.sigmoid(), boxes, targets).quality.sum(-1)[0]  # (B,) of the only decoder layer
    assert (total > 1).all()
    both = criterion()(predictions_of(logits, boxes), targets, 1.0)
    images = zip(logits.split(1, dim=1), boxes.split(1, dim=1), targets, strict=True)
    alone = [criterion()(predictions_of(one, box), [wanted], 1.0) for one, box, wanted in images]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert_close(both[name] * total.sum(), alone[0][name] * total[0] + alone[1][name] * total[1])


def test_no_boxes_leave_only_the_background_and_keep_the_graph() -> None:
    logits, boxes, targets = random_case(0, 0)
    logits.requires_grad_()
    boxes.requires_grad_()
    losses = criterion()(predictions_of(logits, boxes), targets, 1.0)
    background = task_aligned_focal_loss(logits[0], torch.zeros(2, 20, 3), gamma=2.0).sum()
    assert_close(losses["loss_ce"], background)  # divided by 1, the least normaliser
    for name, value in losses.items():
        assert value.requires_grad
        assert "loss_ce" in name or value.item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert boxes.grad is not None and (boxes.grad == 0).all()
    assert logits.grad is not None and (logits.grad != 0).all()


@pytest.mark.parametrize("counts", [(3, 1), (0, 0)])
def test_the_normaliser_is_averaged_over_processes_once_for_all_sets(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, boxes, targets = random_case(*counts, sets=3)
    one_process = criterion()(predictions_of(logits, boxes), targets, 1.0)
    own: list[Tensor] = []

    def average(values: Tensor) -> Tensor:
        own.append(values)
        return values + 10.0

    monkeypatch.setattr(criterion_module, "average_over_processes", average)
    several = criterion()(predictions_of(logits, boxes), targets, 1.0)
    [sums] = own
    assert sums.shape == (3,)
    for i, end in enumerate(["_0", "", "_enc"]):
        ratio = sums[i].clamp(min=1) / (sums[i] + 10)
        assert_close(several[f"loss_ce{end}"], one_process[f"loss_ce{end}"] * ratio)
        assert_close(several[f"loss_bbox{end}"], one_process[f"loss_bbox{end}"] * ratio)


@pytest.mark.parametrize("counts", [(3, 1), (0, 0)])
def test_gradients_in_half_precision_are_finite_and_losses_float32(counts: tuple[int, ...]) -> None:
    logits, boxes, targets = random_case(*counts, labels=1)
    logits, boxes = logits.bfloat16().requires_grad_(), boxes.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(predictions_of(logits, boxes), targets, 1.0)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for leaf in (logits, boxes):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert (logits.grad != 0).any()


def test_only_assigned_queries_move_their_boxes() -> None:
    logits, boxes, targets = random_case(2, sets=2)
    boxes.requires_grad_()
    losses = criterion(top_k=3)(predictions_of(logits, boxes), targets, 1.0)
    (losses["loss_bbox"] + losses["loss_bbox_enc"]).backward()
    assigned = assign(logits.sigmoid(), boxes.detach(), targets, top_k=3)
    assert boxes.grad is not None
    assert (boxes.grad != 0).any(-1).equal(assigned.target_index >= 0)
