"""The supervised loss against hand-worked and recorded numbers."""

import math

import pytest
import torch
from recorded import load_recorded
from torch import nn
from torch.testing import assert_close

from semidetr_hf.model import criterion as criterion_module
from semidetr_hf.model.criterion import (
    DetectorPredictions,
    SetCriterion,
    average_count,
    average_num_boxes,
    average_over_processes,
    loss_weight,
    sigmoid_focal_loss,
)
from semidetr_hf.model.denoising import build_denoising_queries, draw_noise
from semidetr_hf.model.matching import HungarianMatcher

NAMES = ["loss_ce", "loss_bbox", "loss_giou"]


def criterion(**options):
    return SetCriterion(HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2), **options)


def random_predictions(layers=2, batch=2, queries=6, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, queries, labels, generator=generator)
    boxes = torch.rand(layers, batch, queries, 4, generator=generator) * 0.4 + 0.3
    empty = logits[:, :, :0]
    return DetectorPredictions(logits, boxes, logits[0] * 0.5, boxes[0] + 0.01, empty, boxes[:, :, :0])


def random_targets(*counts, labels=3):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "class_labels": torch.randint(0, labels, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]


def with_denoising(predictions, targets):
    """Add denoising predictions that equal the noised boxes."""
    most = max(len(target["class_labels"]) for target in targets)
    noise = draw_noise(len(targets), 2 if most else 0, most, num_labels=3, label_noise=0.5, device=torch.device("cpu"))
    denoising = build_denoising_queries(targets, nn.Embedding(3, 8), noise=noise, box_noise=0.4, eps=1e-5)
    layers, count = len(predictions.logits), len(denoising.queries)
    boxes = denoising.queries.reference_logits.sigmoid().expand(layers, -1, -1, -1)
    logits = torch.randn(layers, len(targets), count, 3, generator=torch.Generator().manual_seed(2))
    parts = {**vars(predictions), "denoising_logits": logits, "denoising_boxes": boxes, "denoising": denoising}
    return DetectorPredictions(**parts)


def test_focal_loss_by_hand():
    # Right class with p = sigmoid(2) = .8808: .25 * .1192^2 * .1269 = .000451; the wrong ones, weight .75: p = .2689:
    # .0723 * .3133 * .75 = .016987; p = .5: .25 * .6931 * .75 = .129960; p = .0474: .002249 * .048587 * .75 = .000082.
    logits = torch.tensor([[2.0, -1.0], [0.0, -3.0]])
    loss = sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), alpha=0.25, gamma=2.0)
    assert_close(loss, torch.tensor([[0.000451, 0.016995], [0.129960, 0.000082]]), atol=1e-5, rtol=0)
    assert loss.sum().item() == pytest.approx(0.147491, abs=2e-6)


def test_focal_loss_is_float32_and_finite_for_wide_logits():
    loss = sigmoid_focal_loss(
        torch.tensor([-300.0, 300.0]).bfloat16(), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0
    )
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor([75.0, 225.0]), rtol=1e-2, atol=0)  # .25 * 300 and .75 * 300, up to bf16


def test_recorded_focal_loss():
    recorded = load_recorded("losses.npz")["focal_dino"]
    logits = recorded["logits"].requires_grad_()
    loss = sigmoid_focal_loss(logits, recorded["onehot"], alpha=0.25, gamma=2.0).sum() / float(recorded["num_boxes"])
    # Recorded as in official DINO: a mean over queries, times the number of queries.
    assert_close(loss, recorded["value"], rtol=1e-4, atol=1e-5)
    loss.backward()
    assert_close(logits.grad, recorded["grad"], rtol=1e-4, atol=1e-5)


