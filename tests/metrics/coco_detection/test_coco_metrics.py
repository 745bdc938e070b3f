import importlib.util
import json
import logging
import math
import random
import sys
import types

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored_scenes import crowded_scene, found, scattered_scene, truth

from semidetr_hf.metrics.coco_detection import coco_metrics as scoring
from semidetr_hf.metrics.coco_detection.coco_metrics import DetectionMetrics, coco_metrics


def assert_same(first, second) -> None:
    # nan is not equal to itself; its text is.
    assert repr(first) == repr(second)


def test_a_perfect_detection_scores_one() -> None:
    metrics = coco_metrics(truth([(1, 3, 10, 10, 100, 100)]), [found(1, 3, 0.9, 10, 10, 100, 100)])
    # 100 x 100 = 10,000 pixels is above 96 x 96 = 9,216: a large object.
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_large) == pytest.approx((1, 1, 1, 1))
    assert (metrics.ar1, metrics.ar10, metrics.ar100, metrics.ar_large) == (1, 1, 1, 1)
    others = (metrics.ap_small, metrics.ap_medium, metrics.ar_small, metrics.ar_medium)
    assert all(math.isnan(value) for value in others)
    assert metrics.per_class["cat"] == pytest.approx(1)
    # No dog is labeled: nothing to find.
    assert math.isnan(metrics.per_class["dog"])


def test_overlap_counts_at_the_thresholds_below_it() -> None:
    # IoU 100 x 82 / 100 x 100 = 0.82: right at 0.50, 0.55 .. 0.80 (7 of 10 thresholds), wrong at 0.85, 0.90, 0.95.
    metrics = coco_metrics(truth([(1, 3, 0, 0, 100, 100)]), [found(1, 3, 0.9, 0, 0, 100, 82)])
    assert metrics.ap == pytest.approx(0.7)
    assert (metrics.ap50, metrics.ap75) == pytest.approx((1, 1))
    metrics = coco_metrics(truth([(1, 3, 0, 0, 100, 100)]), [found(1, 3, 0.9, 0, 0, 100, 72)])
    # 0.72: 0.50 .. 0.70 are 5 of 10.
    assert metrics.ap == pytest.approx(0.5)
    assert (metrics.ap50, metrics.ap75) == pytest.approx((1, 0))


def test_a_better_scored_false_positive_halves_the_precision() -> None:
    detections = [found(1, 3, 0.9, 300, 300, 50, 50), found(1, 3, 0.5, 0, 0, 100, 100)]
    metrics = coco_metrics(truth([(1, 3, 0, 0, 100, 100)]), detections)
    # Recall 1 is reached with one right box of two: precision 1/2 at every recall.
    assert metrics.ap == pytest.approx(0.5)
    # The one best box of the image is the wrong one.
    assert (metrics.ar1, metrics.ar10) == (0, 1)


def test_ap_is_the_mean_over_labeled_classes() -> None:
    labeled = truth([(1, 3, 0, 0, 100, 100), (1, 7, 200, 200, 50, 50)])
    metrics = coco_metrics(labeled, [found(1, 3, 0.9, 0, 0, 100, 100)])
    assert metrics.per_class == pytest.approx({"cat": 1, "dog": 0})
    assert metrics.ap == pytest.approx(0.5)


def test_detections_in_a_crowd_are_not_wrong() -> None:
    labeled = truth([(1, 3, 0, 0, 100, 100)])
    crowd = {"id": 99, "image_id": 1, "category_id": 3, "bbox": [300, 300, 100, 100], "iscrowd": 1}
    labeled["annotations"].append(crowd)
    detections = [found(1, 3, 0.9, 310, 310, 50, 50), found(1, 3, 0.5, 0, 0, 100, 100)]
    assert coco_metrics(labeled, detections).ap == pytest.approx(1.0)


def test_no_detections_score_zero() -> None:
    metrics = coco_metrics(truth([(1, 3, 0, 0, 10, 10)]), [])
    assert (metrics.ap, metrics.ap50, metrics.ap_small, metrics.ar100) == (0, 0, 0, 0)
    assert metrics.per_class["cat"] == 0


