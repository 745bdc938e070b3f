"""A small detection data set from real material that scikit-learn carries: handwritten digits on two photographs.

`load_digits` holds 1,797 handwritten digits of 8x8 pixels, `load_sample_images` a temple (china.jpg) and a flower
(flower.jpg). A scene is a random crop of a photograph with one to four digits painted on it. Training and
validation share neither digits (80% / 20% of every class) nor background (left 75% / right 25% of each photograph).
Every scene depends only on the seed, its split and its number: a larger data set begins with the smaller one.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

FORMAT_VERSION = 1  # raise it when the drawing changes, so that finished folders are made again
TRAIN_SHARE_DIGITS, TRAIN_SHARE_PHOTO = 0.8, 0.75
CROP_SIDES = (64, 160)  # pixels of the photograph; the validation strip is 160 wide
DIGIT_HEIGHTS = (26 / 96, 48 / 96)  # of the image size
VISIBLE_ALPHA = 0.3  # a pixel with more ink than this belongs to the box
MAX_COVERED = 0.25  # share of the smaller of two boxes that the other may cover; keeps their IoU below 1/7
MIN_LUMINANCE_GAP, MIN_COLOR_GAP = 70.0, 110.0  # digit against the background below it, of 255
MAX_PLACEMENTS = 30
JPEG_QUALITY = 90

FloatArray = NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class DigitsPaths:
    """Where the data set lies."""

    train_json: Path
    val_json: Path
    train_images: Path
    val_images: Path


@dataclass(frozen=True, kw_only=True)
class DigitsParameters:
    """What decides every pixel of the data set; written to `digits.json` when the folder is complete."""

    num_train: int
    num_val: int
    image_size: int
    max_digits: int
    seed: int
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, least in (("num_train", 1), ("num_val", 1), ("image_size", 48), ("max_digits", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or larger")


class Material(NamedTuple):
    """What the scenes of one split are made of."""

    digits: list[list[NDArray[np.uint8]]]  # per class, 8x8 ink of 0..255
    photos: list[Image.Image]


class Scene(NamedTuple):
    """One picture with its digits: classes 0..9 and xyxy boxes in whole pixels."""

    image: Image.Image
    classes: list[int]
    boxes: list[Box]


def write_digits_dataset(
    folder: str | Path, *, num_train: int, num_val: int, image_size: int = 96, max_digits: int = 4, seed: int = 0
) -> DigitsPaths:
    """Write the data set as two COCO files with JPEG images, or reuse the folder if it already holds it.

    The categories are "0" to "9" with the ids 1 to 10. The folder appears only when everything is written.

    Args:
        folder: made if missing. An existing one must be empty or hold this data set.
        num_train: training scenes.
        num_val: validation scenes.
        image_size: side of the square images in pixels, 48 or more.
        max_digits: most digits of one scene; the number is drawn from 1 to this.
        seed: 0 or more.

    Returns:
        The paths of the two annotation files and the two image folders.

    Raises:
        ValueError: if a number is out of range.
        FileExistsError: if the folder holds something else.
    """
    folder = Path(folder)
    parameters = DigitsParameters(
        num_train=num_train, num_val=num_val, image_size=image_size, max_digits=max_digits, seed=seed
    )
    if not _is_complete(folder, parameters):
        partial = folder.absolute().parent / f".{folder.name}.partial-{os.getpid()}"
        try:
            _write_splits(partial, parameters)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return DigitsPaths(
        train_json=folder / "train.json",
        val_json=folder / "val.json",
        train_images=folder / "images" / "train",
        val_images=folder / "images" / "val",
    )


def _is_complete(folder: Path, parameters: DigitsParameters) -> bool:
    if not folder.exists():
        return False
    record = folder / "digits.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8")) == asdict(parameters)
    if not folder.is_dir() or any(folder.iterdir()):
        raise FileExistsError(f"{folder}: exists and is no digits data set; choose a new or empty folder")
    return False


def _write_splits(folder: Path, parameters: DigitsParameters) -> None:
    for split_number, (split, count) in enumerate((("train", parameters.num_train), ("val", parameters.num_val))):
        material = load_material(split)
        (folder / "images" / split).mkdir(parents=True)
        scenes = []
        for number in range(count):
            rng = np.random.default_rng((parameters.seed, split_number, number))
            scene = draw_scene(material, parameters.image_size, parameters.max_digits, rng)
            scene.image.save(folder / _file_name(split, number), quality=JPEG_QUALITY)
            scenes.append(scene)
        document = _coco_document(scenes, split)
        (folder / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "digits.json").write_text(json.dumps(asdict(parameters)), encoding="utf-8")


def _file_name(split: str, number: int) -> str:
    return f"images/{split}/{number + 1:06d}.jpg"


def _coco_document(scenes: list[Scene], split: str) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        width, height = scene.image.size
        images.append({"id": number + 1, "file_name": _file_name(split, number), "width": width, "height": height})
        for digit, (x1, y1, x2, y2) in zip(scene.classes, scene.boxes, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    # Ids from 1 on purpose: a reader that takes ids for class labels is found out.
                    "category_id": digit + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def load_material(split: str) -> Material:
    """Return the digits and photographs that belong to "train" or "val"; the division never changes."""
    digits = load_digits()
    ink = (digits.images * (255.0 / 16.0)).round().astype(np.uint8)
    of_class: list[list[NDArray[np.uint8]]] = []
    for digit in range(10):
        members = np.random.RandomState(digit).permutation(np.flatnonzero(digits.target == digit))
        cut = int(TRAIN_SHARE_DIGITS * len(members))
        of_class.append([ink[member] for member in (members[:cut] if split == "train" else members[cut:])])
    photos = []
    for pixels in load_sample_images().images:
        photo = Image.fromarray(pixels)
        cut = int(TRAIN_SHARE_PHOTO * photo.width)
        left, right = (0, cut) if split == "train" else (cut, photo.width)
        photos.append(photo.crop((left, 0, right, photo.height)))
    return Material(of_class, photos)


def draw_scene(material: Material, image_size: int, max_digits: int, rng: np.random.Generator) -> Scene:
    """Draw one scene: a background with a few strokes that are no digits, and one to `max_digits` digits."""
    background = _draw_background(material.photos, image_size, rng)
    _draw_strokes(background, rng)
    canvas = np.asarray(background, dtype=np.float32).copy()
    classes: list[int] = []
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, max_digits + 1))):
        digit = int(rng.integers(len(material.digits)))
        samples = material.digits[digit]
        alpha = _draw_alpha(samples[int(rng.integers(len(samples)))], image_size, rng)
        box = _find_place(alpha, image_size, boxes, rng)
        # A crowded scene has no free place; it then shows fewer digits than drawn.
        if box is not None:
            _paint(canvas, alpha, box, rng)
            classes.append(digit)
            boxes.append(box)
    return Scene(Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8)), classes, boxes)


def _draw_background(photos: list[Image.Image], image_size: int, rng: np.random.Generator) -> Image.Image:
    photo = photos[int(rng.integers(len(photos)))]
    side = float(rng.uniform(*CROP_SIDES))
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crop = ImageEnhance.Color(crop).enhance(float(rng.uniform(0.3, 1.6)))
    crop = ImageEnhance.Contrast(crop).enhance(float(rng.uniform(0.4, 0.9)))
    return ImageEnhance.Brightness(crop).enhance(float(rng.uniform(0.6, 1.4)))


def _draw_strokes(background: Image.Image, rng: np.random.Generator) -> None:
    """Draw up to two arcs and lines: clutter that is made of ink but is no digit."""
    draw = ImageDraw.Draw(background)
    for _ in range(int(rng.integers(0, 3))):
        color = (int(rng.integers(256)), int(rng.integers(256)), int(rng.integers(256)))
        width = int(rng.integers(1, max(2, background.width // 24) + 1))
        x1, x2 = np.sort(rng.uniform(0, background.width, 2)).tolist()
        y1, y2 = np.sort(rng.uniform(0, background.height, 2)).tolist()
        if rng.random() < 0.5:
            draw.line((x1, y2, x2, y1) if rng.random() < 0.5 else (x1, y1, x2, y2), fill=color, width=width)
        else:
            start = float(rng.uniform(0, 360))
            draw.arc((x1, y1, x2 + 1, y2 + 1), start, start + float(rng.uniform(60, 200)), fill=color, width=width)


def _draw_alpha(ink: NDArray[np.uint8], image_size: int, rng: np.random.Generator) -> FloatArray:
    """Enlarge and warp one 8x8 digit; return its opacity 0..1, cropped to the pixels above VISIBLE_ALPHA."""
    low, high = np.log(np.asarray(DIGIT_HEIGHTS) * image_size)
    height = float(np.exp(rng.uniform(low, high)))
    side = int(2.0 * height) + 4
    angle, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    scale = height / 8.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([scale * rng.uniform(0.85, 1.25), scale])
    inverse = np.linalg.inv(forward)
    # The 8x8 digit sits in a 12x12 picture, so that its edges fade out; the middle of both pictures coincides.
    shift = np.array([6.0, 6.0]) - inverse @ np.array([side / 2, side / 2])
    picture = Image.fromarray(np.pad(ink, 2))
    data = (inverse[0, 0], inverse[0, 1], shift[0], inverse[1, 0], inverse[1, 1], shift[1])
    large = picture.transform((side, side), Image.Transform.AFFINE, data, resample=Image.Resampling.BICUBIC)
    alpha = np.clip((np.asarray(large, dtype=np.float32) / 255.0 - 0.35) / 0.35, 0.0, 1.0)
    rows, columns = np.flatnonzero((alpha > VISIBLE_ALPHA).any(1)), np.flatnonzero((alpha > VISIBLE_ALPHA).any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find_place(alpha: FloatArray, image_size: int, taken: list[Box], rng: np.random.Generator) -> Box | None:
    height, width = alpha.shape
    if height > image_size or width > image_size:
        return None
    for _ in range(MAX_PLACEMENTS):
        left, top = int(rng.integers(image_size - width + 1)), int(rng.integers(image_size - height + 1))
        box = (left, top, left + width, top + height)
        if all(_covered_share(box, other) < MAX_COVERED for other in taken):
            return box
    return None


def _covered_share(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(width, 0) * max(height, 0) / min(areas)


def _paint(canvas: FloatArray, alpha: FloatArray, box: Box, rng: np.random.Generator) -> None:
    x1, y1, x2, y2 = box
    below = canvas[y1:y2, x1:x2]
    color = _draw_color(below.mean(axis=(0, 1)), rng)
    opacity = (alpha * float(rng.uniform(0.9, 1.0)))[..., None]
    canvas[y1:y2, x1:x2] = below * (1.0 - opacity) + color * opacity


def _draw_color(background: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw colors until one stands out from the background; black or white, whichever is farther, as a last resort."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luminance, ITU-R BT.601
    for color in rng.uniform(0, 255, (40, 3)).astype(np.float32):
        luminance_gap = abs(float(weights @ (color - background)))
        if luminance_gap >= MIN_LUMINANCE_GAP and np.linalg.norm(color - background) >= MIN_COLOR_GAP:
            return color
    return np.full(3, 0.0 if float(weights @ background) > 127.5 else 255.0, dtype=np.float32)
