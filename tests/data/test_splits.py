import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_modules import load_example
from hypothesis import given, settings
from hypothesis import strategies as st

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.splits import labeled_subset, open_whole, read_ids, write_coco_splits, write_ids

NUM_TRAIN2017 = 118287


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
    assert len(labeled_subset(range(NUM_TRAIN2017), fraction=fraction)[0]) == number


@pytest.mark.parametrize("fold", [1, 5])
def test_one_percent_is_the_draw_of_the_legacy_generator_seeded_with_the_fold(fold: int) -> None:
    np.random.seed(fold)  # the call of the released script, in place of its own range the number of images
    drawn = np.random.choice(range(NUM_TRAIN2017), int(1 / 100 * NUM_TRAIN2017), replace=False)
    assert labeled_subset(range(NUM_TRAIN2017), fraction=0.01, fold=fold)[0] == sorted(drawn.tolist())


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


# ---- COCO json files


@pytest.fixture
def train_json(tmp_path: Path) -> Path:
    """100 images in descending order of their ids, with two boxes on every one but the first, written by hand."""
    images = [{"id": 100 - i, "file_name": f"{i}.png", "note": "ünï"} for i in range(100)]
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": 7, "bbox": [1, 2, 3.10, 4], "segmentation": [[1, 2]]}
        for k in range(2)
        for i in range(1, 100)
    ]
    content = {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": [{"id": 7}]}
    path = tmp_path / "instances_train2017.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_files_of_a_split_are_the_draw_with_nothing_lost(train_json: Path, tmp_path: Path) -> None:
    [split] = write_coco_splits(train_json, tmp_path / "new" / "out", percents=[10], folds=[3])
    base = tmp_path / "new" / "out" / "instances_train2017.3@10"
    assert split == (10, 3, Path(f"{base}.json"), Path(f"{base}-unlabeled.json"), Path(f"{base}-manifest.json"))
    assert len(list(base.parent.iterdir())) == 3
    source, parts = load(train_json), [load(split.labeled), load(split.unlabeled)]
    expected = labeled_subset([image["id"] for image in source["images"]], fraction=0.1, fold=3)
    for part, image_ids in zip(parts, expected, strict=True):
        assert [image["id"] for image in part["images"]] == image_ids
        assert part["images"] == [image for image in source["images"] if image["id"] in image_ids]
        assert part["annotations"] == [box for box in source["annotations"] if box["image_id"] in image_ids]
        assert (part["info"], part["categories"]) == (source["info"], source["categories"])
    assert len(parts[0]["images"]) == 10 and len(parts[0]["annotations"]) + len(parts[1]["annotations"]) == 198


def test_the_manifest_says_how_the_split_was_made(train_json: Path, tmp_path: Path) -> None:
    [split] = write_coco_splits(train_json, tmp_path, percents=[0.5 * 4], folds=[1], seed=4)
    manifest = load(split.manifest)
    assert manifest["source"] == "instances_train2017.json"
    assert manifest["source_sha256"] == hashlib.sha256(train_json.read_bytes()).hexdigest()
    assert (manifest["source_images"], manifest["source_annotations"]) == (100, 198)
    assert (manifest["percent"], manifest["fold"], manifest["seed"]) == (2, 1, 4)
    for key, path in (("labeled", split.labeled), ("unlabeled", split.unlabeled)):
        content = load(path)
        sizes = {name: len(content[name]) for name in ("images", "annotations")}
        assert manifest[key] == {"file": path.name, **sizes}
    assert manifest["labeled"]["images"] == 2


def test_names_keep_fractions_of_a_percent(train_json: Path, tmp_path: Path) -> None:
    splits = write_coco_splits(train_json, tmp_path, percents=[0.5, 1.0, 2.5, 10], folds=[1])
    names = [split.labeled.name.removeprefix("instances_train2017.") for split in splits]
    assert names == ["1@0.5.json", "1@1.json", "1@2.5.json", "1@10.json"]


def test_files_are_nested_over_percents_differ_over_folds_and_repeat(train_json: Path, tmp_path: Path) -> None:
    splits = write_coco_splits(train_json, tmp_path / "a", percents=[5, 20], folds=[1, 2])
    again = write_coco_splits(train_json, tmp_path / "b", percents=[20, 5], folds=[2, 1])
    sets = {(split.fold, split.percent): {image["id"] for image in load(split.labeled)["images"]} for split in splits}
    assert len(sets) == 4
    assert sets[1, 5] < sets[1, 20] and sets[2, 5] < sets[2, 20] and sets[1, 20] != sets[2, 20]
    for first, second in zip(splits, reversed(again), strict=True):
        for path, other in zip(first[2:], second[2:], strict=True):
            assert path.name == other.name and path.read_bytes() == other.read_bytes()


def test_a_split_opens_as_a_source(write_coco: Callable[..., Path], tmp_path: Path) -> None:
    # RandomState(1).permutation(2) is 0 1: the first image is labeled
    [split] = write_coco_splits(write_coco(), tmp_path, percents=[50], folds=[1])
    labeled, unlabeled = CocoSource(split.labeled), CocoSource(split.unlabeled, labeled=False)
    assert labeled.image_ids == [1] and labeled.num_boxes == 2 and labeled.category_ids == (3, 7)
    assert unlabeled.image_ids == [2] and unlabeled[0].image.size == (40, 30)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"percents": [0]}, "percents: 0"),
        ({"percents": [100]}, "percents: 100"),
        ({"percents": [float("nan")]}, "percents: nan"),
        ({"percents": []}, r"percents=\[\]"),
        ({"percents": [1, 1.0]}, r"percents=\['1', '1'\]"),
        ({"percents": [1], "folds": []}, r"folds=\[\]"),
        ({"percents": [1], "folds": [2, 2]}, r"folds=\[2, 2\]"),
        ({"percents": [1], "folds": [-1]}, r"folds=\[-1\]"),
        ({"percents": [1], "seed": -2}, "seed=-2"),
        ({"percents": [1, 99.9999999999]}, r"instances_train2017\.json: 99\.9999999999 percent of 100 images"),
    ],
)
def test_wrong_arguments_leave_no_file(
    train_json: Path, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_coco_splits(train_json, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


HEAD = '"categories": [], "annotations": []'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a json"),
        ("[]", "not a json"),
        ('{"images": [], ', "not a json"),
        ('{"images": [{"id": 1},]}', "comma before"),
        ('{"images": [{"id": 1} {"id": 2}]}', "not a json"),
        ('{"images": [{"id": 1}], ' + HEAD + ",}", "comma before"),
        ('{"images": [{"id": 1}], ' + HEAD + "} x", "text after the end"),
        ('{"images": [{"id": 1}], "images": [], ' + HEAD + "}", "'images' is no key or occurs twice"),
        ('{"images": {}, ' + HEAD + "}", "not a json"),
        ('{"images": [{"id": 1}]}', 'has no "annotations"'),
        ("{" + HEAD + "}", 'has no "images"'),
        ('{"images": [], ' + HEAD + "}", '"images" is empty'),
        ('{"images": [{"id": 1}, {"id": 1}], ' + HEAD + "}", "image id 1 occurs twice"),
        ('{"images": [{"id": 1}, {"name": 2}], ' + HEAD + "}", 'entry 1 of "images" has no'),
        ('{"images": [{"id": 1}, 5], ' + HEAD + "}", 'entry 1 of "images" has no'),
        ('{"images": [{"id": 1}], "categories": [], "annotations": [{"image_id": 4}]}', "image_id=4"),
        ('{"images": [{"id": 1}], ' + HEAD + "}", "50 percent of 1 images leave none unlabeled"),
        (b"\xff\xfe", "not a json"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=complaint) as caught:
        write_coco_splits(path, tmp_path / "out", percents=[50], folds=[1])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        write_coco_splits(tmp_path / "none.json", tmp_path / "out", percents=[50])


def test_a_file_that_cannot_be_finished_is_left_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("before")
    for path in (old, new):
        with pytest.raises(OSError, match="disk full"), open_whole(path) as file:
            file.write("half")
            assert path.exists() == (path == old)
            raise OSError("disk full")
    assert old.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_a_split_that_was_not_finished_has_no_manifest(
    train_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [split] = write_coco_splits(train_json, tmp_path / "out", percents=[10], folds=[1])
    before = split.unlabeled.read_bytes()
    replace = Path.replace

    def fail_at_unlabeled(path: Path, target: Path) -> Path:
        if target == split.unlabeled:
            raise OSError("disk full")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_at_unlabeled)
    with pytest.raises(OSError, match="disk full"):
        write_coco_splits(train_json, tmp_path / "out", percents=[10], folds=[1])
    assert not split.manifest.exists() and split.unlabeled.read_bytes() == before
    assert len(list(split.labeled.parent.iterdir())) == 2


def test_the_example_writes_the_splits_and_names_what_is_wrong(train_json: Path, tmp_path: Path, capsys) -> None:
    main = load_example("make_splits").main
    flags = ["--annotations", str(train_json), "--output", str(tmp_path / "out")]
    assert main([*flags, "--percents", "1", "0.5", "--folds", "1", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert len(list((tmp_path / "out").iterdir())) == 12
    assert main([*flags, "--percents", "101"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("make_splits.py: error: ") and "101" in line
