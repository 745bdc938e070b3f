import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from semidetr_hf import geometry
from semidetr_hf.data.augment import (
    GEOMETRY_OPS,
    AugmentConfig,
    geometry_homography,
    labeled_view,
    resize,
    strong_view,
    weak_view,
)
from semidetr_hf.data.images import Sample
from semidetr_hf.data.loading import LabeledDataset, PassSampler, ViewItem, pad_views
from semidetr_hf.model.box_ops import (
    class_wise_nms,
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    iou,
    xyxy_to_cxcywh,
)
from semidetr_hf.ssod.pseudo_labels import (
    CandidatePair,
    find_confident,
    project_to_view,
    select_candidates,
    suppress_duplicates,
    to_targets,
)
from semidetr_hf.structures import PseudoLabels, View

SIDES = st.integers(1, 10_000)
SIZES = st.tuples(SIDES, SIDES)
NUM_LABELS = 4
SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)
FACTORS = st.floats(0.05, 20) | st.floats(-20, -0.05)
ANY_FLOAT32 = st.floats(width=32)


@st.composite
def box_lists(draw: st.DrawFn, limit: float = 1e4, max_size: int = 6) -> Tensor:
    """(G, 4) float64 corners in order, within -limit..limit; also without width or height, also none at all."""
    edges = st.lists(st.floats(-limit, limit), min_size=4, max_size=4)
    rows = draw(st.lists(edges, max_size=max_size))
    corners = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


@st.composite
def axis_maps(draw: st.DrawFn) -> Tensor:
    """Scaling, mirroring and moving, which take boxes to boxes."""
    parts = [
        geometry.scaling(draw(FACTORS), draw(FACTORS)),
        geometry.translation(draw(st.floats(-1e4, 1e4)), draw(st.floats(-1e4, 1e4))),
        geometry.horizontal_flip(draw(st.floats(0, 1e4))),
    ]
    return geometry.compose(*draw(st.permutations(parts)))


@st.composite
def affine_maps(draw: st.DrawFn) -> Tensor:
    turn = geometry.rotation(draw(st.floats(-180, 180)), (draw(st.floats(-1e3, 1e3)), draw(st.floats(-1e3, 1e3))))
    return geometry.compose(draw(axis_maps()), turn, geometry.shear(draw(st.floats(-1, 1)), draw(st.floats(-1, 1))))


@st.composite
def detections(draw: st.DrawFn, max_size: int = 8) -> PseudoLabels:
    """Detections in an image of 100 x 100 pixels; scores are all different, so that no order is up to chance."""
    boxes = draw(box_lists(limit=100, max_size=max_size)).float().clamp(min=0)
    scores = draw(st.lists(st.integers(0, 10_000), min_size=len(boxes), max_size=len(boxes), unique=True))
    labels = draw(st.lists(st.integers(0, NUM_LABELS - 1), min_size=len(boxes), max_size=len(boxes)))
    return PseudoLabels(
        boxes_xyxy=boxes,
        class_labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32) / 10_000,
    )


def rows_of(labels: PseudoLabels) -> list[tuple[float, ...]]:
    columns = zip(labels.boxes_xyxy.tolist(), labels.class_labels.tolist(), labels.scores.tolist(), strict=True)
    return [(*box, label, score) for box, label, score in columns]


def is_within(boxes_xyxy: Tensor, image_size: Sequence[int]) -> bool:
    height, width = image_size
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return bool(((boxes_xyxy >= 0) & (boxes_xyxy <= limit)).all())


# ---- Formats and overlaps


@given(box_lists())
def test_box_formats_there_and_back(boxes: Tensor) -> None:
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, rtol=0, atol=1e-9)


@given(box_lists(), box_lists())
def test_overlaps_keep_their_bounds_and_do_not_depend_on_the_order(a: Tensor, b: Tensor) -> None:
    a, b = a.float()[:, None], b.float()[None]
    plain, general = iou(a, b), generalized_iou(a, b)
    assert ((plain >= 0) & (plain <= 1)).all()
    assert ((general >= -1) & (general <= plain + 1e-6)).all()
    assert torch.equal(plain, iou(b, a)) and torch.equal(general, generalized_iou(b, a))


