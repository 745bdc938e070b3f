import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semidetr_hf.data.coco_json import CocoAnnotation, CocoImage, read_coco_json, visible_box

BOX = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}


def test_content_is_kept(write_coco: Callable[..., Path]) -> None:
    document = read_coco_json(write_coco(annotations=[BOX, BOX | {"id": 10, "iscrowd": 1, "area": 5}]))
    assert document.images[0] == CocoImage(1, "a.png", (30, 40))
    assert list(document.categories.items()) == [(3, "cat"), (7, "dog")]
    # the missing area is 3 * 4
    box = CocoAnnotation(category_id=3, bbox=(1.0, 2.0, 3.0, 4.0), area=12.0, is_crowd=False, usable=True)
    assert document.annotations == {1: [box, box._replace(area=5.0, is_crowd=True, usable=False)]}
    assert document.dropped == {"crowd": 1}


@pytest.mark.parametrize(
    ("bbox", "size", "expected"),
    [
        ((5, 6, 10, 20), (100, 50), (5, 6, 15, 26)),
        ((-5, -6, 10, 20), (100, 50), (0, 0, 5, 14)),
        ((45, 90, 10, 20), (100, 50), (45, 90, 50, 100)),
        ((45, 90, 10, 20), None, (45, 90, 55, 110)),
        ((60, 0, 10, 20), (100, 50), None),  # right of the image
        ((-20, 0, 10, 20), (100, 50), None),  # left of it
        ((5, 5, 0.9, 20), (100, 50), None),
        ((5, 5, 20, 0), (100, 50), None),
        ((49.5, 5, 20, 20), (100, 50), None),  # half a pixel is left after clipping
        ((5, 5, 1, 1), (100, 50), (5, 5, 6, 6)),
    ],
)
def test_visible_box(bbox: tuple, size: tuple[int, int] | None, expected: tuple | None) -> None:
    assert visible_box(bbox, size) == expected


def test_one_pixel_is_one_pixel_in_float_arithmetic() -> None:
    assert (1.3 + 1.0) - 1.3 < 1.0
    assert visible_box((1.3, 1.3, 1.0, 1.0), (100, 50)) is not None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"images": None}, '"images"'),
        ({"annotations": None}, '"annotations"'),
        ({"categories": None}, '"categories"'),
        ({"categories": {"1": "cat"}}, '"categories"'),
        ({"images": []}, '"images" is empty'),
        ({"images": [{"file_name": "a.png"}]}, 'entry 0 of "images"'),
        ({"images": [{"id": 1}]}, "image 1 has file_name=None"),
        ({"images": [{"id": 5, "file_name": "a.png"}] * 2}, "image id 5 occurs twice"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 3}]}, "width=0"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": "4", "height": 3}]}, "width='4'"),
        ({"categories": [{"id": 1}]}, "category {'id': 1}"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 occurs twice"),
        ({"annotations": ["box"]}, 'entry 0 of "annotations"'),
        ({"annotations": [BOX | {"image_id": 77}]}, "annotation 9 has image_id=77"),
        ({"annotations": [BOX | {"category_id": 4}]}, "annotation 9 has category_id=4"),
        ({"annotations": [BOX | {"bbox": None}]}, "annotation 9 has bbox=None"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3]}]}, r"bbox=\[1, 2, 3\]"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3, "4"]}]}, "four finite numbers"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3, math.nan]}]}, "four finite numbers"),
        ({"annotations": [BOX | {"bbox": [1, 2, -3, 4]}]}, "negative size"),
        ({"annotations": [BOX | {"area": -1}]}, "area=-1"),
    ],
)
def test_wrong_content_is_named_in_one_line(
    write_coco: Callable[..., Path], content: dict[str, Any], complaint: str
) -> None:
    path = write_coco(pictures=False, **content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_coco_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_coco(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError, match="x.json"):
        read_coco_json(path)
    path.write_text("{nonsense")
    with pytest.raises(ValueError, match="not a json"):
        read_coco_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a json"):
        read_coco_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        read_coco_json(path)


def test_unlabeled_files_need_only_images(write_coco: Callable[..., Path]) -> None:
    path = write_coco(annotations=None, categories=None)
    document = read_coco_json(path, labeled=False)
    assert len(document.images) == 2 and not document.annotations and not document.categories


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_unlabeled_files_may_have_no_categories_in_any_form(write_coco: Callable[..., Path], nothing: Any) -> None:
    path = write_coco(pictures=False)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": nothing}))
    assert read_coco_json(path, labeled=False).categories == {}


def test_categories_that_are_no_list_are_named_in_unlabeled_files_too(write_coco: Callable[..., Path]) -> None:
    path = write_coco(pictures=False, categories=5)
    with pytest.raises(ValueError, match=f'{path}: "categories" is 5'):
        read_coco_json(path, labeled=False)


def test_a_complaint_is_one_line_whatever_the_id(write_coco: Callable[..., Path]) -> None:
    path = write_coco(pictures=False, annotations=[BOX | {"id": "first\nsecond\u2028third", "bbox": None}])
    with pytest.raises(ValueError, match="annotation first second third has bbox=None"):
        read_coco_json(path)
