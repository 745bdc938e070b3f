import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from semidetr_hf import geometry
from semidetr_hf.data.augment import (
    COLOR_OPS,
    GEOMETRY_OPS,
    AugmentConfig,
    distort_color,
    erase,
    geometry_homography,
    labeled_view,
    resize,
    strong_view,
    warp,
    weak_view,
)

SMALL = AugmentConfig(short_edges=(60, 80), long_edge=120)
BOX = (40, 30, 90, 70)  # xyxy of the painted rectangle


def rectangle(size: tuple[int, int] = (160, 120), box: tuple[int, int, int, int] = BOX) -> Image.Image:
    image = Image.new("RGB", size, (0, 0, 0))
    image.paste((255, 255, 255), box)
    return image


def ink_box(image: Image.Image) -> list[float]:
    """Return the xyxy hull of the pixels that are at least a fifth white: the tip of a slanted corner fills little."""
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 50)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def noise(size: tuple[int, int] = (100, 70)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# Geometry ------------------------------------------------------------------------------------------------------------

EXACT_OPS = {
    "nothing": geometry.identity(),
    "flip": geometry.horizontal_flip(160),
    "right": geometry.translation(16, 0),
    "up": geometry.translation(0, -9),
}


@pytest.mark.parametrize("name", EXACT_OPS)
def test_whole_pixel_moves_are_exact(name: str) -> None:
    # flip: 160 - 90 = 70 and 160 - 40 = 120, so 40..90 becomes 70..120
    expected = {
        "nothing": [40, 30, 90, 70],
        "flip": [70, 30, 120, 70],
        "right": [56, 30, 106, 70],
        "up": [40, 21, 90, 61],
    }
    homography = EXACT_OPS[name]
    moved = warp(rectangle(), homography, fill=0)
    assert ink_box(moved) == expected[name]
    mapped = geometry.apply_to_boxes(homography, torch.tensor([BOX], dtype=torch.float32))
    assert mapped.tolist() == [expected[name]]
    assert set(np.unique(np.asarray(moved))) == {0, 255}  # nothing was smeared over a half pixel


@pytest.mark.parametrize("op", GEOMETRY_OPS)
@pytest.mark.parametrize("flip", [False, True])
def test_the_mapped_box_is_where_the_ink_is(op: str, flip: bool) -> None:
    checked = 0
    for seed in range(30):
        homography = geometry_homography(op, (160, 120), AugmentConfig(), random.Random(seed))
        if flip:
            homography = geometry.compose(geometry.horizontal_flip(160), homography)
        mapped = geometry.apply_to_boxes(homography, torch.tensor([BOX], dtype=torch.float32))
        # Of a slanted rectangle that leaves the picture, the visible part is smaller than the clipped hull.
        if torch.equal(mapped, geometry.clip_boxes(mapped, (120, 160))):
            checked += 1
            assert ink_box(warp(rectangle(), homography, fill=0)) == pytest.approx(mapped[0].tolist(), abs=1.0)
    assert checked >= 15


def test_rotation_keeps_the_middle_pixel() -> None:
    # An odd canvas has a pixel in the middle; a turn about (w/2, h/2) leaves exactly that pixel.
    image = rectangle((41, 31), (20, 15, 21, 16))
    turned = warp(image, geometry.rotation(30.0, (20.5, 15.5)), fill=0)
    assert turned.getpixel((20, 15))[0] > 250 and ink_box(turned) == [20, 15, 21, 16]
    assert ink_box(warp(image, geometry.rotation(180.0, (20.5, 15.5)), fill=0)) == [20, 15, 21, 16]


def test_positive_rotation_is_clockwise_on_the_screen() -> None:
    # A block right of the center moves down by a quarter turn: (35, 15) - (20, 20) = (15, -5) becomes (5, 15).
    image = rectangle((40, 40), (34, 14, 36, 16))
    assert ink_box(warp(image, geometry.rotation(90.0, (20.0, 20.0)), fill=0)) == [24, 34, 26, 36]


def test_ranges_of_the_geometry() -> None:
    rng = random.Random(0)
    drawn = {
        op: torch.stack([geometry_homography(op, (200, 100), SMALL, rng) for _ in range(400)]) for op in GEOMETRY_OPS
    }
    shift_x, shift_y = drawn["translate_x"][:, 0, 2], drawn["translate_y"][:, 1, 2]
    assert 19 < shift_x.abs().max() <= 20 and 9.5 < shift_y.abs().max() <= 10
    assert shift_x.min() < 0 < shift_x.max()
    assert not drawn["translate_x"][:, 1, 2].any() and not drawn["translate_y"][:, 0, 2].any()
    degrees = torch.rad2deg(torch.atan2(drawn["rotate"][:, 1, 0], drawn["rotate"][:, 0, 0]))
    assert 29 < degrees.max() <= 30 and -30 <= degrees.min() < -29
    center = torch.tensor([100.0, 50.0, 1.0], dtype=torch.float64)
    assert (drawn["rotate"] @ center).allclose(center)
    # x' = x + f y, then y' = y + g x' = g x + (1 + f g) y, with |f| and |g| up to tanh(30 degrees) = 0.4805
    limit = math.tanh(math.radians(30))
    assert limit == pytest.approx(0.4805, abs=1e-4)
    for entry in (drawn["shear"][:, 0, 1], drawn["shear"][:, 1, 0]):
        assert limit * 0.97 < entry.abs().max() <= limit
    assert torch.linalg.det(drawn["shear"]).allclose(torch.ones(400, dtype=torch.float64))


def test_outside_is_gray_125() -> None:
    moved = warp(rectangle(), geometry.translation(16, 0))
    assert (np.asarray(moved)[:, :16] == 125).all() and (np.asarray(moved)[:, 16:40] == 0).all()


# Resize --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((640, 480), 800, 1333, (1067, 800)),  # 800/480 = 1.667; 640 * 1.667 + .5 = 1067.2
        ((640, 480), 600, 1333, (800, 600)),
        ((1000, 400), 800, 1333, (1333, 533)),  # the long edge decides: 1.333; 400 * 1.333 + .5 = 533.7
        ((400, 1000), 800, 1333, (533, 1333)),
        ((1000, 1), 480, 800, (800, 1)),  # 0.8 + .5 = 1.3
        ((4000, 1), 480, 800, (800, 1)),  # 0.2 + .5 = 0.7 would be no image at all
    ],
)
def test_resize(size: tuple[int, int], short: int, long: int, expected: tuple[int, int]) -> None:
    view = resize(Image.new("RGB", size), short, long)
    assert view.image.size == expected
    assert view.homography.diagonal().tolist() == [expected[0] / size[0], expected[1] / size[1], 1.0]