@given(box_lists())
def test_a_box_covers_itself(boxes: Tensor) -> None:
    boxes = boxes[geometry.has_visible_area(boxes, 1e-2)]
    torch.testing.assert_close(iou(boxes, boxes), torch.ones(len(boxes), dtype=boxes.dtype))
    torch.testing.assert_close(generalized_iou(boxes, boxes), torch.ones(len(boxes), dtype=boxes.dtype))


@given(box_lists(limit=100), box_lists(limit=100), axis_maps())
def test_overlaps_survive_moving_mirroring_and_scaling(a: Tensor, b: Tensor, homography: Tensor) -> None:
    a, b = (boxes[geometry.has_visible_area(boxes, 0.1)] for boxes in (a, b))
    moved_a, moved_b = (geometry.apply_to_boxes(homography, boxes) for boxes in (a, b))
    for measure in (iou, generalized_iou):
        before, after = measure(a[:, None], b[None], eps=1e-12), measure(moved_a[:, None], moved_b[None], eps=1e-12)
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


@given(st.lists(SHARES, min_size=1), st.sampled_from([1e-3, 1e-5]))
def test_the_inverse_sigmoid_is_finite_rising_and_undone_by_the_sigmoid(shares: list[float], eps: float) -> None:
    values = torch.tensor(sorted(shares), dtype=torch.float64)
    logits = inverse_sigmoid(values, eps)
    assert logits.isfinite().all() and (logits.diff() >= 0).all()
    inner = (values >= eps) & (values <= 1 - eps)
    torch.testing.assert_close(logits.sigmoid()[inner], values[inner])
    torch.testing.assert_close(logits.sigmoid(), values, rtol=0, atol=2 * eps)


@given(st.lists(st.tuples(*[ANY_FLOAT32] * 4), max_size=8), SIZES)
def test_clipping_once_is_enough_whatever_the_coordinates(rows: list[tuple[float, ...]], size: tuple) -> None:
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    clipped = geometry.clip_boxes(boxes, size)
    assert torch.equal(geometry.clip_boxes(clipped, size).nan_to_num(-1), clipped.nan_to_num(-1))
    finite = ~boxes.isnan().any(1)
    assert is_within(clipped[finite], size)
    inside = torch.tensor([is_within(box[None], size) for box in boxes], dtype=torch.bool)
    assert torch.equal(clipped[inside], boxes[inside])
    # What is not a number is no area, so it leaves with the boxes that are outside.
    assert is_within(clipped[geometry.has_visible_area(clipped)], size)


# ---- Homographies


@given(box_lists(), axis_maps())
def test_boxes_come_back_from_where_axes_stay_axes(boxes: Tensor, homography: Tensor) -> None:
    there = geometry.apply_to_boxes(homography, boxes)
    back = geometry.apply_to_boxes(geometry.invert(homography), there)
    torch.testing.assert_close(back, boxes, rtol=1e-9, atol=1e-6)


@given(box_lists(limit=1e3), affine_maps(), SHARES, SHARES)
def test_the_hull_holds_every_point_of_the_box_and_no_more_than_it_must(
    boxes: Tensor, homography: Tensor, share_x: float, share_y: float
) -> None:
    hull = geometry.apply_to_boxes(homography, boxes)
    x = boxes[:, 0] + share_x * (boxes[:, 2] - boxes[:, 0])
    y = boxes[:, 1] + share_y * (boxes[:, 3] - boxes[:, 1])
    points = torch.stack([x, y, torch.ones_like(x)], -1) @ homography.T
    assert (points[:, :2] >= hull[:, :2] - 1e-6).all() and (points[:, :2] <= hull[:, 2:] + 1e-6).all()
    # The hull of the way back holds the box, too.
    back = geometry.apply_to_boxes(geometry.invert(homography), hull)
    assert (back[:, :2] <= boxes[:, :2] + 1e-5).all() and (back[:, 2:] >= boxes[:, 2:] - 1e-5).all()


