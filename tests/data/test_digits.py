import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import VISIBLE_ALPHA, DigitsPaths, draw_scene, load_material, write_digits_dataset
from semidetr_hf.data.digits import _draw_alpha as draw_alpha


def fingerprint(paths: DigitsPaths) -> dict[str, str]:
    files = [paths.train_json, paths.val_json, *paths.train_images.iterdir(), *paths.val_images.iterdir()]
    return {
        f"{file.stem} of {file.parent.name if file.suffix == '.jpg' else 'all'}": hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    return write_digits_dataset(tmp_path_factory.mktemp("digits"), num_train=60, num_val=20)


def test_it_is_a_coco_data_set(paths: DigitsPaths) -> None:
    train, val = CocoSource(paths.train_json), CocoSource(paths.val_json)
    assert len(train) == 60 and len(val) == 20
    assert train.category_ids == tuple(range(1, 11)) and train.category_names == tuple("0123456789")
    assert train.dropped == {} and min(train.class_counts) > 0
    assert train.path(0) == paths.train_images / "000001.jpg"
    numbers = set()
    for index in range(60):
        sample = train[index]
        assert sample.image.size == (96, 96)
        numbers.add(len(sample.class_labels))
        widths_heights = sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]
        assert (widths_heights >= 5).all() and (widths_heights <= 70).all()
    assert numbers == {1, 2, 3, 4}


def test_the_same_seed_gives_the_same_bytes_and_a_larger_set_begins_with_the_smaller(
    paths: DigitsPaths, tmp_path: Path
) -> None:
    again = write_digits_dataset(tmp_path / "again", num_train=60, num_val=20)
    assert fingerprint(again) == fingerprint(paths)
    smaller = fingerprint(write_digits_dataset(tmp_path / "smaller", num_train=5, num_val=2))
    whole = fingerprint(paths)
    images = {name: digest for name, digest in smaller.items() if not name.endswith("all")}
    assert len(images) == 7 and images.items() <= whole.items()
    other = fingerprint(write_digits_dataset(tmp_path / "other", num_train=5, num_val=2, seed=1))
    assert not set(other.values()) & set(smaller.values())


def test_a_finished_folder_is_reused_and_another_request_rewrites_it(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    first = write_digits_dataset(folder, num_train=2, num_val=1)
    stamp = first.train_json.stat().st_mtime_ns
    assert write_digits_dataset(folder, num_train=2, num_val=1).train_json.stat().st_mtime_ns == stamp
    second = write_digits_dataset(folder, num_train=1, num_val=1, image_size=64, max_digits=1)
    assert [file.name for file in second.train_images.iterdir()] == ["000001.jpg"]
    assert Image.open(second.train_images / "000001.jpg").size == (64, 64)
    assert len(json.loads(second.train_json.read_text())["annotations"]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["digits"]  # nothing half-written is left behind


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no digits data set"):
        write_digits_dataset(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "value"), [("num_train", 0), ("num_val", -1), ("image_size", 40), ("max_digits", 0), ("seed", -1)]
)
def test_bad_numbers_are_named(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        write_digits_dataset(tmp_path / "x", **({"num_train": 1, "num_val": 1} | {name: value}))
    assert not (tmp_path / "x").exists()


def test_train_and_val_share_no_digit_and_no_background() -> None:
    train, val = load_material("train"), load_material("val")
    assert sum(map(len, train.digits)) + sum(map(len, val.digits)) == 1797
    for of_train, of_val in zip(train.digits, val.digits, strict=True):
        assert len(of_train) / (len(of_train) + len(of_val)) == pytest.approx(0.8, abs=0.01)
        assert not {ink.tobytes() for ink in of_train} & {ink.tobytes() for ink in of_val}
    # 640 = 480 + 160 columns
    assert [photo.width for photo in train.photos] == [480, 480] and [photo.width for photo in val.photos] == [
        160,
        160,
    ]


def test_boxes_are_tight_around_the_ink_of_every_digit() -> None:
    rng = np.random.default_rng(0)
    for samples in load_material("val").digits:
        for ink in samples:
            alpha = draw_alpha(ink, 96, rng)
            visible = alpha > VISIBLE_ALPHA
            assert visible[0].any() and visible[-1].any() and visible[:, 0].any() and visible[:, -1].any()
            assert alpha.max() > 0.95 and 14 <= alpha.shape[0] <= 62


def test_digits_hardly_cover_each_other_and_change_only_their_box() -> None:
    material = load_material("train")
    for number in range(30):
        rng = np.random.default_rng(number)
        scene = draw_scene(material, 96, 6, rng)
        covered = np.zeros((96, 96), dtype=int)
        for x1, y1, x2, y2 in scene.boxes:
            assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96
            covered[y1:y2, x1:x2] += 1
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in scene.boxes]
        if len(areas) == 2:
            assert (covered == 2).sum() < 0.25 * min(areas)
        assert len(scene.classes) == len(scene.boxes) >= 1
