"""A small COCO data set with everything that readers and writers stumble over, as far as every format can hold it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112
# File name -> mode, (width, height) as stored, EXIF orientation. Names with spaces, in other scripts, in folders, with
# an upper-case suffix, equal but for the suffix, and not in the order of the alphabet.
PICTURES: dict[str, tuple[str, tuple[int, int], int]] = {
    "zebra crossing.jpg": ("RGB", (64, 48), 1),
    "straße/größe 1.PNG": ("L", (50, 40), 1),
    "街/猫 и кот.png": ("P", (40, 56), 1),
    "CMYK.JPEG": ("CMYK", (60, 44), 1),
    "deep/er/16 bit.png": ("I;16", (48, 48), 1),
    "deep/er/glass.png": ("RGBA", (52, 36), 1),
    "turned.jpg": ("RGB", (64, 40), 6),
    "upside down.jpg": ("RGB", (40, 64), 3),
    "twin.png": ("RGB", (32, 32), 1),
    "twin.jpg": ("RGB", (32, 30), 1),
    "nothing on it.webp": ("RGB", (30, 30), 1),
    "dots.in.the.name.bmp": ("RGB", (36, 34), 1),
}
# Ids with gaps, names with spaces and other scripts; nobody has a box of the second.
CATEGORIES = {3: "traffic light", 4: "unicorn", 17: "кот", 90: "Straße"}


def write_trap_set(folder: Path, *, seed: int = 0) -> Path:
    """Write `labels.json` and the pictures; image ids have gaps and do not ascend. Boxes have up to three decimals."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for place, (name, (mode, size, orientation)) in enumerate(PICTURES.items()):
        width, height = write_picture(folder / "the images" / name, mode, size, orientation, rng)
        image_id = (place * 37) % 101 + 5
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for _ in range(0 if name.startswith("nothing") else 3):
            annotations.append(_annotation(len(annotations) + 1, image_id, width, height, rng))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(content))
    return path


def write_picture(
    path: Path, mode: str, size: tuple[int, int], orientation: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Write noise in a mode of Pillow; return (width, height) of the upright picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    if mode == "P":
        options["transparency"] = 0
    if mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)))
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(path, **options)
    with Image.open(path) as stored:
        return ImageOps.exif_transpose(stored).size


def _annotation(number: int, image_id: int, width: int, height: int, rng: np.random.Generator) -> dict[str, Any]:
    used = [key for key, name in CATEGORIES.items() if name != "unicorn"]
    x, y = float(rng.uniform(0, width * 0.6)), float(rng.uniform(0, height * 0.6))
    bbox = [round(value, 3) for value in (x, y, rng.uniform(3, width * 0.4), rng.uniform(3, height * 0.4))]
    area = bbox[2] * bbox[3]
    return {"id": number, "image_id": image_id, "category_id": int(rng.choice(used)), "bbox": bbox, "area": area}
