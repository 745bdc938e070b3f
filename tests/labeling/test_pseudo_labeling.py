import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from small_runs import build, configure

from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.labeling import pseudo_labeling
from semidetr_hf.labeling.detection import Detections
from semidetr_hf.labeling.pseudo_labeling import write_review
from semidetr_hf.labeling.review import ReviewConfig
from semidetr_hf.structures import PseudoLabels

ALL = ("coco", "yolo", "label-studio")


def review(lively: Path, source: Any, output: Path, **settings: Any):
    labeled = {name: settings.pop(name) for name in ("calibrate_on", "calibrate_images") if name in settings}
    config = ReviewConfig(**{"progress": False, "sheet": 2, **settings})
    return write_review(lively, source, output, config, accelerator=Accelerator(cpu=True), **labeled)


@pytest.fixture
def photos(tmp_path: Path) -> FolderSource:
    folder = tmp_path / "new photos"
    (folder / "ä").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "ä/a.png")):
        Image.effect_noise((80, 64), 20 + 40 * number).convert("RGB").save(folder / name)
    return FolderSource(folder)


def test_coco_and_yolo_files_hold_the_same_labels_and_train(lively, photos, tmp_path) -> None:
    written = review(lively, photos, tmp_path / "review", formats=ALL, threshold=0.6)
    coco, yolo = (open_source(tmp_path / "review" / name) for name in ("labels.json", "yolo/data.yaml"))
    assert coco.image_ids == [image.detected.image_id for image in written.images]
    assert sorted(coco.image_ids) == ["a.png", "b.jpg", "ä/a.png"]
    assert coco.category_ids == yolo.category_ids == tuple(range(1, 11))
    assert 0 < coco.num_boxes == yolo.num_boxes == sum(written.class_counts)
    for image, one, other in zip(written.images, coco, yolo, strict=True):
        assert torch.equal(one.class_labels, image.labels.class_labels)
        torch.testing.assert_close(one.boxes_xyxy, image.labels.boxes_xyxy, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3, rtol=0)
        assert torch.equal(one.class_labels, other.class_labels)
    for name, source in (("coco", coco), ("yolo", yolo)):
        result = build(configure(tmp_path / name, schedule={"num_steps": 1}), labeled=source).train()
        assert result.step == 1 and result.num_unreadable == 0


def test_the_most_uncertain_images_come_first_everywhere(lively, photos, tmp_path) -> None:
    written = review(lively, photos, tmp_path / "review", formats=ALL, top=2)
    uncertainties = [image.uncertainty for image in written.images]
    assert len(uncertainties) == 2 and uncertainties == sorted(uncertainties, reverse=True)
    ids = [image.detected.image_id for image in written.images]
    output = tmp_path / "review"
    tasks = json.loads((output / "label_studio.json").read_text(encoding="utf-8"))
    assert [task["data"]["image_id"] for task in tasks] == ids
    assert [line.split(",")[1] for line in (output / "ranking.csv").read_text().splitlines()[1:]] == ids
    assert [path.name[:6] for path in sorted((output / "yolo" / "images").iterdir())] == ["000001", "000002"]
    summary = json.loads((output / "review.json").read_text(encoding="utf-8"))
    assert (summary["images"], summary["images_labeled"], summary["threshold"]) == (2, 3, 0.3)
    # Two rows of two enlarged pictures each would be higher than wide.
    width, height = Image.open(output / "most_uncertain.png").size
    assert width > height > 256


def test_unreadable_images_are_listed_and_left_out(lively, photos, tmp_path) -> None:
    photos.path(1).write_bytes(b"broken")
    written = review(lively, photos, tmp_path / "review", sheet=0)
    assert len(written.images) == 2
    summary = json.loads((tmp_path / "review" / "review.json").read_text(encoding="utf-8"))
    assert [entry["image_id"] for entry in summary["unreadable"]] == ["b.jpg"]
    assert not (tmp_path / "review" / "most_uncertain.png").exists()
    assert len(open_source(tmp_path / "review" / "labels.json")) == 2