def test_losses_by_hand():
    """One image, two queries, one box; the last layer hits it, the first layer misses by .1 in x."""
    hit, far = [0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]
    boxes = torch.tensor([[[[0.6, 0.5, 0.2, 0.2], far]], [[far, hit]]])
    logits = torch.zeros(2, 1, 2, 1)
    predictions = DetectorPredictions(logits, boxes, logits[0], boxes[1], logits[:, :, :0], boxes[:, :, :0])
    target = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([hit])}]
    losses = criterion()(predictions, target, 2.0)
    # p = .5 everywhere: .25 * .25 ln 2 for the matched query, .75 * .25 ln 2 for the other, divided by 2 boxes.
    assert losses["loss_ce"].item() == pytest.approx(0.25 * math.log(2) / 2, rel=1e-5)
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_bbox_0"].item() == pytest.approx(0.1 / 2, rel=1e-5)
    # Half of each box overlaps: IoU = .02 / .06 = 1/3 and the hull holds nothing else.
    assert losses["loss_giou_0"].item() == pytest.approx((1 - 1 / 3) / 2, rel=1e-4)
    assert losses["loss_bbox_enc"].item() == pytest.approx(0, abs=1e-6)


def test_no_boxes_leave_only_the_background():
    predictions = random_predictions()
    losses = criterion()(predictions, random_targets(0, 0), 1.0)
    background = sigmoid_focal_loss(predictions.logits[-1], torch.zeros(2, 6, 3), alpha=0.25, gamma=2.0).sum()
    assert_close(losses["loss_ce"], background)
    assert all(losses[name].item() == 0 for name in losses if "bbox" in name or "giou" in name)


def test_names_do_not_depend_on_the_number_of_boxes():
    expected = {f"{name}{end}" for name in NAMES for end in ("", "_0", "_enc", "_dn", "_dn_0")}
    for counts in ((0, 0), (3, 1), (9, 0)):
        targets = random_targets(*counts)
        assert set(criterion()(with_denoising(random_predictions(), targets), targets, 1.0)) == expected


def test_auxiliary_losses_can_be_switched_off():
    targets = random_targets(3, 1)
    predictions = with_denoising(random_predictions(), targets)
    full, short = criterion()(predictions, targets, 4.0), criterion(auxiliary=False)(predictions, targets, 4.0)
    assert set(short) == {f"{name}{end}" for name in NAMES for end in ("", "_enc", "_dn")}
    for name, value in short.items():
        assert_close(value, full[name])


def test_class_agnostic_encoder_sees_label_zero():
    targets = random_targets(3, 1)
    zeros = [{**target, "class_labels": torch.zeros_like(target["class_labels"])} for target in targets]
    predictions = random_predictions()
    agnostic = criterion(class_agnostic_encoder=True)(predictions, targets, 4.0)
    plain, relabeled = criterion()(predictions, targets, 4.0), criterion()(predictions, zeros, 4.0)
    for name in NAMES:
        assert_close(agnostic[f"{name}_enc"], relabeled[f"{name}_enc"])
        assert_close(agnostic[name], plain[name])
    assert not torch.isclose(agnostic["loss_ce_enc"], plain["loss_ce_enc"])


def test_batch_of_two_is_the_sum_of_its_images():
    targets, predictions = random_targets(3, 1), random_predictions()
    both = criterion()(predictions, targets, 1.0)
    alone = []
    for i in range(2):
        parts = {"encoder_logits": predictions.encoder_logits, "encoder_boxes": predictions.encoder_boxes}
        one = {name: part[i : i + 1] for name, part in parts.items()}
        layers = {
            name: getattr(predictions, name)[:, i : i + 1]
            for name in ("logits", "boxes", "denoising_logits", "denoising_boxes")
        }
        alone.append(criterion()(DetectorPredictions(**one, **layers), targets[i : i + 1], 1.0))
    for name, value in both.items():
        assert_close(value, alone[0][name] + alone[1][name])


def test_order_of_boxes_does_not_matter():
    targets, predictions = random_targets(4, 2), random_predictions()
    reverse = [{name: value.flip(0) for name, value in target.items()} for target in targets]
    losses, other = criterion()(predictions, targets, 1.0), criterion()(predictions, reverse, 1.0)
    for name, value in losses.items():
        assert_close(value, other[name])


def test_denoising_is_normalised_by_boxes_times_groups():
    """Positive copies that were not moved have no box loss; the class loss is the focal loss over all slots."""
    targets = random_targets(2, 1)
    predictions = with_denoising(random_predictions(), targets)
    denoising = predictions.denoising
    assert denoising is not None and denoising.num_groups == 2
    losses = criterion()(predictions, targets, 3.0)
    is_class = torch.zeros_like(predictions.denoising_logits[-1])
    for image, query, box in zip(denoising.image_index, denoising.query_index, denoising.target_index, strict=True):
        is_class[image, query, targets[image]["class_labels"][box]] = 1
    focal = sigmoid_focal_loss(predictions.denoising_logits[-1], is_class, alpha=0.25, gamma=2.0).sum()
    assert_close(losses["loss_ce_dn"], focal / (3 * 2))