@given(affine_maps(), affine_maps(), affine_maps())
def test_composition_is_associative_and_inverted_in_reverse_order(a: Tensor, b: Tensor, c: Tensor) -> None:
    whole = geometry.compose(a, b, c)
    torch.testing.assert_close(geometry.compose(geometry.compose(a, b), c), whole, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(geometry.compose(a, geometry.compose(b, c)), whole, rtol=1e-9, atol=1e-6)
    back = geometry.compose(geometry.invert(c), geometry.invert(b), geometry.invert(a))
    torch.testing.assert_close(geometry.compose(whole, back), geometry.identity(), rtol=0, atol=1e-5)


@given(affine_maps(), st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]))
def test_a_homography_that_flattens_has_no_inverse_and_says_so(homography: Tensor, factors: tuple) -> None:
    flat = geometry.compose(geometry.scaling(*factors), homography)
    assume(float(torch.linalg.det(flat)) == 0)
    with pytest.raises(ValueError, match="no inverse") as caught:
        geometry.invert(flat)
    assert "\n" not in str(caught.value)


# ---- Views


@st.composite
def augmentations(draw: st.DrawFn) -> AugmentConfig:
    """Every geometry that there is, without colors and patches; what the image does not cover is black."""
    edges = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    return AugmentConfig(
        short_edges=tuple(edges),
        long_edge=draw(st.integers(max(edges), 120)),
        flip_probability=draw(st.sampled_from([0.0, 0.5, 1.0])),
        color=False,
        max_translation=draw(SHARES),
        max_rotation=draw(st.floats(0, 180)),
        max_shear=draw(st.floats(0, 45)),
        erase_patches=(0, 0),
        fill=0,
    )


@given(SIZES, st.integers(1, 500), st.integers(0, 500))
def test_a_resized_image_keeps_its_limits_and_its_corners(size: tuple, short_edge: int, longer: int) -> None:
    width, height = size
    assume(width * height <= 1_000_000)
    view = resize(Image.new("RGB", size), short_edge, short_edge + longer)
    new_width, new_height = view.image.size
    assert 1 <= min(new_width, new_height) <= short_edge and max(new_width, new_height) <= short_edge + longer
    whole = torch.tensor([[0, 0, width, height]], dtype=torch.float64)
    corners = torch.tensor([[0, 0, new_width, new_height]], dtype=torch.float64)
    torch.testing.assert_close(geometry.apply_to_boxes(view.homography, whole), corners)
    # Rounded to whole pixels, the ratio is kept where there are enough of them.
    if min(new_width, new_height) > 1:
        assert abs(new_width / width - new_height / height) <= 0.5 / width + 0.5 / height + 1e-9


@pytest.mark.parametrize("make_view", [weak_view, strong_view, labeled_view])
@given(augmentations(), st.tuples(st.integers(8, 60), st.integers(8, 60)), st.data())
def test_the_homography_of_a_view_says_where_a_marked_rectangle_went(
    make_view, config: AugmentConfig, size: tuple[int, int], data: st.DataObject
) -> None:
    width, height = size
    left, top = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    right, bottom = data.draw(st.integers(left + 4, width)), data.draw(st.integers(top + 4, height))
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (left, top, right, bottom))
    view = make_view(image, config, random.Random(data.draw(SEEDS)))

    shown = np.asarray(view.image.convert("L"))
    rows, columns = np.indices(shown.shape) + 0.5
    centers = torch.from_numpy(np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3))
    origin = (centers @ geometry.invert(view.homography).T)[:, :2].numpy()
    # Original pixels that one pixel of the view spans; interpolation mixes about as many on either side.
    blur = 1.5 * max(1.0, *geometry.invert(view.homography)[:2, :2].abs().sum(1).tolist())
    low, high = np.array([left, top]), np.array([right, bottom])
    inside = ((origin >= low + blur) & (origin <= high - blur)).all(1)
    outside = ((origin < low - blur) | (origin > high + blur)).any(1)
    assert (shown.ravel()[inside] > 200).all()
    assert (shown.ravel()[outside] < 55).all()


