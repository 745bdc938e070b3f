import math
from typing import Any

import pytest
import torch
from recorded import load_recorded
from tiny import tiny_batch, tiny_model
from torch import Tensor

from semidetr_hf.model.box_ops import cxcywh_to_xyxy
from semidetr_hf.model.decoder_queries import build_attention_mask
from semidetr_hf.ssod.query_consistency import (
    ConsistencyQueries,
    QueryProjector,
    build_consistency_queries,
    consistency_loss,
    level_strides,
    roi_features,
    roi_level,
    with_dummies,
)

# (height, width) of the views of two images.
SIZES = torch.tensor([[100, 200], [80, 50]])
BOXES = [torch.tensor([[10.0, 20, 50, 60], [0, 0, 200, 100]]), torch.tensor([[5.0, 8, 45, 40]])]
NO_BOX = torch.zeros(0, 4)


def queries_of(counts: list[int], *, copies: int = 1, width: int = 4, **overrides: Any) -> ConsistencyQueries:
    """Queries of random content about arbitrary boxes."""
    boxes = [torch.tensor([[1.0, 2, 3, 4]]).repeat(count, 1) for count in counts]
    sizes = torch.full((len(counts), 2), 10)
    content = torch.rand(sum(counts), width)
    return build_consistency_queries(
        content, content, boxes, boxes, strong_sizes=sizes, weak_sizes=sizes, eps=1e-5, copies=copies, **overrides
    )


# ---- QueryProjector


def test_the_projector_has_the_weights_of_the_released_code() -> None:
    with torch.device("meta"):
        projector = QueryProjector(256)
    shapes = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
    norm = {"weight", "bias", "running_mean", "running_var"}
    expected = {
        "conv1.weight": (256, 256, 3, 3),
        "conv2.weight": (256, 256, 3, 3),
        "fc1.weight": (1024, 12544),
        "fc1.bias": (1024,),
        "fc2.weight": (256, 1024),
        "fc2.bias": (256,),
    }
    for layer, width in (("bn1", 256), ("bn2", 256), ("bn", 1024)):
        expected |= {f"{layer}.{name}": (width,) for name in norm} | {f"{layer}.num_batches_tracked": ()}
    assert shapes == expected
    assert sum(parameter.numel() for parameter in projector.parameters()) == 14_291_200


def test_projection_by_hand() -> None:
    # One channel, one bin. Kernels pick the middle: 3 and -2. Eval: the norms divide by sqrt(1 + 1e-5), about 1.
    # 5 -> 15 -> -30 -> ReLU 0 -> fc1 + 4 -> 4 -> fc2 * 2 + 1 -> 9. With the second kernel +2: 30 + 4 -> 34 -> 69.
    projector = QueryProjector(1, hidden=1, roi_size=1).eval()
    with torch.no_grad():
        for conv, middle in ((projector.conv1, 3.0), (projector.conv2, -2.0)):
            conv.weight.zero_()[0, 0, 1, 1] = middle
        for linear, weight, bias in ((projector.fc1, 1.0, 4.0), (projector.fc2, 2.0, 1.0)):
            linear.weight.fill_(weight)
            linear.bias.fill_(bias)
        assert projector(torch.full((1, 1, 1, 1), 5.0)).item() == pytest.approx(9, rel=1e-4)
        projector.conv2.weight.neg_()
        assert projector(torch.full((1, 1, 1, 1), 5.0)).item() == pytest.approx(69, rel=1e-4)
        projector.fc2.bias.fill_(-100)
        assert projector(torch.full((1, 1, 1, 1), 5.0)).item() == 0


def test_rois_are_flattened_channel_row_column() -> None:
    projector = QueryProjector(2, hidden=1, roi_size=7).eval()
    with torch.no_grad():
        for conv in (projector.conv1, projector.conv2):
            conv.weight.zero_()
            for channel in range(2):
                conv.weight[channel, channel, 1, 1] = 1
        projector.fc1.weight.zero_()[0, 1 * 49 + 2 * 7 + 3] = 1
        projector.fc1.bias.zero_()
        projector.fc2.weight.fill_(1)
        projector.fc2.bias.zero_()
        rois = torch.zeros(2, 2, 7, 7)
        rois[0, 1, 2, 3] = 1
        rois[1, 1, 3, 2] = 1
        torch.testing.assert_close(projector(rois), torch.tensor([[1.0, 1], [0, 0]]), rtol=1e-4, atol=0)


