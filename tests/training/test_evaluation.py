import json
import logging
import math
import os
import random
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from transformers import DeformableDetrImageProcessor, DetrImageProcessor

from semidetr_hf.training import evaluation
from semidetr_hf.training.evaluation import DetectionMetrics, coco_metrics, detections_to_coco, evaluate

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def truth(boxes, images=(1,), **extra) -> dict:
    """Return a COCO dict of (image id, category id, x, y, width, height) rows."""
    return {
        "images": [{"id": image_id, "width": 640, "height": 480} for image_id in images],
        "categories": CATEGORIES,
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, **extra}
            for number, (image_id, category_id, *box) in enumerate(boxes)
        ],
    }


def found(image_id, category_id, score: float, *box: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": list(box)}


def assert_same(first, second) -> None:
    # nan is not equal to itself; its text is.
    assert repr(first) == repr(second)


# ---- coco_metrics


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
    assert len(values) == 13
    assert values["ap"] == 0
    assert values["ap_small"] is None
    assert values["per_class"] == {"cat": 0, "dog": None}


def test_stays_silent_and_changes_no_argument(capsys) -> None:
    labeled, detections = truth([(1, 3, 0, 0, 10, 10)]), [found(1, 3, 0.9, 0, 0, 10, 10)]
    before = json.dumps([labeled, detections])
    coco_metrics(labeled, detections)
    assert capsys.readouterr().out == ""
    assert json.dumps([labeled, detections]) == before


def scattered_scene(seed: int, number_of_images: int = 6) -> tuple[dict, list[dict]]:
    """Return random boxes of all sizes and detections near some of them."""
    draw = random.Random(seed)
    images = list(range(1, number_of_images + 1))
    boxes = [
        (draw.choice(images), draw.choice([3, 7]), draw.uniform(0, 400), draw.uniform(0, 300), edge, edge * 0.8)
        for edge in (draw.uniform(8, 200) for _ in range(40))
    ]
    detections = []
    for image_id, category_id, x, y, width, height in boxes:
        if draw.random() < 0.8:
            shift = draw.gauss(0, 0.1)
            detections.append(
                found(
                    image_id, category_id, draw.random(), x + shift * width, y, width, height * draw.uniform(0.8, 1.2)
                )
            )
    detections += [found(draw.choice(images), 3, draw.random(), draw.uniform(0, 400), 50, 60, 60) for _ in range(15)]
    return truth(boxes, images=images), detections


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


def crowded_scene(seed: int) -> tuple[dict, list[dict]]:
    """Return a scene with text as ids, crowds, given areas, images without boxes, and many equal scores."""
    labeled, detections = scattered_scene(seed, number_of_images=9)
    draw = random.Random(seed)
    for box in labeled["annotations"]:
        box["iscrowd"] = int(draw.random() < 0.1)
        if draw.random() < 0.5:
            box["area"] = 0.7 * box["bbox"][2] * box["bbox"][3]
    for entry in [*labeled["annotations"], *detections]:
        entry["image_id"] = f"scene {entry['image_id']}"
    labeled["images"] = [{**image, "id": f"scene {image['id']}"} for image in labeled["images"]]
    detections += [{**detection, "score": 0.5} for detection in detections[::2]]
    return labeled, detections


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
    with caplog.at_level(logging.DEBUG, logger=evaluation.__name__):
        fast = coco_metrics(labeled, detections, max_detections=max_detections)
        monkeypatch.setattr(evaluation, "faster_coco_eval", None)
        slow = coco_metrics(labeled, detections, max_detections=max_detections)
    used = [record.message for record in caplog.records if record.name == evaluation.__name__]
    assert len(used) == 2 and used[0].startswith("scoring with faster-coco-eval ")
    assert used[1] == "scoring with pycocotools; faster-coco-eval is not installed"
    names = [*vars(fast), *fast.per_class]
    numbers, expected = ([*vars(m).values(), *m.per_class.values()] for m in (fast, slow))
    assert fast.per_class.keys() == slow.per_class.keys() == {"cat", "dog"}
    for name, number, other in zip(names, numbers, expected, strict=True):
        if name != "per_class":
            assert number == pytest.approx(other, rel=0, abs=1e-6, nan_ok=True), name


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


# ---- detections_to_coco


def test_corners_become_width_and_height_and_labels_become_ids() -> None:
    results = [
        {
            "scores": torch.tensor([0.75, 0.25]),
            "labels": torch.tensor([1, 0]),
            "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 5.0, 5.0]]),
        },
        {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    assert detections_to_coco(results, ["a", "b"], category_ids=[3, 7]) == [
        {"image_id": "a", "category_id": 7, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": "a", "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.25},
    ]
    assert detections_to_coco([], [], category_ids=[]) == []
    with pytest.raises(ValueError, match="image 'a': class label 1 has no category id, there are 1"):
        detections_to_coco(results, ["a", "b"], category_ids=[3])
    with pytest.raises(ValueError, match="2 results came with 1 image ids"):
        detections_to_coco(results, ["a"], category_ids=[3, 7])


# ---- evaluate


class BrightestBox(nn.Module):
    """A detector that works: it finds the bright rectangle of an image, and knows dark (0) and light (1) ones."""

    def __init__(self, background_class: bool = False) -> None:
        super().__init__()
        self.background_class = background_class
        self.frozen = nn.BatchNorm2d(3).eval()
        self.was_training: list[bool] = []

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor):
        self.was_training.append(self.training or torch.is_grad_enabled())
        boxes, logits = [], []
        for image, mask in zip(pixel_values, pixel_mask, strict=True):
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
            ys, xs = torch.nonzero(image[0, :height, :width] > 0.2, as_tuple=True)
            x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            box = torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
            light = image.max() > 0.7
            scores = [-4.0, 4.0] if light else [4.0, -4.0]
            boxes.append(box[None])
            logits.append(torch.tensor([scores + [0.0] * self.background_class]))
        return types.SimpleNamespace(logits=torch.stack(logits), pred_boxes=torch.stack(boxes))


class Scenes:
    """Dark images of different sizes, one rectangle each; dark gray ones are cats, light gray ones are dogs."""

    def __init__(self, number: int, ids: list | None = None, unreadable: tuple[int, ...] = ()) -> None:
        self.image_ids = ids or [10 * i for i in range(number)]
        self.category_ids = (3, 7)
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.image_ids)

    def box(self, index: int) -> list[int]:
        return [4 + index, 6, 20 + 2 * index, 30]

    def __getitem__(self, index: int):
        if index in self.unreadable:
            raise OSError(f"scene {index}: truncated file")
        x, y, width, height = self.box(index)
        pixels = np.zeros((64 + index % 3 * 16, 96, 3), dtype=np.uint8)
        pixels[y : y + height, x : x + width] = 255 if index % 2 else 128
        return types.SimpleNamespace(image=Image.fromarray(pixels), image_id=self.image_ids[index])

    def coco_ground_truth(self) -> dict:
        rows = [(self.image_ids[i], self.category_ids[i % 2], *self.box(i)) for i in range(len(self))]
        return truth(rows, images=self.image_ids)


def processor(kind=DeformableDetrImageProcessor):
    return kind(do_resize=False, do_normalize=False)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize(
    ("kind", "background_class"), [(DeformableDetrImageProcessor, False), (DetrImageProcessor, True)]
)
def test_a_detector_that_works_scores_one(accelerator, kind, background_class: bool) -> None:
    model, scenes = BrightestBox(background_class), Scenes(5)
    metrics, detections = evaluate(model, processor(kind), scenes, batch_size=2, accelerator=accelerator)
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    best = {d["image_id"]: d for d in sorted(detections, key=lambda d: d["score"])}
    # The third scene has id 20, a dark gray rectangle (a cat, category 3) at 6, 6 of 24 x 30 pixels.
    assert best[20]["category_id"] == 3
    assert best[20]["bbox"] == pytest.approx([6, 6, 24, 30], abs=1e-3)


def test_batch_size_does_not_matter(accelerator) -> None:
    one, many = (
        evaluate(BrightestBox(), processor(), Scenes(5), batch_size=size, accelerator=accelerator) for size in (1, 4)
    )
    assert one == many


def test_images_may_have_names_as_ids(accelerator) -> None:
    scenes = Scenes(3, ids=["b/1.jpg", "a/2.jpg", "c.png"])
    metrics, detections = evaluate(BrightestBox(), processor(), scenes, batch_size=2, accelerator=accelerator)
    assert metrics.ap == pytest.approx(1.0)
    assert {d["image_id"] for d in detections} == {"b/1.jpg", "a/2.jpg", "c.png"}


def test_boxes_are_clipped_to_the_image(accelerator) -> None:
    class TooLarge(BrightestBox):
        def forward(self, pixel_values, pixel_mask):
            output = super().forward(pixel_values, pixel_mask)
            output.pred_boxes[:] = torch.tensor([0.5, 0.5, 1.4, 1.4])
            return output

    _, detections = evaluate(TooLarge(), processor(), Scenes(1), batch_size=1, accelerator=accelerator)
    assert {tuple(d["bbox"]) for d in detections} == {(0, 0, 96, 64)}


def test_every_module_gets_its_mode_back(accelerator) -> None:
    model = BrightestBox().train()
    model.frozen.eval()
    evaluate(model, processor(), Scenes(2), batch_size=1, accelerator=accelerator)
    assert (model.training, model.frozen.training) == (True, False)
    # Neither in training mode nor with gradients while it ran.
    assert model.was_training == [False, False]

    class Failing(BrightestBox):
        def forward(self, pixel_values, pixel_mask):
            raise RuntimeError("out of memory")

    model = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, processor(), Scenes(2), batch_size=1, accelerator=accelerator)
    assert model.training


