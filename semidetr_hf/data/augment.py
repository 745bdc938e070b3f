"""The views of an image: labeled, weak (for the teacher) and strong (for the student).

Every view is resized and perhaps mirrored; a labeled one is also changed in color, a strong one in color and in
geometry, and patches of it are erased. Whatever moves pixels is gathered in one 3x3 homography (`geometry.py`) and
drawn once, so the picture and the boxes cannot disagree.

Source: Semi-DETR's released code (its base configuration and random-augmentation pipeline); the operations and their
ranges are the same. It turns about ((w-1)/2, (h-1)/2) in pixel-index coordinates, half a pixel off its own boxes; here
pictures and boxes share corner coordinates and the center is (w/2, h/2).
"""

import math
import random
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from .. import geometry
from .images import ViewSize

GEOMETRY_OPS = ("translate_x", "translate_y", "rotate", "shear")
_ENHANCEMENTS = {
    "saturation": functional.adjust_saturation,
    "contrast": functional.adjust_contrast,
    "brightness": functional.adjust_brightness,
    "sharpness": functional.adjust_sharpness,
}
COLOR_OPS = ("identity", "auto_contrast", "equalize", "solarize", "posterize", *_ENHANCEMENTS)
_RANGES = {
    "flip_probability": (0, 1),
    "max_color_magnitude": (1, 9),
    "max_translation": (0, 1),
    "max_rotation": (0, 180),
    "max_shear": (0, 180),
    "max_erase_ratio": (0, 1),
    "fill": (0, 255),
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How strongly views are changed. The defaults are those of Semi-DETR's released code.

    Raises:
        ValueError: if a value is out of range; the message shows it.
    """

    short_edges: tuple[int, ...] = tuple(range(480, 801, 32))  # pixels, one is drawn; released code, all pipelines
    long_edge: int = 1333  # pixels, never exceeded; released code, all pipelines
    flip_probability: float = 0.5  # released code, all pipelines
    color: bool = True  # one of COLOR_OPS on labeled and strong views; released code
    max_color_magnitude: int = 9  # whole number drawn from 1..this, 9 at most; released code
    geometry: bool = True  # one of GEOMETRY_OPS on strong views; released code
    labeled_geometry: bool = False  # also on labeled views, for few labels; released code: not
    max_translation: float = 0.1  # of width or height, either sign; released code
    max_rotation: float = 30.0  # degrees, either sign; released code
    max_shear: float = 30.0  # degrees, either sign; released code (its factor is the tanh of the angle)
    erase_patches: tuple[int, int] = (1, 4)  # fewest and most patches of strong views, (0, 0) for none; released code
    max_erase_ratio: float = 0.2  # of height and width, the same ratio on both; released code
    fill: int = 125  # gray where no image is and in erased patches; released code

    def __post_init__(self) -> None:
        if not self.short_edges or min(self.short_edges) < 1:
            raise ValueError(f"short_edges={self.short_edges}: give at least one size, each of 1 pixel or more")
        if self.long_edge < max(self.short_edges):
            raise ValueError(
                f"long_edge={self.long_edge}: must not be below the largest of short_edges={self.short_edges}"
            )
        for name, (lowest, highest) in _RANGES.items():
            if not lowest <= getattr(self, name) <= highest:
                raise ValueError(f"{name}={getattr(self, name)}: must be between {lowest} and {highest}")
        if not (len(self.erase_patches) == 2 and 0 <= self.erase_patches[0] <= self.erase_patches[1]):
            raise ValueError(f"erase_patches={self.erase_patches}: must be (fewest, most) with 0 <= fewest <= most")

    @property
    def largest_view(self) -> ViewSize:
        """The size of the largest view that may be drawn."""
        return ViewSize(max(self.short_edges), self.long_edge)


@dataclass(frozen=True, kw_only=True)
class AugmentedImage:
    """A view: an RGB picture and the (3, 3) float64 homography from the original's pixels to it."""

    image: Image.Image
    homography: Tensor


def labeled_view(image: Image.Image, config: AugmentConfig, rng: random.Random) -> AugmentedImage:
    """Resize, mirror with `flip_probability`, and apply one color operation; a geometric one too if asked for."""
    if config.labeled_geometry:
        return _distorted_view(image, config, rng)
    view = weak_view(image, config, rng)
    if not config.color:
        return view
    return AugmentedImage(image=_random_color(view.image, config, rng), homography=view.homography)


def weak_view(image: Image.Image, config: AugmentConfig, rng: random.Random) -> AugmentedImage:
    """Resize and mirror with `flip_probability`."""
    resized = resize(image, rng.choice(config.short_edges), config.long_edge)
    if rng.random() >= config.flip_probability:
        return resized
    flip = geometry.horizontal_flip(resized.image.width)
    # The same pixels as `warp` gives, 30 times faster.
    mirrored = functional.horizontal_flip(resized.image)
    return AugmentedImage(image=mirrored, homography=geometry.compose(resized.homography, flip))


def strong_view(image: Image.Image, config: AugmentConfig, rng: random.Random) -> AugmentedImage:
    """Resize, mirror, apply one color and one geometric operation in random order, and erase patches."""
    view = _distorted_view(image, config, rng)
    return AugmentedImage(image=erase(view.image, config, rng), homography=view.homography)


def _distorted_view(image: Image.Image, config: AugmentConfig, rng: random.Random) -> AugmentedImage:
    resized = resize(image, rng.choice(config.short_edges), config.long_edge)
    view, size = resized.image, resized.image.size
    moves = []
    # A mirror image commutes with every color operation, so it can wait for the one warp.
    if rng.random() < config.flip_probability:
        moves.append(geometry.horizontal_flip(size[0]))
    if config.geometry:
        moves.append(geometry_homography(rng.choice(GEOMETRY_OPS), size, config, rng))
    color_first = rng.random() < 0.5
    if config.color and color_first:
        view = _random_color(view, config, rng)
    if moves:
        view = warp(view, geometry.compose(*moves), config.fill)
    if config.color and not color_first:
        view = _random_color(view, config, rng)
    return AugmentedImage(image=view, homography=geometry.compose(resized.homography, *moves))


def resize(image: Image.Image, short_edge: int, long_edge: int) -> AugmentedImage:
    """Resize with the ratio kept: the short edge as wanted unless the long edge would pass its limit.

    Each edge is rounded to whole pixels by itself; the homography holds the two resulting factors.
    """
    width, height = image.size
    scale = ViewSize(short_edge, long_edge).scale(width, height)
    new_width, new_height = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    resized = functional.resize(image, [new_height, new_width])
    return AugmentedImage(image=resized, homography=geometry.scaling(new_width / width, new_height / height))


def warp(image: Image.Image, homography: Tensor, fill: int = 125) -> Image.Image:
    """Move the pixels of an image by an affine homography; the canvas keeps its size.

    Convention: Pillow evaluates the inverse map at pixel centers, so homographies in corner coordinates are exact.

    Args:
        image: RGB.
        homography: (3, 3) float64, old pixels -> new pixels, last row (0, 0, 1).
        fill: gray value where nothing of the old image arrives.
    """
    inverse = geometry.invert(homography)[:2].ravel().tolist()
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        inverse,
        resample=Image.Resampling.BILINEAR,
        fillcolor=(fill, fill, fill),
    )