def test_a_single_row_in_training_is_normalised_with_running_statistics() -> None:
    projector = QueryProjector(4, hidden=8, roi_size=3).train()
    rois = torch.randn(2, 4, 3, 3)
    projector(rois)
    mean = projector.bn.state_dict()["running_mean"].clone()
    first, second = projector(rois[:1]), projector(rois[1:])
    assert torch.equal(projector.bn.state_dict()["running_mean"], mean)
    # Statistics of one row would make every row the same.
    assert not torch.allclose(first, second)
    projector(rois)
    assert not torch.equal(projector.bn.state_dict()["running_mean"], mean)


@pytest.mark.parametrize("training", [True, False])
def test_no_roi_gives_no_content(training: bool) -> None:
    content = QueryProjector(4, hidden=8).train(training)(torch.zeros(0, 4, 7, 7))
    assert content.shape == (0, 4)


def test_two_rois_are_projected_as_each_alone_outside_training() -> None:
    projector = QueryProjector(4, hidden=8, roi_size=3).eval()
    rois = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(projector(rois), torch.cat([projector(rois[:1]), projector(rois[1:])]))
    assert projector(rois).min() >= 0


# ---- roi_level and level_strides


def test_levels_as_in_the_released_code() -> None:
    sides = torch.tensor([30.0, 56, 111, 112, 223, 224, 447, 448, 900])
    square = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    # The root of the area counts: twice as wide and half as high is the same level.
    flat = torch.stack([sides, sides, 3 * sides, 1.5 * sides], dim=1)
    for boxes in (square, flat):
        assert roi_level(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert roi_level(square, 2).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    # Half the finest scale: everything one level coarser, but for those already below it.
    assert roi_level(square, 4, finest_scale=28.0).tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3]


def test_a_box_without_area_is_on_the_finest_level_and_no_box_on_none() -> None:
    assert roi_level(torch.tensor([[5.0, 5, 5, 90]]), 4).tolist() == [0]
    assert roi_level(NO_BOX, 4).shape == (0,)


@pytest.mark.parametrize("size", [(100, 140), (129, 64), (800, 1333), (64, 65), (200, 135), (1000, 70)])
def test_strides_of_sizes_that_do_not_divide(size: tuple[int, int]) -> None:
    # Every strided layer rounds up: 129 pixels are 17, 9, 5, 3 cells, of which 129 / 3 = 43 is nearer to 32 than 64.
    shapes = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (8, 16, 32, 64)]
    assert level_strides(shapes, size) == [8, 16, 32, 64]


def test_a_padded_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"do not shrink from padded_size \(4, 6\)"):
        level_strides([(8, 12), (4, 6)], (4, 6))
    with pytest.raises(ValueError, match="from fine to coarse"):
        level_strides([(4, 6), (8, 12)], (64, 96))


# ---- roi_features


def ramp(height: int, width: int, stride: int) -> Tensor:
    """A map whose two channels are x and y of the cells' centres in pixels."""
    x = (torch.arange(width) + 0.5) * stride
    y = (torch.arange(height) + 0.5) * stride
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