@dataclass
class OneImage:
    """A source of one black image."""

    sample: Sample
    category_names: tuple[str, ...] = ("a",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample


@given(augmentations(), st.tuples(st.integers(1, 200), st.integers(1, 200)), box_lists(limit=400), SEEDS)
def test_targets_lie_in_the_view_in_the_order_of_the_boxes(
    config: AugmentConfig, size: tuple[int, int], boxes: Tensor, seed: int
) -> None:
    sample = Sample(
        image=Image.new("RGB", size),
        boxes_xyxy=geometry.clip_boxes(boxes.float(), (size[1], size[0])),
        class_labels=torch.arange(len(boxes)),
        image_id=1,
        file_name="x.png",
    )
    dataset = LabeledDataset(OneImage(sample), config, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    item = dataset[0, seed]
    kept = item.target["class_labels"]
    assert (kept.diff() > 0).all()
    corners = cxcywh_to_xyxy(item.target["boxes"])
    assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
    view_height, view_width = item.view.pixel_values.shape[-2:]
    pixels = corners * torch.tensor([view_width, view_height] * 2)
    expected = geometry.apply_to_boxes(item.view.homography, sample.boxes_xyxy[kept])
    torch.testing.assert_close(pixels, geometry.clip_boxes(expected, (view_height, view_width)), rtol=0, atol=1e-3)
    assert geometry.has_visible_area(pixels, 0.99).all()


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5))
def test_a_padded_batch_holds_every_view_and_zeros_beside_it(sizes: list[tuple[int, int]]) -> None:
    items = [
        ViewItem(pixel_values=torch.rand(3, *size) + 0.1, homography=geometry.scaling(place + 1, 1))
        for place, size in enumerate(sizes)
    ]
    batch = pad_views(items)
    assert batch.pixel_values.shape == (len(sizes), 3, *(max(side) for side in zip(*sizes, strict=True)))
    assert batch.image_sizes.tolist() == [list(size) for size in sizes]
    for row, (item, (height, width)) in enumerate(zip(items, sizes, strict=True)):
        assert torch.equal(batch.pixel_values[row, :, :height, :width], item.pixel_values)
        assert torch.equal(batch.homographies[row], item.homography)
        assert batch.pixel_mask[row, :height, :width].all()
        assert batch.pixel_mask[row].sum() == height * width
        assert not batch.pixel_values[row][:, batch.pixel_mask[row] == 0].any()


@given(st.integers(1, 30), st.integers(0, 90), st.integers(0, 2**64), st.data())
def test_the_sampler_goes_on_where_it_is_told_to_and_shows_everything_once_a_pass(
    num_images: int, num_draws: int, seed: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, num_draws))
    whole = list(PassSampler(num_images, num_draws, seed))
    assert list(PassSampler(num_images, num_draws, seed, start)) == whole[start:]
    assert list(PassSampler(num_images, num_draws + 7, seed))[:num_draws] == whole
    for first in range(0, num_draws - num_images + 1, num_images):
        assert sorted(index for index, _ in whole[first : first + num_images]) == list(range(num_images))
    assert len({draw_seed for _, draw_seed in whole}) == num_draws


