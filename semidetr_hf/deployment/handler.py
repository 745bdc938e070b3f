"""Answer the requests of an Inference Endpoint with the detector in whose folder this file lies.

The file needs nothing but transformers and what the detector itself needs. A request is a picture as such, or json:

    {"inputs": "<picture, base64>", "parameters": {"threshold": 0.3}}

`inputs` may be a list of pictures. The answer is what `pipeline("object-detection")` returns: for each picture a list
of `{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}`, in pixels of the picture, best first. A request that
cannot be answered gets `{"error": "<what is wrong, and the way out>"}`.
"""

import base64
import binascii
import io
import math
import struct
from typing import Any

from PIL import Image
from transformers import pipeline

MAX_IMAGES = 32
MAX_PIXELS = 50_000_000  # the largest photographs of telephones; decoded, one takes 150 MB
DEFAULT_THRESHOLD = 0.5  # that of the pipeline
# What Pillow's readers raise on broken files; SyntaxError and struct.error come from its PNG and TIFF readers.
BROKEN_PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)

Answer = list[dict[str, Any]] | list[list[dict[str, Any]]] | dict[str, str]


class RequestError(ValueError):
    """What is wrong with a request."""


class EndpointHandler:
    """The detector of a folder, on the accelerator of the machine if it has one.

    Args:
        path: folder with weights, settings and code of the detector.
    """

    def __init__(self, path: str = "") -> None:
        # The code is that of this very folder.
        self.detector = pipeline("object-detection", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Answer:
        """Return the detections of a request, or what is wrong with it.

        Args:
            data: `inputs`, a picture or a list of pictures, each as base64 text, bytes of a file, or PIL image; and
                perhaps `parameters`, of which there is `threshold`, the score above which detections count, 0 to 1.
        """
        try:
            images, threshold = _images(data), _threshold(data)
        except RequestError as error:
            return {"error": str(error)}
        # One after the other: pictures of other sizes in a batch would be padded, which changes scores a little.
        found = [self.detector(image, threshold=threshold) for image in images]
        return found if isinstance(data["inputs"], list | tuple) else found[0]


def _images(data: Any) -> list[Image.Image]:
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError("the request has no inputs; send a picture, or json with inputs, a picture as base64")
    if unknown := sorted(map(str, data.keys() - {"inputs", "parameters"})):
        raise RequestError(f"{unknown[0]} is no part of a request; there are inputs and parameters")
    inputs = data["inputs"]
    if not isinstance(inputs, list | tuple):
        return [_image(inputs, "inputs")]
    if not inputs:
        raise RequestError("inputs is an empty list; send one picture or more")
    if len(inputs) > MAX_IMAGES:
        raise RequestError(f"inputs has {len(inputs)} pictures; send at most {MAX_IMAGES} at a time")
    return [_image(given, f"inputs[{place}]") for place, given in enumerate(inputs)]


def _threshold(data: dict[str, Any]) -> float:
    parameters = data.get("parameters")
    if parameters is None:
        return DEFAULT_THRESHOLD
    if not isinstance(parameters, dict):
        raise RequestError(f'parameters is no object but {_short(parameters)}; write it like {{"threshold": 0.3}}')
    if unknown := sorted(map(str, parameters.keys() - {"threshold"})):
        raise RequestError(f"{unknown[0]} is an unknown parameter; there is threshold")
    given = parameters.get("threshold", DEFAULT_THRESHOLD)
    try:
        # In the address of a request, ?threshold=0.3, it is text.
        threshold = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise RequestError(f"threshold is {_short(given)}; give a number from 0 to 1")
    return threshold


def _image(given: Any, name: str) -> Image.Image:
    """Return a whole picture that is ready for the pipeline; `name` is for messages."""
    try:
        image = given if isinstance(given, Image.Image) else Image.open(io.BytesIO(_content(given, name)))
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(
                f"{name} has {image.width}x{image.height} pixels; make it smaller, there may be {MAX_PIXELS}"
            )
        image.load()
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} has too many pixels; make it smaller, there may be {MAX_PIXELS}") from error
    except BROKEN_PICTURE_ERRORS as error:
        raise RequestError(f"{name} is not a readable picture; send a whole JPEG or PNG file") from error
    if image.mode.startswith(("I", "F")):
        # The pipeline would clip such pixels to white.
        raise RequestError(f"{name} has more than 8 bits per channel (mode {image.mode}); send it with 8")
    return image


def _content(given: Any, name: str) -> bytes:
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    if not isinstance(given, str):
        raise RequestError(f"{name} is no picture but {_short(given)}; send it as base64")
    if given.startswith(("http://", "https://")):
        raise RequestError(f"{name} is an address, which is not followed; send the picture itself as base64")
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name} is not base64 ({error}); encode the bytes of the picture's file") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