def geometry_homography(op: str, size: tuple[int, int], config: AugmentConfig, rng: random.Random) -> Tensor:
    """Draw the parameters of one geometric operation and return its (3, 3) float64 homography.

    Args:
        op: one of GEOMETRY_OPS.
        size: (width, height) of the view in pixels.
        config: the ranges.
        rng: source of the draws.

    Raises:
        ValueError: if `op` is unknown.
    """
    width, height = size
    match op:
        case "translate_x":
            return geometry.translation(width * rng.uniform(-config.max_translation, config.max_translation), 0.0)
        case "translate_y":
            return geometry.translation(0.0, height * rng.uniform(-config.max_translation, config.max_translation))
        case "rotate":
            degrees = rng.uniform(-config.max_rotation, config.max_rotation)
            return geometry.rotation(degrees, (width / 2, height / 2))
        case "shear":
            angle_x = math.radians(rng.uniform(-config.max_shear, config.max_shear))
            angle_y = math.radians(rng.uniform(-config.max_shear, config.max_shear))
            # tanh, not tan, and opposite signs: the released code's factors.
            return geometry.shear(math.tanh(-angle_x), math.tanh(angle_y))
    raise ValueError(f"op={op!r}: unknown geometric operation; choose one of {', '.join(GEOMETRY_OPS)}")


def distort_color(image: Image.Image, op: str, magnitude: int) -> Image.Image:
    """Apply one color operation.

    Args:
        image: RGB.
        op: one of COLOR_OPS.
        magnitude: 1..9. Enhancement factors are 0.18 * magnitude + 0.1 (5 is neutral), the solarize threshold is
            25.6 * magnitude, and posterize keeps 4 bits at magnitude 1 and one bit at 9.

    Raises:
        ValueError: if `op` is unknown or `magnitude` is out of range.
    """
    if not 1 <= magnitude <= 9:
        raise ValueError(f"magnitude={magnitude}: must be a whole number between 1 and 9")
    if op in _ENHANCEMENTS:
        return _ENHANCEMENTS[op](image, 0.18 * magnitude + 0.1)
    match op:
        case "identity":
            return image
        case "auto_contrast":
            return functional.autocontrast(image)
        case "equalize":
            return functional.equalize(image)
        case "solarize":
            return functional.solarize(image, threshold=int(25.6 * magnitude))
        case "posterize":
            return functional.posterize(image, bits=4 - int(0.4 * magnitude))
    raise ValueError(f"op={op!r}: unknown color operation; choose one of {', '.join(COLOR_OPS)}")


def erase(image: Image.Image, config: AugmentConfig, rng: random.Random) -> Image.Image:
    """Paint gray patches over the image; boxes are not changed, and covered objects keep theirs."""
    fewest, most = config.erase_patches
    num_patches = rng.randint(fewest, most)
    if num_patches == 0:
        return image
    erased = image.copy()
    for _ in range(num_patches):
        ratio = rng.uniform(0, config.max_erase_ratio)
        patch_width, patch_height = int(ratio * image.width), int(ratio * image.height)
        left, top = rng.randint(0, image.width - patch_width), rng.randint(0, image.height - patch_height)
        erased.paste((config.fill,) * 3, (left, top, left + patch_width, top + patch_height))
    return erased


def _random_color(image: Image.Image, config: AugmentConfig, rng: random.Random) -> Image.Image:
    return distort_color(image, rng.choice(COLOR_OPS), rng.randint(1, config.max_color_magnitude))
