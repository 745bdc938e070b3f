import base64
import io

import pytest
from PIL import Image

from semidetr_hf.report.pictures import MAX_EDGE, MAX_LABELED, DrawnBox, picture

GRAY = Image.new("RGB", (100, 60), "gray")


def test_the_picture_is_inside_the_page_and_not_larger_than_needed() -> None:
    large = Image.new("RGB", (2000, 1000), "red")
    shown = picture(large, [DrawnBox("truth", 200, 100, 400, 200, "cat")], "a.jpg", what="Image")
    kind, data = shown.data.split(",")
    assert kind == "data:image/jpeg;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert decoded.size == (shown.width, shown.height) == (MAX_EDGE, MAX_EDGE // 2)
    assert decoded.convert("RGB").getpixel((5, 5))[0] > 200
    box, factor = shown.boxes[0], MAX_EDGE / 2000
    assert (box.x, box.y, box.width, box.height) == (200 * factor, 100 * factor, 400 * factor, 200 * factor)


def test_small_pictures_keep_their_pixels() -> None:
    assert picture(GRAY, [], "a", what="Image").width == 100


def test_the_description_counts_the_boxes_in_words() -> None:
    boxes = [DrawnBox("truth", 0, 0, 9, 9, "cat"), DrawnBox("wrong", 0, 0, 9, 9, "dog", 0.5)]
    assert picture(GRAY, boxes, "a.jpg", what="Image").description == "Image a.jpg: 1 labeled, 1 found, wrong."
    assert picture(GRAY, [], "a.jpg", what="Image").description == "Image a.jpg: no boxes."
    assert boxes[1].hint == "found, wrong: dog 0.50"


@pytest.mark.parametrize("x", [0, 40, 90])
def test_texts_lie_inside_the_picture_and_not_over_one_another(x: int) -> None:
    boxes = [DrawnBox("wrong", x, 2, 10, 10, name, 0.5) for name in ("cat", "dog", "emu")]
    shown = picture(GRAY, boxes, "a", what="Image")
    places = [text.y for text in shown.texts]
    assert len(set(places)) == 3
    assert all(later - earlier > shown.font_size - 0.2 for earlier, later in zip(places, places[1:], strict=False))
    assert min(places) >= shown.font_size
    assert [text.is_right for text in shown.texts] == [x == 90] * 3


def test_of_too_many_boxes_and_of_candidates_no_name_is_written() -> None:
    many = [DrawnBox("truth", 0, 0, 5, 5, "cat")] * (MAX_LABELED + 1)
    assert picture(GRAY, many, "a", what="Image").texts == []
    two = [DrawnBox("candidate", 0, 0, 5, 5, "cat", 0.1), DrawnBox("found", 20, 20, 5, 5, "dog", 0.9)]
    assert [text.text for text in picture(GRAY, two, "a", what="Image").texts] == ["dog 0.90"]
