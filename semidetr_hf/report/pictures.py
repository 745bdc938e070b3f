"""Pictures of a report: an image inside the page, and its boxes drawn over it by the browser, sharp at any size."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from semidetr_hf.data.sources import Source
from semidetr_hf.report.scoring import ImageBoxes, ImageMatches

MAX_EDGE = 480  # pixels of a picture in the page; larger images are reduced
LETTERS = 24  # heights of a letter that are the width of a picture
MAX_LABELED = 12  # boxes with a text each; more would cover the picture, and are named on hover alone

Kind = Literal["truth", "right", "wrong", "found", "candidate"]
_KIND_NAMES: dict[Kind, str] = {
    "truth": "labeled",
    "right": "found, right",
    "wrong": "found, wrong",
    "found": "pseudo-label",
    "candidate": "candidate",
}


@dataclass(frozen=True)
class DrawnBox:
    """One box: how it is drawn, where (pixels of the picture), and what it is called."""

    kind: Kind
    x: float
    y: float
    width: float
    height: float
    name: str
    score: float | None = None

    @property
    def text(self) -> str:
        """What is written beside it."""
        return self.name if self.score is None else f"{self.name} {self.score:.2f}"

    @property
    def hint(self) -> str:
        """What is said of it on hover."""
        return f"{_KIND_NAMES[self.kind]}: {self.text}"


@dataclass(frozen=True)
class DrawnText:
    """The name of a box: where its line begins, or ends if `is_right`, in pixels of the picture."""

    kind: Kind
    x: float
    y: float
    text: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with boxes.

    Attributes:
        title: below it.
        description: what it shows, in words, for those who cannot see it.
        data: the image as a `data:` address.
        width: pixels.
        height: pixels.
        boxes: drawn over it, the last one on top.
        texts: names of the boxes; none where there are too many.
        font_size: of the texts, in pixels of the picture.
    """

    title: str
    description: str
    data: str
    width: int
    height: int
    boxes: list[DrawnBox]
    texts: list[DrawnText]
    font_size: float


def picture(image: Image.Image, boxes: Sequence[DrawnBox], title: str, *, what: str) -> Picture:
    """Put an image into the page, no larger than `MAX_EDGE`.

    Args:
        image: any size, RGB.
        boxes: in pixels of `image`.
        title: below the picture.
        what: what the picture is, for its description.
    """
    scale = min(1.0, MAX_EDGE / max(image.size))
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    file = io.BytesIO()
    image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    counts = {kind: sum(box.kind == kind for box in boxes) for kind in _KIND_NAMES}
    listed = ", ".join(f"{count} {_KIND_NAMES[kind]}" for kind, count in counts.items() if count)
    drawn = [_scaled(box, width / image.width, height / image.height) for box in boxes]
    named = [box for box in drawn if box.kind != "candidate"]
    font_size = round(width / LETTERS, 1)
    return Picture(
        title=title,
        description=f"{what} {title}: {listed or 'no boxes'}.",
        data="data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
        width=width,
        height=height,
        boxes=drawn,
        texts=_place_texts(named, width, height, font_size) if len(named) <= MAX_LABELED else [],
        font_size=font_size,
    )


def detection_picture(source: Source, image: ImageBoxes, matches: ImageMatches, names: Sequence[str]) -> Picture:
    """Show the labeled and the detected boxes of a validation image.

    Args:
        source: of the image.
        image: its boxes.
        matches: which of them belong together.
        names: of the class labels.

    Raises:
        UnreadableImageError: if the image cannot be read any more.
    """
    sample = source[list(source.image_ids).index(image.image_id)]
    boxes = [
        DrawnBox("truth", x, y, width, height, names[label])
        for (x, y, width, height), label in zip(image.truth.tolist(), image.truth_labels.tolist(), strict=True)
    ]
    for found in matches.counted:
        kind: Kind = "right" if found in matches.right else "wrong"
        x, y, width, height = image.found[found].tolist()
        boxes.append(DrawnBox(kind, x, y, width, height, names[image.found_labels[found]], float(image.scores[found])))
    title = f"{sample.file_name}, F1 {matches.f1:.2f}" if matches.f1 is not None else sample.file_name
    return picture(sample.image, boxes, title, what="Validation image")


def _place_texts(boxes: Sequence[DrawnBox], width: int, height: int, font_size: float) -> list[DrawnText]:
    """Write what is labeled below its box, what was found above it, and no text over another one."""
    taken: list[tuple[float, float, float]] = []  # left, right, y
    texts = []
    for box in boxes:
        length = 0.6 * font_size * len(box.text)
        is_right = box.x + length > width
        x = box.x + box.width if is_right else max(box.x, 0.2 * font_size)
        left = x - length if is_right else x
        below = box.kind == "truth"
        y = min(box.y + box.height + font_size, height - 0.3 * font_size) if below else box.y - 0.3 * font_size
        y = max(y, font_size)
        while any(a < left + length and left < b and abs(y - other) < font_size for a, b, other in taken):
            y += font_size
        taken.append((left, left + length, y))
        texts.append(DrawnText(box.kind, round(x, 1), round(y, 1), box.text, is_right))
    return texts


def _scaled(box: DrawnBox, x_factor: float, y_factor: float) -> DrawnBox:
    x, y = round(box.x * x_factor, 1), round(box.y * y_factor, 1)
    return DrawnBox(
        box.kind, x, y, round(box.width * x_factor, 1), round(box.height * y_factor, 1), box.name, box.score
    )
