"""Small pictures and COCO files made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes `<folder>/<name>.json` and its pictures; `content` replaces default keys."""

    def write(name: str = "labels", folder: Path = tmp_path, *, pictures: bool = True, **content: Any) -> Path:
        document: dict[str, Any] = {
            "images": [
                {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
                {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
            ],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 10]},
                {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4]},
            ],
        } | content
        folder.mkdir(parents=True, exist_ok=True)
        if pictures:
            for entry in document["images"]:
                file = folder / entry["file_name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (entry.get("width", 40), entry.get("height", 30)), (90, 90, 90)).save(file)
        path = folder / f"{name}.json"
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
        return path

    return write
