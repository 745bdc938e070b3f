"""Scenes of printed letters on the photographs of the embedded digits: other data to start a detector from.

What COCO is to photographs of your own: many labels, similar pictures, other classes. Only the training part of the
photographs is used, and no digit.
"""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from semidetr_hf.data.digits import JPEG_QUALITY, Material, draw_scene, load_material

# Without those that are taken for a digit.
LETTERS = [letter for letter in string.ascii_uppercase if letter not in "BIOSZ"]
GLYPH_PIXELS = 8  # as the digits


def write_letters(folder: Path, *, num_scenes: int, image_size: int, seed: int) -> Path:
    """Write scenes as COCO and return the annotation file; an earlier one is kept."""
    annotation_file = folder / "train.json"
    if annotation_file.exists():
        return annotation_file
    (folder / "images").mkdir(parents=True, exist_ok=True)
    material = Material([[_glyph(letter)] for letter in LETTERS], load_material("train").photos)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_scenes + 1):
        scene = draw_scene(material, image_size, 4, np.random.default_rng((seed, number)))
        name = f"images/{number:06d}.jpg"
        scene.image.save(folder / name, quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": name, "width": image_size, "height": image_size})
        for label, (x1, y1, x2, y2) in zip(scene.classes, scene.boxes, strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": label + 1, "name": letter} for label, letter in enumerate(LETTERS)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    annotation_file.write_text(json.dumps(document), encoding="utf-8")
    return annotation_file


def _glyph(letter: str) -> NDArray[np.uint8]:
    """Draw a letter as thick as handwriting, of 8x8 pixels."""
    picture = Image.new("L", (64, 64))
    font = ImageFont.load_default(size=32)
    ImageDraw.Draw(picture).text((32, 32), letter, fill=255, font=font, anchor="mm", stroke_width=1)
    ink = picture.crop(picture.getbbox())
    square = Image.new("L", (max(ink.size), max(ink.size)))
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return np.asarray(square.resize((GLYPH_PIXELS, GLYPH_PIXELS), Image.Resampling.BOX))
