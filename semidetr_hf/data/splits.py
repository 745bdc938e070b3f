"""Which images of a labeled set keep their labels (COCO-partial), as id lists and as pairs of COCO json files.

The protocol of semi-supervised detection on COCO: 1, 5 or 10 percent of train2017 keep their boxes, in five folds.

Source: the split script of Semi-DETR's released code draws with numpy's legacy generator, seeded by the fold plus a
random offset that was not recorded, and names the files after whole percents. Here the offset is the argument `seed`,
0 unless told, so that a split can be made again, and 0.5 percent is 0.5 in the name.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np

ImageId = TypeVar("ImageId", int, str, int | str)

logger = logging.getLogger(__name__)

_raw_decode = json.JSONDecoder().raw_decode
_BLANKS = re.compile(r"[ \t\r\n]*")


class CocoSplit(NamedTuple):
    """The three files of one split; the manifest is written last, so a split that has one is complete."""

    percent: float
    fold: int
    labeled: Path
    unlabeled: Path
    manifest: Path


class _Entry(NamedTuple):
    """Where an image, or an annotation of that image, stands in the text of a json file."""

    image_id: int | str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _CocoText:
    """A COCO file as text and where its entries are.

    Decoded at once, the annotations of train2017 take several times the memory of their text; this way each is decoded
    once and let go, and copies of an entry are the same to the last digit.
    """

    path: Path
    sha256: str
    text: str
    images: list[_Entry] = field(default_factory=list)
    annotations: list[_Entry] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)  # key -> its value, as written


def labeled_subset(
    image_ids: Sequence[ImageId], *, fraction: float, fold: int = 0, seed: int = 0
) -> tuple[list[ImageId], list[ImageId]]:
    """Divide image ids into those that keep their labels and those that lose them.

    Splits of the same fold and seed are nested: the 1% set is part of the 5% set.

    Args:
        image_ids: all ids, in the order of the annotation file; the draw depends on that order.
        fraction: share of labeled images, 0 < fraction <= 1; the number is rounded down but at least 1.
        fold: which of several draws, 0 or more.
        seed: added to `fold`, 0 or more.

    Returns:
        The labeled and the unlabeled ids, each in the order of `image_ids`.

    Raises:
        ValueError: if `fraction`, `fold` or `seed` is out of range, or there is no image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be larger than 0 and at most 1 (10 percent is 0.1)")
    if fold < 0 or seed < 0:
        raise ValueError(f"fold={fold}, seed={seed}: both must be 0 or larger")
    _require_seed(fold, seed)
    if not image_ids:
        raise ValueError("labeled_subset got no image ids; open a source with at least one image")
    num_labeled = _num_labeled(len(image_ids), fraction)
    drawn = np.random.RandomState(fold + seed).choice(len(image_ids), num_labeled, replace=False)
    chosen = set(drawn.tolist())
    labeled = [image_id for place, image_id in enumerate(image_ids) if place in chosen]
    unlabeled = [image_id for place, image_id in enumerate(image_ids) if place not in chosen]
    return labeled, unlabeled


