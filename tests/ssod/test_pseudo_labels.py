from typing import Any

import pytest
import torch
from recorded import load_recorded
from torch import Tensor
from torch.testing import assert_close

from semidetr_hf.geometry import compose, horizontal_flip, identity, scaling, translation
from semidetr_hf.ssod.pseudo_labels import (
    CandidatePair,
    find_confident,
    project_to_view,
    select_candidates,
    suppress_duplicates,
    to_targets,
)
from semidetr_hf.structures import PseudoLabels, View

RULES: dict[str, Any] = {"iou_threshold": 0.6, "min_score": 0.01, "max_detections": 300}


def labels_of(scores: list[float], boxes: list[list[float]] | None = None) -> PseudoLabels:
    boxes = boxes if boxes is not None else [[10.0, 10.0, 20.0, 20.0]] * len(scores)
    return PseudoLabels(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        class_labels=torch.arange(len(scores)),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def each(threshold: float) -> Tensor:
    """The same threshold for each of four classes."""
    return torch.full((4,), threshold)


def view_of(homographies: list[Tensor], sizes: list[tuple[int, int]]) -> View:
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return View(
        pixel_values=torch.zeros(len(sizes), 3, height, width),
        pixel_mask=torch.ones(len(sizes), height, width, dtype=torch.int64),
        image_sizes=torch.tensor(sizes),
        homographies=torch.stack(homographies),
    )


# ---- suppress_duplicates


def test_duplicates_by_hand() -> None:
    # Image of 100 x 200 pixels. Queries 0 and 1: (40, 20, 120, 80) and (48, 20, 128, 80), overlap 72 * 60 of
    # 88 * 60 -> IoU 0.818. Query 2 lies apart. Logits 0 -> 0.5, 2 -> 0.8808, -2 -> 0.1192, -20 -> about 0.
    boxes = torch.tensor([[0.4, 0.5, 0.4, 0.6], [0.44, 0.5, 0.4, 0.6], [0.9, 0.1, 0.1, 0.2]])
    logits = torch.tensor([[0.0, -20.0], [2.0, 0.0], [-20.0, -2.0]])
    found = suppress_duplicates(logits, boxes, image_size=(100, 200), **RULES)
    # Class 0: query 1 beats query 0. Class 1: query 1 (0.5) and query 2 (0.12) both stay. Two rows are of query 1.
    assert_close(found.scores, torch.tensor([0.8808, 0.5, 0.1192]), atol=1e-4, rtol=0)
    assert found.class_labels.tolist() == [0, 1, 1]
    expected = torch.tensor([[48.0, 20, 128, 80], [48, 20, 128, 80], [170, 0, 190, 20]])
    assert_close(found.boxes_xyxy, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dense", "sparse", "none"])
def test_duplicates_as_recorded_from_the_released_code(name: str) -> None:
    recorded = load_recorded("pseudo_label_nms.npz")[name]
    height, width = recorded["image_hw"].tolist()
    found = suppress_duplicates(
        recorded["logits"],
        recorded["boxes_cxcywh"],
        image_size=(height, width),
        iou_threshold=float(recorded["iou_threshold"]),
        min_score=float(recorded["score_threshold"]),
        max_detections=int(recorded["max_per_img"]),
    )
    assert found.class_labels.tolist() == recorded["nms"]["labels"].tolist()
    assert_close(found.scores, recorded["nms"]["scores"], rtol=1e-4, atol=1e-6)
    assert_close(found.boxes_xyxy, recorded["nms"]["boxes"], rtol=1e-4, atol=1e-2)


def test_detections_come_best_first_and_do_not_depend_on_the_order_of_queries() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(30, 4, generator=generator), torch.rand(30, 4, generator=generator)
    order = torch.randperm(30, generator=generator)
    first = suppress_duplicates(logits, boxes, image_size=(64, 96), **RULES)
    second = suppress_duplicates(logits[order], boxes[order], image_size=(64, 96), **RULES)
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)
    assert_close(first.scores, second.scores)
    assert_close(first.boxes_xyxy, second.boxes_xyxy)
    limited = suppress_duplicates(logits, boxes, image_size=(64, 96), **(RULES | {"max_detections": 7}))
    assert_close(limited.scores, first.scores[:7])


def test_no_query_gives_no_detection() -> None:
    found = suppress_duplicates(torch.zeros(0, 3), torch.zeros(0, 4), image_size=(10, 10), **RULES)
    assert (len(found), found.boxes_xyxy.shape) == (0, (0, 4))


# ---- select_candidates


def test_mean_and_deviation_by_hand() -> None:
    # Mean 0.4; deviations 0.5, -0.1, -0.2, -0.2: squares sum to 0.34, / 3 = 0.11333, root 0.33665. Bar: 0.73665.
    assert select_candidates(labels_of([0.9, 0.3, 0.2, 0.2]), mean_std_filter=True).class_labels.tolist() == [0]
    assert len(select_candidates(labels_of([0.73, 0.3, 0.2, 0.37]), mean_std_filter=True)) == 1
    assert len(select_candidates(labels_of([0.9, 0.3, 0.2, 0.2]), mean_std_filter=False)) == 4


def test_of_two_different_scores_none_is_above_mean_plus_deviation() -> None:
    # The unbiased deviation of a and b is |a - b| / sqrt(2), more than either's distance |a - b| / 2 to their mean.
    # The released code has the same rule.
    assert len(select_candidates(labels_of([0.95, 0.9]), mean_std_filter=True)) == 0
    assert len(select_candidates(labels_of([0.95, 0.9]), mean_std_filter=True, always_keep=each(0.9))) == 2
    assert select_candidates(
        labels_of([0.95, 0.9]), mean_std_filter=True, always_keep=each(0.93)
    ).class_labels.tolist() == [0]


@pytest.mark.parametrize("scores", [[0.9, 0.3, 0.2, 0.2], [0.9, 0.8], [0.5] * 3, [0.1], []])
@pytest.mark.parametrize("bar", [0.0, 0.25, 0.85, 1.0])
def test_sure_detections_only_add_to_those_that_pass_the_filter(scores: list[float], bar: float) -> None:
    found = labels_of(scores)
    passed = select_candidates(found, mean_std_filter=True).class_labels.tolist()
    with_sure = select_candidates(found, mean_std_filter=True, always_keep=each(bar)).class_labels.tolist()
    assert with_sure == sorted({*passed, *(i for i, score in enumerate(scores) if score >= bar)})
    # Without the filter everything passes anyway.
    assert len(select_candidates(found, mean_std_filter=False, always_keep=each(bar))) == len(scores)


def test_a_sure_detection_without_area_is_no_candidate() -> None:
    flat = labels_of([0.9, 0.8], [[5, 5, 5, 20], [5, 5, 9, 20]])
    assert select_candidates(flat, mean_std_filter=True, always_keep=each(0.5)).class_labels.tolist() == [1]


def test_candidates_as_recorded_from_the_released_code() -> None:
    for image in load_recorded("mean_std_filter.npz")["images"]:
        detections = PseudoLabels(boxes_xyxy=image["boxes"], class_labels=image["labels"], scores=image["scores"])
        kept = select_candidates(detections, mean_std_filter=True)
        if len(detections) == 1:
            # Here we differ on purpose: the released code compares with nan and loses a lone detection.
            assert len(image["kept_scores"]) == 0
            assert len(kept) == 1
            continue
        assert kept.class_labels.tolist() == image["kept_labels"].tolist()
        assert_close(kept.scores, image["kept_scores"])
        assert_close(kept.boxes_xyxy, image["kept_boxes"])


def test_a_lone_detection_is_kept_whatever_its_score() -> None:
    assert len(select_candidates(labels_of([0.02]), mean_std_filter=True)) == 1


def test_empty_boxes_are_no_candidates() -> None:
    flat = labels_of([0.9, 0.9], [[5, 5, 5, 20], [5, 5, 9, 20]])
    assert select_candidates(flat, mean_std_filter=False).class_labels.tolist() == [1]


@pytest.mark.parametrize("mean_std_filter", [True, False])
def test_no_detection_gives_no_candidate(mean_std_filter: bool) -> None:
    assert len(select_candidates(labels_of([]), mean_std_filter=mean_std_filter)) == 0


# ---- project_to_view


def test_projection_by_hand() -> None:
    # Weak: the original of 100 x 80. Strong: twice as large, then flipped in a width of 200, then 10 pixels right.
    strong = compose(scaling(2, 2), horizontal_flip(200), translation(10, 0))
    weak_view, strong_view = view_of([identity()], [(80, 100)]), view_of([strong], [(160, 200)])
    found = labels_of([0.9, 0.8, 0.7], [[10, 20, 30, 40], [0, 0, 4, 80], [20, 20, 70, 20.4]])
    [pair] = project_to_view([found], weak_view, strong_view, min_box_size=1.0)
    # x -> 210 - 2 x: 10..30 -> 150..190. The second, 202..210, is outside the view and dropped (the released code
    # keeps it with zero width); the third is 0.8 pixels high and dropped.
    assert pair.strong.boxes_xyxy.tolist() == [[150, 40, 190, 80]]
    assert pair.weak.boxes_xyxy.tolist() == [[10, 20, 30, 40]]
    for labels in (pair.weak, pair.strong):
        assert labels.class_labels.tolist() == [0]
        assert labels.scores.tolist() == pytest.approx([0.9])
    [all_visible] = project_to_view([found], weak_view, strong_view, min_box_size=0.0)
    assert all_visible.strong.class_labels.tolist() == [0, 2]


def test_without_a_least_size_boxes_outside_the_view_stay_with_zero_width() -> None:
    # x -> 210 - 2 x as above: 0..4 -> 202..210, clipped to the border at 200.
    strong = compose(scaling(2, 2), horizontal_flip(200), translation(10, 0))
    weak_view, strong_view = view_of([identity()], [(80, 100)]), view_of([strong], [(160, 200)])
    found = labels_of([0.8, 0.9], [[0, 0, 4, 80], [10, 20, 30, 40]])
    [pair] = project_to_view([found], weak_view, strong_view, min_box_size=None)
    assert pair.strong.boxes_xyxy.tolist() == [[200, 0, 200, 160], [150, 40, 190, 80]]
    assert torch.equal(pair.weak.boxes_xyxy, found.boxes_xyxy)
    # Their targets are finite.
    [target] = to_targets([pair.strong], strong_view)
    assert_close(target["boxes"], torch.tensor([[1, 0.5, 0, 1], [0.85, 0.375, 0.2, 0.25]]))


def test_a_row_of_both_views_is_the_same_object() -> None:
    weak, strong = view_of([identity()], [(80, 100)]), view_of([translation(-15, 0)], [(80, 100)])
    found = labels_of([0.9, 0.8, 0.7], [[0, 0, 10, 10], [20, 0, 30, 10], [10, 5, 40, 25]])
    [pair] = project_to_view([found], weak, strong, min_box_size=1.0)
    assert len(pair) == 2  # the first left the view
    assert pair.weak.class_labels.tolist() == pair.strong.class_labels.tolist() == [1, 2]
    assert_close(pair.strong.boxes_xyxy, torch.tensor([[5.0, 0, 15, 10], [0, 5, 25, 25]]))
    for keep in (torch.tensor([False, True]), torch.tensor([1])):
        part = pair[keep]
        assert isinstance(part, CandidatePair)
        assert part.weak.boxes_xyxy.tolist() == [[10, 5, 40, 25]]
        assert part.strong.boxes_xyxy.tolist() == [[0, 5, 25, 25]]
    assert len(pair[torch.zeros(2, dtype=torch.bool)]) == 0


def test_two_images_are_projected_as_each_alone() -> None:
    weak = view_of([horizontal_flip(100), scaling(0.5, 0.5)], [(80, 100), (40, 50)])
    strong = view_of([identity(), translation(3, 3)], [(80, 100), (80, 100)])
    found = [labels_of([0.9], [[10, 10, 30, 30]]), labels_of([0.8, 0.7], [[5, 5, 15, 15], [1, 2, 30, 40]])]
    both = project_to_view(found, weak, strong, min_box_size=1.0)
    for i in range(2):
        one_weak = view_of([weak.homographies[i]], [(80, 100)])
        one_strong = view_of([strong.homographies[i]], [tuple(strong.image_sizes[i].tolist())])
        [alone] = project_to_view([found[i]], one_weak, one_strong, min_box_size=1.0)
        assert_close(both[i].strong.boxes_xyxy, alone.strong.boxes_xyxy)
    # Flip back: 10..30 -> 70..90. Undo the half size, then move by 3: 5..15 -> 13..33.
    assert both[0].strong.boxes_xyxy.tolist() == [[70, 10, 90, 30]]
    assert both[1].strong.boxes_xyxy[0].tolist() == [13, 13, 33, 33]


def test_equal_views_change_nothing_and_empty_stays_empty() -> None:
    view = view_of([scaling(1.5, 1.5), identity()], [(50, 50), (50, 50)])
    found = [labels_of([0.5], [[1, 2, 30, 40]]), labels_of([])]
    same = project_to_view(found, view, view, min_box_size=1.0)
    assert_close(same[0].strong.boxes_xyxy, found[0].boxes_xyxy)
    assert same[1].strong.boxes_xyxy.shape == same[1].weak.boxes_xyxy.shape == (0, 4)
    assert project_to_view([], view, view, min_box_size=1.0) == []


# ---- find_confident and to_targets


def test_confidence_includes_the_threshold() -> None:
    pairs = [CandidatePair(labels, labels) for labels in (labels_of([0.5, 0.25, 0.2]), labels_of([]))]
    masks = find_confident(pairs, each(0.25))
    assert [mask.tolist() for mask in masks] == [[True, True, False], []]
    assert all(mask.dtype == torch.bool for mask in masks)
    assert find_confident([], each(0.25)) == []
    three = labels_of([0.1, 0.5, 0.9])
    counts = [int(find_confident([CandidatePair(three, three)], each(t))[0].sum()) for t in (0.0, 0.2, 0.6, 1.0)]
    assert counts == [3, 2, 1, 0]


def test_every_class_has_its_own_threshold() -> None:
    # Labels 0, 1, 2 with thresholds 0.3, 0.8 and 0.5.
    found, thresholds = labels_of([0.4, 0.6, 0.5]), torch.tensor([0.3, 0.8, 0.5])
    (mask,) = find_confident([CandidatePair(found, found)], thresholds)
    assert mask.tolist() == [True, False, True]
    # No score is 0.1 (the unbiased deviation) above the mean of 0.5 but that of label 1.
    kept = select_candidates(found, mean_std_filter=True, always_keep=thresholds)
    assert kept.class_labels.tolist() == [0, 1, 2]


def test_targets_are_relative_to_the_unpadded_view() -> None:
    # The batch is padded to 80 x 100, the second image has 40 x 50 pixels.
    view = view_of([identity(), identity()], [(80, 100), (40, 50)])
    found = [labels_of([]), labels_of([0.9], [[10, 10, 20, 30]])]
    targets = to_targets(found, view)
    assert targets[0]["boxes"].shape == (0, 4)
    # Center (15 / 50, 20 / 40), size (10 / 50, 20 / 40).
    assert_close(targets[1]["boxes"], torch.tensor([[0.3, 0.5, 0.2, 0.5]]))
    assert targets[1]["class_labels"].tolist() == [0]
    with pytest.raises(ValueError, match="argument 2"):
        to_targets(found[:1], view)
