"""One image file becomes an upright RGB picture; `Sample` is what every source gives for one image."""

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

EXIF_ORIENTATION = 0x0112
# What Pillow's readers raise on broken files; SyntaxError and struct.error come from its PNG and TIFF readers.
BROKEN_FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

# How many times larger than the view a reduced picture must still be, along both edges. Measured on JPEG files of a
# "dead leaves" picture (edges of every size) with noise: views differ from those of the whole picture by 2 to 3 of 255
# in the mean at 1.5, by 1.3 to 2.4 at 2, by 7 to 9 at 1; those of a smooth photograph by 0.2 to 0.8 at 1.5. The whole
# picture resized by the bicubic instead of the bilinear filter differs by 3 to 7, the photograph by 0.2 to 1.6.
REDUCING_GAP = 1.5


class UnreadableImageError(OSError):
    """An image file that cannot be used; the message names the path and the reason.

    Line breaks of a path, and bytes that are no text, are escaped: the message is one line that can be printed.
    """

    def __init__(self, message: str) -> None:
        one_line = "\\n".join(message.splitlines())
        super().__init__(one_line.encode("utf-8", "backslashreplace").decode("utf-8"))


@dataclass(frozen=True)
class PackedImage:
    """An image without a file of its own: a member of an archive, a row of a table.

    Attributes:
        place: where it is, for messages.
        file_name: what it is called there; empty if it has no name.
        read: gives the bytes that a file of it would hold; an OSError says that they cannot be had.
    """

    place: str
    file_name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.place


ImageFile = Path | PackedImage


def is_missing(file: ImageFile) -> bool:
    """Whether an image should be a file and there is none; what is in an archive or a table was found there."""
    # Unlike Path.exists, this is False for names that are too long and for folders that are closed.
    return not isinstance(file, PackedImage) and not os.path.exists(file)


class ViewSize(NamedTuple):
    """The lengths in pixels that the edges of a view may have: a picture is scaled until it reaches one of the two."""

    short_edge: int
    long_edge: int

    def scale(self, width: int, height: int) -> float:
        """Return the factor from the pixels of a picture to those of its view."""
        return min(self.long_edge / max(width, height), self.short_edge / min(width, height))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its boxes.

    Attributes:
        image: RGB, upright.
        boxes_xyxy: (G, 4) float32, pixels of `image`, clipped to it; (0, 4) when there are none.
        class_labels: (G,) int64, 0..num_classes-1.
        image_id: the id of the source.
        file_name: as the source writes it, for messages.
        reduction: how many pixels of the original, along an edge, are one of `image`; it divides both edges.
    """

    image: Image.Image
    boxes_xyxy: Tensor
    class_labels: Tensor
    image_id: int | str
    file_name: str
    reduction: int = 1


def load_image(path: str | ImageFile, expected_size: tuple[int, int] | None = None) -> Image.Image:
    """Open an image file as an upright RGB picture.

    Gray, palette, transparent, CMYK and 16-bit files are converted. A camera's EXIF orientation is applied, except
    when `expected_size` fits the stored picture and not the turned one: then the boxes were drawn on the stored one.

    Args:
        path: a file, or an image in an archive or a table; any format that Pillow reads; of an animation the first
            frame is taken.
        expected_size: (height, width) in pixels that the annotations were made for; None when unknown.

    Returns:
        The picture, fully decoded, without EXIF or other metadata: no later reader turns it again.

    Raises:
        UnreadableImageError: if the file is missing or broken, stores floating-point pixels, or fits `expected_size`
            in neither orientation.
    """
    return load_for_view(path, expected_size, None)[0]


def load_for_view(
    path: str | ImageFile, expected_size: tuple[int, int] | None, largest_view: ViewSize | None
) -> tuple[Image.Image, int]:
    """Open an image file as `load_image` does, but no larger than its views need.

    A JPEG file is decoded to a half, a quarter or an eighth of its edges where what is left is still `REDUCING_GAP`
    times as large as the largest view. Only factors that divide both edges are taken: the scale is then exact, also
    after turning the picture, and views have the same size and homography as those of the whole picture.

    Args:
        path: as in `load_image`.
        expected_size: as in `load_image`; compared with the size of the whole picture.
        largest_view: the largest that will be made of the picture; None to decode all of it.

    Returns:
        The picture, and how many pixels of the file, along an edge, are one of it: 1, 2, 4 or 8.

    Raises:
        UnreadableImageError: as in `load_image`.

    Source: Pillow's `Image.draft`, for libjpeg's scaled inverse cosine transform.
    """
    try:
        with Image.open(_openable(path)) as stored:
            reduction = 1 if largest_view is None else _reduce(stored, largest_view)
            stored.load()
            rgb = _to_rgb(_upright(stored, expected_size, reduction))
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: the image file does not exist; restore it or remove its entry") from error
    except BROKEN_FILE_ERRORS as error:
        raise UnreadableImageError(f"{path}: not a readable image ({error}); replace or remove it") from error
    height, width = rgb.height * reduction, rgb.width * reduction
    if expected_size is not None and (height, width) != tuple(expected_size):
        raise UnreadableImageError(
            f"{path}: the picture is {width}x{height} pixels (width x height) but the annotations say "
            f"{expected_size[1]}x{expected_size[0]}; correct width and height, or the boxes would be misplaced"
        )
    # Pillow looks for the orientation here, in EXIF and in XMP.
    rgb.info.clear()
    return rgb, reduction


def stored_size(path: str | ImageFile) -> tuple[int, int] | None:
    """Return (height, width) of the upright picture from the header of its file, None if that cannot be read."""
    try:
        with Image.open(_openable(path)) as stored:
            is_on_its_side = stored.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return (stored.width, stored.height) if is_on_its_side else (stored.height, stored.width)
    except BROKEN_FILE_ERRORS:
        return None  # whoever needs the pixels complains


def _openable(path: str | ImageFile) -> str | Path | io.BytesIO:
    return io.BytesIO(path.read()) if isinstance(path, PackedImage) else path


def _reduce(image: Image.Image, largest_view: ViewSize) -> int:
    """Let a picture that is not decoded yet be decoded smaller, if its format can; return by which factor."""
    width, height = image.size
    scale = largest_view.scale(width, height)
    for factor in (8, 4, 2):
        if width % factor == height % factor == 0 and factor * scale * REDUCING_GAP <= 1:
            image.draft(None, (width // factor, height // factor))
            return width // image.width
    return 1


def _upright(image: Image.Image, expected_size: tuple[int, int] | None, reduction: int) -> Image.Image:
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    if expected_size is None or (turned.height * reduction, turned.width * reduction) == tuple(expected_size):
        return turned
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        # Pillow clips wide integers to 255 instead of scaling them, which turns the picture white.
        values = np.asarray(image).astype(np.int64)
        if values.size and values.max() > 255:
            values = values // 257
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