def write_coco_splits(
    annotations: str | Path,
    output: str | Path,
    *,
    percents: Sequence[float],
    folds: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> list[CocoSplit]:
    """Write a labeled and an unlabeled COCO json for every percentage and fold.

    `instances_train2017.json` becomes `instances_train2017.{fold}@{percent}.json`, the same with `-unlabeled.json`,
    and with `-manifest.json`, which records the source with its SHA-256, the draw and the sizes. Both parts keep
    images, annotations and everything else of the file as it is written there. Existing files of these names are
    replaced; none is ever there in part. Nothing is written before the arguments and the file have been checked.

    Args:
        annotations: the COCO json; read once, its text stays in memory.
        output: folder for the files, created if needed.
        percents: shares of labeled images, above 0 and below 100; 0.5 is half a percent. Smaller ones of a fold are
            contained in larger ones.
        folds: which draws, 0 or more.
        seed: added to the fold, 0 or more.

    Returns:
        The files of every split, fold by fold.

    Raises:
        FileNotFoundError: if there is no such file.
        NotADirectoryError: if `output` is a file.
        ValueError: if an argument is out of range or occurs twice, or the file is no COCO json, lists no images or an
            image id twice, or has an annotation of an unknown image.
    """
    names = [_percent_name(percent) for percent in percents]
    for argument, values in (("percents", names), ("folds", list(folds))):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{argument}={values}: give at least one, and none twice")
    if min(folds) < 0 or seed < 0:
        raise ValueError(f"folds={list(folds)}, seed={seed}: all must be 0 or larger")
    _require_seed(max(folds), seed)
    if Path(output).exists() and not Path(output).is_dir():
        raise NotADirectoryError(f"{output}: a file, and the splits need a folder; give another output")
    coco = _read_coco_text(Path(annotations))
    for percent in percents:
        if _num_labeled(len(coco.images), percent / 100) == len(coco.images):
            raise ValueError(f"{annotations}: {percent} percent of {len(coco.images)} images leave none unlabeled")
    draws = [(fold, percent) for fold in folds for percent in percents]
    return [_write_split(coco, Path(output), percent=percent, fold=fold, seed=seed) for fold, percent in draws]


def _require_seed(fold: int, seed: int) -> None:
    if fold + seed >= 2**32:
        raise ValueError(f"fold={fold}, seed={seed}: their sum must be below 2**32, as numpy takes it")


def _num_labeled(num_images: int, fraction: float) -> int:
    # Rounding first removes the float error that would make 29% of 100 images 28.
    return max(1, int(round(fraction * num_images, 6)))


def _percent_name(percent: float) -> str:
    if not 0 < percent < 100:
        raise ValueError(f"percents: {percent} must be larger than 0 and smaller than 100")
    return str(int(percent)) if percent == int(percent) else str(percent)


def _write_split(coco: _CocoText, output: Path, *, percent: float, fold: int, seed: int) -> CocoSplit:
    image_ids = [image.image_id for image in coco.images]
    labeled, unlabeled = labeled_subset(image_ids, fraction=percent / 100, fold=fold, seed=seed)
    base = f"{coco.path.stem}.{fold}@{_percent_name(percent)}"
    split = CocoSplit(percent, fold, *(output / f"{base}{part}.json" for part in ("", "-unlabeled", "-manifest")))
    # That of an earlier call would vouch for files that are about to change.
    split.manifest.unlink(missing_ok=True)
    manifest: dict[str, Any] = {
        "source": coco.path.name,
        "source_sha256": coco.sha256,
        "source_images": len(coco.images),
        "source_annotations": len(coco.annotations),
        "percent": percent,
        "fold": fold,
        "seed": seed,
        "draw": "numpy.random.RandomState(fold + seed).choice(source_images, labeled images, replace=False)",
        "labeled": _write_part(split.labeled, coco, set(labeled)),
        "unlabeled": _write_part(split.unlabeled, coco, set(unlabeled)),
    }
    with open_whole(split.manifest) as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
    logger.info("%s: %d labeled and %d unlabeled images", split.labeled, len(labeled), len(unlabeled))
    return split


def _write_part(path: Path, coco: _CocoText, image_ids: Collection[int | str]) -> dict[str, Any]:
    """Write the images with these ids and their annotations; return what the manifest says about the file."""
    written: dict[str, Any] = {"file": path.name}
    with open_whole(path) as file:
        opening = "{"
        for key, value in coco.other.items():
            file.write(f"{opening}{json.dumps(key)}: {value}")
            opening = ",\n"
        for key, entries in (("images", coco.images), ("annotations", coco.annotations)):
            kept = [entry for entry in entries if entry.image_id in image_ids]
            file.write(f'{opening}"{key}": [')
            for place, entry in enumerate(kept):
                file.write(",\n" if place else "\n")
                file.write(coco.text[entry.start : entry.end])
            file.write("]")
            opening = ",\n"
            written[key] = len(kept)
        file.write("}\n")
    return written


def _read_coco_text(path: Path) -> _CocoText:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such COCO json file")
    content = path.read_bytes()
    try:
        coco = _CocoText(path=path, sha256=hashlib.sha256(content).hexdigest(), text=content.decode("utf-8"))
        del content
        seen = _find_entries(coco)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a json file ({error}); export it again as COCO json, in UTF-8") from error
    for key in ("images", "annotations", "categories"):
        if key not in seen:
            raise ValueError(f'{path}: has no "{key}"; a COCO file needs images, annotations and categories')
    if not coco.images:
        raise ValueError(f'{path}: "images" is empty; a split needs at least two images')
    image_ids: set[int | str] = set()
    for image in coco.images:
        if image.image_id in image_ids:
            raise ValueError(f"{path}: image id {image.image_id!r} occurs twice; give every image its own id")
        image_ids.add(image.image_id)
    for annotation in coco.annotations:
        if annotation.image_id not in image_ids:
            raise ValueError(
                f'{path}: an annotation has image_id={annotation.image_id!r}, not in "images"; add the image or '
                f"remove it: {coco.text[annotation.start : annotation.end][:80]}"
            )
    return coco


def _find_entries(coco: _CocoText) -> set[str]:
    """Fill the lists of a `_CocoText`; return the keys found."""
    lists = {"images": (coco.images, "id"), "annotations": (coco.annotations, "image_id")}
    seen: set[str] = set()
    place = _after(coco.text, 0, "{")
    while not coco.text.startswith("}", place):
        key, place = _decode(coco.text, place)
        if not isinstance(key, str) or key in seen:
            raise json.JSONDecodeError(f"{key!r} is no key or occurs twice", coco.text, place)
        seen.add(key)
        start = _after(coco.text, place, ":")
        if key in lists:
            place = _find_list(coco, key, start, *lists[key])
        else:
            _, place = _decode(coco.text, start)
            coco.other[key] = coco.text[start:place]
        place = _after_value(coco.text, place, "}")
    if _skip_blanks(coco.text, place + 1) != len(coco.text):
        raise json.JSONDecodeError("text after the end", coco.text, place + 1)
    return seen


def _find_list(coco: _CocoText, key: str, start: int, entries: list[_Entry], id_key: str) -> int:
    """Append an entry for every object of the list that begins at `start`; return the place behind it."""
    place = _after(coco.text, start, "[")
    while not coco.text.startswith("]", place):
        start = place
        value, place = _decode(coco.text, start)
        image_id = value.get(id_key) if isinstance(value, dict) else None
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise ValueError(
                f'{coco.path}: entry {len(entries)} of "{key}" has no integer or string "{id_key}"; add one'
            )
        entries.append(_Entry(image_id, start, place))
        place = _after_value(coco.text, place, "]")
    return place + 1


def _decode(text: str, place: int) -> tuple[Any, int]:
    try:
        return _raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    # Brackets nested deeper than Python can follow, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, place) from error


def _skip_blanks(text: str, place: int) -> int:
    blanks = _BLANKS.match(text, place)
    return place if blanks is None else blanks.end()


def _after(text: str, place: int, symbol: str) -> int:
    place = _skip_blanks(text, place)
    if not text.startswith(symbol, place):
        raise json.JSONDecodeError(f"expected {symbol!r}", text, place)
    return _skip_blanks(text, place + 1)


def _after_value(text: str, place: int, closing: str) -> int:
    """Return the place of `closing`, or of the value after a comma."""
    place = _skip_blanks(text, place)
    if text.startswith(closing, place):
        return place
    place = _after(text, place, ",")
    if text.startswith(closing, place):
        raise json.JSONDecodeError(f"comma before {closing!r}", text, place)
    return place


@contextmanager
def open_whole(path: str | Path) -> Iterator[TextIO]:
    """Open a text file that appears, or replaces another, only when everything is written.

    Args:
        path: the file; its folder is created if needed. Until the end of the block the text goes to a hidden file
            beside it, which is removed if the block fails. A device or a pipe, such as /dev/stdout, is written to.

    Raises:
        OSError: if it cannot be written, as on a full disk; names the file.
    """
    path = Path(path)
    is_replaced = path.is_file() or not path.exists()
    target = path.with_name(f".{path.name}.partial-{os.getpid()}") if is_replaced else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        if is_replaced:
            target.replace(path)
    except OSError as error:
        name = None if error.filename is None else str(error.filename)
        is_ours = name is None or name == str(target) or path.is_relative_to(name)
        if error.errno is None or not is_ours:  # raised within the block for a reason of its own
            raise
        raise type(error)(f"{path}: cannot be written ({error.strerror}); make room, or give another place") from error
    finally:
        if is_replaced and target.exists():
            target.unlink()


def write_ids(path: str | Path, image_ids: Sequence[int | str]) -> None:
    """Write image ids as a json list, creating the folder if needed."""
    with open_whole(path) as file:
        file.write(json.dumps(list(image_ids), ensure_ascii=False) + "\n")


def read_ids(path: str | Path) -> list[int | str]:
    """Read a json list of image ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a json list of integers and strings, or an id occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of image ids; write one with write_ids")
    try:
        image_ids = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file ({error}); write the list with write_ids") from error
    if not isinstance(image_ids, list):
        raise ValueError(f"{path}: expected a json list of image ids, found a {type(image_ids).__name__}")
    seen: set[int | str] = set()
    for image_id in image_ids:
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise ValueError(f"{path}: image id {image_id!r} is neither an integer nor a string; remove it")
        if image_id in seen:
            raise ValueError(f"{path}: image id {image_id!r} occurs twice; remove one of them")
        seen.add(image_id)
    return image_ids
