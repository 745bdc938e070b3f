"""The category ids of a data set whose format holds only names or places: one small json file beside it.

YOLO files number their classes from 0, `datasets` does as well, and VOC files have names alone. What is converted from
a COCO json keeps its ids, gaps and all, in this file; other tools do not look at it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from .splits import open_whole

FILE_NAME = "category_ids.json"


def write_category_ids(folder: Path, categories: Mapping[int, str]) -> None:
    """Write `category_ids.json`, which gives the id of every name, into a folder.

    Raises:
        ValueError: if two categories have the same name, or a name is more than plain words.
    """
    for name in categories.values():
        if not name.isprintable() or name != name.strip() or not name:
            raise ValueError(f"category name {name!r}: only a COCO json can hold it; give it plain words")
    ids = {name: category_id for category_id, name in categories.items()}
    if len(ids) < len(categories):
        name = next(name for category_id, name in categories.items() if ids[name] != category_id)
        raise ValueError(f"two categories are named {name!r}, which only a COCO json can hold; rename one of them")
    with open_whole(folder / FILE_NAME) as file:
        file.write(json.dumps(ids, ensure_ascii=False, indent=2) + "\n")


def read_category_ids(folder: Path, names: Iterable[str] | None = None) -> dict[int, str] | None:
    """Return category id -> name as the file says, by ascending id; None if the folder has no such file.

    Args:
        folder: of the data set.
        names: that the data set itself lists, which the file must list as well; None if it lists none.

    Raises:
        ValueError: if the file is wrong, or does not list the same names.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file ({error}); remove it, or convert the data set again") from error
    if not isinstance(ids, dict) or not ids or any(type(value) is not int for value in ids.values()):
        raise ValueError(f'{path}: must give a whole number for each name, as in {{"cat": 3}}; correct or remove it')
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{path}: gives one id to two names; correct or remove it")
    if names is not None and (other := set(names) ^ ids.keys()):
        raise ValueError(
            f"{path}: lists other names than its data set, {min(other)!r} is in one of the two; correct or remove it"
        )
    return {category_id: name for name, category_id in sorted(ids.items(), key=lambda item: item[1])}
