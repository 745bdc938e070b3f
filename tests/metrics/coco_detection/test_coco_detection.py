import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scored_scenes import CATEGORIES, crowded_scene, scattered_scene
from small_runs import SIZE, detector, forget_accelerator
from torchvision.ops import clip_boxes_to_image
from transformers import Trainer, TrainingArguments

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.metrics import coco_detection
from semidetr_hf.metrics.coco_detection.coco_metrics import coco_metrics
from semidetr_hf.training.evaluation import evaluate

pytest.importorskip("evaluate")
from semidetr_hf.metrics.coco_detection.coco_detection import CocoDetection  # noqa: E402

NAMES = [category["name"] for category in CATEGORIES]
LABEL_OF = {category["id"]: label for label, category in enumerate(CATEGORIES)}


def per_image(labeled: dict, detections: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return a scene as the metric takes it: predictions and references, images in the order of the scene."""
    inputs = []
    for kind, entries in (("score", detections), ("area", labeled["annotations"])):
        images: list[dict[str, list]] = []
        for image in labeled["images"]:
            boxes = [entry for entry in entries if entry["image_id"] == image["id"]]
            corners = [(x, y, x + width, y + height) for x, y, width, height in (box["bbox"] for box in boxes)]
            item: dict[str, list] = {"boxes": corners, "labels": [LABEL_OF[box["category_id"]] for box in boxes]}
            if kind == "score":
                item["scores"] = [box["score"] for box in boxes]
            else:
                item["iscrowd"] = [box.get("iscrowd", 0) for box in boxes]
                item["area"] = [box.get("area", box["bbox"][2] * box["bbox"][3]) for box in boxes]
            images.append(item)
        inputs.append(images)
    return inputs[0], inputs[1]


def assert_same_numbers(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=0, abs=1e-9), name


@pytest.fixture
def metric(tmp_path) -> CocoDetection:
    return CocoDetection(cache_dir=str(tmp_path))


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_give_the_numbers_of_coco(metric, seed: int) -> None:
    labeled, detections = crowded_scene(seed)
    predictions, references = per_image(labeled, detections)
    for start in range(0, len(references), 4):
        metric.add_batch(predictions=predictions[start : start + 4], references=references[start : start + 4])
    expected = coco_metrics(labeled, detections).to_dict()
    assert 0.05 < expected["ap"] < 0.95
    assert_same_numbers(metric.compute(class_names=NAMES), expected)


def test_all_at_once_and_again(metric) -> None:
    for seed in (0, 1):
        labeled, detections = scattered_scene(seed)
        predictions, references = per_image(labeled, detections)
        for reference in references:  # as most data sets are
            del reference["iscrowd"], reference["area"]
        values = metric.compute(predictions=predictions, references=references, class_names=NAMES)
        assert_same_numbers(values, coco_metrics(labeled, detections).to_dict())


def test_tensors_arrays_and_images_one_by_one(metric) -> None:
    prediction = {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 82.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([4]),
    }
    metric.add(prediction=prediction, reference={"boxes": np.array([[0, 0, 100, 100]]), "labels": np.array([4])})
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.add(prediction=nothing, reference={"boxes": [], "labels": []})
    values = metric.compute()
    assert values["ap"] == pytest.approx(0.7)  # IoU 0.82: 7 of 10 thresholds
    assert values["ap_small"] is None
    assert values["per_class"] == {"4": pytest.approx(0.7)}
    assert values["per_class_boxes"] == {"4": 1}


def test_max_detections_reaches_the_scorer(metric) -> None:
    wrong = [[300, 10 * i, 305, 10 * i + 5] for i in range(11)]
    prediction = {"boxes": [*wrong, [0, 0, 9, 9]], "scores": [0.9] * 11 + [0.5], "labels": [0] * 12}
    inputs = {"predictions": [prediction], "references": [{"boxes": [[0, 0, 9, 9]], "labels": [0]}]}
    assert metric.compute(**inputs, max_detections=11)["ar100"] == 0
    assert metric.compute(**inputs, max_detections=12)["ar100"] == 1


BOX = [[0, 0, 9, 9]]


@pytest.mark.parametrize(
    ("prediction", "reference", "names", "message"),
    [
        (
            {"boxes": BOX, "labels": [0]},
            {"boxes": BOX, "labels": [0]},
            None,
            "predictions: an image has no 'scores', only boxes, labels; give boxes, scores, labels",
        ),
        (
            {"boxes": BOX, "scores": [0.5], "labels": [0]},
            {"boxes": BOX, "labels": [0, 0]},
            None,
            r"references: the lists of an image differ in length \({'boxes': 1, 'labels': 2}\)",
        ),
        (
            {"boxes": BOX, "scores": [0.5], "labels": [2]},
            {"boxes": BOX, "labels": [0]},
            ["cat", "dog"],
            "label 2 has no name: class_names has 2",
        ),
        (
            {"boxes": BOX, "scores": [0.5], "labels": [0]},
            {"boxes": BOX, "labels": [0]},
            ["cat", "cat"],
            r"class_names=\['cat', 'cat'\]: a name occurs twice",
        ),
    ],
)
def test_what_is_wrong_is_named(metric, prediction: dict, reference: dict, names, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[prediction], references=[reference], class_names=names)


@pytest.fixture
def forgetful() -> Iterator[None]:
    yield
    forget_accelerator()


def labeled_by(model: Any, processor: Any, folder: Path) -> CocoSource:
    """Return four pictures in which the best four detections of an untrained detector are the boxes to find."""
    path = write_digits_dataset(folder, num_train=4, num_val=1, image_size=SIZE).train_json
    found = evaluate(model, processor, CocoSource(path), batch_size=4, accelerator=Accelerator(cpu=True))[1]
    document = json.loads(path.read_text())
    document["annotations"] = []
    for image in document["images"]:
        own = sorted((box for box in found if box["image_id"] == image["id"]), key=lambda box: -box["score"])
        document["annotations"] += own[:4]
    for number, box in enumerate(document["annotations"], start=1):
        box |= {"id": number, "area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0}
    path.write_text(json.dumps(document))
    return CocoSource(path)


@pytest.mark.usefixtures("forgetful")
def test_the_trainer_of_transformers_reports_it(metric, tmp_path) -> None:
    model, processor = detector(), SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    source = labeled_by(model, processor, tmp_path / "digits")

    def collate(indices: list[int]) -> dict[str, Any]:
        samples = [source[index] for index in indices]
        annotations = [
            {
                "image_id": index,
                "annotations": [
                    {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": label, "area": (x2 - x1) * (y2 - y1)}
                    for (x1, y1, x2, y2), label in zip(
                        sample.boxes_xyxy.tolist(), sample.class_labels.tolist(), strict=True
                    )
                ],
            }
            for index, sample in zip(indices, samples, strict=True)
        ]
        return dict(
            processor(images=[sample.image for sample in samples], annotations=annotations, return_tensors="pt")
        )

    def compute_metrics(batch: Any, compute_result: bool) -> dict[str, float]:
        _, logits, boxes = batch.predictions[:3]  # after the losses
        sizes = [tuple(target["orig_size"].tolist()) for target in batch.label_ids]
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        wanted = []
        for item, target, (height, width) in zip(found, batch.label_ids, sizes, strict=True):
            item["boxes"] = clip_boxes_to_image(item["boxes"], (height, width))
            x, y, w, h = (target["boxes"].double() * torch.tensor([width, height, width, height])).unbind(-1)
            corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
            wanted.append({"boxes": corners, "labels": target["class_labels"]})
        metric.add_batch(predictions=found, references=wanted)
        return metric.compute(class_names=source.category_names) if compute_result else {}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"),
            per_device_eval_batch_size=2,
            batch_eval_metrics=True,
            label_names=["labels"],
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
        ),
        data_collator=collate,
        eval_dataset=list(range(4)),  # type: ignore[arg-type]
        compute_metrics=compute_metrics,
    )
    expected, _ = evaluate(model, processor, source, batch_size=2, accelerator=Accelerator(cpu=True))
    found = trainer.evaluate()
    assert 0.1 < expected.ap < 0.999
    for name, value in expected.to_dict().items():
        assert found[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name


LOAD = """
import json, socket, sys

def refuse(*arguments, **options):
    raise RuntimeError("the network was asked for")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules["semidetr_hf"] = None
import evaluate
metric = evaluate.load(sys.argv[1])
predictions, references, names = json.load(open(sys.argv[2]))
print(json.dumps(metric.compute(predictions=predictions, references=references, class_names=names)))
"""


@pytest.mark.slow
def test_the_folder_alone_loads_without_network(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "coco_detection"
    shutil.copytree(Path(coco_detection.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    labeled, detections = crowded_scene(2)
    (tmp_path / "scene.json").write_text(json.dumps([*per_image(labeled, detections), NAMES]))
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "scene.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_numbers(json.loads(done.stdout.splitlines()[-1]), coco_metrics(labeled, detections).to_dict())