def test_unreadable_images_are_left_out_and_counted(accelerator, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        metrics, detections = evaluate(
            BrightestBox(), processor(), Scenes(5, unreadable=(1, 2)), batch_size=2, accelerator=accelerator
        )
    assert metrics.ap == pytest.approx(1.0)
    assert {d["image_id"] for d in detections} == {0, 30, 40}
    warnings = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert warnings == [
        "2 of 5 images cannot be read and are not evaluated, the first because: scene 1: truncated file"
    ]


def test_nothing_to_evaluate_is_an_error(accelerator) -> None:
    with pytest.raises(ValueError, match="none of the 2 images can be read, the first because: scene 0: truncated"):
        evaluate(BrightestBox(), processor(), Scenes(2, unreadable=(0, 1)), batch_size=1, accelerator=accelerator)
    with pytest.raises(ValueError, match="cannot evaluate 0 images in batches of 2"):
        evaluate(BrightestBox(), processor(), Scenes(0), batch_size=2, accelerator=accelerator)
    with pytest.raises(ValueError, match="cannot evaluate 2 images in batches of 0"):
        evaluate(BrightestBox(), processor(), Scenes(2), batch_size=0, accelerator=accelerator)


def test_metrics_come_back_from_their_plain_values() -> None:
    numbers = {name: i / 10 for i, name in enumerate(DetectionMetrics.__dataclass_fields__) if name != "per_class"}
    metrics = DetectionMetrics(**numbers | {"ap_large": math.nan}, per_class={"cat": 0.25, "dog": math.nan})
    again = DetectionMetrics.from_dict(json.loads(json.dumps(metrics.to_dict())))
    assert math.isnan(again.ap_large)
    assert math.isnan(again.per_class["dog"])
    known = {name: value for name, value in vars(metrics).items() if name not in ("ap_large", "per_class")}
    assert {name: value for name, value in vars(again).items() if name in known} == known
    assert again.per_class["cat"] == 0.25


def evaluate_in_this_process(path: str) -> None:
    """Entry point of the two processes below."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    scenes = Scenes(5, unreadable=(3,))
    result = evaluate(BrightestBox(), processor(), scenes, batch_size=2, accelerator=accelerator)
    Path(path, f"{accelerator.process_index}.json").write_text(json.dumps([result[0].to_dict(), result[1]]))
    accelerator.end_training()


@pytest.mark.multiprocess
def test_two_processes_share_the_images_and_agree_with_one(tmp_path, accelerator) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    setting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, **setting, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    metrics, detections = evaluate(
        BrightestBox(), processor(), Scenes(5, unreadable=(3,)), batch_size=2, accelerator=accelerator
    )
    expected = json.loads(json.dumps([metrics.to_dict(), detections]))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


if __name__ == "__main__":
    evaluate_in_this_process(sys.argv[1])
