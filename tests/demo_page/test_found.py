import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.demo_page.found import (
    COLORS,
    LOWEST_SCORE,
    MAX_EDGE,
    Detector,
    Found,
    choose,
    detect,
    draw,
    on_picture,
    open_detector,
    table,
    to_json,
)
from semidetr_hf.prediction import predict
from semidetr_hf.training.saved_detectors import load_detector


@pytest.fixture(scope="module")
def loaded(run_folder: Path) -> Detector:
    return open_detector(run_folder / "best", "cpu")


@pytest.fixture(scope="module")
def picture(digits: DigitsPaths) -> Path:
    return Path(CocoSource(digits.val_json).path(0))


@pytest.fixture(scope="module")
def found(loaded: Detector, picture: Path) -> Found:
    return detect(loaded, picture)


def test_what_is_shown_without_duplicates_is_what_the_processor_itself_leaves(
    run_folder: Path, digits: DigitsPaths, found: Found
) -> None:
    model, processor = load_detector("best", run_folder / "best")
    assert processor.nms_iou == 0.3
    (expected,) = predict(model, processor, [CocoSource(digits.val_json)[0]], threshold=0.55)
    shown = choose(found, threshold=0.55, nms=True)
    assert 0 < len(shown) < len(choose(found, threshold=0.55, nms=False)) < 100
    assert torch.equal(shown.scores, expected.scores)
    assert torch.equal(shown.class_labels, expected.class_labels)
    assert torch.equal(shown.boxes_xyxy, expected.boxes_xyxy)


def test_a_detector_says_whether_it_needs_nms(run_folder: Path, loaded: Detector) -> None:
    assert (loaded.needs_nms, loaded.nms_iou) == (True, 0.3)
    student = open_detector(run_folder / "student", "cpu")
    assert (student.needs_nms, student.nms_iou, student.name) == (False, 0.6, "student")
    assert student.names == [str(digit) for digit in range(10)]


def test_the_network_runs_once_per_picture(loaded: Detector, picture: Path) -> None:
    calls = []
    hook = loaded.model.register_forward_hook(lambda *_: calls.append(1))
    found = detect(loaded, picture)
    hook.remove()
    counts = [len(choose(found, threshold=share / 20, nms=nms)) for share in range(1, 20) for nms in (False, True)]
    assert calls == [1] and len(set(counts)) > 10


def test_score_and_class_choose(found: Found) -> None:
    assert found.scores.min() > LOWEST_SCORE
    labels = found.class_labels[[0, 1]].unique().tolist()
    chosen = choose(found, threshold=0.4, nms=False, labels=labels)
    expected = [
        (label, score)
        for label, score in zip(found.class_labels.tolist(), found.scores.tolist(), strict=True)
        if score >= 0.4 and label in labels
    ]
    assert list(zip(chosen.class_labels.tolist(), chosen.scores.tolist(), strict=True)) == expected
    assert 0 < len(expected) < len(found)
    assert len(choose(found, threshold=1.0, nms=False)) == 0


def test_json_is_that_of_the_pipeline(run_folder: Path, loaded: Detector, picture: Path, found: Found) -> None:
    model, processor = load_detector("best", run_folder / "best")
    expected: Any = pipeline("object-detection", model=model, image_processor=processor)(
        Image.open(picture), threshold=0.55
    )
    answer = json.loads(to_json(choose(found, threshold=0.55, nms=True), loaded.names))
    assert len(answer) == len(expected) > 0
    for ours, theirs in zip(answer, expected, strict=True):
        assert ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert list(ours["box"]) == list(theirs["box"])
        # The pipeline cuts its numbers to whole pixels.
        assert all(0 <= ours["box"][edge] - theirs["box"][edge] < 1.06 for edge in ours["box"])


def test_the_table_has_places_and_sizes(found: Found, loaded: Detector) -> None:
    rows = table(found, loaded.names)
    assert len(rows) == len(found)
    name, score, x, y, width, height = rows[0]
    x1, y1, x2, y2 = found.boxes_xyxy[0].tolist()
    assert name == str(int(found.class_labels[0])) and score == round(float(found.scores[0]), 3)
    assert [x, y, width, height] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.051)


@pytest.mark.parametrize("size", [(2 * MAX_EDGE, MAX_EDGE), (64, 32)])  # reduced, enlarged
def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class(size: tuple[int, int]) -> None:
    width, height = size
    boxes = torch.tensor([[0.25 * width, 0.25 * height, 0.5 * width, 0.75 * height]])
    image = Image.new("RGB", size, "white")
    found = on_picture(image, boxes, torch.tensor([3]), torch.tensor([0.9]))
    drawn = draw(found, ["a", "b", "c", "d"])
    assert max(found.picture.size) <= MAX_EDGE and drawn.width == 2 * drawn.height
    color = tuple(bytes.fromhex(COLORS[3][1:]))
    pixels = np.asarray(drawn)
    at = [
        tuple(pixels[round(y * (drawn.height - 1)), round(x * (drawn.width - 1))].tolist())
        for x, y in ((0.25, 0.5), (0.5, 0.5), (0.375, 0.75), (0.375, 0.5), (0.75, 0.5))
    ]
    assert at == [color] * 3 + [(255, 255, 255)] * 2
    assert image.getextrema() == ((255, 255),) * 3  # the given one stays as it is


def test_white_letters_are_readable_on_every_color() -> None:
    for color in COLORS:
        shares = [value / 255 for value in bytes.fromhex(color[1:])]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        luminance = sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 4.5, color  # WCAG 2, level AA


def test_a_broken_picture_is_named(loaded: Detector, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match="broken.jpg: not a readable image"):
        detect(loaded, tmp_path / "broken.jpg")


def test_a_folder_without_a_detector_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder with the config.json of a saved detector"):
        open_detector(tmp_path, "cpu")