def test_no_labels_score_nan() -> None:
    metrics = coco_metrics(truth([]), [found(1, 3, 0.9, 0, 0, 10, 10)])
    assert math.isnan(metrics.ap)
    assert all(math.isnan(value) for value in metrics.per_class.values())


def test_to_dict_can_be_written_as_json() -> None:
    values = coco_metrics(truth([(1, 3, 10, 10, 100, 100)]), []).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert len(values) == 15
    assert values["ap"] == 0
    assert values["ap_small"] is None
    assert values["per_class"] == values["per_class_ap50"] == {"cat": 0, "dog": None}
    assert values["per_class_boxes"] == {"cat": 1, "dog": 0}


def test_stays_silent_and_changes_no_argument(capsys) -> None:
    labeled, detections = truth([(1, 3, 0, 0, 10, 10)]), [found(1, 3, 0.9, 0, 0, 10, 10)]
    before = json.dumps([labeled, detections])
    coco_metrics(labeled, detections)
    assert capsys.readouterr().out == ""
    assert json.dumps([labeled, detections]) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_summary_of_pycocotools(seed: int, capsys) -> None:
    labeled, detections = scattered_scene(seed)
    # What pycocotools wants for itself: annotation ids from 1, areas, crowd flags.
    complete = [
        {**box, "id": box["id"] + 1, "area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0}
        for box in labeled["annotations"]
    ]
    coco = COCO()
    coco.dataset = {**labeled, "annotations": complete}
    coco.createIndex()
    evaluator = COCOeval(coco, coco.loadRes(detections), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    metrics = coco_metrics(labeled, detections)
    names = "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 ar_small ar_medium ar_large".split()
    assert [getattr(metrics, name) for name in names] == pytest.approx(evaluator.stats.tolist())
    assert 0.05 < metrics.ap < 0.95


@pytest.mark.parametrize(
    ("labeled", "detections"),
    [
        *(crowded_scene(seed) for seed in range(3)),
        (crowded_scene(3)[0], []),
        ({**crowded_scene(4)[0], "annotations": []}, crowded_scene(4)[1]),
        (truth([]), []),
        # Nothing of one size and of one class.
        (truth([(1, 3, 10, 10, 100, 100)]), [found(1, 3, 0.9, 10, 10, 100, 100)]),
    ],
    ids=["many 0", "many 1", "many 2", "no detections", "no labels", "neither", "one box"],
)
@pytest.mark.parametrize("max_detections", [11, 100, 300])
def test_both_scorers_give_the_same_numbers(labeled, detections, max_detections: int, monkeypatch, caplog) -> None:
    pytest.importorskip("faster_coco_eval")
    with caplog.at_level(logging.DEBUG, logger=scoring.__name__):
        fast = coco_metrics(labeled, detections, max_detections=max_detections)
        monkeypatch.setattr(scoring, "faster_coco_eval", None)
        slow = coco_metrics(labeled, detections, max_detections=max_detections)
    used = [record.message for record in caplog.records if record.name == scoring.__name__]
    assert len(used) == 2 and used[0].startswith("scoring with faster-coco-eval ")
    assert used[1] == "scoring with pycocotools; faster-coco-eval is not installed"
    assert fast.per_class.keys() == slow.per_class.keys() == {"cat", "dog"}
    for name, number in vars(fast).items():
        assert number == pytest.approx(getattr(slow, name), rel=0, abs=1e-9, nan_ok=True), name


def test_order_and_names_of_images_do_not_matter() -> None:
    labeled, detections = scattered_scene(2)
    expected = coco_metrics(labeled, detections)
    shuffled = random.Random(0).sample(detections, len(detections))
    assert_same(coco_metrics(labeled, shuffled), expected)
    named = json.loads(json.dumps(labeled))
    for image in named["images"]:
        image["id"] = f"scene {image['id']}.jpg"
    for box in named["annotations"]:
        box["image_id"] = f"scene {box['image_id']}.jpg"
    renamed = [{**detection, "image_id": f"scene {detection['image_id']}.jpg"} for detection in detections]
    assert_same(coco_metrics(named, renamed), expected)


def test_max_detections_limits_the_boxes_of_an_image() -> None:
    # Eleven better scored wrong boxes; the right one is the twelfth.
    wrong = [found(1, 3, 0.9, 300, 10 * i, 5, 5) for i in range(11)]
    detections = [*wrong, found(1, 3, 0.5, 0, 0, 100, 100)]
    labeled = truth([(1, 3, 0, 0, 100, 100)])
    assert coco_metrics(labeled, detections, max_detections=11).ar100 == 0
    assert coco_metrics(labeled, detections, max_detections=12).ar100 == 1
    with pytest.raises(ValueError, match="max_detections=10: must be above 10"):
        coco_metrics(labeled, detections, max_detections=10)


@pytest.mark.parametrize(
    ("boxes", "detections", "message"),
    [
        ([], [found(5, 3, 0.9, 0, 0, 1, 1)], "detections have image_id 5, which is not among the 1 images"),
        ([], [found(1, 4, 0.9, 0, 0, 1, 1)], "detections have category_id 4, which is not among the 2 categories"),
        ([(8, 3, 0, 0, 1, 1)], [], "annotations have image_id 8"),
        ([(1, 9, 0, 0, 1, 1)], [], "annotations have category_id 9"),
    ],
)
def test_unknown_ids_are_named(boxes, detections, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_metrics(truth(boxes), detections)


def test_metrics_come_back_from_their_plain_values() -> None:
    metrics = coco_metrics(truth([(1, 3, 10, 10, 100, 100)]), [found(1, 3, 0.5, 10, 10, 100, 82)])
    again = DetectionMetrics.from_dict(json.loads(json.dumps(metrics.to_dict())))
    assert_same(again, metrics)
    assert math.isnan(again.per_class["dog"])


def test_metrics_written_before_there_was_an_ap50_per_class_can_be_read() -> None:
    values = coco_metrics(truth([(1, 3, 10, 10, 100, 100)]), []).to_dict()
    del values["per_class_ap50"], values["per_class_boxes"]
    again = DetectionMetrics.from_dict(values)
    assert again.per_class["cat"] == 0
    assert again.per_class_ap50 == again.per_class_boxes == {}


def test_classes_have_ap_ap50_and_a_number_of_boxes() -> None:
    boxes = [(1, 3, 0, 0, 100, 100), (1, 3, 300, 300, 50, 50)]
    labeled = truth(boxes)
    labeled["annotations"].append({"id": 9, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    # IoU 0.82 of one of two cats: right at 7 of 10 thresholds. Recall 1/2 are 51 of the 101 points of recall.
    metrics = coco_metrics(labeled, [found(1, 3, 0.9, 0, 0, 100, 82), found(1, 7, 0.9, 0, 0, 5, 5)])
    assert metrics.per_class["cat"] == pytest.approx(0.7 * 51 / 101)
    assert metrics.per_class_ap50["cat"] == pytest.approx(51 / 101)
    assert metrics.per_class_boxes == {"cat": 2, "dog": 0}
    assert math.isnan(metrics.per_class_ap50["dog"])


def test_text_says_what_has_no_boxes() -> None:
    text = coco_metrics(truth([(1, 3, 0, 0, 100, 100)]), [found(1, 3, 0.9, 0, 0, 100, 82)]).to_text()
    assert "  ap_small                 no boxes\n" in text
    assert "  ap                       0.7000\n" in text
    assert text.splitlines()[-3:] == [
        "per class                        AP    AP50    boxes",
        "  cat                        0.7000  1.0000        1",
        "  dog                              no boxes        0",
    ]


def load_without(monkeypatch, *missing: str) -> types.ModuleType:
    """Load the file anew, as on a machine that lacks some packages."""
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("scoring_again", scoring.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("missing", ["faster_coco_eval", "pycocotools.coco"])
def test_one_of_the_two_scorers_is_enough(missing: str, monkeypatch) -> None:
    labeled, detections = scattered_scene(0)
    expected = coco_metrics(labeled, detections).to_dict()
    values = load_without(monkeypatch, missing).coco_metrics(labeled, detections).to_dict()
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=0, abs=1e-9), name


def test_without_a_scorer_the_message_says_what_to_install(monkeypatch) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pycocotools.*; detections are scored by it: pip install"):
        load_without(monkeypatch, "faster_coco_eval", "pycocotools.coco")
