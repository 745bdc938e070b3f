import numpy as np
import pytest
from run_folders import made_detections

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.metrics.coco_detection.coco_metrics import coco_metrics
from semidetr_hf.report.scoring import (
    RECALLS,
    THRESHOLDS,
    compare_boxes,
    confusion_matrices,
    f1_scores,
    match,
    precision_curves,
)

CAT, DOG = 10, 20


def truth_of(*boxes: tuple[int, list[float]], crowds: tuple[int, ...] = (), image_id: int | str = "a") -> dict:
    annotations = [
        {"id": number, "image_id": image_id, "category_id": category, "bbox": box, "iscrowd": int(number in crowds)}
        for number, (category, box) in enumerate(boxes)
    ]
    categories = [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}]  # out of order: labels follow the ids
    return {"images": [{"id": image_id}], "annotations": annotations, "categories": categories}


def found(category: int, box: list[float], score: float, image_id: int | str = "a") -> dict:
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def test_a_detection_of_the_same_class_comes_before_one_that_fits_better() -> None:
    # IoU of the dog with the box is 1, of the cat 8 / 12.
    truth = truth_of((CAT, [0, 0, 10, 10]))
    (image,) = compare_boxes(truth, [found(DOG, [0, 0, 10, 10], 0.9), found(CAT, [2, 0, 10, 10], 0.8)])
    matches = match(image, 0.5)
    assert matches.truth_of == {1: 0} and matches.right == {1} and matches.counted == [0, 1]
    assert matches.f1 == pytest.approx(2 / 3)  # one right, two detections, one box


def test_without_one_of_the_same_class_the_box_is_taken_for_another() -> None:
    truth = truth_of((CAT, [0, 0, 10, 10]))
    (image,) = compare_boxes(truth, [found(DOG, [0, 0, 10, 10], 0.9)])
    matches = match(image, 0.5)
    assert matches.truth_of == {0: 0} and matches.right == set() and matches.f1 == 0
    (below,) = compare_boxes(truth, [found(CAT, [5, 0, 10, 10], 0.9)])  # IoU 5 / 15
    assert match(below, 0.5).truth_of == {}


def test_only_scores_from_the_threshold_on_count() -> None:
    truth = truth_of((CAT, [0, 0, 10, 10]))
    (image,) = compare_boxes(truth, [found(CAT, [0, 0, 10, 10], 0.5), found(CAT, [50, 0, 10, 10], 0.2)])
    assert match(image, 0.5).f1 == 1
    assert match(image, 0.2).f1 == pytest.approx(2 / 3)
    assert match(image, 0.55).f1 == 0


def test_detections_on_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = truth_of((CAT, [0, 0, 100, 100]), (DOG, [200, 0, 10, 10]), crowds=(0,))
    detections = [found(CAT, [5, 5, 10, 10], 0.9), found(DOG, [200, 0, 10, 10], 0.9)]
    (image,) = compare_boxes(truth, detections)
    assert len(image.truth) == 1
    assert match(image, 0.5).counted == [1] and match(image, 0.5).f1 == 1


def test_an_image_with_neither_boxes_nor_detections_has_no_f1() -> None:
    (image,) = compare_boxes(truth_of(), [])
    assert match(image, 0.5).f1 is None


def test_confusions_count_rows_of_truth_and_columns_of_detections() -> None:
    truth = truth_of((CAT, [0, 0, 10, 10]), (DOG, [20, 0, 10, 10]), (DOG, [40, 0, 10, 10]))
    detections = [
        found(CAT, [0, 0, 10, 10], 0.9),  # right
        found(CAT, [20, 0, 10, 10], 0.9),  # a dog taken for a cat
        found(DOG, [80, 0, 10, 10], 0.3),  # nothing is there
    ]
    counts = confusion_matrices(compare_boxes(truth, detections), 2)
    assert counts.shape == (len(THRESHOLDS), 3, 3)
    assert counts[THRESHOLDS.index(0.3)].tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert counts[THRESHOLDS.index(0.35)].tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert counts[THRESHOLDS.index(0.95)].tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
    f1 = f1_scores(counts)
    # One right of 3 boxes and 3 detections, then of 2 detections, then none.
    assert f1[THRESHOLDS.index(0.3)] == pytest.approx(2 / 6)
    assert f1[THRESHOLDS.index(0.35)] == pytest.approx(2 / 5)
    assert f1[-1] == 0


def test_curves_are_those_of_the_coco_evaluation(digits: DigitsPaths) -> None:
    source = CocoSource(digits.val_json)
    detections = made_detections(source)
    metrics = coco_metrics(source.coco_ground_truth(), detections)
    curves = precision_curves(source.coco_ground_truth(), detections)
    known = {name: ap for name, ap in metrics.per_class_ap50.items() if not np.isnan(ap)}
    assert {curve.name: curve.ap50 for curve in curves} == pytest.approx(known, abs=1e-9)
    assert 0 < metrics.ap50 < 1 and all(len(curve.precision) == len(RECALLS) for curve in curves)


def test_a_class_without_boxes_has_no_curve() -> None:
    curves = precision_curves(truth_of((DOG, [0, 0, 10, 10])), [found(CAT, [0, 0, 10, 10], 0.9)])
    assert [(curve.name, curve.ap50) for curve in curves] == [("dog", 0)]
