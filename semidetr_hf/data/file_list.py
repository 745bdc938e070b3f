"""A text list of image files, for unlabeled data."""

from pathlib import Path

from .folder import UnlabeledSource


class FileListSource(UnlabeledSource):
    """The images that a text file lists, in its order, without boxes.

    Args:
        list_path: one path per line, absolute or relative to the folder of the list; empty lines do not count.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if it is no text in UTF-8, lists no image, or one twice; names the lines.
    """

    def __init__(self, list_path: str | Path) -> None:
        self.list_path = Path(list_path)
        self.name = self.list_path.stem
        self.image_ids = list(read_file_list(self.list_path))

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.list_path.parent / self.image_ids[index]


def read_file_list(path: Path) -> dict[str, int]:
    """Return the paths that a text file lists, as written, and the line of each.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if it is no text in UTF-8, lists nothing, or something twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of images; write one path per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error}); write one path per line") from error
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name in places:
            raise ValueError(f"{path}: line {number} repeats {name!r} of line {places[name]}; remove one of them")
        if name:
            places[name] = number
    if not places:
        raise ValueError(f"{path}: lists no image; write one path per line")
    return places
