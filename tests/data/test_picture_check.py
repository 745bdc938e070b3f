from pathlib import Path

import numpy as np
import pytest
from noise_sets import write_noise, write_set
from PIL import Image

from semidetr_hf.data.data_check import check_data
from semidetr_hf.data.picture_check import Picture, Place, digest_of, equal_pictures, in_parallel


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    return write_set(tmp_path / "labeled")


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write_set(tmp_path / "val", seed=1)


@pytest.fixture
def unlabeled(tmp_path: Path) -> Path:
    for number in range(3):
        write_noise(tmp_path / "more" / f"{number}.png", 1000 + number)
    return tmp_path / "more"


def test_a_copy_in_validation_is_an_error_whatever_its_name_format_and_metadata(
    labeled: Path, unlabeled: Path, val: Path
) -> None:
    with Image.open(val.parent / "1.png") as picture:
        exif = Image.Exif()
        exif[0x010E] = "a description"
        picture.save(unlabeled / "2.webp", lossless=True, exif=exif)
        picture.save(labeled.parent / "3.png", compress_level=0)
    first, second, third = check_data(labeled, unlabeled=unlabeled, val=val).problems
    assert (first.role, first.severity, first.kind, first.image_id) == ("labeled", "error", "leak", 3)
    assert first.file == str(labeled.parent / "3.png")
    assert "val image 1" in first.value and str(val.parent / "1.png") in first.value
    assert (second.role, second.kind, second.image_id) == ("unlabeled", "leak", "2.webp")
    assert (third.role, third.severity, third.kind) == ("unlabeled", "warning", "also_labeled")


def test_copies_within_a_set_and_labeled_ones_among_the_unlabeled_are_warnings(
    labeled: Path, unlabeled: Path, val: Path
) -> None:
    (labeled.parent / "2.png").write_bytes((labeled.parent / "1.png").read_bytes())
    (unlabeled / "sub").mkdir()
    (unlabeled / "sub" / "x.png").write_bytes((labeled.parent / "3.png").read_bytes())
    report = check_data(labeled, unlabeled=unlabeled, val=val)
    assert report.num_errors == 0
    assert [(problem.role, problem.kind) for problem in report.problems] == [
        ("labeled", "duplicate_content"),
        ("unlabeled", "also_labeled"),
    ]
    assert report.problems[0].image_id == 2 and "labeled image 1" in report.problems[0].value
    assert report.problems[1].image_id == "sub/x.png" and "labeled image 3" in report.problems[1].value


def test_equal_rows_are_grouped_across_sets_and_zeros_are_no_picture() -> None:
    a, b = np.zeros((4, 16), np.uint8), np.zeros((2, 16), np.uint8)
    a[1, 15], a[3, 15], b[1, 15] = 7, 7, 7
    a[0, 0], b[0, 0] = 9, 8  # equal in the second half alone
    assert equal_pictures([a, np.zeros((0, 16), np.uint8), b]) == [[Place(0, 1), Place(0, 3), Place(2, 1)]]
    between = np.zeros((3, 16), np.uint8)
    between[:, 15], between[1, 0] = 5, 1  # equal to its neighbors in the second half alone
    assert equal_pictures([between]) == [[Place(0, 0), Place(0, 2)]]
    assert equal_pictures([]) == [] and equal_pictures([np.zeros((3, 16), np.uint8)]) == []


def test_few_files_are_opened_ahead_and_results_keep_their_order() -> None:
    taken: list[int] = []

    def jobs():
        for number in range(100):
            taken.append(number)
            yield Path(str(number)), None

    results = in_parallel(lambda job: Picture(job[0].name.encode(), None), jobs(), workers=2)
    assert next(results).digest == b"0"
    assert len(taken) == 8
    assert [int(picture.digest) for picture in results] == list(range(1, 100))


def test_equal_bytes_in_another_shape_are_another_picture() -> None:
    assert digest_of(bytes(12), (4, 1)) != digest_of(bytes(12), (2, 2))
    assert digest_of(bytes(12), (4, 1)) == digest_of(bytes(12), (4, 1)) and len(digest_of(b"", (0, 0))) == 16
