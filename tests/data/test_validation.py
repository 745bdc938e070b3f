import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.validation import check_sources

Writer = Callable[..., Path]


@pytest.fixture
def labeled(write_coco: Writer, tmp_path: Path) -> CocoSource:
    return CocoSource(write_coco("train", tmp_path / "train"))


@pytest.fixture
def val(write_coco: Writer, tmp_path: Path) -> CocoSource:
    return CocoSource(write_coco("val", tmp_path / "val"))


@pytest.fixture
def unlabeled(tmp_path: Path) -> FolderSource:
    (tmp_path / "more").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / "more" / f"{number}.png")
    return FolderSource(tmp_path / "more")


def test_good_sources_give_no_warning(labeled: CocoSource, unlabeled: FolderSource, val: CocoSource) -> None:
    assert check_sources(labeled, unlabeled, val) == []
    assert check_sources(labeled, None, None) == []


def test_no_boxes_is_fatal_for_labeled_and_val(labeled: CocoSource, val: CocoSource) -> None:
    with pytest.raises(ValueError, match="train: the labeled source has 1 images but not one"):
        check_sources(labeled.subset([2]), None, val)
    with pytest.raises(ValueError, match="val: the validation source"):
        check_sources(labeled, None, val.subset([2]))


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ([{"id": 7, "name": "wolf"}, {"id": 3, "name": "cat"}], "1 ids .id 7 is 'dog' in train but 'wolf' in val"),
        (
            [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "emu"}],
            "'missing' in train but 'emu'",
        ),
    ],
)
def test_other_categories_are_fatal(
    labeled: CocoSource, write_coco: Writer, tmp_path: Path, categories: list, complaint: str
) -> None:
    other = CocoSource(write_coco("val", tmp_path / "val", categories=categories))
    with pytest.raises(ValueError, match=complaint):
        check_sources(labeled, None, other)


def test_missing_files_are_counted(labeled: CocoSource, unlabeled: FolderSource, val: CocoSource) -> None:
    unlabeled.path(0).unlink()
    with pytest.raises(FileNotFoundError, match="this and 0 more of 4 .* unlabeled source"):
        check_sources(labeled, unlabeled, val)
    val.path(0).unlink()
    val.path(1).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{val.path(0)}: this and 1 more of 2 .* validation source val"):
        check_sources(labeled, None, val, max_images_opened=0)  # all are looked for, none is opened


def test_one_broken_image_is_a_warning_and_all_broken_is_fatal(labeled: CocoSource, unlabeled: FolderSource) -> None:
    unlabeled.path(2).write_bytes(b"broken")
    warnings = check_sources(labeled, unlabeled, None)
    assert len(warnings) == 1 and str(unlabeled.path(2)) in warnings[0]
    assert check_sources(labeled, unlabeled, None, max_images_opened=0) == []
    for index in range(4):
        unlabeled.path(index).write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 4 images tried of the unlabeled source"):
        check_sources(labeled, unlabeled, None)


def test_the_sample_is_bounded(labeled: CocoSource, unlabeled: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = FolderSource.__getitem__
    monkeypatch.setattr(FolderSource, "__getitem__", lambda self, index: opened.append(index) or read(self, index))
    check_sources(labeled, unlabeled, None, max_images_opened=5)  # two sources share five: two each
    assert len(opened) == 2


def test_classes_without_labeled_boxes_and_shared_files_are_warnings(labeled: CocoSource, write_coco: Writer) -> None:
    one_class = write_coco(
        "one",
        labeled.json_path.parent,
        annotations=[{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4]}],
    )
    warnings = check_sources(CocoSource(one_class), None, labeled)
    assert len(warnings) == 2
    assert "1 classes" in warnings[0] and "dog" in warnings[0]
    assert "2 validation images are also labeled" in warnings[1] and str(labeled.path(0)) in warnings[1]


def test_files_that_are_unlabeled_and_validated_are_a_warning_also_behind_links(
    labeled: CocoSource, val: CocoSource, unlabeled: FolderSource, tmp_path: Path
) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / val.path(0).name).symlink_to(val.path(0))
    # Of the same name as the other validation image, but another picture.
    (folder / val.path(1).name).symlink_to(unlabeled.path(0))
    [warning] = check_sources(labeled, FolderSource(folder), val)
    assert "1 validation images are also unlabeled" in warning
    assert str(val.path(0)) in warning and str(val.path(1)) not in warning


def test_a_validation_image_that_is_a_link_of_another_name_is_found(
    labeled: CocoSource, val: CocoSource, unlabeled: FolderSource
) -> None:
    val.path(1).unlink()
    val.path(1).symlink_to(unlabeled.path(2))
    [warning] = check_sources(labeled, unlabeled, val, max_images_opened=0)
    assert "1 validation images are also unlabeled" in warning and str(unlabeled.path(2)) in warning


def test_links_are_followed_only_where_names_agree(
    labeled: CocoSource, val: CocoSource, unlabeled: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: followed.append(path) or realpath(path))
    check_sources(labeled, unlabeled, val, max_images_opened=0)
    # Of two validation images each; of the labeled ones, two of the same names.
    assert not {unlabeled.path(index) for index in range(4)}.intersection(followed)
    assert len(followed) == 2 + 2 + 2


def test_a_picture_that_links_to_itself_is_missing_and_nothing_worse(labeled: CocoSource, val: CocoSource) -> None:
    path = val.path(0)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(FileNotFoundError, match=path.name):
        check_sources(labeled, None, val)
