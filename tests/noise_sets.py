"""COCO files whose pictures are noise, so that no two are the same: the data check finds no fault."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 40


def write_noise(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write a picture of (width, height) pixels that depends on the seed alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco_content(num_images: int = 3) -> dict[str, Any]:
    """Return images 1, 2, ... with four boxes each, annotations 1, 2, ..., of the classes cat (3) and dog (7)."""
    numbers = range(1, num_images + 1)
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in numbers]
    annotations = [
        {"id": 4 * i - 3 + k, "image_id": i, "category_id": (3, 7)[k % 2], "bbox": [5, 5 + k, 10, 8], "area": 80}
        for i in numbers
        for k in range(4)
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def write_set(folder: Path, content: dict[str, Any] | None = None, *, seed: int = 0) -> Path:
    """Write `labels.json` and three pictures into a folder of its own."""
    for number in (1, 2, 3):
        write_noise(folder / f"{number}.png", 100 * seed + number)
    path = folder / "labels.json"
    path.write_text(json.dumps(coco_content() if content is None else content))
    return path
