import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from semidetr_hf.data.folder import FolderSource
from semidetr_hf.labeling.detection import DetectionRules, detect_source, without_duplicates
from semidetr_hf.training.saved_detectors import load_detector


def result(*rows):
    return {
        "labels": torch.tensor([label for label, _, _ in rows]),
        "scores": torch.tensor([score for _, score, _ in rows]),
        "boxes": torch.tensor([box for _, _, box in rows], dtype=torch.float32),
    }


def test_of_boxes_on_one_another_the_best_of_every_class_stays() -> None:
    rows = [
        (1, 0.6, (0, 0, 10, 10)),  # the other class
        (0, 0.5, (0, 0, 10, 10)),  # overlaps the next by 0.8
        (0, 0.9, (0, 0, 10, 8)),
        (0, 0.4, (30, 0, 40, 10)),
    ]
    found = without_duplicates(result(*rows), DetectionRules(nms_iou=0.7))
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.4])
    assert found.class_labels.tolist() == [0, 1, 0]
    assert len(without_duplicates(result(*rows), DetectionRules(nms_iou=0.85))) == 4


def test_tiny_and_unlikely_boxes_are_dropped_before_they_can_suppress_others() -> None:
    rows = [(0, 0.9, (0, 0, 1.5, 10)), (0, 0.5, (0, 0, 2, 10)), (0, 0.04, (30, 30, 40, 40))]
    found = without_duplicates(result(*rows), DetectionRules())
    assert found.scores.tolist() == [0.5]


def test_nothing_found_stays_nothing() -> None:
    empty = {"labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0), "boxes": torch.zeros(0, 4)}
    assert len(without_duplicates(empty, DetectionRules())) == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_score": 1.5}, "min_score=1.5: must be from 0 to 1"),
        ({"nms_iou": -1}, "nms_iou=-1: must be from 0 to 1"),
        ({"min_box_size": 0.5}, "min_box_size=0.5: must be 1 pixel or more"),
    ],
)
def test_wrong_rules(rules, message) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionRules(**rules)


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "c.png", "d.png"):
        Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    return FolderSource(tmp_path)


def test_images_keep_their_places_and_unreadable_ones_are_listed(photos, lively) -> None:
    model, processor = load_detector("model", lively)
    accelerator = Accelerator(cpu=True)
    runs = [
        detect_source(
            model, processor, photos, rules=DetectionRules(), batch_size=size, accelerator=accelerator, desc="x"
        )
        for size in (1, 3)
    ]
    for found in runs:
        assert [(image.index, image.image_id, image.size) for image in found.images] == [
            (0, "a.png", (48, 64)),
            (2, "c.png", (48, 64)),
            (3, "d.png", (48, 64)),
        ]
        assert [image_id for image_id, _ in found.unreadable] == ["b.png"] and "b.png" in found.unreadable[0][1]
    for alone, together in zip(*(found.images for found in runs), strict=True):
        height, width = alone.size
        boxes = alone.found.boxes_xyxy
        assert len(boxes) > 0 and (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        torch.testing.assert_close(boxes, together.found.boxes_xyxy, atol=1e-3, rtol=1e-4)


def test_a_source_without_a_readable_image(tmp_path, lively) -> None:
    (tmp_path / "b.png").write_bytes(b"broken")
    model, processor = load_detector("model", lively)
    arguments = {"rules": DetectionRules(), "accelerator": Accelerator(cpu=True), "desc": "x"}
    with pytest.raises(ValueError, match=r"none of its 1 images can be read, the first because: .*b\.png"):
        detect_source(model, processor, FolderSource(tmp_path), batch_size=2, **arguments)
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        detect_source(model, processor, FolderSource(tmp_path), batch_size=0, **arguments)
