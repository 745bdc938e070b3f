"""The files that a run ends with, written from its records one after the other."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semidetr_hf.data.splits import open_whole

FORMATS = ("coco", "parquet")
ROWS_PER_GROUP = 1000  # of a parquet file: so many images are in memory


def require_format(name: str) -> None:
    """Find out before hours of work whether a format can be written.

    Raises:
        ValueError: if there is no such format.
        ModuleNotFoundError: if its library is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"format={name!r}: there is {' and '.join(FORMATS)}")
    if name == "parquet":
        import pyarrow.parquet  # noqa: F401


def write_coco(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a COCO result list, a detection per line, each with the `file_name` of its image.

    Args:
        path: the json, which appears when it is whole.
        records: as in a journal.

    Raises:
        OSError: if it cannot be written.
    """
    with open_whole(path) as file:
        is_first = True
        for image in _images(records):
            for found in image["detections"]:
                line = {"image_id": image["image_id"], **found, "file_name": image["file_name"]}
                file.write(f"{'[' if is_first else ','}\n{json.dumps(line)}")
                is_first = False
        file.write("[]\n" if is_first else "\n]\n")


def write_parquet(
    path: Path, records: Iterable[Mapping[str, Any]], names: Mapping[int, str], *, numeric_ids: bool
) -> None:
    """Write a table with a row per image, also for those on which nothing was found.

    Columns are `image_id`, `file_name`, `width`, `height`, and `objects` with the lists `bbox` ([x, y, width, height]
    in pixels), `category_id`, `category` (its name) and `score`, best first.

    Args:
        path: the file, which appears when it is whole.
        records: as in a journal.
        names: category id -> name.
        numeric_ids: whether every `image_id` is a whole number; otherwise the column is text.

    Raises:
        OSError: if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = pa.struct(
        {
            "bbox": pa.list_(pa.list_(pa.float32(), 4)),
            "category_id": pa.list_(pa.int64()),
            "category": pa.list_(pa.string()),
            "score": pa.list_(pa.float32()),
        }
    )
    schema = pa.schema(
        {
            "image_id": pa.int64() if numeric_ids else pa.string(),
            "file_name": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "objects": objects,
        }
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for rows in _groups(_rows(records, names, numeric_ids), ROWS_PER_GROUP):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error}); make room") from error
    finally:
        partial.unlink(missing_ok=True)


def write_unreadable(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a text file with a line per image that could not be read, which says where it is and why.

    Raises:
        OSError: if it cannot be written.
    """
    with open_whole(path) as file:
        file.writelines(f"{message}\n" for record in records for message in record["unreadable"])


def _images(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for record in records:
        yield from record["images"]


def _rows(
    records: Iterable[Mapping[str, Any]], names: Mapping[int, str], numeric_ids: bool
) -> Iterator[dict[str, Any]]:
    for image in _images(records):
        found = image["detections"]
        yield {
            "image_id": image["image_id"] if numeric_ids else str(image["image_id"]),
            "file_name": image["file_name"],
            "width": image["width"],
            "height": image["height"],
            "objects": {
                "bbox": [each["bbox"] for each in found],
                "category_id": [each["category_id"] for each in found],
                "category": [names[each["category_id"]] for each in found],
                "score": [each["score"] for each in found],
            },
        }


def _groups(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
