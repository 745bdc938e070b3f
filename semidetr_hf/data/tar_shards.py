"""Images in tar files, for unlabeled data; nothing is unpacked.

The headers are read once, when the source is opened; afterwards an image is a seek and a read. Every read opens its
file anew, so that loader processes share no place in it.
"""

import glob
import re
import tarfile
from array import array
from pathlib import Path

from .folder import IMAGE_SUFFIXES, UnlabeledSource, is_image_name
from .images import PackedImage
from .progress import with_bar

SUFFIX = ".tar"

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {000..012}


class TarSource(UnlabeledSource):
    """Every image in tar files, file by file, in the order in which they are packed, without boxes.

    Args:
        shards: one `.tar` file, a folder of them, or a pattern such as `shards/*.tar` or `shards/{000..012}.tar`. The
            members are images with the suffixes that count in a folder; other members are left out.

    Raises:
        FileNotFoundError: if a file does not exist, or a pattern fits none.
        ValueError: if a file is no uncompressed tar file, is cut off, or there is no image in any.
    """

    def __init__(self, shards: str | Path) -> None:
        self.shards = find_shards(str(shards))
        self.name = Path(shards).name
        self.image_ids: list[str] = []
        self._shard_numbers = array("q")
        self._starts = array("q")  # of the bytes of an image in its file
        self._lengths = array("q")
        for number, shard in enumerate(with_bar(self.shards, len(self.shards), "reading tar headers", unit=" files")):
            for name, (start, length) in _image_members(shard).items():
                self.image_ids.append(f"{shard.name}/{name}")
                self._shard_numbers.append(number)
                self._starts.append(start)
                self._lengths.append(length)
        if not self.image_ids:
            raise ValueError(f"{shards}: no image in {len(self.shards)} tar files; looked for {IMAGE_SUFFIXES}")

    def path(self, index: int) -> PackedImage:
        """Return the place of one image in its tar file."""
        shard = self.shards[self._shard_numbers[index]]
        name = self.image_ids[index].removeprefix(f"{shard.name}/")

        def read() -> bytes:
            with shard.open("rb") as file:
                file.seek(self._starts[index])
                return file.read(self._lengths[index])

        return PackedImage(f"{shard}/{name}", name, read)


def is_shards(text: str) -> bool:
    """Whether a path or pattern names tar files."""
    return text.lower().endswith(SUFFIX)


def find_shards(text: str) -> list[Path]:
    """Return the tar files that a path, folder or pattern names, sorted by their paths.

    Raises:
        FileNotFoundError: if one does not exist, or none fits the pattern.
        ValueError: if two of them have the same name, by which images are told apart.
    """
    if Path(text).is_dir():
        found = sorted(Path(text).glob(f"*{SUFFIX}"))
    else:
        found = [path for name in _with_numbers(text) for path in _files_of(name)]
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None or not found:
        raise FileNotFoundError(f"{missing or text}: no such tar file; correct the path or the pattern")
    names = [path.name for path in found]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"{text}: two tar files are called {twice!r}; give them different names")
    return found


def _with_numbers(text: str) -> list[str]:
    """Return the names that a pattern with one range of numbers stands for."""
    bounds = _RANGE.search(text)
    if bounds is None:
        return [text]
    first, last = bounds.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [text[: bounds.start()] + number + text[bounds.end() :] for number in numbers]


def _files_of(name: str) -> list[Path]:
    # A file may be named like a pattern.
    return [Path(name)] if Path(name).exists() or not glob.has_magic(name) else sorted(map(Path, glob.glob(name)))


def _image_members(shard: Path) -> dict[str, tuple[int, int]]:
    """Return where the bytes of every image begin and how many they are; of equal names the last one counts."""
    try:
        with tarfile.open(shard, "r:") as archive:
            return {
                member.name: (member.offset_data, member.size)
                for member in archive
                if member.isreg() and not member.issparse() and is_image_name(member.name)
            }
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{shard}: not a whole, uncompressed tar file ({error}); pack it again, or unpack what is compressed"
        ) from error
