import json
from pathlib import Path
from typing import Any

import pytest

from semidetr_hf.batch_inference import formats
from semidetr_hf.batch_inference.formats import require_format, write_coco, write_parquet, write_unreadable

NAMES = {3: "cat", 7: "dog"}


def image(image_id: int | str, *detections: tuple[int, float]) -> dict[str, Any]:
    found = [
        {"category_id": category, "bbox": [1.0, 2.0, 30.0, 4.5], "score": score} for category, score in detections
    ]
    return {"image_id": image_id, "file_name": f"{image_id}.png", "width": 64, "height": 48, "detections": found}


RECORDS = [
    {"images": [image(1, (7, 0.75), (3, 0.5)), image(2)], "unreadable": []},
    {"images": [], "unreadable": ["4.png: broken", "5.png: gone"]},
    {"images": [image(3, (3, 0.25))], "unreadable": ["6.png: broken"]},
]


def test_coco_has_a_line_per_detection(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", RECORDS)
    found = json.loads((tmp_path / "p.json").read_text())
    assert [each["image_id"] for each in found] == [1, 1, 3]
    assert found[0] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [1.0, 2.0, 30.0, 4.5],
        "score": 0.75,
        "file_name": "1.png",
    }
    assert len((tmp_path / "p.json").read_text().splitlines()) == 2 + len(found)


def test_coco_without_detections_is_an_empty_list(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", [{"images": [image(1)], "unreadable": []}])
    assert json.loads((tmp_path / "p.json").read_text()) == []


@pytest.mark.parametrize("rows_per_group", [1, 2, 1000])
def test_parquet_has_a_row_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(formats, "ROWS_PER_GROUP", rows_per_group)
    write_parquet(tmp_path / "p.parquet", RECORDS, NAMES, numeric_ids=True)
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == [1, 2, 3]
    assert rows[0] == {
        "image_id": 1,
        "file_name": "1.png",
        "width": 64,
        "height": 48,
        "objects": {
            "bbox": [[1.0, 2.0, 30.0, 4.5]] * 2,
            "category_id": [7, 3],
            "category": ["dog", "cat"],
            "score": [0.75, 0.5],
        },
    }
    assert rows[1]["objects"]["bbox"] == []
    assert parquet.ParquetFile(tmp_path / "p.parquet").num_row_groups == -(-3 // rows_per_group)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_parquet_takes_ids_of_several_kinds_as_text(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "p.parquet", [{"images": [image(1), image("a")]}], NAMES, numeric_ids=False)
    assert parquet.read_table(tmp_path / "p.parquet")["image_id"].to_pylist() == ["1", "a"]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(OSError, match=r"p\.parquet: cannot be written"):
        write_parquet(tmp_path / "p.parquet", RECORDS, NAMES, numeric_ids=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    write_unreadable(tmp_path / "u.txt", RECORDS)
    assert (tmp_path / "u.txt").read_text() == "4.png: broken\n5.png: gone\n6.png: broken\n"


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="format='csv': there is coco and parquet"):
        require_format("csv")
