"""The object detection pipeline of transformers on 8-bit pictures of any mode and size."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from transformers import pipeline

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.images import load_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    tiny_model().save_pretrained(folder)
    SemiDetrImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return pipeline("object-detection", model=str(folder))


def picture(mode="RGB", size=(60, 40)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def check(found, size, labels=tuple(f"class {i}" for i in range(5))):
    assert found
    for detection in found:
        assert set(detection) == {"score", "label", "box"}
        assert 0 <= detection["score"] <= 1 and detection["label"] in labels
        assert set(detection["box"]) == {"xmin", "ymin", "xmax", "ymax"}
        box = detection["box"]
        assert all(isinstance(value, int) for value in box.values())
        # The centre of a box lies within the image; its sides may reach beyond.
        assert 0 <= box["xmin"] + box["xmax"] <= 2 * size[0] and 0 <= box["ymin"] + box["ymax"] <= 2 * size[1]
    scores = [detection["score"] for detection in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_modes(detector, mode):
    image = picture(mode)
    assert image.mode == mode
    found = detector(image, threshold=0.0)
    check(found, image.size)
    assert found == detector(image.convert("RGB"), threshold=0.0)


def test_16_bit_files_must_be_read_before(detector, tmp_path):
    """The pipeline clips 16 bits to white before our processor sees them; what `load_image` reads keeps its greys."""
    grey = picture("L")
    path = tmp_path / "deep.png"
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    expected = detector(grey, threshold=0.0)
    assert detector(load_image(path), threshold=0.0) == expected
    assert detector(str(path), threshold=0.0) != expected


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (1, 1), (97, 61)])
def test_sizes(detector, size):
    check(detector(picture(size=size), threshold=0.0), size)


def test_batches_equal_single_images(detector):
    images = [picture(), picture("L", (30, 90)), picture("RGBA", (90, 30))]
    batched = detector(images, threshold=0.0, batch_size=2)
    assert len(batched) == 3
    for image, found in zip(images, batched, strict=True):
        alone = detector(image, threshold=0.0)
        check(found, image.size)
        assert [d["label"] for d in found] == [d["label"] for d in alone]
        scores = torch.tensor([[d["score"] for d in each] for each in (found, alone)])
        torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_threshold(detector):
    image = picture()
    scores = [detection["score"] for detection in detector(image, threshold=0.0)]
    middle = (scores[4] + scores[5]) / 2
    assert len(detector(image, threshold=middle)) == 5
    assert detector(image, threshold=1.0) == []


def test_files(detector, tmp_path):
    path = tmp_path / "image.png"
    picture().save(path)
    assert detector(str(path), threshold=0.0) == detector(picture(), threshold=0.0)


def test_no_complaint_about_an_unsupported_model(folder):
    """transformers logs an error for model classes that its table of names lacks."""
    messages: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = messages.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        pipeline("object-detection", model=str(folder))
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in messages if record.levelno >= logging.WARNING] == []