class Oracle:
    """Stands in for a detector: all boxes of a labeled set with a score of 0.9, and a wrong one on it with 0.5."""

    def __init__(self, detect_source: Any, labeled: Any) -> None:
        self.detect_source, self.boxes = detect_source, {sample.image_id: sample for sample in labeled}

    def __call__(self, *args: Any, **kwargs: Any) -> Detections:
        found = self.detect_source(*args, **kwargs)
        return Detections(images=[self.correct(image) for image in found.images], unreadable=found.unreadable)

    def correct(self, image: Any) -> Any:
        sample = self.boxes[image.image_id]
        labels = torch.cat([sample.class_labels, (sample.class_labels + 1) % 10])
        boxes = sample.boxes_xyxy.repeat(2, 1)
        scores = torch.tensor([0.9, 0.5]).repeat_interleave(len(sample.class_labels))
        return type(image)(
            **{**vars(image), "found": PseudoLabels(boxes_xyxy=boxes, class_labels=labels, scores=scores)}
        )


def test_calibrated_labels_are_the_right_ones(lively, digits, tmp_path, monkeypatch) -> None:
    source = open_source(digits.train_json)
    monkeypatch.setattr(pseudo_labeling, "detect_source", Oracle(pseudo_labeling.detect_source, source))
    written = review(lively, source, tmp_path / "review", precision=0.9, calibrate_on=str(digits.train_json), sheet=0)
    present = [count > 0 for count in source.class_counts]
    assert [value is not None for value in written.calibration.thresholds] == present
    assert all(value == pytest.approx(0.9) for value in written.calibration.thresholds if value is not None)
    assert written.class_counts == list(source.class_counts) and written.threshold is None
    labeled = open_source(tmp_path / "review" / "labels.json")
    places = {image_id: place for place, image_id in enumerate(labeled.image_ids)}
    for sample in source:
        again = labeled[places[sample.image_id]]
        assert torch.equal(again.boxes_xyxy, sample.boxes_xyxy)


def test_a_precision_out_of_reach_is_said_with_the_classes(lively, digits, tmp_path, caplog) -> None:
    (lively.parent / "config.yaml").write_text(f"data:\n  labeled: {digits.train_json}\n")
    settings = {"precision": 0.9, "calibrate_on": digits.train_json, "sheet": 0}
    with caplog.at_level(logging.WARNING):
        written = review(lively, open_source(digits.val_json), tmp_path / "review", **settings)
    assert sum(written.class_counts) == 0
    trained_on, no_labels = written.warnings
    assert caplog.messages[-2:] == [trained_on, no_labels]
    assert trained_on.startswith(f"{digits.train_json}: the detector was trained on it")
    assert no_labels.startswith("10 of 10 classes get no labels, since a precision of 0.9 is not reached at any score")
    assert f"9 (at best 0.00, objects: {open_source(digits.train_json).class_counts[9]})" in no_labels
    summary = json.loads((tmp_path / "review" / "review.json").read_text(encoding="utf-8"))
    assert summary["warnings"] == list(written.warnings)
    assert {entry["threshold"] for entry in summary["calibration"]["classes"]} == {None}


def test_what_is_wrong_is_said_before_the_detector_is_loaded(photos, digits, tmp_path) -> None:
    nowhere = tmp_path / "no detector"
    with pytest.raises(ValueError, match="precision and calibrate_on need each other"):
        review(nowhere, photos, tmp_path / "review", precision=0.9)
    with pytest.raises(ValueError, match="precision and calibrate_on need each other"):
        review(nowhere, photos, tmp_path / "review", calibrate_on=digits.val_json)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(FileExistsError, match="exists and is no empty folder; give another place"):
            review(nowhere, photos, taken)
    with pytest.raises(FileNotFoundError, match=r"no detector.*no folder with the config\.json of a saved detector"):
        review(nowhere, photos, tmp_path / "review")
    assert not (tmp_path / "review").exists()
