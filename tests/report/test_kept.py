from pathlib import Path

import pytest
from accelerate import Accelerator
from run_folders import made_detections, run_config, write_run

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report import kept
from semidetr_hf.report.kept import BACKGROUND, KeptScores, score_kept
from semidetr_hf.report.scoring import THRESHOLDS
from semidetr_hf.training.evaluation import Detections


def score(folder: Path, val: CocoSource, count: int = 3) -> KeptScores:
    accelerator = Accelerator(cpu=True)
    return score_kept(folder, val, val, accelerator=accelerator, batch_size=4, num_pictures=count, progress=False)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory, digits: DigitsPaths) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    return write_run(run_config(folder, digits), networks=("best",)) / "best"


def pretend(monkeypatch: pytest.MonkeyPatch, detections: list[dict]) -> None:
    def detect_all(model, processor, source, **_):
        return Detections(detections, source.coco_ground_truth())

    monkeypatch.setattr(kept, "detect_all", detect_all)


def test_a_saved_detector_is_evaluated(best: Path, digits: DigitsPaths) -> None:
    val = CocoSource(digits.val_json)
    scores = score(best, val)
    assert scores.num_images == len(val)
    assert scores.ap is not None and 0 <= scores.ap < 0.5  # its weights are random
    assert sum(row.num_val for row in scores.classes) == val.num_boxes


def test_classes_curves_and_confusions_tell_of_the_same_detections(
    best: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = CocoSource(digits.val_json)
    detections = made_detections(val)
    pretend(monkeypatch, detections)
    scores = score(best, val)
    known = [row.ap for row in scores.classes if row.ap is not None]
    assert known == sorted(known, reverse=True) and max(known) > 0.5
    assert scores.precision is not None
    assert len(scores.precision.lines) == 1 + len(known)
    # Every box has a detection, so the lowest threshold is best, and no row or column of the background counts any.
    matrix = scores.confusions.matrices[scores.confusions.chosen]
    right = sum(row[place] for place, row in enumerate(matrix))
    boxes = val.coco_ground_truth()["annotations"]
    same = [box["category_id"] == found["category_id"] for box, found in zip(boxes, detections, strict=True)]
    assert right == sum(same) < len(same)
    assert sum(map(sum, matrix)) == len(detections)
    assert scores.confusions.names == [*val.category_names, BACKGROUND]
    assert scores.confusions.f1[scores.confusions.chosen] == pytest.approx(right / len(detections))


def test_best_and_worst_images_are_ordered_and_apart(
    best: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = CocoSource(digits.val_json)
    pretend(monkeypatch, made_detections(val))
    scores = score(best, val, count=4)

    def f1(pictures) -> list[float]:
        return [float(picture.title.rsplit("F1 ", 1)[1]) for picture in pictures]

    assert len(scores.best) == len(scores.worst) == 4
    assert f1(scores.best) == sorted(f1(scores.best), reverse=True)
    assert f1(scores.worst) == sorted(f1(scores.worst))
    assert min(f1(scores.best)) > max(f1(scores.worst)) or min(f1(scores.best)) == 1
    assert not {picture.title for picture in scores.best} & {picture.title for picture in scores.worst}
    kinds = {box.kind for picture in scores.worst for box in picture.boxes}
    assert {"truth", "wrong"} <= kinds
    assert {box.kind for box in scores.best[0].boxes} == {"truth", "right"}


def test_of_many_classes_the_table_shows_those_with_the_most_boxes(
    best: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_CLASSES", 3)
    val = CocoSource(digits.val_json)
    pretend(monkeypatch, made_detections(val))
    confusions = score(best, val, count=0).confusions
    most = sorted(range(10), key=lambda label: -val.class_counts[label])[:3]
    assert confusions.names == [*(val.category_names[label] for label in sorted(most)), BACKGROUND]
    assert confusions.num_hidden == 7
    assert all(len(matrix) == 4 and len(matrix[0]) == 4 for matrix in confusions.matrices)


def test_without_a_detection_everything_is_missed(
    best: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, [])
    val = CocoSource(digits.val_json)
    scores = score(best, val, count=2)
    matrix = scores.confusions.matrices[scores.confusions.chosen]
    assert sum(row[-1] for row in matrix) == val.num_boxes == sum(map(sum, matrix))
    assert [box.kind for picture in scores.best for box in picture.boxes].count("truth") > 0
    assert len(THRESHOLDS) == len(scores.confusions.f1) and max(scores.confusions.f1) == 0


def test_an_image_that_cannot_be_read_is_no_miss(best: Path, tmp_path: Path, digits: DigitsPaths) -> None:
    whole = CocoSource(digits.val_json)
    for index, path in enumerate(map(whole.path, range(len(whole)))):
        copy = tmp_path / path.relative_to(whole.image_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes() if index else b"no picture")
    scores = score(best, CocoSource(digits.val_json, tmp_path))
    assert scores.num_images == len(whole) - 1
    boxes = [box for box in whole.coco_ground_truth()["annotations"] if box["image_id"] != whole.image_ids[0]]
    assert sum(sum(row) for row in scores.confusions.matrices[0][:-1]) == len(boxes) < whole.num_boxes