# Color ---------------------------------------------------------------------------------------------------------------


def test_there_are_nine_color_operations() -> None:
    assert len(COLOR_OPS) == len(set(COLOR_OPS)) == 9


@pytest.mark.parametrize("op", COLOR_OPS)
def test_color_keeps_the_size_and_changes_the_picture(op: str) -> None:
    image = Image.fromarray((np.asarray(noise()) // 2 + 40).astype(np.uint8))
    changed = distort_color(image, op, 1)
    assert changed.size == image.size and changed.mode == "RGB"
    assert (changed.tobytes() == image.tobytes()) == (op == "identity")


@pytest.mark.parametrize("op", ["saturation", "contrast", "brightness", "sharpness"])
def test_enhancement_is_neutral_at_magnitude_five(op: str) -> None:
    # 0.18 * 5 + 0.1 = 1
    difference = np.asarray(distort_color(noise(), op, 5)).astype(int) - np.asarray(noise())
    assert abs(difference).max() <= 1


def test_brightness_factors() -> None:
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    # 0.28 and 1.72 times 100
    assert distort_color(image, "brightness", 1).getpixel((0, 0)) == (28, 28, 28)
    assert distort_color(image, "brightness", 9).getpixel((0, 0)) == (172, 172, 172)


def test_solarize_thresholds() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    found = []
    for magnitude in range(1, 10):
        values = np.asarray(distort_color(ramp, "solarize", magnitude))[0, :, 0].astype(int)
        found.append(int(np.flatnonzero(values != np.arange(256))[0]))
        assert (values[found[-1] :] == 255 - np.arange(256)[found[-1] :]).all()
    assert found == [25, 51, 76, 102, 128, 153, 179, 204, 230]


def test_posterize_bits() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    levels = [len(np.unique(np.asarray(distort_color(ramp, "posterize", magnitude)))) for magnitude in range(1, 10)]
    assert levels == [2**bits for bits in (4, 4, 3, 3, 2, 2, 2, 1, 1)]


def test_unknown_operations_are_named() -> None:
    with pytest.raises(ValueError, match="op='blur'"):
        distort_color(noise(), "blur", 3)
    with pytest.raises(ValueError, match="magnitude=10"):
        distort_color(noise(), "contrast", 10)
    with pytest.raises(ValueError, match="op='zoom'"):
        geometry_homography("zoom", (9, 9), SMALL, random.Random(0))


# Erasing -------------------------------------------------------------------------------------------------------------


def test_erase_paints_gray_patches_on_a_copy() -> None:
    image = Image.new("RGB", (200, 100))
    shares = []
    for seed in range(200):
        erased = np.asarray(erase(image, SMALL, random.Random(seed)))
        assert set(np.unique(erased)) <= {0, 125}
        shares.append(float((erased == 125).mean()))
    # at most 4 patches of 0.2 * 0.2 of the image each
    assert max(shares) <= 4 * 0.04 and max(shares) > 0.06
    assert np.asarray(image).max() == 0


def test_erase_can_be_switched_off() -> None:
    assert erase(noise(), AugmentConfig(erase_patches=(0, 0)), random.Random(0)).tobytes() == noise().tobytes()


# Views ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [labeled_view, weak_view, strong_view])
def test_views_repeat_and_leave_the_original_alone(make) -> None:
    image = noise()
    first, second = make(image, SMALL, random.Random(5)), make(image, SMALL, random.Random(5))
    assert first.image.tobytes() == second.image.tobytes() and torch.equal(first.homography, second.homography)
    assert image.tobytes() == noise().tobytes()
    others = [make(image, SMALL, random.Random(seed)).image.tobytes() for seed in range(10)]
    assert len(set(others)) > 1


@pytest.mark.parametrize("make", [labeled_view, weak_view, strong_view])
def test_the_homography_of_a_view_leads_to_the_ink(make) -> None:
    config = AugmentConfig(short_edges=(90, 120, 150), long_edge=300, color=False, erase_patches=(0, 0), fill=0)
    checked = 0
    for seed in range(30):
        view = make(rectangle(), config, random.Random(seed))
        mapped = geometry.apply_to_boxes(view.homography, torch.tensor([BOX], dtype=torch.float32))
        if torch.equal(mapped, geometry.clip_boxes(mapped, (view.image.height, view.image.width))):
            checked += 1
            # Resizing blurs the edge before the warp does, hence half a pixel more than for the warp alone.
            assert ink_box(view.image) == pytest.approx(mapped[0].tolist(), abs=1.5)
    assert checked >= 20


def test_mirroring_without_a_warp_gives_the_pixels_of_the_warp() -> None:
    assert functional.horizontal_flip(noise()).tobytes() == warp(noise(), geometry.horizontal_flip(100)).tobytes()


def test_flips_and_sizes_are_drawn_evenly() -> None:
    views = [weak_view(Image.new("RGB", (80, 60)), SMALL, random.Random(seed)) for seed in range(400)]
    assert 150 < sum(float(view.homography[0, 0]) < 0 for view in views) < 250
    heights = Counter(view.image.height for view in views)
    assert set(heights) == {60, 80} and min(heights.values()) > 150
    always = AugmentConfig(short_edges=(60,), flip_probability=1.0)
    never = AugmentConfig(short_edges=(60,), flip_probability=0.0)
    assert weak_view(noise(), always, random.Random(0)).homography[0, 0] < 0
    assert weak_view(noise(), never, random.Random(0)).homography[0, 0] > 0


def test_strong_draws_every_geometry_and_both_orders() -> None:
    config = AugmentConfig(short_edges=(60,), flip_probability=0.0, erase_patches=(0, 0))
    kinds = Counter()
    fills = set()
    for seed in range(200):
        view = strong_view(Image.new("RGB", (60, 60), (10, 90, 200)), config, random.Random(seed))
        (a, f, x), (g, b, y) = view.homography[:2].tolist()
        turned = f == pytest.approx(-g) and a == pytest.approx(b)
        moved = a == b == 1 and f == g == 0
        kinds["translate_x" if moved and x else "translate_y" if moved else "rotate" if turned else "shear"] += 1
        corners = [view.image.getpixel(place) for place in ((0, 0), (59, 0), (0, 59), (59, 59))]
        fills.update(corner[0] for corner in corners if len(set(corner)) == 1)
    assert set(kinds) == set(GEOMETRY_OPS) and min(kinds.values()) > 25
    assert 125 in fills  # color first leaves the fill as it is
    assert len(fills) > 1  # color last changes it


def test_strong_without_anything_is_the_resized_picture() -> None:
    config = AugmentConfig(short_edges=(70,), flip_probability=0.0, color=False, geometry=False, erase_patches=(0, 0))
    view = strong_view(noise(), config, random.Random(0))
    assert view.image.tobytes() == noise().tobytes()
    assert torch.equal(view.homography, geometry.identity())


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"short_edges": ()}, r"short_edges=\(\)"),
        ({"short_edges": (0, 5)}, r"short_edges=\(0, 5\)"),
        ({"long_edge": 300}, "long_edge=300"),
        ({"flip_probability": 1.1}, "flip_probability=1.1"),
        ({"max_color_magnitude": 10}, "max_color_magnitude=10"),
        ({"max_translation": -0.1}, "max_translation=-0.1"),
        ({"max_rotation": float("nan")}, "max_rotation=nan"),
        ({"max_shear": 181.0}, "max_shear=181.0"),
        ({"max_erase_ratio": 1.5}, "max_erase_ratio=1.5"),
        ({"erase_patches": (3, 1)}, r"erase_patches=\(3, 1\)"),
        ({"fill": 256}, "fill=256"),
    ],
)
def test_bad_configurations_show_the_value(values: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AugmentConfig(**values)


def test_defaults_are_the_eleven_sizes_of_the_released_code() -> None:
    assert AugmentConfig().short_edges == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def test_labeled_views_are_moved_only_when_asked_to() -> None:
    config = AugmentConfig(short_edges=(100,), long_edge=200, flip_probability=0.0, color=False, erase_patches=(0, 0))
    moved = AugmentConfig(**{**vars(config), "labeled_geometry": True})
    plain = resize(noise(), 100, 200).homography
    for seed in range(5):
        assert torch.equal(labeled_view(noise(), config, random.Random(seed)).homography, plain)
        # Without patches, the strong view of the same draw.
        ours, strong = (make(noise(), moved, random.Random(seed)) for make in (labeled_view, strong_view))
        assert torch.equal(ours.homography, strong.homography) and ours.image.tobytes() == strong.image.tobytes()
        assert not torch.equal(ours.homography, plain)
