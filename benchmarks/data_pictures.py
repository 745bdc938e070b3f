"""Pictures and sizes for the benchmark of the data side, made on the spot."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# (width, height) -> share in percent: sizes like those of COCO's train2017, most of them 640 pixels wide or high.
COCO_LIKE_SIZES = {
    (640, 480): 36,
    (640, 427): 25,
    (480, 640): 11,
    (427, 640): 8,
    (500, 375): 4,
    (640, 426): 4,
    (640, 640): 2,
    (375, 500): 2,
    (640, 360): 3,
    (640, 320): 2,
    (333, 500): 1,
    (612, 612): 2,
}


def draw_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Return sizes (width, height) as they occur in COCO."""
    rng = random.Random(seed)
    return rng.choices(list(COCO_LIKE_SIZES), weights=list(COCO_LIKE_SIZES.values()), k=count)


def draw_picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a "dead leaves" picture with noise: discs of all sizes hide each other, as things do in a photograph."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    # As many as cover the picture about three times; a few are large, most are small.
    radii = np.minimum(8 / (1 - rng.random(width * height // 300)) ** 0.6, height / 3)
    for radius in np.sort(radii)[::-1]:
        x, y = rng.random() * width, rng.random() * height
        color = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    pixels = np.asarray(image) + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Write one JPEG file for each (width, height) into a new folder."""
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        draw_picture(width, height, seed=number).save(folder / f"{number:05}.jpg", quality=90)
    return folder
