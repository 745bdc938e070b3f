import json
import math
import random

import pytest
from scored_scenes import crowded_scene, found, scattered_scene, truth

from semidetr_hf.metrics.coco_detection.coco_metrics import coco_metrics
from semidetr_hf.metrics.voc import Interpolation, voc_metrics

FAR = (500, 400, 20, 20)


def difficult(image_id: int, *box: float) -> dict:
    return {"id": 99, "image_id": image_id, "category_id": 3, "bbox": list(box), "iscrowd": 1}


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        # By score: right, wrong, right, of three boxes. Recall 1/3, 1/3, 2/3, precision 1, 1/2, 2/3; interpolated the
        # curve is 1 up to 1/3, 2/3 up to 2/3 and 0 beyond.
        ("area", 1 / 3 * 1 + 1 / 3 * 2 / 3),
        # Recall 0, 0.1, 0.2, 0.3 at precision 1; 0.4, 0.5, 0.6 at 2/3; 0.7 and more are not reached.
        ("11-point", (4 * 1 + 3 * 2 / 3) / 11),
    ],
)
def test_hand_worked(interpolation: Interpolation, expected: float) -> None:
    labeled = truth([(1, 3, 0, 0, 10, 10), (1, 3, 50, 0, 10, 10), (2, 3, 0, 0, 10, 10)], images=(1, 2))
    detections = [found(2, 3, 0.3, 0, 0, 10, 10), found(1, 3, 0.9, 0, 0, 10, 10), found(1, 3, 0.5, *FAR)]
    metrics = voc_metrics(labeled, detections, interpolation=interpolation)
    assert metrics.per_class_ap50["cat"] == metrics.ap50 == pytest.approx(expected)
    assert metrics.per_class_boxes == {"cat": 3, "dog": 0}
    assert math.isnan(metrics.per_class_ap50["dog"])


def test_a_recall_that_is_a_tenth_reaches_its_point() -> None:
    # Three of ten boxes found: the points 0, 0.1, 0.2 and 0.3 of eleven.
    labeled = truth([(1, 3, 20 * i, 0, 10, 10) for i in range(10)])
    detections = [found(1, 3, 0.9, 20 * i, 0, 10, 10) for i in range(3)]
    assert voc_metrics(labeled, detections, interpolation="11-point").ap50 == pytest.approx(4 / 11)
    assert voc_metrics(labeled, detections).ap50 == pytest.approx(0.3)


def test_an_overlap_of_one_half_is_enough() -> None:
    labeled = truth([(1, 3, 0, 0, 10, 10)])
    assert voc_metrics(labeled, [found(1, 3, 0.9, 0, 0, 10, 5)]).ap50 == 1
    assert voc_metrics(labeled, [found(1, 3, 0.9, 0, 0, 10, 4.99)]).ap50 == 0


def test_difficult_boxes_are_neither_hit_nor_miss() -> None:
    labeled = truth([(1, 3, 0, 0, 10, 10)])
    labeled["annotations"].append(difficult(1, 50, 50, 10, 10))
    # Two on the difficult box, better scored: with them as wrong ones the precision would be 1/3.
    detections = [found(1, 3, 0.9, 50, 50, 10, 10), found(1, 3, 0.8, 50, 50, 10, 10), found(1, 3, 0.5, 0, 0, 10, 10)]
    metrics = voc_metrics(labeled, detections)
    assert metrics.ap50 == 1
    assert metrics.per_class_boxes["cat"] == 1
    # A box of which a tenth is enough of a crowd in COCO must overlap a difficult one like any other.
    assert voc_metrics(labeled, [found(1, 3, 0.9, 50, 50, 10, 4), detections[2]]).ap50 == 0.5


def test_a_second_detection_of_a_box_is_wrong_even_where_another_box_is_near() -> None:
    # The second overlaps the box that is taken most (9/11), and the other one enough (8/12) for COCO to give it that.
    labeled = truth([(1, 3, 0, 0, 10, 10), (1, 3, 3, 0, 10, 10)])
    detections = [found(1, 3, 0.9, 0, 0, 10, 10), found(1, 3, 0.8, 1, 0, 10, 10)]
    assert voc_metrics(labeled, detections).ap50 == 0.5
    assert coco_metrics(labeled, detections).ap50 == pytest.approx(1)


def test_the_mean_is_over_classes_that_have_boxes() -> None:
    labeled = truth([(1, 3, 0, 0, 10, 10), (1, 7, 50, 0, 10, 10)])
    metrics = voc_metrics(labeled, [found(1, 3, 0.9, 0, 0, 10, 10), found(1, 3, 0.8, 50, 0, 10, 10)])
    assert metrics.per_class_ap50 == {"cat": 1, "dog": 0}
    assert metrics.ap50 == 0.5


def test_nothing_found_and_nothing_to_find() -> None:
    assert voc_metrics(truth([(1, 3, 0, 0, 10, 10)]), []).ap50 == 0
    assert math.isnan(voc_metrics(truth([]), [found(1, 3, 0.9, 0, 0, 10, 10)]).ap50)
    # A detection without area overlaps nothing.
    assert voc_metrics(truth([(1, 3, 0, 0, 0, 0)]), [found(1, 3, 0.9, 0, 0, 0, 0)]).ap50 == 0


def test_on_scattered_scenes_it_is_close_to_ap50_of_coco() -> None:
    # Fewer than a hundred detections in an image and no difficult box: what is left is how the curve is summed up.
    for seed in range(3):
        labeled, detections = scattered_scene(seed)
        assert voc_metrics(labeled, detections).ap50 == pytest.approx(coco_metrics(labeled, detections).ap50, abs=0.02)


def test_order_of_detections_and_text_ids_do_not_matter() -> None:
    labeled, detections = crowded_scene(0)
    detections = [detection | {"score": score} for score, detection in enumerate(detections)]
    shuffled = random.Random(0).sample(detections, len(detections))
    assert voc_metrics(labeled, shuffled) == voc_metrics(labeled, detections)


def test_text_and_json_say_what_has_no_boxes() -> None:
    metrics = voc_metrics(truth([(1, 3, 0, 0, 10, 10)]), [])
    assert metrics.to_text().splitlines()[-2:] == [
        "  cat                        0.0000        1",
        "  dog                      no boxes        0",
    ]
    values = metrics.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["per_class_ap50"] == {"cat": 0, "dog": None}


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="detections have image_id 5, which is not among the 1 images"):
        voc_metrics(truth([]), [found(5, 3, 0.9, 0, 0, 1, 1)])
    with pytest.raises(ValueError, match="interpolation='101-point': must be one of area, 11-point"):
        voc_metrics(truth([]), [], interpolation="101-point")  # type: ignore[arg-type]
