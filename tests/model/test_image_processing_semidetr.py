"""Images and annotations in, boxes out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from torch.testing import assert_close
from transformers import AutoImageProcessor, DeformableDetrImageProcessor, pipeline

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.images import load_image
from semidetr_hf.model.box_ops import iou

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


# ---- Duplicates


def overlapping():
    """One image of 10 x 20 pixels, three queries, two labels; in pixels:

    query 0: x 0..10, query 1: x 2..12, query 2: x 12..20, all y 0..10. Queries 0 and 1 share 8 of 12 columns.
    """
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.35, 0.5, 0.5, 1.0], [0.8, 0.5, 0.4, 1.0]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.6, 0.001]])
    return SimpleNamespace(logits=scores.logit()[None], pred_boxes=boxes[None])


def detect(outputs, nms_iou=0.6, **options):
    return SemiDetrImageProcessor(nms_iou=nms_iou).post_process_object_detection(
        outputs, **{"threshold": 0.0, "target_sizes": [(10, 20)], **options}
    )


def test_nms_by_hand():
    [found] = detect(overlapping())
    # Label 0: query 0 suppresses query 1; label 1: query 1 suppresses query 0; 0.001 of query 2 is below 0.01.
    assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))
    assert found["labels"].tolist() == [0, 1, 0]
    assert_close(found["boxes"], torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [12, 0, 20, 10]]))
    # 8 / 12 is not more than 0.7: nothing is suppressed.
    assert detect(overlapping(), nms_iou=0.7)[0]["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.2])


def test_without_nms_detections_are_those_of_the_parent():
    outputs = SimpleNamespace(logits=torch.randn(2, 30, 4), pred_boxes=torch.rand(2, 30, 4))
    options = {"threshold": 0.3, "target_sizes": [(10, 20), (30, 5)], "top_k": 50}
    ours = SemiDetrImageProcessor().post_process_object_detection(outputs, **options)
    parents = DeformableDetrImageProcessor().post_process_object_detection(outputs, **options)
    assert SemiDetrImageProcessor().nms_iou is None
    for found, expected in zip(ours, parents, strict=True):
        assert len(found["scores"]) > 0
        assert all(torch.equal(found[name], expected[name]) for name in ("scores", "labels", "boxes"))


def test_sizes_of_every_kind_and_a_batch_of_two_as_two_of_one():
    generator = torch.Generator().manual_seed(1)
    outputs = SimpleNamespace(
        logits=torch.randn(2, 30, 4, generator=generator), pred_boxes=torch.rand(2, 30, 4, generator=generator)
    )
    sizes = [(10, 20), (30, 5)]
    listed = detect(outputs, target_sizes=sizes)
    for other in (
        detect(outputs, target_sizes=torch.tensor(sizes)),
        detect(outputs, target_sizes=[torch.tensor(s) for s in sizes]),
    ):
        for ours, theirs in zip(listed, other, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Without sizes boxes stay shares of the image.
    for found, (height, width), share in zip(listed, sizes, detect(outputs, target_sizes=None), strict=True):
        assert share["boxes"].min() >= 0 and share["boxes"].max() <= 1
        assert_close(share["boxes"] * torch.tensor([width, height, width, height]), found["boxes"])
        assert_close(share["scores"], found["scores"])
    for i in range(2):
        part = SimpleNamespace(logits=outputs.logits[i : i + 1], pred_boxes=outputs.pred_boxes[i : i + 1])
        [alone] = detect(part, target_sizes=sizes[i : i + 1])
        assert all(torch.equal(alone[name], listed[i][name]) for name in alone)


def test_threshold_and_number_of_detections_hold_with_nms():
    [every] = detect(overlapping())
    assert [len(detect(overlapping(), threshold=t)[0]["scores"]) for t in (0.0, 0.65, 0.75, 1.0)] == [3, 2, 1, 0]
    # Scores up to the least one of the processor take no part even below every threshold.
    strict = SemiDetrImageProcessor(nms_iou=0.6, nms_min_score=0.65)
    [few] = strict.post_process_object_detection(overlapping(), threshold=0.0, target_sizes=[(10, 20)])
    assert few["scores"].tolist() == every["scores"][:2].tolist()
    [best] = detect(overlapping(), top_k=1)
    assert (best["scores"].tolist(), best["labels"].tolist()) == (pytest.approx([0.9]), [0])
    empty = SimpleNamespace(logits=torch.zeros(1, 0, 2), pred_boxes=torch.zeros(1, 0, 4))
    assert detect(empty)[0]["boxes"].shape == (0, 4)


def test_half_precision_is_suppressed_in_float32():
    outputs = overlapping()
    low = SimpleNamespace(logits=outputs.logits.bfloat16(), pred_boxes=outputs.pred_boxes)
    [found] = detect(low)
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32
    assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]), atol=0.01, rtol=0)


@pytest.mark.parametrize("nms_iou", [-0.1, 1.5, float("nan")])
def test_overlaps_that_do_not_exist_are_named(nms_iou):
    with pytest.raises(ValueError, match=f"nms_iou = {nms_iou} of the image processor must lie between 0 and 1"):
        detect(overlapping(), nms_iou=nms_iou)


@pytest.mark.parametrize("sizes", [[], [(10, 20)] * 2, torch.zeros(3, 2)])
def test_sizes_that_do_not_fit_the_batch_are_named(sizes):
    with pytest.raises(ValueError, match=f"{len(sizes)} target_sizes were given for 1 images"):
        detect(overlapping(), target_sizes=sizes)


def test_the_overlap_is_saved_with_the_processor(tmp_path):
    SemiDetrImageProcessor(nms_iou=0.6, nms_min_score=0.05).save_pretrained(tmp_path / "first")
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "first")
    assert (loaded.nms_iou, loaded.nms_min_score) == (0.6, 0.05)
    assert len(loaded.post_process_object_detection(overlapping(), 0.0, [(10, 20)])[0]["scores"]) == 3
    loaded.nms_iou = None
    loaded.save_pretrained(tmp_path / "second")
    assert AutoImageProcessor.from_pretrained(tmp_path / "second").nms_iou is None
    assert AutoImageProcessor.from_pretrained(tmp_path / "first", nms_iou=0.3).nms_iou == 0.3


def duplicates(found):
    """Return how many pairs of detections of a label overlap by more than 0.65 (boxes are rounded to pixels)."""
    boxes = torch.tensor([list(each["box"].values()) for each in found], dtype=torch.float32)
    same = torch.tensor([[a["label"] == b["label"] for b in found] for a in found])
    return int(((iou(boxes[:, None], boxes[None]) > 0.65) & same).triu(diagonal=1).sum())


def test_a_pipeline_of_a_saved_folder_finds_no_duplicates(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.class_head.weight.mul_(0.1)
        model.class_head.bias.fill_(2.0)  # every query finds every label
        for parameter in model.model.decoder.box_head.layers[-1].parameters():
            parameter.zero_()
        # Boxes are those of the encoder, nearly as large as the whole image.
        model.model.proposal_box_head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 30.0, 30.0]))
    model.save_pretrained(tmp_path)
    found = {}
    for nms_iou in (None, 0.6):
        processor = SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, nms_iou=nms_iou)
        processor.save_pretrained(tmp_path)
        detector = pipeline("object-detection", model=str(tmp_path), image_processor=str(tmp_path), device="cpu")
        assert detector.image_processor.nms_iou == nms_iou
        found[nms_iou] = detector(plain(96, 64), threshold=0.3)
    assert duplicates(found[None]) > 10
    assert duplicates(found[0.6]) == 0
    # All labels are still found, and nothing new; only with NMS are boxes clipped to the image.
    assert {each["label"] for each in found[0.6]} == {each["label"] for each in found[None]}
    scored = {nms_iou: {(each["label"], each["score"]) for each in several} for nms_iou, several in found.items()}
    assert scored[0.6] < scored[None]
