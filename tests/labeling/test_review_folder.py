from pathlib import Path

import pytest
from labeled_images import detected
from PIL import Image

from semidetr_hf.data.folder import FolderSource
from semidetr_hf.labeling.labels import label_by_threshold
from semidetr_hf.labeling.review import Review, ReviewConfig
from semidetr_hf.labeling.review_folder import whole_folder, write_review_folder


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "review"
    with pytest.raises(RuntimeError, match="in the middle"), whole_folder(target) as folder:
        (folder / "half.txt").touch()
        raise RuntimeError("in the middle")
    assert list((tmp_path / "new").iterdir()) == []
    target.mkdir()  # empty, as made by the user
    with whole_folder(target) as folder:
        (folder / "all.txt").touch()
        assert list(target.iterdir()) == []
    assert [path.name for path in target.iterdir()] == ["all.txt"]
    assert [path.name for path in target.parent.iterdir()] == ["review"]


def test_a_failure_at_the_last_file_leaves_nothing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (100, 50)).save(photos / "a.png")
    review = Review(
        folder=tmp_path / "review",
        model="x",
        categories={1: "cat"},
        images=label_by_threshold([detected("a", (0, 0.5, (0, 0, 9, 9)))], 0.5),
        num_readable=1,
        unreadable=[],
        threshold=0.5,
        calibration=None,
        warnings=(),
    )
    formats = ("coco", "label-studio")
    elsewhere = ReviewConfig(formats=formats, label_studio_root=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="not below label_studio_root"):
        write_review_folder(review, FolderSource(photos), elsewhere)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    write_review_folder(review, FolderSource(photos), ReviewConfig(formats=formats, label_studio_root=photos))
    assert sorted(path.name for path in (tmp_path / "review").iterdir()) == [
        "label_studio.json",
        "label_studio_setup.xml",
        "labels.json",
        "most_uncertain.png",
        "ranking.csv",
        "review.json",
    ]
