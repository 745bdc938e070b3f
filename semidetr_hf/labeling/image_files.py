"""Where the images of a labeled set lie: beside the labels, or still where they were."""

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from semidetr_hf.data.images import ImageFile, PackedImage
from semidetr_hf.data.sources import Source
from semidetr_hf.labeling.labels import LabeledImage


def unpack_images(images: Sequence[LabeledImage], source: Source, folder: Path) -> list[Path]:
    """Return the file of every image; those in archives and tables are written to `images` in a folder.

    Args:
        images: most uncertain first; names of new files begin with their rank.
        source: of the images.
        folder: to write to.

    Returns:
        One absolute path per image; no folder on it is a link, so that relative paths to it can be made.

    Raises:
        OSError: if a file cannot be written.
    """
    files = []
    for rank, image in enumerate(images, start=1):
        place = source.path(image.detected.index)
        if isinstance(place, PackedImage):
            content = place.read()
            place = folder / "images" / ranked_name(rank, place, content)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        files.append(place.parent.resolve() / place.name)
    return files


def ranked_name(rank: int, file: ImageFile, content: bytes | None = None) -> str:
    """Return a file name that no other image has and that sorts by rank.

    Args:
        rank: from 1.
        file: whose own name follows.
        content: of a file that may have no name of its own; its suffix then says what the bytes are.
    """
    name = Path(file.file_name if isinstance(file, PackedImage) else file.name).name
    if content is not None and not Path(name).suffix:
        with Image.open(io.BytesIO(content)) as image:
            name = f"{name or 'image'}.{(image.format or 'png').lower()}"
    return f"{rank:06d}_{name}"


def place_image(file: Path, target: Path) -> None:
    """Make an image appear at another place: as a second name of the same file, or where that cannot be as a copy.

    Raises:
        OSError: if neither can be made.
    """
    try:
        os.link(file.resolve(), target)
    except OSError:
        # Another disk, or a file system without hard links.
        shutil.copyfile(file, target)
