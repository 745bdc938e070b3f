from pathlib import Path

import pytest

from semidetr_hf.data.category_ids import read_category_ids, write_category_ids


def test_ids_come_back_in_their_order(tmp_path: Path) -> None:
    assert read_category_ids(tmp_path) is None
    write_category_ids(tmp_path, {90: "кот", 3: "traffic light"})
    assert read_category_ids(tmp_path) == {3: "traffic light", 90: "кот"}
    assert list(read_category_ids(tmp_path, ["кот", "traffic light"]) or {}) == [3, 90]


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ({1: "cat", 2: "dog", 5: "cat"}, "two categories are named 'cat'"),
        ({1: " cat"}, "category name ' cat': only a COCO json can hold it"),
        ({1: ""}, "category name ''"),
        ({1: "a\nb"}, r"category name 'a\\nb'"),
    ],
)
def test_names_that_cannot_be_told_apart_or_written_are_refused(
    tmp_path: Path, categories: dict[int, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_category_ids(tmp_path, categories)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a json file"),
        ("[]", "must give a whole number for each name"),
        ("{}", "must give a whole number for each name"),
        ('{"cat": "3"}', "must give a whole number for each name"),
        ('{"cat": true}', "must give a whole number for each name"),
        ('{"cat": 3, "dog": 3}', "gives one id to two names"),
        ('{"cat": 3, "emu": 4}', "lists other names than its data set, 'dog' is in one"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "category_ids.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_category_ids(tmp_path, ["cat", "dog"])
    assert str(caught.value).startswith(f"{path}: ")
