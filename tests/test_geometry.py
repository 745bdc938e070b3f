import math

import pytest
import torch
from recorded import load_recorded
from torch import Tensor

from semidetr_hf.geometry import (
    apply_to_boxes,
    clip_boxes,
    compose,
    has_visible_area,
    horizontal_flip,
    identity,
    invert,
    rotation,
    scaling,
    shear,
    translation,
)

BOXES = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 100.0, 80.0]], dtype=torch.float64)
EMPTY = torch.zeros((0, 4))


@pytest.mark.parametrize(
    ("homography", "expected"),
    [
        (identity(), [10, 20, 30, 60]),
        (scaling(2.0, 0.5), [20, 10, 60, 30]),
        # In an image of width 100, x becomes 100 - x: left and right edge change places.
        (horizontal_flip(100), [70, 20, 90, 60]),
        (translation(-5, 7), [5, 27, 25, 67]),
        # A quarter turn clockwise about (0, 0), y down: (x, y) -> (-y, x).
        (rotation(90, (0, 0)), [-60, 10, -20, 30]),
        # Half a turn about (50, 50): (x, y) -> (100 - x, 100 - y).
        (rotation(180, (50, 50)), [70, 40, 90, 80]),
        # x += 0.5 y: corners (20, 20), (40, 20), (60, 60), (40, 60).
        (shear(0.5, 0.0), [20, 20, 60, 60]),
        # x += y, then y += x of the moved point: corners (30, 50), (50, 70), (90, 150), (70, 130).
        (shear(1.0, 1.0), [30, 50, 90, 150]),
    ],
)
def test_boxes_by_hand(homography: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(apply_to_boxes(homography, BOXES[:1])[0], torch.tensor(expected, dtype=torch.float64))


def test_from_a_flipped_weak_view_to_a_turned_strong_view() -> None:
    # Weak: 640x480 flipped. Strong: times 1.25 (800x600), flipped, turned by 30 degrees about its center.
    weak = horizontal_flip(640)
    strong = compose(scaling(1.25, 1.25), horizontal_flip(800), rotation(30, (400, 300)))
    to_strong = compose(invert(weak), strong)
    # Both flips cancel, so what is left is 1.25 times the turn: 1.25 cos 30 = 1.0825, 1.25 sin 30 = 0.625.
    torch.testing.assert_close(to_strong[:2, :2], 1.25 * rotation(30, (0, 0))[:2, :2])
    # Center (320, 240) -> (400, 300): shift = (400 - 1.0825 * 320 + 0.625 * 240, 300 - 0.625 * 320 - 1.0825 * 240).
    cosine = 1.25 * math.cos(math.radians(30))
    shift = torch.tensor([400 - cosine * 320 + 150, 300 - 200 - cosine * 240], dtype=torch.float64)
    torch.testing.assert_close(to_strong[:2, 2], shift)
    torch.testing.assert_close(shift, torch.tensor([203.590, -159.808], dtype=torch.float64), atol=1e-3, rtol=0)
    # Corners of (100, 80, 220, 200): left = 1.08253 * 100 - 0.625 * 200 + 203.590 = 186.843,
    # right = 1.08253 * 220 - 0.625 * 80 + 203.590 = 391.747, top = 0.625 * 100 + 1.08253 * 80 - 159.808 = -10.705,
    # clipped to 0, bottom = 0.625 * 220 + 1.08253 * 200 - 159.808 = 194.199. The released code turns about pixel
    # centers instead, (399.5, 299.5), and has (186.526, 0, 391.430, 194.382).
    box = apply_to_boxes(to_strong, torch.tensor([[100.0, 80.0, 220.0, 200.0]]))
    clipped = clip_boxes(box, (600, 800))
    torch.testing.assert_close(clipped, torch.tensor([[186.843, 0.0, 391.747, 194.199]]), atol=2e-3, rtol=0)
    released = compose(scaling(1.25, 1.25), horizontal_flip(800), rotation(30, (399.5, 299.5)))
    theirs = clip_boxes(
        apply_to_boxes(compose(invert(weak), released), torch.tensor([[100.0, 80.0, 220.0, 200.0]])), (600, 800)
    )
    torch.testing.assert_close(theirs, torch.tensor([[186.526, 0.0, 391.430, 194.382]]), atol=2e-3, rtol=0)


def test_boxes_as_recorded_from_the_released_code() -> None:
    for case in load_recorded("bbox_transform.npz")["cases"]:
        height, width = case["out_hw"].tolist()
        mapped = clip_boxes(apply_to_boxes(case["matrix"].double(), case["boxes"]), (height, width))
        torch.testing.assert_close(mapped, case["result"], rtol=1e-4, atol=1e-2)


def test_weak_to_strong_as_recorded_from_the_released_code() -> None:
    recorded = load_recorded("bbox_transform.npz")
    for weak, strong, expected in zip(
        recorded["teacher_matrices"], recorded["student_matrices"], recorded["teacher_to_student"], strict=True
    ):
        ours = compose(invert(weak.double()), strong.double())
        torch.testing.assert_close(ours.float(), expected, rtol=1e-4, atol=1e-3)


def test_a_true_homography_is_divided_by_its_third_coordinate() -> None:
    homography = identity()
    homography[2, 0] = 0.01  # w = 1 + x / 100
    # (0, 0), (100, 0), (100, 50), (0, 50) -> (0, 0), (50, 0), (50, 25), (0, 50).
    mapped = apply_to_boxes(homography, torch.tensor([[0.0, 0.0, 100.0, 50.0]]))
    assert mapped.tolist() == [[0.0, 0.0, 50.0, 50.0]]


def test_there_and_back_again() -> None:
    # Without turn or shear the hull is exact, so the way back restores every box.
    there = compose(scaling(1.7, 0.6), horizontal_flip(170), translation(3, -4))
    torch.testing.assert_close(apply_to_boxes(invert(there), apply_to_boxes(there, BOXES)), BOXES)
    torch.testing.assert_close(compose(there, invert(there)), identity())


def test_a_hull_contains_every_mapped_point() -> None:
    homography = compose(shear(0.3, -0.2), rotation(25, (40, 30)))
    hull = apply_to_boxes(homography, BOXES[:1])[0]
    x = torch.rand(100, dtype=torch.float64) * 20 + 10
    y = torch.rand(100, dtype=torch.float64) * 40 + 20
    points = homography @ torch.stack([x, y, torch.ones_like(x)])
    assert bool((points[0] >= hull[0]).all() & (points[0] <= hull[2]).all())
    assert bool((points[1] >= hull[1]).all() & (points[1] <= hull[3]).all())


def test_order_of_compose_is_order_of_writing() -> None:
    # First doubled, then moved by 5: 10 -> 25. The other way round it would be 30.
    assert apply_to_boxes(compose(scaling(2, 2), translation(5, 0)), BOXES[:1])[0, 0] == 25
    with pytest.raises(ValueError, match="at least one homography"):
        compose()


def test_batches_of_homographies_compose_and_invert_one_by_one() -> None:
    first, second = torch.stack([scaling(2, 2), translation(1, 2)]), torch.stack([rotation(10, (3, 3)), identity()])
    composed = compose(first, second)
    for i in range(2):
        torch.testing.assert_close(composed[i], compose(first[i], second[i]))
        torch.testing.assert_close(invert(composed)[i], invert(composed[i]))


def test_two_boxes_are_mapped_as_each_alone() -> None:
    homography = rotation(33, (20, 20))
    both = apply_to_boxes(homography, BOXES)
    torch.testing.assert_close(both, torch.cat([apply_to_boxes(homography, BOXES[i : i + 1]) for i in range(2)]))


def test_nothing_stays_nothing_and_dtypes_are_kept() -> None:
    assert apply_to_boxes(rotation(10, (0, 0)), EMPTY).shape == (0, 4)
    assert clip_boxes(EMPTY, (10, 10)).shape == (0, 4)
    assert has_visible_area(EMPTY).shape == (0,)
    assert apply_to_boxes(rotation(10, (0, 0)), BOXES.float()).dtype == torch.float32


def test_clipping_and_visible_area() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 5.0, 5.0], [90.0, 10.0, 120.0, 20.0], [101.0, 0.0, 110.0, 9.0]])
    clipped = clip_boxes(boxes, (15, 100))
    # The last box lies outside: it collapses to a line.
    assert clipped.tolist() == [[0, 0, 5, 5], [90, 10, 100, 15], [100, 0, 100, 9]]
    assert has_visible_area(clipped).tolist() == [True, True, False]
    # 10 x 5 pixels is not more than 5 in both directions.
    assert has_visible_area(clipped, 5.0).tolist() == [False, False, False]
    assert has_visible_area(clipped, 4.9).tolist() == [True, True, False]


def test_a_homography_without_an_inverse_is_named() -> None:
    with pytest.raises(ValueError, match=r"homography=\[\[0.0, 0.0, 5.0\].* has no inverse"):
        invert(compose(scaling(0, 1), translation(5, 0)))
