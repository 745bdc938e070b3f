"""A COCO json without the entries that the data check found wrong, written beside the original.

Only what needs no guess is done: entries are dropped, boxes clipped, absent sizes filled in from the pictures. The
original stays as it is, and so does everything else in it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from .coco_json import visible_box
from .data_problems import CheckedSet, Fix
from .splits import open_whole

MARK = "cleaned_by"  # key of the json by which a file of this tool is known


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What became of one json.

    Attributes:
        source: the original.
        output: the cleaned file; None if there was nothing to do, or no image would be left.
        is_val: whether it is evaluated on, so that a metric on the cleaned file is another one.
        done: (what was done, why) -> how often.
        left: kind -> how many of its problems are still there.
    """

    source: Path
    output: Path | None
    is_val: bool
    done: Counter[tuple[str, str]]
    left: Counter[str]


def cleaned_path(path: Path) -> Path:
    """Return where the cleaned copy of a json is written: `train.cleaned.json` beside `train.json`."""
    return path.with_name(f"{path.stem}.cleaned.json")


def require_replaceable(path: Path) -> None:
    """Make sure that the cleaned copy of a json overwrites nothing but an earlier one.

    Raises:
        FileExistsError: if there is a file that this tool did not write.
    """
    output = cleaned_path(path)
    if not output.exists():
        return
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict) or MARK not in content:
        raise FileExistsError(f"{output}: exists and was not written by --fix; move it away, or check without --fix")


def write_cleaned(sets: Sequence[CheckedSet]) -> list[Cleaning]:
    """Write a cleaned copy of every COCO json among the checked sets that has something to clean.

    A json that serves as two sets is cleaned once, of what was found in both.

    Args:
        sets: of a `DataReport`.

    Returns:
        What was done, in the order of the sets.

    Raises:
        FileExistsError: see `require_replaceable`.
        ValueError: if a json changed since it was checked.
    """
    of_file: defaultdict[Path, list[CheckedSet]] = defaultdict(list)
    for checked in sets:
        if checked.is_coco:
            of_file[checked.path.resolve()].append(checked)
    return [_clean(group) for group in of_file.values()]


def _clean(sets: Sequence[CheckedSet]) -> Cleaning:
    path = sets[0].path
    problems = [problem for checked in sets for problem in checked.problems]
    left = Counter(problem.kind for problem in problems if problem.fix is None)
    cleaning = Cleaning(
        source=path, output=None, is_val=any(checked.role == "val" for checked in sets), done=Counter(), left=left
    )
    fixes: defaultdict[Fix, dict[int, str]] = defaultdict(dict)
    for problem in problems:
        if problem.fix is not None and problem.place is not None:
            fixes[problem.fix].setdefault(problem.place, problem.kind)
    found_sizes = {key: size for checked in sets for key, size in checked.found_sizes.items()}
    if not fixes and not found_sizes:
        return cleaning
    no_images = replace(cleaning, left=left + Counter({"no_images": 1}))
    if not any(checked.images for checked in sets):
        return no_images
    require_replaceable(path)
    status = path.stat()
    if any(checked.stamp != (status.st_size, status.st_mtime_ns) for checked in sets):
        raise ValueError(f"{path}: was changed while it was checked; run the check again")
    content = json.loads(path.read_text(encoding="utf-8"))
    done = _apply(fixes, found_sizes, content)
    if not content["images"]:
        return no_images
    steps = [{"done": what, "because_of": kind, "count": count} for (what, kind), count in done.items()]
    content[MARK] = {"tool": f"semidetr-hf {version('semidetr-hf')}", "original": path.name, "steps": steps}
    with open_whole(cleaned_path(path)) as file:
        _write(content, file)
    return replace(cleaning, output=cleaned_path(path), done=done)


def _apply(
    fixes: Mapping[Fix, Mapping[int, str]], found_sizes: Mapping[int | str, tuple[int, int]], content: dict[str, Any]
) -> Counter[tuple[str, str]]:
    """Change the content of a json; return what was done and why."""
    done: Counter[tuple[str, str]] = Counter()
    dropped = _drop("images", fixes.get("drop_image", {}), content, done)
    _drop("categories", fixes.get("drop_category", {}), content, done)
    lost = _fill_in_sizes(found_sizes, content, done)
    _mend_annotations(fixes, content, done)
    _drop("annotations", fixes.get("drop_annotation", {}), content, done)
    kept = {entry["id"] for entry in content["images"]}
    gone = {entry["id"] for entry in dropped + lost if isinstance(entry, dict) and _is_id(entry.get("id"))} - kept
    if isinstance(content.get("annotations"), list):
        places = {
            place: "image dropped"
            for place, entry in enumerate(content["annotations"])
            if isinstance(entry, dict) and _is_id(entry.get("image_id")) and entry["image_id"] in gone
        }
        _drop("annotations", places, content, done)
    return done


def _drop(key: str, places: Mapping[int, str], content: dict[str, Any], done: Counter[tuple[str, str]]) -> list[Any]:
    """Drop the entries at the given places of a list; return them."""
    if not places:
        return []
    entries = content[key]
    done.update((f"dropped {key}", kind) for kind in places.values())
    content[key] = [entry for place, entry in enumerate(entries) if place not in places]
    return [entries[place] for place in places]


def _fill_in_sizes(
    found_sizes: Mapping[int | str, tuple[int, int]], content: dict[str, Any], done: Counter[tuple[str, str]]
) -> list[Any]:
    """Add absent sizes; drop and return the images of which one side is given and is not that of the picture."""
    contradicted: dict[int, str] = {}
    for place, entry in enumerate(content["images"]):
        if entry["id"] not in found_sizes:
            continue
        sides = dict(zip(("height", "width"), found_sizes[entry["id"]], strict=True))
        if any(entry.get(name) not in (None, side) for name, side in sides.items()):
            contradicted[place] = "wrong_size"
        elif any(entry.get(name) is None for name in sides):
            entry |= sides
            done["filled in sizes", "missing_size"] += 1
    return _drop("images", contradicted, content, done)


def _mend_annotations(
    fixes: Mapping[Fix, Mapping[int, str]], content: dict[str, Any], done: Counter[tuple[str, str]]
) -> None:
    sizes = {entry["id"]: (entry.get("height"), entry.get("width")) for entry in content["images"]}
    for place, kind in fixes.get("drop_area", {}).items():
        del content["annotations"][place]["area"]
        done["left out areas", kind] += 1
    for place, kind in fixes.get("clip_box", {}).items():
        entry = content["annotations"][place]
        size = sizes.get(entry["image_id"])
        box = None if size is None else visible_box(tuple(entry["bbox"]), size)
        if box is not None:
            _clip(entry, box)
            done["clipped boxes", kind] += 1


def _clip(entry: dict[str, Any], visible: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = visible
    was_area_of_box = entry.get("area") == entry["bbox"][2] * entry["bbox"][3]
    entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    # The area of a mask stays; that of a box goes with it.
    if was_area_of_box:
        entry["area"] = (x2 - x1) * (y2 - y1)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _write(content: dict[str, Any], file: TextIO) -> None:
    """Write one entry of a list per line: half a million at once would need their text in memory."""
    for place, (key, value) in enumerate(content.items()):
        file.write(f"{',' if place else '{'}\n{json.dumps(key)}: ")
        if isinstance(value, list):
            for number, entry in enumerate(value):
                file.write(f"{',' if number else '['}\n{json.dumps(entry)}")
            file.write("\n]" if value else "[]")
        else:
            file.write(json.dumps(value))
    file.write("\n}\n")
