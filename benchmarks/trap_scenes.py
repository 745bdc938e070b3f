"""The embedded digits as somebody's own folder: awkward names, odd pictures, ids with gaps, a class without boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semidetr_hf.data.digits import draw_scene, load_material

ORIENTATION = 0x0112  # EXIF
EMPTY_CLASS = {"id": 500, "name": "ein Einhorn"}
NAMES = (
    "holiday photo {}.jpg",
    "straße/größe {}.PNG",
    "街/猫 {}.png",
    "Кот {}.JPEG",
    "a/b/deep {}.png",
    "turned {}.jpg",
)


def write_trap_scenes(folder: Path, *, split: str, num_scenes: int, image_size: int, seed: int) -> Path:
    """Write `labels.json` and `the images/`, and return the json.

    Of six pictures in a row the first is plain, then there are a gray one, one of 16 bits, one in CMYK, one with
    transparency, and one that a camera has stored on its side and marked as such.
    """
    material = load_material(split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_scenes):
        rng = np.random.default_rng((seed, split == "val", number))
        scene = draw_scene(material, image_size, 4, rng)
        name, image_id = NAMES[number % 6].format(number), 1000 - 3 * number
        save_oddly(scene.image, folder / "the images" / name, kind=number % 6)
        images.append({"id": image_id, "file_name": name, "width": image_size, "height": image_size})
        for digit, (x1, y1, x2, y2) in zip(scene.classes, scene.boxes, strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": 7 * digit + 3, **box})
    categories = [{"id": 7 * digit + 3, "name": f"number {digit}"} for digit in range(10)] + [EMPTY_CLASS]
    path = folder / "labels.json"
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return path


def save_oddly(image: Image.Image, path: Path, *, kind: int) -> None:
    """Save a picture as the kind says, 0 to 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case 1:
            image.convert("L").save(path)
        case 2:
            gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
            Image.fromarray(gray).save(path)
        case 3:
            image.convert("CMYK").save(path)
        case 4:
            image.putalpha(200)
            image.save(path)
        case 5:
            exif = Image.Exif()
            exif[ORIENTATION] = 6  # to be turned right by a quarter
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=90)
        case _:
            image.save(path, quality=90)
