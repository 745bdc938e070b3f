"""The YOLO reader: a data.yaml and the text files with its boxes become a source like that of a COCO json.

Source: the layout is that of Ultralytics' documentation. The label file of an image is found by exchanging the last
folder `images` of its path for `labels`, and its suffix for `.txt`. Each line is a class and a box (center, width and
height as shares of the upright picture), or a class and the corners of a polygon, of which the box around it is taken.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .category_ids import read_category_ids
from .coco import CocoSource
from .coco_json import checked_document
from .file_list import read_file_list
from .folder import FolderSource
from .images import stored_size
from .progress import with_bar
from .sources import Part

logger = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")
MAX_SHARE = 2.0  # of the image; a box may stick out, but larger numbers are pixels
DECIMALS = 6  # of a pixel that are kept; what was written with fewer comes back exactly


class Complaint(NamedTuple):
    """What is wrong in one file: a whole line of its name, the value and the way out; `kind` is for the data check."""

    kind: str
    file: Path
    image_id: str | None
    message: str


@dataclass(kw_only=True)
class YoloContent:
    """What a data.yaml and its label files say.

    Attributes:
        coco: in the form of a COCO json; ids of annotations name file and line.
        root: folder in which the file names of the images start.
        complaints: everything that is no box, in the order of the images.
        notes: what was read otherwise than it may seem -> how often.
    """

    coco: dict[str, list[Any]]
    root: Path
    complaints: list[Complaint] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


class YoloSource(CocoSource):
    """Images and boxes of a YOLO data set, with everything a `CocoSource` offers.

    The id of an image is its path from the root of the data set. The class numbers are the category ids, whether they
    are dense or have gaps; a `category_ids.json` beside the yaml gives others.

    Args:
        yaml_path: a `data.yaml` with `names`, and `train`, `val` or `test` as a folder, a list of folders or a `.txt`
            file that lists images; or the folder of such a file.
        key: which images: "train", "val", "test", or another key of the file. None for `part`.
        part: what the images are for; it chooses the key of the same name.
        labeled: False to leave the label files unread.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is wrong; names file, line and value.
    """

    def __init__(
        self, yaml_path: str | Path, *, key: str | None = None, part: Part = "train", labeled: bool = True
    ) -> None:
        self.json_path = find_yaml(yaml_path)  # with which the messages of CocoSource begin
        key = key or part
        self.name = f"{self.json_path.resolve().parent.name} {key}"
        content = read_yolo(self.json_path, key, labeled=labeled)
        if content.complaints:
            more = f" (and {len(content.complaints) - 1} more complaints; semidetr validate lists all)"
            raise ValueError(content.complaints[0].message + (more if len(content.complaints) > 1 else ""))
        for note, count in content.notes.items():
            logger.info("%s: %d %s", self.json_path, count, note)
        self.image_folder = content.root
        self._adopt(checked_document(self.json_path, content.coco, labeled=labeled), labeled)


def find_yaml(path: str | Path) -> Path:
    """Return the data.yaml that a path names: itself, or that in a folder."""
    path = Path(path)
    return path / "data.yaml" if path.is_dir() else path


def read_yolo(yaml_path: Path, key: str, *, labeled: bool) -> YoloContent:
    """Read the images of one key with their boxes; what is wrong in label files is collected.

    Args:
        yaml_path: the data.yaml.
        key: of the images.
        labeled: False to leave the label files and the names of the classes unread.

    Raises:
        FileNotFoundError: if the yaml, a folder or a list does not exist.
        ValueError: if the yaml is wrong, or there is not one label file.
    """
    values = _read_yaml(yaml_path)
    names = _class_names(yaml_path, values) if labeled else {}
    root = _root(yaml_path, values)
    files = _image_files(yaml_path, values, root, key)
    ids = [file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in files]
    images: list[dict[str, Any]] = [{"id": name, "file_name": name} for name in ids]
    coco = {"images": images, "annotations": [], "categories": [{"id": i, "name": n} for i, n in names.items()]}
    content = YoloContent(coco=coco, root=root)
    if labeled:
        is_pose = "kpt_shape" in values
        _read_labels(yaml_path, files, names, is_pose, content)
        _rename_classes(yaml_path, names, content)
    return content


def label_path(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` becomes `labels`, the suffix `.txt`."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


# ---- The yaml


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such YOLO data.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML file ({reason}); write names, train and val into it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; a YOLO data.yaml has names, train and val")
    return values


def _class_names(path: Path, values: dict[str, Any]) -> dict[int, str]:
    names = values.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{path}: names={names!r}; list the name of every class, or give each number its name")
    for number in names:
        if not str(number).isdecimal():
            raise ValueError(f"{path}: names has the key {number!r}; number the classes from 0")
    listed = {int(number): str(name) for number, name in names.items()}
    count = values.get("nc")
    if count is not None and count != len(listed) and count != max(listed) + 1:
        raise ValueError(f"{path}: nc={count!r} but names lists {len(listed)} classes; correct one of them")
    return listed


def _root(path: Path, values: dict[str, Any]) -> Path:
    """Return the folder in which the paths of a yaml start; `path` in it may be relative to the yaml."""
    given = values.get("path")
    if given is None or given == "":
        return path.parent
    root = path.parent / str(given)
    if not root.is_dir():
        raise FileNotFoundError(f"{path}: path={given!r}: no such folder {root}; correct it, or leave it out")
    return root


def _image_files(path: Path, values: dict[str, Any], root: Path, key: str) -> list[Path]:
    entry = values.get(key)
    if not entry:
        known = [
            name for name in values if name not in ("names", "nc", "path") and isinstance(values[name], str | list)
        ]
        raise ValueError(
            f"{path}: has no images {key!r}; there are: {', '.join(map(str, known)) or 'none'}; "
            f"choose one as {path.name}:KEY"
        )
    places = entry if isinstance(entry, list) else [entry]
    return [file for place in places for file in _files_at(path, key, _existing(path, key, root, str(place)), root)]


def _existing(path: Path, key: str, root: Path, place: str) -> Path:
    # Exports of Roboflow say ../train/images of a folder that is beside the yaml; Ultralytics takes it as well.
    candidates = [root / place, *([root / place.removeprefix("../")] if place.startswith("../") else [])]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{path}: {key}={place!r}: there is no {candidates[0]}; correct {key}, or `path`")


def _files_at(path: Path, key: str, place: Path, root: Path) -> list[Path]:
    if place.is_dir():
        return [place / name for name in FolderSource(place).image_ids]
    if place.suffix.lower() != ".txt":
        raise ValueError(f"{path}: {key} names {place}; give a folder of images, or a .txt file that lists them")
    files = []
    for name in read_file_list(place):
        # Normalized: ./images/a.jpg and images/a.jpg are one image. Ultralytics starts bare names at the root.
        beside, below_root = place.parent / Path(name), root / Path(name)
        files.append(below_root if below_root.is_file() and not beside.is_file() else beside)
    return files


def _rename_classes(path: Path, names: dict[int, str], content: YoloContent) -> None:
    """Give the classes the ids of a `category_ids.json`, if there is one."""
    given = read_category_ids(path.parent, names.values())
    if given is None:
        return
    id_of = {name: category_id for category_id, name in given.items()}
    content.coco["categories"] = [{"id": category_id, "name": name} for category_id, name in given.items()]
    for annotation in content.coco["annotations"]:
        annotation["category_id"] = id_of[names[annotation["category_id"]]]


# ---- The label files


def _read_labels(path: Path, files: list[Path], names: dict[int, str], is_pose: bool, content: YoloContent) -> None:
    images = content.coco["images"]
    found = 0
    with_lines: list[tuple[int, list[tuple[str, int, list[float]]]]] = []
    for place, file in enumerate(with_bar(files, len(files), "reading labels")):
        labels = label_path(file)
        if not labels.is_file():
            content.notes["images have no label file and count as images without objects"] += 1
            continue
        found += 1
        image_id = images[place]["id"]
        if lines := list(_read_lines(labels, image_id, names, is_pose, content)):
            with_lines.append((place, lines))
    if not found:
        raise ValueError(
            f"{path}: not one of its {len(files)} images has a label file, the first should have "
            f"{label_path(files[0])}; is `path` right?"
        )
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(lambda entry: stored_size(files[entry[0]]), with_lines)
        for (place, lines), size in zip(
            with_lines, with_bar(sizes, len(with_lines), "reading sizes of images"), strict=True
        ):
            if size is None:
                # The reader of the picture says what is wrong with it.
                content.notes["images with boxes cannot be read; their boxes are left out"] += 1
                continue
            images[place] |= {"height": size[0], "width": size[1]}
            content.coco["annotations"] += [_annotation(images[place], *line) for line in lines]


def _read_lines(
    labels: Path, image_id: str, names: dict[int, str], is_pose: bool, content: YoloContent
) -> Iterator[tuple[str, int, list[float]]]:
    """Yield where each box of a label file is, its class, and the shares x1, y1, width, height."""
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        message = f"{labels}: not a text file ({error}); write one box per line"
        content.complaints.append(Complaint("invalid_label_file", labels, image_id, message))
        return
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            label, values = _numbers(fields)
            if label not in names:
                raise ValueError(
                    f"has the class {fields[0]}, which names of the yaml does not list; add or correct it"
                )
            shares = _box(values[:4] if is_pose else values, content)
        except ValueError as error:
            message = f"{labels}: line {number} {error}"
            content.complaints.append(Complaint("invalid_line", labels, image_id, message))
            continue
        yield f"line {number} of {labels.name}", label, shares


def _numbers(fields: list[str]) -> tuple[int, list[float]]:
    try:
        label, *values = (float(text) for text in fields)
    except ValueError:
        text = " ".join(fields)
        raise ValueError(f"is {text[:80]!r}; write a class and four numbers") from None
    if not label.is_integer():
        raise ValueError(f"has the class {fields[0]}; write the number of a class")
    wrong = next((text for text, value in zip(fields[1:], values, strict=True) if not abs(value) <= MAX_SHARE), None)
    if wrong is not None:
        raise ValueError(f"has {wrong}; write shares of the image from 0 to 1, not pixels")
    return int(label), values


def _box(values: list[float], content: YoloContent) -> list[float]:
    """Return x1, y1, width, height as shares of the image."""
    if len(values) == 5:
        content.notes["boxes have a confidence, which is left out"] += 1
    if len(values) in (4, 5):
        center_x, center_y, width, height = values[:4]
        if width < 0 or height < 0:
            raise ValueError(f"has width {width:g} and height {height:g}; write center, width and height, not corners")
        return [center_x - width / 2, center_y - height / 2, width, height]
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"has {len(values)} numbers behind the class; write four of a box, or pairs of a polygon of three or more"
        )
    content.notes["polygons are read as the boxes around them"] += 1
    xs, ys = values[::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _annotation(image: dict[str, Any], where: str, label: int, shares: list[float]) -> dict[str, Any]:
    sides = [image["width"], image["height"]] * 2
    bbox = [round(share * side, DECIMALS) for share, side in zip(shares, sides, strict=True)]
    area = math.prod(bbox[2:])
    return {"id": where, "image_id": image["id"], "category_id": label, "bbox": bbox, "area": area}