def test_number_of_boxes_is_at_least_one():
    cpu = torch.device("cpu")
    assert average_num_boxes(random_targets(3, 2), cpu) == 5.0
    assert average_num_boxes(random_targets(0, 0), cpu) == 1.0
    assert average_num_boxes([], cpu) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["logits", "boxes", "encoder_logits", "encoder_boxes"])
def test_predictions_that_are_not_finite_make_the_loss_nan_even_if_no_box_is_matched_with_them(field, bad):
    predictions, targets = random_predictions(), random_targets(1, 0)
    losses = criterion()(predictions, targets, average_num_boxes(targets, torch.device("cpu")))
    assert losses["loss_ce"].isfinite()
    getattr(predictions, field)[..., 1, 5, 0] = bad  # a query of the image without boxes
    losses = criterion()(predictions, targets, average_num_boxes(targets, torch.device("cpu")))
    assert losses["loss_ce"].isnan()


def test_weights_by_name():
    weights = {"class_weight": 1.0, "bbox_weight": 5.0, "giou_weight": 2.0}
    names = {"loss_ce": 1.0, "loss_ce_enc": 1.0, "sup_loss_bbox_dn_3": 5.0, "pseudo_loss_giou_0": 2.0}
    assert {name: loss_weight(name, **weights) for name in names} == names
    with pytest.raises(ValueError, match="no weight for the loss 'loss_mask'"):
        loss_weight("loss_mask", **weights)


# ---- What the released code of Semi-DETR does differently


def test_class_normaliser_of_each_process_or_of_all_by_hand(monkeypatch):
    """Two processes, this one with 3 boxes, the other with 1: the mean is 2."""
    monkeypatch.setattr(criterion_module, "average_over_processes", lambda values: (values + 1) / 2)
    targets, predictions = random_targets(3, 0), random_predictions()
    totals = criterion()(predictions, targets, 1.0)
    everywhere = criterion(class_normalizer="global")(predictions, targets, 2.0)
    here = criterion(class_normalizer="process")(predictions, targets, 2.0)
    for name, total in totals.items():
        assert_close(everywhere[name], total / 2)
        # Only class losses are divided by the 3 boxes of this process.
        assert_close(here[name], total / (3 if "loss_ce" in name else 2))
    # Without a box the class loss is divided by 1, whatever the others have.
    background = criterion(class_normalizer="process")(predictions, random_targets(0, 0), 2.0)
    assert_close(background["loss_ce"], criterion()(predictions, random_targets(0, 0), 1.0)["loss_ce"])


def test_normalisers_of_denoising_count_its_copies(monkeypatch):
    """This process has 3 boxes in 2 groups each, 6 copies; the other 1 box in 10 groups, 10 copies."""
    targets = random_targets(2, 1)
    predictions = with_denoising(random_predictions(), targets)
    assert predictions.denoising is not None and predictions.denoising.num_groups == 2
    totals = criterion()(predictions, targets, 0.5)  # 0.5 boxes in 2 groups: divided by 1
    monkeypatch.setattr(criterion_module, "average_over_processes", lambda values: (values + 10) / 2)
    everywhere, here = (criterion(class_normalizer=kind)(predictions, targets, 2.0) for kind in ("global", "process"))
    for kind in NAMES:
        # Official DINO: a mean of 2 boxes, times the 2 groups of this process.
        assert_close(everywhere[f"{kind}_dn"], totals[f"{kind}_dn"] / 4)
        # The released code: class losses by the 6 copies here, boxes by the mean of 6 and 10.
        assert_close(here[f"{kind}_dn"], totals[f"{kind}_dn"] / (6 if kind == "loss_ce" else 8))


