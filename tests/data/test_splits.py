from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semidetr_hf.data.splits import labeled_subset, read_ids, write_ids


def test_known_split() -> None:
    # RandomState(1).permutation(10) begins 2 9 6: those three places are labeled, in source order
    image_ids = [f"im{place}" for place in range(10)]
    labeled, unlabeled = labeled_subset(image_ids, fraction=0.3, fold=1)
    assert labeled == ["im2", "im6", "im9"]
    assert unlabeled == ["im0", "im1", "im3", "im4", "im5", "im7", "im8"]


@pytest.mark.parametrize(
    ("fraction", "number"), [(0.01, 1182), (0.05, 5914), (0.1, 11828), (0.001, 118)]
)  # 118287 images of COCO train2017: 1182.87, 5914.35, 11828.7 and 118.287, rounded down
def test_sizes_of_the_coco_splits(fraction: float, number: int) -> None:
    assert len(labeled_subset(range(118287), fraction=fraction)[0]) == number


def test_float_error_does_not_cost_an_image() -> None:
    assert 0.29 * 100 < 29
    assert len(labeled_subset(range(100), fraction=0.29)[0]) == 29


def test_at_least_one_image_and_all_images() -> None:
    assert len(labeled_subset([5, 6, 7], fraction=0.01)[0]) == 1
    assert labeled_subset([5, 6, 7], fraction=1.0) == ([5, 6, 7], [])


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.floats(0.01, 0.9), st.integers(0, 9), st.integers(0, 9))
def test_split_divides_nests_and_repeats(count: int, fraction: float, fold: int, seed: int) -> None:
    image_ids = list(range(count))
    labeled, unlabeled = labeled_subset(image_ids, fraction=fraction, fold=fold, seed=seed)
    assert sorted(labeled + unlabeled) == image_ids
    assert labeled == sorted(labeled) and unlabeled == sorted(unlabeled)
    assert set(labeled) <= set(labeled_subset(image_ids, fraction=min(1.0, fraction * 1.5), fold=fold, seed=seed)[0])
    assert labeled_subset(image_ids, fraction=fraction, fold=fold, seed=seed)[0] == labeled
    assert labeled_subset(image_ids, fraction=fraction, fold=fold + seed)[0] == labeled


def test_folds_differ() -> None:
    splits = {tuple(labeled_subset(range(100), fraction=0.1, fold=fold)[0]) for fold in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        labeled_subset([1, 2], fraction=fraction)


def test_bad_fold_and_no_images() -> None:
    with pytest.raises(ValueError, match="fold=-1"):
        labeled_subset([1, 2], fraction=0.5, fold=-1)
    with pytest.raises(ValueError, match="no image ids"):
        labeled_subset([], fraction=0.5)


def test_ids_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ids.json"
    write_ids(path, [3, "sub/ä b.jpg", 1])
    assert read_ids(path) == [3, "sub/ä b.jpg", 1]
    write_ids(path, [])
    assert read_ids(path) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a json"),
        ('{"a": 1}', "found a dict"),
        ("[1.5]", "1.5"),
        ("[true]", "True"),
        ("[4, 2, 4]", "4 occurs"),
    ],
)
def test_bad_id_files_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "ids.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_ids(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_ids(tmp_path / "none.json")
