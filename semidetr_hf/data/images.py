"""One image file becomes an upright RGB picture; `Sample` is what every source gives for one image."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

EXIF_ORIENTATION = 0x0112
# What Pillow's readers raise on broken files; SyntaxError and struct.error come from its PNG and TIFF readers.
BROKEN_FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class UnreadableImageError(OSError):
    """An image file that cannot be used; the message names the path and the reason.

    Line breaks of a path, and bytes that are no text, are escaped: the message is one line that can be printed.
    """

    def __init__(self, message: str) -> None:
        one_line = "\\n".join(message.splitlines())
        super().__init__(one_line.encode("utf-8", "backslashreplace").decode("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its boxes.

    Attributes:
        image: RGB, upright.
        boxes_xyxy: (G, 4) float32, pixels of `image`, clipped to it; (0, 4) when there are none.
        class_labels: (G,) int64, 0..num_classes-1.
        image_id: the id of the source.
        file_name: as the source writes it, for messages.
    """

    image: Image.Image
    boxes_xyxy: Tensor
    class_labels: Tensor
    image_id: int | str
    file_name: str


def load_image(path: str | Path, expected_size: tuple[int, int] | None = None) -> Image.Image:
    """Open an image file as an upright RGB picture.

    Gray, palette, transparent, CMYK and 16-bit files are converted. A camera's EXIF orientation is applied, except
    when `expected_size` fits the stored picture and not the turned one: then the boxes were drawn on the stored one.

    Args:
        path: any format Pillow reads; of an animation the first frame is taken.
        expected_size: (height, width) in pixels that the annotations were made for; None when unknown.

    Returns:
        The picture, fully decoded, without EXIF or other metadata: no later reader turns it again.

    Raises:
        UnreadableImageError: if the file is missing or broken, stores floating-point pixels, or fits `expected_size`
            in neither orientation.
    """
    try:
        with Image.open(path) as stored:
            stored.load()
            image = _upright(stored, expected_size)
            rgb = _to_rgb(image)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: the image file does not exist; restore it or remove its entry") from error
    except BROKEN_FILE_ERRORS as error:
        raise UnreadableImageError(f"{path}: not a readable image ({error}); replace or remove it") from error
    if expected_size is not None and (rgb.height, rgb.width) != tuple(expected_size):
        raise UnreadableImageError(
            f"{path}: the picture is {rgb.width}x{rgb.height} pixels (width x height) but the annotations say "
            f"{expected_size[1]}x{expected_size[0]}; correct width and height, or the boxes would be misplaced"
        )
    # Pillow looks for the orientation here, in EXIF and in XMP.
    rgb.info.clear()
    return rgb


def _upright(image: Image.Image, expected_size: tuple[int, int] | None) -> Image.Image:
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    if expected_size is None or (turned.height, turned.width) == tuple(expected_size):
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
