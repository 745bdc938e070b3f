import pytest
from tiny import tiny_model

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.labeling.categories import categories_of, same_categories


def model(*names: str, **overrides):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return tiny_model(**labels, **overrides)


def test_ids_are_those_of_the_training_data_or_count_from_zero() -> None:
    assert categories_of(model("dog", "cat", category_ids=[7, 30])) == {7: "dog", 30: "cat"}
    assert categories_of(model("dog", "cat")) == {0: "dog", 1: "cat"}


def test_two_classes_of_one_name_are_refused() -> None:
    twin = model("dog", "cat")
    twin.config.id2label = {0: "dog", 1: "dog"}
    with pytest.raises(ValueError, match="two classes named 'dog'"):
        categories_of(twin)


def test_a_labeled_set_is_matched_by_names(digits) -> None:
    source = CocoSource(digits.val_json)
    backwards = {number: str(9 - number) for number in range(10)}
    assert same_categories(source, backwards, "val.json") == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(ValueError, match=r"^val.json: .* only one of the two has 9, owl$"):
        same_categories(source, {**backwards, 0: "owl"}, "val.json")