@pytest.mark.parametrize("counts", [(3, 1), (9, 0), (0, 0)])
def test_on_a_single_process_both_normalisers_are_the_same(counts):
    targets = random_targets(*counts)
    predictions, num_boxes = with_denoising(random_predictions(), targets), max(float(sum(counts)), 1.0)
    everywhere, here = (
        criterion(class_normalizer=kind)(predictions, targets, num_boxes) for kind in ("global", "process")
    )
    for name, value in everywhere.items():
        assert_close(here[name], value)


def test_denoising_of_an_image_without_boxes_by_hand():
    """Two images, one class, one group of one positive and one negative slot; all logits 0.

    A slot costs .25 * .25 ln 2 where it is the class and .75 * .25 ln 2 where it is background.
    """
    noise = draw_noise(2, 1, 1, num_labels=1, label_noise=0.0, device=torch.device("cpu"))
    targets = random_targets(1, 0, labels=1)
    denoising = build_denoising_queries(targets, nn.Embedding(1, 8), noise=noise, box_noise=0.4, eps=1e-5)
    logits, boxes = torch.zeros(1, 2, 2, 1), torch.full((1, 2, 2, 4), 0.5)
    predictions = DetectorPredictions(logits, boxes, logits[0], boxes[0], logits, boxes, denoising)
    unit = 0.25 * math.log(2)
    # The first image: class and background. The second: two empty slots, background or left out.
    for counts, expected in ((True, 0.25 + 0.75 + 2 * 0.75), (False, 0.25 + 0.75)):
        losses = criterion(denoise_empty_images=counts)(predictions, targets, 1.0)
        assert losses["loss_ce_dn"].item() == pytest.approx(expected * unit, rel=1e-5)
        # Matching queries of an image without boxes are background in any case.
        assert losses["loss_ce"].item() == pytest.approx((0.25 + 3 * 0.75) * unit, rel=1e-5)


def test_empty_slots_beside_boxes_count_as_background_in_any_case():
    targets = random_targets(3, 1)
    predictions = with_denoising(random_predictions(), targets)
    with_empty, without = (criterion(denoise_empty_images=each)(predictions, targets, 4.0) for each in (True, False))
    for name, value in with_empty.items():
        assert_close(without[name], value)


def test_left_out_images_get_no_gradient_and_the_names_stay():
    targets = random_targets(2, 0)
    parts = vars(with_denoising(random_predictions(), targets))
    logits = parts["denoising_logits"].clone().requires_grad_()
    losses = criterion(denoise_empty_images=False)(
        DetectorPredictions(**{**parts, "denoising_logits": logits}), targets, 2.0
    )
    losses["loss_ce_dn"].backward()
    assert logits.grad[-1, 0].all() and not logits.grad[-1, 1].any()
    # Nor without a box anywhere: there is no denoising query then.
    targets = random_targets(0, 0)
    nothing = criterion(denoise_empty_images=False)(with_denoising(random_predictions(), targets), targets, 1.0)
    assert set(nothing) == set(losses)
    assert nothing["loss_ce_dn"].item() == 0


def test_a_single_process_is_its_own_average():
    values = torch.tensor([1.5, -2.0])
    assert average_over_processes(values) is values
    assert average_over_processes(torch.zeros(0)).shape == (0,)


def test_an_average_over_two_processes_by_hand(monkeypatch):
    """The other process holds 4 and 0; what was given here must not change."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(torch.tensor([4.0, 0.0])))
    values = torch.tensor([2.0, 3.0])
    assert average_over_processes(values).tolist() == [3.0, 1.5]
    assert values.tolist() == [2.0, 3.0]


def test_number_of_boxes_of_two_processes(monkeypatch):
    # 5 boxes here and 2 there.
    monkeypatch.setattr(criterion_module, "average_over_processes", lambda values: (values + 2) / 2)
    assert average_num_boxes(random_targets(3, 2), torch.device("cpu")) == 3.5
    # One box here, or none at all: 1 box of both together, as one process with all images would count.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(criterion_module, "average_over_processes", lambda values: values / 2)
    for targets in (random_targets(1, 0), random_targets(0, 0)):
        assert average_num_boxes(targets, torch.device("cpu")) == 0.5
    assert average_count(torch.tensor([0.2, 3.0])).tolist() == [0.5, 1.5]
