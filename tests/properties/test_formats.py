"""One data set in four formats is one data set: the same samples, splits, training sets and AP."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from trap_set import CATEGORIES, write_trap_set

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.validation import check_sources
from semidetr_hf.data.writing import write_source
from semidetr_hf.metrics.coco_detection.coco_metrics import DetectionMetrics, coco_metrics
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.evaluation import evaluate
from semidetr_hf.training.setup import Sources, open_sources

FORMATS = ("coco", "yolo", "voc", "datasets")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Return the paths of training and validation images in each format, and as they were made."""
    folder = tmp_path_factory.mktemp("formats")
    made = {split: write_trap_set(folder / split, seed=seed) for seed, split in enumerate(("train", "val"))}
    paths = {"original": (str(made["train"]), str(made["val"]))}
    for to in FORMATS:
        written = [
            write_source(CocoSource(path), folder / f"{split} {to}", to, split=split).path  # type: ignore[arg-type]
            for split, path in made.items()
        ]
        paths[to] = (written[0], written[1])
    return paths


def numbers_of(metrics: DetectionMetrics) -> dict[str, Any]:
    """Return all numbers, those of the classes under names of their own."""
    flat = {}
    for name, value in asdict(metrics).items():
        flat |= (
            {f"{name} {key}": number for key, number in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def configure(labeled: str, **data: Any) -> TrainingConfig:
    return TrainingConfig.from_dict({"data": {"labeled": labeled} | data, "run": {"output_dir": "unused"}})


def sources_of(paths: tuple[str, str], **data: Any) -> Sources:
    return open_sources(configure(paths[0], val=paths[1], **data))


def near_boxes(source: CocoSource) -> list[dict[str, Any]]:
    """Return detections near the boxes of a source, the same for every format: misses, shifts and wrong classes."""
    rng = np.random.default_rng(0)
    detections = []
    places = {image_id: place for place, image_id in enumerate(source.image_ids)}
    for entry in source.coco_ground_truth()["annotations"]:
        shift, score, fate = rng.normal(0, 0.06, 4), rng.uniform(), rng.uniform()
        x, y, width, height = entry["bbox"]
        category = int(rng.choice(source.category_ids)) if fate > 0.8 else entry["category_id"]
        if fate > 0.1:
            box = [x + shift[0] * width, y + shift[1] * height, width * (1 + shift[2]), height * (1 + shift[3])]
            detections.append(
                {"place": places[entry["image_id"]], "category_id": category, "bbox": box, "score": score}
            )
    return detections


@pytest.mark.parametrize("to", FORMATS)
def test_ap_of_the_same_detections_is_the_same(sets: dict[str, tuple[str, str]], to: str) -> None:
    original, source = open_source(sets["original"][1]), open_source(sets[to][1], part="val")
    assert isinstance(original, CocoSource) and isinstance(source, CocoSource)
    scores = []
    for each in (original, source):
        found = [{**entry, "image_id": each.image_ids[entry["place"]]} for entry in near_boxes(original)]
        scores.append(numbers_of(coco_metrics(each.coco_ground_truth(), found)))
    expected, metrics = scores
    assert 0.3 < expected["ap"] < 0.9
    assert metrics == pytest.approx(expected, rel=0, abs=1e-6, nan_ok=True)


def detector() -> SemiDetrForObjectDetection:
    names = list(CATEGORIES.values())
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return tiny_model(0, **labels)


@pytest.fixture(scope="module")
def expected_detections(sets: dict[str, tuple[str, str]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return detect(sets["original"][1])


def detect(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    source: Any = open_source(path, part="val")
    processor = SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    metrics, found = evaluate(detector(), processor, source, batch_size=4, accelerator=Accelerator(cpu=True))
    return numbers_of(metrics), found


@pytest.mark.parametrize("to", FORMATS)
def test_a_detector_finds_and_scores_the_same(
    sets: dict[str, tuple[str, str]], expected_detections: tuple[dict[str, Any], list[dict[str, Any]]], to: str
) -> None:
    metrics, found = detect(sets[to][1])
    expected_metrics, expected_found = expected_detections
    assert len(found) == len(expected_found) > 0
    torch.testing.assert_close(
        torch.tensor([entry["bbox"] for entry in found]), torch.tensor([entry["bbox"] for entry in expected_found])
    )
    assert metrics == pytest.approx(expected_metrics, rel=0, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("to", FORMATS)
def test_a_run_opens_every_format(sets: dict[str, tuple[str, str]], to: str) -> None:
    expected, sources = sources_of(sets["original"]), sources_of(sets[to], unlabeled=sets[to][0])
    assert sources.val is not None and sources.unlabeled is not None
    assert sources.labeled.category_ids == expected.labeled.category_ids == sources.val.category_ids
    assert sources.labeled.class_counts == expected.labeled.class_counts
    assert len(sources.unlabeled) == len(expected.labeled) and sources.unlabeled.num_boxes == 0
    [warning] = check_sources(sources.labeled, sources.unlabeled, sources.val)
    assert "no labeled box of 1 classes, which cannot be learned: unicorn" in warning


@pytest.mark.parametrize("to", FORMATS)
def test_a_share_of_the_labels_is_drawn_alike(sets: dict[str, tuple[str, str]], to: str) -> None:
    draws = []
    for paths in (sets["original"], sets[to]):
        sources = sources_of(paths, label_fraction=0.4, fold=2)
        assert sources.unlabeled is not None
        whole: Any = open_source(paths[0])
        order = {image_id: place for place, image_id in enumerate(whole.image_ids)}
        parts = (sources.labeled.image_ids, sources.unlabeled.image_ids)
        draws.append([[order[image_id] for image_id in part] for part in parts])
        # The same pictures, not only the same places.
        assert sources.labeled[0].image.tobytes() == whole[draws[-1][0][0]].image.tobytes()
    assert draws[0] == draws[1] and len(draws[0][0]) == 4


@pytest.mark.parametrize("to", FORMATS)
def test_images_in_two_sets_are_noticed(sets: dict[str, tuple[str, str]], to: str) -> None:
    # Of a data.yaml as validation images those of the key `val` would be taken.
    twice = sources_of((sets[to][0], f"{sets[to][0]}:train" if to == "yolo" else sets[to][0]))
    warnings = check_sources(twice.labeled, None, twice.val, max_images_opened=0)
    assert any("12 validation images are also labeled" in warning for warning in warnings)


def test_a_train_and_a_val_split_of_different_formats_go_together(sets: dict[str, tuple[str, str]]) -> None:
    sources = sources_of((sets["yolo"][0], sets["datasets"][1]))
    assert sources.val is not None and sources.val.class_counts == sources_of(sets["original"]).val.class_counts  # type: ignore[union-attr]


def test_pictures_in_a_yolo_folder_are_files(sets: dict[str, tuple[str, str]]) -> None:
    source = open_source(sets["yolo"][0])
    assert all(isinstance(source.path(index), Path) for index in range(len(source)))
