"""Box formats and overlaps against hand-worked and recorded numbers."""

import pytest
import torch
from recorded import load_recorded
from torch.testing import assert_close

from semidetr_hf.model.box_ops import (
    class_wise_nms,
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    iou,
    xyxy_to_cxcywh,
)


def random_boxes(count, seed=0):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    return corners.flatten(1)  # xyxy with x1 <= x2, y1 <= y2


def test_formats():
    # Centre (30, 50), size 20 x 40: corners 30 -+ 10 and 50 -+ 20.
    assert_close(cxcywh_to_xyxy(torch.tensor([[30.0, 50, 20, 40]])), torch.tensor([[20.0, 30, 40, 70]]))
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)


def test_formats_round_trip():
    boxes = random_boxes(20).view(4, 5, 4)
    assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 1, 1]])
    b = torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 4], [4, 0, 6, 2], [1, 1, 1, 1]])
    # 8 / (16 + 16 - 8), identical, disjoint, both empty.
    assert_close(iou(a, b), torch.tensor([1 / 3, 1.0, 0.0, 0.0]))
    # Hulls 24, 16, 12; the disjoint pair fills 8 of its hull: 0 - (12 - 8) / 12.
    assert_close(generalized_iou(a, b)[:3], torch.tensor([1 / 3, 1.0, -1 / 3]))


def test_degenerate_and_inverted_boxes_stay_finite():
    odd = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4], [0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    value = generalized_iou(odd[:, None], odd[None])
    value.sum().backward()
    assert value.isfinite().all()
    assert odd.grad.isfinite().all()


def test_overlaps_of_all_pairs():
    a, b = random_boxes(5, 1), random_boxes(3, 2)
    pairs = generalized_iou(a[:, None], b[None])
    assert pairs.shape == (5, 3)
    assert_close(pairs, generalized_iou(b[:, None], a[None]).T)  # symmetric
    assert (pairs <= iou(a[:, None], b[None]) + 1e-6).all()  # never more than the IoU
    assert generalized_iou(a[:, None], torch.zeros(0, 4)[None]).shape == (5, 0)
    # Any unit: a scale changes nothing.
    assert_close(generalized_iou(a * 640, a.flip(0) * 640), generalized_iou(a, a.flip(0)))


def test_recorded_generalized_iou():
    recorded = load_recorded("losses.npz")["giou_dino_normalised"]
    predicted, target = recorded["pred_cxcywh"].requires_grad_(), recorded["target_cxcywh"]
    matrix = generalized_iou(cxcywh_to_xyxy(predicted)[:, None], cxcywh_to_xyxy(target)[None])
    assert_close(matrix, recorded["matrix"], rtol=1e-4, atol=1e-5)
    loss = (1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))).sum()
    assert_close(loss, recorded["paired_loss_sum"], rtol=1e-4, atol=1e-5)
    loss.backward()
    assert_close(predicted.grad, recorded["grad_pred"], rtol=1e-3, atol=1e-4)


def test_recorded_iou_in_pixels():
    recorded = load_recorded("losses.npz")["iou_semidetr_pixels"]
    predicted, target = recorded["pred_xyxy"][:, None], recorded["target_xyxy"][None]
    assert_close(iou(predicted, target), recorded["iou"], rtol=1e-4, atol=1e-5)
    assert_close(generalized_iou(predicted, target), recorded["giou"], rtol=1e-4, atol=1e-5)


def test_recorded_inverse_sigmoid():
    recorded = load_recorded("encodings.npz")
    values = recorded["inv_sigmoid_in"].clamp(0, 1)
    for eps, key in ((1e-3, "inv_sigmoid_dino_eps1e_3"), (1e-5, "inv_sigmoid_semidetr_eps1e_5")):
        assert_close(inverse_sigmoid(recorded["inv_sigmoid_in"], eps=eps), recorded[key], rtol=1e-4, atol=1e-5)
        inside = (values > eps) & (values < 1 - eps)
        assert_close(inverse_sigmoid(values, eps=eps).sigmoid()[inside], values[inside])


# ---- class_wise_nms

RULES = {"iou_threshold": 0.6, "min_score": 0.01, "max_detections": 300}


def test_nms_by_hand():
    # Boxes 0 and 1 share 8 of 12 columns: IoU 2/3. Box 2 shares 4 of 16 with box 0 (1/4) and 6 of 14 with box 1.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10]])
    scores = torch.tensor([[0.9, 0.01], [0.8, 0.7], [0.5, 0.6]])
    kept, labels, found = class_wise_nms(boxes, scores, **RULES)
    # Label 0: box 0 suppresses box 1, box 2 stays. Label 1: box 0 scores no more than 0.01; boxes 1 and 2 stay.
    assert found.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])
    assert labels.tolist() == [0, 1, 1, 0]
    assert kept[:, 0].tolist() == [0, 2, 6, 6]
    # At a threshold of 0.7 nothing overlaps too much, at 0.2 only one box of each label is left.
    assert len(class_wise_nms(boxes, scores, **(RULES | {"iou_threshold": 0.7}))[0]) == 5
    assert class_wise_nms(boxes, scores, **(RULES | {"iou_threshold": 0.2}))[2].tolist() == pytest.approx([0.9, 0.7])


def test_the_best_so_many_are_kept_and_a_bar_excludes_its_own_score():
    boxes, scores = random_boxes(40), torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    _, labels, found = class_wise_nms(boxes, scores, **RULES)
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    few = class_wise_nms(boxes, scores, **(RULES | {"max_detections": 5}))
    assert few[2].tolist() == found[:5].tolist() and few[1].tolist() == labels[:5].tolist()
    above = class_wise_nms(boxes, scores, **(RULES | {"min_score": found[3].item()}))
    assert above[2].tolist() == found[:3].tolist()


def test_detections_of_a_label_never_overlap_too_much_whatever_the_order_of_queries():
    boxes, scores = random_boxes(60), torch.rand(60, 2, generator=torch.Generator().manual_seed(2))
    kept, labels, found = class_wise_nms(boxes, scores, **RULES)
    overlap = iou(kept[:, None], kept[None]).fill_diagonal_(0)
    assert (overlap[labels[:, None] == labels[None]] <= 0.6).all()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    again = class_wise_nms(boxes[order], scores[order], **RULES)
    for ours, theirs in zip((kept, labels, found), again, strict=True):
        assert_close(ours, theirs)
    # Labels do not see each other.
    for label in (0, 1):
        alone = class_wise_nms(boxes, scores[:, label : label + 1], **RULES)
        assert_close(alone[0], kept[labels == label])


@pytest.mark.parametrize("queries", [0, 4])
def test_nms_of_nothing(queries):
    kept, labels, found = class_wise_nms(random_boxes(queries), torch.zeros(queries, 3), **RULES)
    assert (kept.shape, labels.shape, found.shape) == ((0, 4), (0,), (0,))
    assert labels.dtype == torch.int64


def test_boxes_without_area_suppress_nothing():
    flat = torch.tensor([[3.0, 3, 3, 9]] * 2)
    assert len(class_wise_nms(flat, torch.tensor([[0.9], [0.8]]), **RULES)[0]) == 2