def test_features_on_a_ramp_by_hand() -> None:
    # A box of 28 x 56 pixels, 7 bins of 4 x 8: their centres are at 16 + 2, + 6, ... and 24 + 4, + 12, ...
    # A linear map has its value at the centre as the mean of a bin, whatever the stride.
    pyramid = [ramp(16, 20, 8), ramp(8, 10, 16), ramp(4, 5, 32), ramp(2, 3, 64)]
    [found] = roi_features(pyramid, [torch.tensor([[16.0, 24, 44, 80]])], (128, 160))
    expected_x = torch.tensor([18.0, 22, 26, 30, 34, 38, 42]).expand(7, 7)
    expected_y = torch.tensor([28.0, 36, 44, 52, 60, 68, 76])[:, None].expand(7, 7)
    torch.testing.assert_close(found, torch.stack([expected_x, expected_y]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("width", "expected"), [(84, 1.25 / 2), (140, 3.5 / 9)])
def test_bins_average_as_many_samples_as_they_span_cells_rounded_up(width: int, expected: float) -> None:
    # Only cell 1 of each row is 1; the boxes begin at x = 8, coordinate 0.5 between the centres of cells 0 and 1.
    # 84 pixels: a bin spans 1.5 cells, so 2 samples, 0.375 and 1.125 behind 0.5: they read 0.875 and 0.375 of cell 1.
    # 140 pixels: 2.5 cells, so 3 samples, 5/12, 15/12 and 25/12 behind 0.5: they read 11/12, 3/12 and 0.
    level = torch.zeros(1, 1, 8, 24)
    level[..., 1] = 1
    found = roi_features([level], [torch.tensor([[8.0, 8, 8 + width, 36]])], (64, 192))
    torch.testing.assert_close(found[0, 0, :, 0], torch.full((7,), expected))


def test_each_box_is_cut_from_its_own_level_and_image_in_order() -> None:
    # Level l of image i is 10 i + l everywhere. Sides 300, 50, 120 and 600 belong to levels 2, 0, 1 and 3.
    pyramid = [
        torch.stack([torch.full((3, 640 // s, 640 // s), 10.0 * i + level) for i in range(3)])
        for level, s in enumerate((8, 16, 32, 64))
    ]
    boxes = [torch.tensor([[20.0, 20, 20 + side, 20 + side] for side in sides]) for sides in ([300.0, 50], [120, 600])]
    found = roi_features(pyramid, [boxes[0], NO_BOX, boxes[1]], (640, 640))
    assert found.shape == (4, 3, 7, 7)
    for features, value in zip(found, (2.0, 0.0, 21.0, 23.0), strict=True):
        torch.testing.assert_close(features, torch.full((3, 7, 7), value))


def test_padding_does_not_move_the_boxes() -> None:
    # 100 x 140 pixels: the coarser levels span more than the image. Each must still read x and y in pixels.
    pyramid = [ramp(math.ceil(100 / s), math.ceil(140 / s), s) for s in (8, 16, 32, 64)]
    boxes = torch.tensor([[40.0, 40, 68, 61], [16, 16, 128, 86.5]])
    for level in range(2):
        one_level = [pyramid[level]]
        found = roi_features(one_level, [boxes], (100, 140), roi_size=1)
        expected = torch.tensor([[54.0, 50.5], [72, 51.25]])
        torch.testing.assert_close(found[:, :, 0, 0], expected, rtol=1e-4, atol=1e-2)


def test_features_of_two_images_are_those_of_each_alone() -> None:
    pyramid = [torch.randn(2, 3, 64 // s, 96 // s) for s in (8, 16, 32)]
    boxes = [torch.tensor([[3.0, 4, 60, 50], [0, 0, 96, 64]]), torch.tensor([[11.0, 5, 30, 60]])]
    both = roi_features(pyramid, boxes, (64, 96))
    alone = [roi_features([level[i : i + 1] for level in pyramid], [boxes[i]], (64, 96)) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))
    assert not torch.allclose(both[0], both[1])


def test_features_are_float32_also_of_a_half_precision_pyramid() -> None:
    pyramid = [torch.randn(1, 3, 8, 12).bfloat16()]
    boxes = [torch.tensor([[3.0, 4, 60, 50]], dtype=torch.float64)]
    found = roi_features(pyramid, boxes, (64, 96))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, roi_features([pyramid[0].float()], boxes, (64, 96)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(roi_features(pyramid, boxes, (64, 96)), found)
        content = QueryProjector(3, hidden=5).train()(found)
    assert content.isfinite().all()


def test_no_box_gives_no_features() -> None:
    assert roi_features([torch.zeros(2, 3, 8, 8)], [NO_BOX, NO_BOX], (64, 64)).shape == (0, 3, 7, 7)
    with pytest.raises(ValueError, match="boxes_xyxy has 1 images, the pyramid 2"):
        roi_features([torch.zeros(2, 3, 8, 8)], [NO_BOX], (64, 64))


# ---- build_consistency_queries


def test_layout_by_hand() -> None:
    content = torch.tensor([[1.0, 1], [2, 2], [3, 3]])
    weak_boxes = [boxes / 2 for boxes in BOXES]
    queries = build_consistency_queries(
        content, content * 10, BOXES, weak_boxes, strong_sizes=SIZES, weak_sizes=SIZES, eps=1e-3, copies=2
    )
    # n = 2; the second image has one box, its slots 1 and 3 are empty.
    assert queries.strong.content[..., 0].tolist() == [[1, 2, 1, 2], [3, 0, 3, 0]]
    assert queries.weak.content[..., 1].tolist() == [[10, 20, 10, 20], [30, 0, 30, 0]]
    assert queries.strong.group_sizes == queries.weak.group_sizes == (2, 2)
    assert queries.image_index.tolist() == [0, 0, 1, 0, 0, 1]
    assert queries.query_index.tolist() == [0, 1, 0, 2, 3, 2]
    assert queries.is_real.tolist() == [True] * 6
    # (10, 20, 50, 60) of 200 x 100 pixels: centre (0.15, 0.4), size (0.2, 0.4); logit(p) = log(p / (1 - p)).
    by_hand = [math.log(0.15 / 0.85), math.log(2 / 3), math.log(0.25), math.log(2 / 3)]
    for slot in (0, 2):
        assert queries.strong.reference_logits[0, slot].tolist() == pytest.approx(by_hand, abs=1e-5)
    # The whole image: centre 0.5, size 1, whose logit is bounded: log(1 / 1e-3).
    whole = [0, 0, math.log(1000), math.log(1000)]
    assert queries.strong.reference_logits[0, 1].tolist() == pytest.approx(whole, abs=1e-4)
    assert not queries.strong.reference_logits[1, 1::2].any()
    # Half of (5, 8, 45, 40) in the weak view of 50 x 80: centre (0.25, 0.15), size (0.4, 0.2).
    weak = queries.weak.reference_logits[1, 2].sigmoid()
    torch.testing.assert_close(weak, torch.tensor([0.25, 0.15, 0.4, 0.2]))


@pytest.mark.parametrize("case", [0, 1])
def test_layout_as_recorded_from_the_released_code(case: int) -> None:
    recorded = load_recorded("query_masks.npz")["consistency"][case]
    sizes = torch.stack(recorded["image_hw"])
    boxes, _, is_real = with_dummies(*[recorded["pseudo_boxes_xyxy"]] * 2, *[sizes] * 2)
    copies = int(recorded["num_dn_group_1"])
    content = torch.rand(sum(len(b) for b in boxes), 4)
    queries = build_consistency_queries(
        content,
        content,
        boxes,
        boxes,
        strong_sizes=sizes,
        weak_sizes=sizes,
        eps=1e-5,
        copies=copies,
        is_real=is_real,
    )
    assert len(queries.strong) == int(recorded["pad_size_1"])
    assert queries.image_index.tolist() == recorded["known_bid_1"].tolist()
    assert queries.query_index.tolist() == recorded["map_known_indice_1"].tolist()
    expected = recorded["consis_box_unact"]
    torch.testing.assert_close(queries.strong.reference_logits, expected, rtol=1e-4, atol=5e-6)
    assert queries.is_real.sum() == copies * sum(len(b) for b in recorded["pseudo_boxes_xyxy"])
    denoising = int(recorded["num_dn_group_2"])
    sizes_of_denoising = (int(recorded["pad_size_2"]) // denoising,) * denoising
    mask = build_attention_mask(queries.strong.group_sizes + sizes_of_denoising, 6, "cpu")
    assert torch.equal(mask, recorded["attn_mask"])


def test_mask_by_hand() -> None:
    # Two copies of one slot, two denoising groups of two, two matching queries; 1 = blocked.
    sizes = queries_of([1], copies=2).strong.group_sizes
    rows = ("01111100", "10111100", "11001100", "11001100", "11110000", "11110000", "11111100", "11111100")
    expected = torch.tensor([[int(digit) for digit in row] for row in rows]).bool()
    assert torch.equal(build_attention_mask((*sizes, 2, 2), 2, "cpu"), expected)


def test_positions_invert_to_the_boxes_and_boxes_outside_are_bounded() -> None:
    sizes = torch.tensor([[64, 96]])
    boxes = [torch.tensor([[10.0, 20, 50, 60], [90, 60, 130, 80]])]
    content = torch.zeros(2, 4)
    queries = build_consistency_queries(
        content, content, boxes, boxes, strong_sizes=sizes, weak_sizes=sizes, eps=1e-5, copies=1
    )
    back = cxcywh_to_xyxy(queries.strong.reference_logits[0].sigmoid()) * torch.tensor([96.0, 64, 96, 64])
    torch.testing.assert_close(back[0], boxes[0][0], rtol=1e-4, atol=1e-2)
    # Center and size of the second: x 110 / 96 -> 1, y 70 / 64 -> 1, width 40 / 96, height 20 / 64.
    edge = math.log(1e5)
    by_hand = [edge, edge, math.log(40 / 56), math.log(20 / 44)]
    assert queries.strong.reference_logits[0, 1].tolist() == pytest.approx(by_hand, abs=1e-4)


def test_queries_of_two_images_are_those_of_each_alone() -> None:
    content = torch.rand(3, 4)
    shared: dict[str, Any] = {"eps": 1e-5, "copies": 2}
    both = build_consistency_queries(
        content, content, BOXES, BOXES, strong_sizes=SIZES, weak_sizes=SIZES.flip(0), **shared
    )
    for i, rows in enumerate((slice(0, 2), slice(2, 3))):
        alone = build_consistency_queries(
            content[rows],
            content[rows],
            [BOXES[i]],
            [BOXES[i]],
            strong_sizes=SIZES[i : i + 1],
            weak_sizes=SIZES.flip(0)[i : i + 1],
            **shared,
        )
        here = (both.image_index[both.image_index == i], both.query_index[both.image_index == i])
        for view in ("strong", "weak"):
            one, two = getattr(alone, view), getattr(both, view)
            assert torch.equal(two.content[here], one.content[0, alone.query_index])
            assert torch.equal(two.reference_logits[here], one.reference_logits[0, alone.query_index])


def test_no_box_in_any_image_gives_no_query() -> None:
    queries = queries_of([0, 0], copies=3)
    for view in (queries.strong, queries.weak):
        assert (view.content.shape, view.reference_logits.shape) == ((2, 0, 4), (2, 0, 4))
        assert view.group_sizes == ()
    assert queries.image_index.shape == queries.query_index.shape == queries.is_real.shape == (0,)


def test_lengths_that_do_not_agree_are_named() -> None:
    sizes: dict[str, Any] = {"strong_sizes": SIZES, "weak_sizes": SIZES, "eps": 1e-5, "copies": 1}
    three, two = torch.zeros(3, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="content_for_weak has 2 rows, boxes_strong 3 boxes"):
        build_consistency_queries(three, two, BOXES, BOXES, **sizes)
    with pytest.raises(ValueError, match=r"boxes_weak has \[1, 2\] entries per image, boxes_strong \[2, 1\]"):
        build_consistency_queries(three, three, BOXES, BOXES[::-1], **sizes)
    with pytest.raises(ValueError, match=r"is_real has \[2, 0\] entries"):
        is_real = [torch.ones(2, dtype=torch.bool), torch.ones(0, dtype=torch.bool)]
        build_consistency_queries(three, three, BOXES, BOXES, **sizes, is_real=is_real)
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        build_consistency_queries(three, three, BOXES, BOXES, **(sizes | {"copies": 0}))
    with pytest.raises(ValueError, match="boxes_strong has no image"):
        build_consistency_queries(three, three, [], [], **sizes)


# ---- with_dummies


def test_an_image_without_boxes_gets_a_dummy_in_each_view() -> None:
    # 200 x 100 pixels (w x h) in the strong view, 50 x 80 in the weak one.
    strong, weak, is_real = with_dummies([NO_BOX, BOXES[1]], [NO_BOX, BOXES[1]], SIZES, SIZES.flip(0))
    assert strong[0].tolist() == [[50, 25, 150, 75]]
    assert weak[0].tolist() == [[12.5, 20, 37.5, 60]]
    assert torch.equal(strong[1], BOXES[1]) and torch.equal(weak[1], BOXES[1])
    assert [flags.tolist() for flags in is_real] == [[False], [True]]


# ---- consistency_loss


def test_loss_by_hand() -> None:
    # Row 0: (3, 4) -> (0.6, 0.8) against (1, 0): squares 0.16 + 0.64. Row 1, a dummy: (0, 1) against (1, 0): 1 + 1.
    student = torch.tensor([[[[3.0, 4]], [[0, 2]]]])  # (P=1, B=2, N=1, D=2)
    teacher = torch.tensor([[[[7.0, 0]], [[1, 0]]]])
    is_real = [torch.tensor([True]), torch.tensor([False])]
    queries = queries_of([1, 1], is_real=is_real)
    # Real rows: 0.8 / (2 * 1). All rows: share 1 / 2 of (0.8 + 2) / (2 * 2).
    assert consistency_loss(student, teacher, queries, rows="real").tolist() == pytest.approx([0.4])
    assert consistency_loss(student, teacher, queries, rows="all").tolist() == pytest.approx([0.35])


def test_all_rows_is_what_the_broadcast_weights_of_the_released_code_give() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    is_real = [torch.ones(2, dtype=torch.bool), torch.tensor([False]), torch.tensor([True])]
    queries = queries_of([2, 1, 1], copies=2, is_real=is_real)
    where = (queries.image_index, queries.query_index)
    expected = []
    for states, answers in zip(student, teacher, strict=True):
        rows, wanted = states[where], answers[where]
        errors = (rows / rows.norm(dim=1, keepdim=True) - wanted / wanted.norm(dim=1, keepdim=True)) ** 2
        weights = queries.is_real.float()[:, None, None]  # (M, 1, 1) against (M, D)
        expected.append((weights * errors).mean())
    actual = consistency_loss(student, teacher, queries, rows="all")
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_without_dummies_both_ways_to_count_rows_agree_and_follow_the_cosine() -> None:
    student, teacher = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    queries = queries_of([3, 2])
    real = consistency_loss(student, teacher, queries, rows="real")
    torch.testing.assert_close(real, consistency_loss(student, teacher, queries, rows="all"))
    cosine = torch.cosine_similarity(student, teacher, dim=-1)[:, queries.image_index, queries.query_index]
    torch.testing.assert_close(real, (2 - 2 * cosine).mean(dim=1) / 8)


@pytest.mark.parametrize("rows", ["real", "all"])
def test_equal_states_cost_nothing_and_lengths_do_not_matter(rows: Any) -> None:
    states = torch.randn(3, 2, 4, 8)
    queries = queries_of([4, 1])
    torch.testing.assert_close(consistency_loss(states, states, queries, rows=rows), torch.zeros(3))
    torch.testing.assert_close(consistency_loss(states * 5, states, queries, rows=rows), torch.zeros(3))
    assert (consistency_loss(-states, states, queries, rows=rows) > 0.1).all()


@pytest.mark.parametrize("rows", ["real", "all"])
def test_copies_of_equal_states_give_the_loss_of_one(rows: Any) -> None:
    student, teacher = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    is_real = [torch.ones(3, dtype=torch.bool), torch.tensor([False])]
    one = consistency_loss(student, teacher, queries_of([3, 1], is_real=is_real), rows=rows)
    five = consistency_loss(
        student.repeat(1, 1, 5, 1),
        teacher.repeat(1, 1, 5, 1),
        queries_of([3, 1], copies=5, is_real=is_real),
        rows=rows,
    )
    torch.testing.assert_close(one, five)


def test_the_order_of_boxes_does_not_matter_but_empty_slots_never_count() -> None:
    student, teacher = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    queries = queries_of([3, 1])
    loss = consistency_loss(student, teacher, queries, rows="real")
    student_moved, teacher_moved = student.clone(), teacher.clone()
    order = torch.tensor([2, 0, 1])
    student_moved[:, 0], teacher_moved[:, 0] = student[:, 0, order], teacher[:, 0, order]
    student_moved[:, 1, 1:] = 1e6
    torch.testing.assert_close(consistency_loss(student_moved, teacher_moved, queries, rows="real"), loss)
    mixed = consistency_loss(student_moved, teacher, queries, rows="real")
    assert not torch.allclose(mixed, loss)


def test_loss_of_two_images_is_the_mean_over_their_boxes() -> None:
    student, teacher = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    both = consistency_loss(student, teacher, queries_of([3, 1]), rows="real")
    first = consistency_loss(student[:, :1], teacher[:, :1], queries_of([3]), rows="real")
    second = consistency_loss(student[:, 1:, :1], teacher[:, 1:, :1], queries_of([1]), rows="real")
    torch.testing.assert_close(both, (3 * first + second) / 4)


@pytest.mark.parametrize("rows", ["real", "all"])
def test_without_boxes_the_loss_is_zero_and_part_of_the_graph(rows: Any) -> None:
    hidden = torch.zeros(2, 2, 0, 8, requires_grad=True)
    loss = consistency_loss(hidden, hidden, queries_of([0, 0]), rows=rows)
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert hidden.grad is not None
    # Only dummies: nothing to learn either, but a row of states.
    student = torch.randn(2, 1, 1, 8, requires_grad=True)
    dummies = queries_of([1], is_real=[torch.tensor([False])])
    loss = consistency_loss(student, torch.randn(2, 1, 1, 8), dummies, rows=rows)
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert student.grad is not None and not student.grad.any()


def test_states_of_zero_have_a_finite_gradient_and_half_precision_is_computed_in_float32() -> None:
    student = torch.zeros(1, 1, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = consistency_loss(student, torch.ones(1, 1, 2, 8).bfloat16(), queries_of([2]), rows="real")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 / 8)  # |0 - z|^2 = 1 over 8 channels
    loss.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_states_of_other_queries_are_refused() -> None:
    right, wrong = torch.zeros(2, 1, 2, 8), torch.zeros(2, 1, 14, 8)
    with pytest.raises(ValueError, match="student_hidden has 14 queries, the consistency queries 2 slots"):
        consistency_loss(wrong, right, queries_of([2]), rows="real")
    with pytest.raises(ValueError, match="teacher_hidden has 14 queries"):
        consistency_loss(right, wrong, queries_of([2]), rows="real")
    with pytest.raises(ValueError, match='rows must be "real" or "all", got \'some\''):
        consistency_loss(right, right, queries_of([2]), rows="some")  # type: ignore[arg-type]


# ---- all of it together


def test_gradient_reaches_projector_and_student_but_not_the_teacher_through_a_whole_detector() -> None:
    student, teacher = tiny_model(0), tiny_model(1)
    pixel_values, pixel_mask, _ = tiny_batch()
    projector = QueryProjector(32, hidden=16).train()
    weak_boxes = [torch.tensor([[5.0, 5, 60, 50], [20, 10, 40, 40]]), torch.tensor([[8.0, 8, 60, 60]])]
    strong_boxes = [boxes + 2 for boxes in weak_boxes]
    sizes = torch.tensor([[64, 96], [64, 72]])
    teacher_features = teacher.encode(pixel_values, pixel_mask)
    with torch.no_grad():
        rois = roi_features(teacher_features.pyramid, weak_boxes, (64, 96))
    content = projector(rois)
    queries = build_consistency_queries(
        content, content.detach(), strong_boxes, weak_boxes, strong_sizes=sizes, weak_sizes=sizes, eps=1e-5, copies=2
    )
    count = len(queries.strong)
    encoded = student.encode(pixel_values, pixel_mask)
    states = []
    for network, features, extra in ((student, encoded, queries.strong), (teacher, teacher_features, queries.weak)):
        output = network.model.decode(features, extra)
        states.append(output.intermediate_hidden_states.transpose(0, 1)[:, :, :count])
    # Copies do not see each other, so they are answered alike, also those of empty slots.
    torch.testing.assert_close(states[0][:, :, :2], states[0][:, :, 2:])
    loss = consistency_loss(states[0], states[1], queries, rows="real")
    assert loss.shape == (2,) and (loss > 0).all()
    loss.sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert student.model.decoder.layers[0].self_attn.q_proj.weight.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())