# ---- Pseudo-labels


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits (Q, C), no two of them the same, and boxes (Q, 4) cxcywh that may reach out of the image."""
    queries, labels = draw(st.integers(0, 8)), draw(st.integers(1, 3))
    count = queries * labels
    logits = draw(st.lists(st.integers(-400, 400), min_size=count, max_size=count, unique=True))
    boxes = draw(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=queries, max_size=queries))
    return (
        torch.tensor(logits, dtype=torch.float32).reshape(queries, labels) / 50,
        torch.tensor(boxes, dtype=torch.float32).reshape(queries, 4),
    )


@given(predictions(), SIZES, SHARES, SHARES, st.integers(1, 10), st.randoms(use_true_random=False))
def test_detections_are_sorted_distinct_and_do_not_depend_on_the_order_of_queries(
    predicted: tuple, size: tuple, iou_threshold: float, min_score: float, most: int, rng: random.Random
) -> None:
    logits, boxes = predicted
    rules = {"iou_threshold": iou_threshold, "min_score": min_score, "max_detections": most}
    found = suppress_duplicates(logits, boxes, image_size=size, **rules)
    assert is_within(found.boxes_xyxy, size) and len(found) <= most
    assert (found.scores > min_score).all() and (found.scores.diff() <= 0).all()
    # Before they are compared boxes are moved away from those of other classes, which rounds them and costs tiny ones
    # their area.
    large = found[geometry.has_visible_area(found.boxes_xyxy, 1.0)]
    overlap = iou(large.boxes_xyxy[:, None], large.boxes_xyxy[None]).fill_diagonal_(0)
    same_class = large.class_labels[:, None] == large.class_labels[None]
    assert not (same_class & (overlap > iou_threshold + 0.01)).any()
    order = rng.sample(range(len(logits)), len(logits))
    again = suppress_duplicates(logits[order], boxes[order], image_size=size, **rules)
    assert rows_of(again) == rows_of(found)


@given(predictions(), SHARES)
def test_suppressing_duplicates_twice_is_suppressing_them_once(predicted: tuple, iou_threshold: float) -> None:
    logits, boxes = predicted
    pixels = geometry.clip_boxes(cxcywh_to_xyxy(boxes) * 500, (500, 500))
    rules = {"iou_threshold": iou_threshold, "min_score": 0.0, "max_detections": 100}
    boxes, labels, scores = class_wise_nms(pixels, logits.sigmoid(), **rules)
    one_hot = torch.zeros(len(boxes), logits.shape[1])
    one_hot[torch.arange(len(boxes)), labels] = scores
    again = class_wise_nms(boxes, one_hot, **rules)
    assert torch.equal(again[0], boxes) and torch.equal(again[1], labels) and torch.equal(again[2], scores)


@given(st.lists(st.tuples(*[ANY_FLOAT32] * 6), max_size=8), SIZES)
def test_whatever_the_network_says_candidates_are_boxes_in_the_image(rows: list[tuple], size: tuple) -> None:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    found = suppress_duplicates(
        values[:, :2], values[:, 2:], image_size=size, iou_threshold=0.6, min_score=0.01, max_detections=300
    )
    candidates = select_candidates(found, mean_std_filter=True, always_keep=torch.full((2,), 0.4))
    assert is_within(candidates.boxes_xyxy, size) and candidates.scores.isfinite().all()
    assert geometry.has_visible_area(candidates.boxes_xyxy).all()


@given(detections(), st.booleans(), st.none() | SHARES, st.randoms(use_true_random=False))
def test_candidates_are_the_best_scores_whatever_the_order(
    found: PseudoLabels, mean_std_filter: bool, always_keep: float | None, rng: random.Random
) -> None:
    bar = None if always_keep is None else torch.full((NUM_LABELS,), always_keep)
    rules = {"mean_std_filter": mean_std_filter, "always_keep": bar}
    chosen = select_candidates(found, **rules)
    order = torch.tensor(rng.sample(range(len(found)), len(found)), dtype=torch.int64)
    assert set(rows_of(select_candidates(found[order], **rules))) == set(rows_of(chosen))
    visible = found[geometry.has_visible_area(found.boxes_xyxy)]
    expected = [row for row in rows_of(visible) if row[-1] >= min(chosen.scores.tolist(), default=2)]
    assert rows_of(chosen) == expected
    if not mean_std_filter:
        assert len(chosen) == len(visible)
    elif always_keep is not None:
        assert {row for row in rows_of(visible) if row[-1] >= np.float32(always_keep)} <= set(rows_of(chosen))


def view_of(size: tuple[int, int], homography: Tensor) -> View:
    return View(
        pixel_values=torch.zeros(1, 3, 1, 1),
        pixel_mask=torch.ones(1, 1, 1, dtype=torch.int64),
        image_sizes=torch.tensor([size]),
        homographies=homography[None],
    )


@st.composite
def drawn_views(draw: st.DrawFn) -> View:
    """A view of an image of 100 x 100 pixels with any of the moves of a strong view."""
    size = (draw(st.integers(1, 1000)), draw(st.integers(1, 1000)))
    move = geometry_homography(
        draw(st.sampled_from(GEOMETRY_OPS)), (size[1], size[0]), AugmentConfig(), random.Random(draw(SEEDS))
    )
    return view_of(size, geometry.compose(geometry.scaling(size[1] / 100, size[0] / 100), move))


@given(detections(), drawn_views(), drawn_views(), st.none() | st.floats(0, 50))
def test_projected_rows_are_the_same_objects_and_lie_in_the_strong_view(
    found: PseudoLabels, weak: View, strong: View, min_box_size: float | None
) -> None:
    (pair,) = project_to_view([found], weak, strong, min_box_size=min_box_size)
    assert len(pair.weak) == len(pair.strong)
    # Scores are all different, so they say which detection a row is.
    place = [found.scores.tolist().index(score) for score in pair.weak.scores.tolist()]
    assert place == sorted(place) and rows_of(pair.weak) == rows_of(found[torch.tensor(place, dtype=torch.int64)])
    assert torch.equal(pair.strong.scores, pair.weak.scores)
    assert torch.equal(pair.strong.class_labels, pair.weak.class_labels)
    assert pair.strong.boxes_xyxy.isfinite().all()
    assert is_within(pair.strong.boxes_xyxy, strong.image_sizes[0].tolist())
    if min_box_size is None:
        assert len(pair) == len(found)
    else:
        assert geometry.has_visible_area(pair.strong.boxes_xyxy, min_box_size).all()


@given(detections(), axis_maps(), st.tuples(st.integers(1, 1000), st.integers(1, 1000)))
def test_projecting_to_a_mirrored_scaled_view_and_back_changes_nothing(
    found: PseudoLabels, other: Tensor, size: tuple[int, int]
) -> None:
    weak = view_of((100, 100), geometry.identity())
    height, width = size
    strong = view_of(
        size, geometry.compose(geometry.scaling(width / 100, height / 100), geometry.horizontal_flip(width))
    )
    (there,) = project_to_view([found], weak, strong, min_box_size=None)
    (back,) = project_to_view([there.strong], strong, weak, min_box_size=None)
    torch.testing.assert_close(back.strong.boxes_xyxy, found.boxes_xyxy, rtol=0, atol=1e-2)
    # Only the way from one view to the other counts, not how both came from the original.
    shifted = [replace(v, homographies=geometry.compose(other, v.homographies[0])[None]) for v in (weak, strong)]
    (same,) = project_to_view([found], *shifted, min_box_size=None)
    torch.testing.assert_close(same.strong.boxes_xyxy, there.strong.boxes_xyxy, rtol=1e-4, atol=1e-2)


@given(detections(), st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), SHARES)
def test_targets_and_confident_rows_describe_the_pseudo_labels(
    found: PseudoLabels, size: tuple[int, int], threshold: float
) -> None:
    (target,) = to_targets([found], view_of(size, geometry.identity()))
    pixels = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([size[1], size[0]] * 2)
    torch.testing.assert_close(pixels, found.boxes_xyxy, rtol=1e-5, atol=1e-2)
    assert torch.equal(target["class_labels"], found.class_labels)
    (confident,) = find_confident([CandidatePair(found, found)], torch.full((NUM_LABELS,), threshold))
    assert confident.tolist() == [score >= np.float32(threshold) for score in found.scores.tolist()]
