"""Images and annotations in, boxes out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoImageProcessor

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.images import load_image

EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def processor():
    return SemiDetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})


def plain(width=40, height=30, color=(255, 0, 0)):
    return Image.new("RGB", (width, height), color)


def annotation(*boxes, image_id=1, **fields):
    return {"image_id": image_id, "annotations": [{"bbox": list(box), "category_id": 2, **fields} for box in boxes]}


def test_boxes_are_relative_to_the_unpadded_image(processor):
    # The same box in an image of 40 x 30 alone and beside a wider one, which pads it: x 10..30 of 40, y 6..12 of 30.
    boxes = annotation([10, 6, 20, 6])
    expected = torch.tensor([[0.5, 0.3, 0.5, 0.2]])
    alone = processor([plain()], [boxes], return_tensors="pt")
    both = processor([plain(), plain(80, 30)], [boxes, annotation()], return_tensors="pt")
    assert alone["labels"][0]["boxes"].shape == (1, 4)
    assert_close(alone["labels"][0]["boxes"], expected)
    assert_close(both["labels"][0]["boxes"], expected)
    assert both["pixel_values"].shape[-1] > alone["pixel_values"].shape[-1]
    assert both["pixel_mask"][0].float().mean() < 1
    assert_close(both["pixel_values"][0, :, :, : alone["pixel_values"].shape[-1]], alone["pixel_values"][0][:, :32])
    assert both["labels"][1]["boxes"].shape == (0, 4)


def test_labels(processor):
    boxes = annotation([10, 6, 20, 6], [5, 5, 0, 4], [35, 25, 20, 20])
    boxes["annotations"].append({"bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 1})
    labels = processor(plain(), boxes, return_tensors="pt")["labels"][0]
    # The empty box and the crowd are dropped, the last one is clipped to x 35..40, y 25..30.
    assert labels["class_labels"].tolist() == [2, 2]
    assert_close(labels["boxes"][1], torch.tensor([37.5 / 40, 27.5 / 30, 5 / 40, 5 / 30]))
    assert labels["orig_size"].tolist() == [30, 40]


def test_area_and_numeric_ids_are_not_needed(processor):
    labels = processor(plain(), annotation([10, 6, 20, 6], image_id="000123.jpg"), return_tensors="pt")["labels"][0]
    # 20 * 6 pixels, scaled with the image from 40 x 30 to 43 x 32 (rounded).
    height, width = labels["size"].tolist()
    assert labels["area"].item() == pytest.approx(120 * (width / 40) * (height / 30), rel=1e-4)
    given = processor(plain(), annotation([10, 6, 20, 6], image_id=7, area=30.0), return_tensors="pt")["labels"][0]
    assert given["image_id"].item() == 7
    assert given["area"].item() == pytest.approx(30 * (width / 40) * (height / 30), rel=1e-4)


def test_ids_that_are_no_numbers_become_positions(processor):
    ids = ["b.jpg", 40, "a.jpg", np.int64(7)]
    annotations = [annotation([10, 6, 20, 6], image_id=image_id) for image_id in ids]
    annotations.append({"annotations": []})
    labels = processor([plain()] * 5, annotations, return_tensors="pt")["labels"]
    assert [label["image_id"].item() for label in labels] == [0, 40, 2, 7, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation([1, 2, 3], image_id="a.jpg"), r"image 'a.jpg': bbox must be four numbers .*got \[1, 2, 3\]"),
        (annotation([1, 2, 3, float("nan")]), "image 1: bbox must be four numbers"),
        (annotation(["a", 2, 3, 4]), "image 1: bbox must be four numbers"),
        ({"image_id": 3, "annotations": [{"category_id": 1}]}, "image 3: bbox must be four numbers.*got None"),
        ({"image_id": 3, "annotations": [{"bbox": [1, 2, 3, 4]}]}, "image 3: the box .* has no category_id"),
        ({"image_id": 3}, "must be a dictionary with the key 'annotations'"),
        ("boxes", "must be a dictionary with the key 'annotations'"),
    ],
)
def test_wrong_annotations_are_named(processor, wrong, message):
    with pytest.raises(ValueError, match=message):
        processor([plain()], [wrong], return_tensors="pt")


def test_modes_give_the_same_picture(processor):
    """A grey picture is the same tensor in every mode that can hold it."""
    values = np.linspace(0, 255, 40 * 30).astype(np.uint8).reshape(30, 40)
    grey = Image.fromarray(values)
    expected = processor(grey.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert expected.std() > 0.5
    pictures = {mode: grey.convert(mode) for mode in ("L", "LA", "RGBA", "P", "CMYK")}
    pictures["I;16"] = Image.fromarray(values.astype(np.uint16) * 256)
    pictures["I;16B"] = Image.fromarray((values.astype(np.uint16) * 256).astype(">u2"))
    for mode, picture in pictures.items():
        assert picture.mode == mode
        # A palette and CMYK round to neighbouring greys.
        assert_close(processor(picture, return_tensors="pt")["pixel_values"], expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("I", [[0, 25700, 65535]]),
        ("I", [[0, 100, 255]]),
        ("I;16", [[0, 25700, 65535]]),
        ("I;16", [[0, 256, 300]]),
        ("I;16", [[0, 100, 255]]),
        ("I;16", [[0, 0, 0]]),
    ],
)
def test_wide_integers_are_read_as_by_the_reader_of_training_images(processor, tmp_path, mode, values):
    path = tmp_path / "grey.tif"  # unlike png, tif keeps mode I
    Image.fromarray(np.array(values, dtype=np.int32 if mode == "I" else np.uint16)).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        direct = processor(stored, return_tensors="pt")["pixel_values"]
    read = load_image(path)
    assert torch.equal(direct, processor(read, return_tensors="pt")["pixel_values"])
    # Scaled by 257 only where they do not fit 8 bits.
    expected = values[0] if max(values[0]) <= 255 else [value // 257 for value in values[0]]
    assert np.asarray(read)[0, :, 0].tolist() == expected


def test_floating_point_pixels_are_refused(processor):
    with pytest.raises(ValueError, match="floating-point pixels of unknown range"):
        processor(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), return_tensors="pt")


def test_black_and_white(processor):
    white = processor(plain(color="white"), return_tensors="pt")["pixel_values"]
    assert_close(processor(plain(color="white").convert("1"), return_tensors="pt")["pixel_values"], white)


def test_exif_orientation_is_applied(processor):
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 10, 20))
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    picture.getexif()[EXIF_ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    turned = processor(picture, return_tensors="pt")["pixel_values"]
    assert turned.shape[-2] > turned.shape[-1]
    assert_close(turned, processor(upright, return_tensors="pt")["pixel_values"])


def test_arrays_and_single_images(processor):
    array = np.array(plain())
    one = processor(array, return_tensors="pt")["pixel_values"]
    assert_close(one, processor([plain()], return_tensors="pt")["pixel_values"])
    assert one.shape[:2] == (1, 3)


def test_post_process_returns_the_labels(processor):
    """A detector that repeats the labels with high scores gets the pixel boxes of the annotations back."""
    boxes = annotation([10, 6, 20, 6], [0, 0, 40, 30])
    labels = processor([plain(), plain(80, 30)], [boxes, annotation([5, 5, 5, 5])], return_tensors="pt")["labels"]
    logits = torch.full((2, 3, 4), -9.0)
    predicted = torch.full((2, 3, 4), 0.5)
    for image, label in enumerate(labels):
        for query, box in enumerate(label["boxes"]):
            logits[image, query, label["class_labels"][query]] = 9.0 - query
            predicted[image, query] = box
    outputs = SimpleNamespace(logits=logits, pred_boxes=predicted)
    sizes = [tuple(label["orig_size"].tolist()) for label in labels]
    for target_sizes in (sizes, torch.tensor(sizes)):
        results = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=target_sizes)
        assert_close(results[0]["boxes"], torch.tensor([[10.0, 6, 30, 12], [0, 0, 40, 30]]), atol=1e-3, rtol=0)
        assert_close(results[1]["boxes"], torch.tensor([[5.0, 5, 10, 10]]), atol=1e-3, rtol=0)
        assert results[0]["labels"].tolist() == [2, 2]
    assert len(processor.post_process_object_detection(outputs, threshold=1.0)[0]["scores"]) == 0
    with pytest.raises(ValueError, match="as many target sizes"):
        processor.post_process_object_detection(outputs, target_sizes=sizes[:1])


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SemiDetrImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert_close(
        loaded(plain(), return_tensors="pt")["pixel_values"], processor(plain(), return_tensors="pt")["pixel_values"]
    )


def test_fixed_size_of_the_official_example():
    options = {"size": {"max_height": 64, "max_width": 64}, "pad_size": {"height": 64, "width": 64}}
    batch = SemiDetrImageProcessor(**options)([plain(), plain(20, 90)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [64 * 48, 64 * 14]
