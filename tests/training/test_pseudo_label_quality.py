import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.geometry import apply_to_boxes, compose, horizontal_flip, identity, rotation, scaling, translation
from semidetr_hf.structures import PseudoLabels, View
from semidetr_hf.training.pseudo_label_quality import QualityCounts, count_matches, hidden_labels, is_correct

SIZE = (100, 200)


def labels_of(boxes: list[list[float]], classes: list[int], scores: list[float]) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        class_labels=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def hidden_of(boxes: list[list[float]], classes: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64)


def view_of(homographies: list[Tensor], size: tuple[int, int] = SIZE) -> View:
    number = len(homographies)
    return View(
        pixel_values=torch.zeros(number, 3, *size),
        pixel_mask=torch.ones(number, *size, dtype=torch.int64),
        image_sizes=torch.tensor([size] * number).reshape(-1, 2),
        homographies=torch.stack(homographies) if homographies else torch.zeros(0, 3, 3, dtype=torch.float64),
    )


def random_image(generator: torch.Generator, num_true: int, num_pseudo: int) -> tuple[PseudoLabels, Any]:
    """Return hidden boxes and pseudo-labels that are moved copies of them, of three classes."""
    corners = torch.rand(num_true, 2, generator=generator) * torch.tensor([140.0, 60.0])
    boxes = torch.cat([corners, corners + 15 + 25 * torch.rand(num_true, 2, generator=generator)], dim=-1)
    classes = torch.randint(0, 3, (num_true,), generator=generator)
    copied = torch.randint(0, num_true, (num_pseudo,), generator=generator)
    moved = boxes[copied] + 4 * torch.randn(num_pseudo, 4, generator=generator)
    other = torch.rand(num_pseudo, generator=generator) < 0.2
    guessed = torch.where(other, torch.randint(0, 3, (num_pseudo,), generator=generator), classes[copied])
    scores = torch.rand(num_pseudo, generator=generator)
    return PseudoLabels(boxes_xyxy=moved, class_labels=guessed, scores=scores), (boxes, classes)


# ---- Counts


def test_shares_by_hand() -> None:
    # 3 of 4 pseudo-labels are right, 3 of 6 boxes found, IoUs 0.5 + 0.75 + 1.0 = 2.25, / 3 = 0.75.
    counts = QualityCounts(1, 2, 2, 0.5) + QualityCounts(2, 2, 4, 1.75)
    assert counts == QualityCounts(matched=3, predicted=4, true=6, iou_sum=2.25)
    assert (counts.precision, counts.recall, counts.mean_iou) == (0.75, 0.5, 0.75)


def test_a_share_of_nothing_is_none() -> None:
    nothing = QualityCounts()
    assert (nothing.precision, nothing.recall, nothing.mean_iou) == (None, None, None)
    wrong = QualityCounts(matched=0, predicted=2, true=3)
    assert (wrong.precision, wrong.recall, wrong.mean_iou) == (0.0, 0.0, None)


# ---- Matching


def test_matching_by_hand() -> None:
    # Hidden: A (0, 0, 20, 10) and B (100, 50, 120, 60) of class 0, C (50, 50, 60, 60) of class 1.
    hidden = {7: hidden_of([[0, 0, 20, 10], [100, 50, 120, 60], [50, 50, 60, 60]], [0, 0, 1])}
    pseudo = labels_of(
        [
            [0, 0, 20, 10],  # fits A exactly, but A is taken by the better-scored next row
            [0, 0, 15, 10],  # 150 of 200 of A: IoU 0.75
            [110, 50, 120, 60],  # 100 of 200 of B: IoU 0.5, on the threshold
            [50, 50, 60, 60],  # C in place, but of class 0
            [54, 50, 64, 60],  # 60 of 140 with C: IoU 0.43
        ],
        [0, 0, 0, 0, 1],
        [0.6, 0.9, 0.5, 0.8, 0.7],
    )
    view = view_of([identity()])
    correct = is_correct([pseudo], view, [7], hidden)
    assert [row.tolist() for row in correct] == [[False, True, True, False, False]]
    assert count_matches([pseudo], view, [7], hidden) == QualityCounts(2, 5, 3, 1.25)
    # Just above 0.5 the third row is lost; at 0.4 the fifth one finds C.
    assert count_matches([pseudo], view, [7], hidden, iou_threshold=0.51) == QualityCounts(1, 5, 3, 0.75)
    assert count_matches([pseudo], view, [7], hidden, iou_threshold=0.4).matched == 3


def test_a_pseudo_label_takes_the_free_box_that_fits_best() -> None:
    # Both hidden boxes overlap both pseudo-labels: the first takes the second box (IoU 1), the second the other one
    # although the taken box would fit it better: 9 of 11 pixels wide against 8 of 12.
    hidden = {0: hidden_of([[8, 0, 18, 10], [11, 0, 21, 10]], [0, 0])}
    pseudo = labels_of([[11, 0, 21, 10], [10, 0, 20, 10]], [0, 0], [0.9, 0.8])
    counts = count_matches([pseudo], view_of([identity()]), [0], hidden)
    assert counts.matched == 2
    assert counts.iou_sum == pytest.approx(1 + 8 / 12)


def test_an_overlap_on_the_threshold_does_not_fail_by_rounding() -> None:
    # 7 of 10 pixels; the nearest float32 to 0.7 is smaller than 0.7.
    hidden = {0: hidden_of([[0, 0, 10, 1.5]], [0])}
    pseudo = labels_of([[0, 0, 7, 1.5]], [0], [0.9])
    assert count_matches([pseudo], view_of([identity()]), [0], hidden, iou_threshold=0.7).matched == 1
    assert count_matches([pseudo], view_of([identity()]), [0], hidden, iou_threshold=0.7001).matched == 0


def test_matches_are_those_of_pycocotools(capsys) -> None:
    generator = torch.Generator().manual_seed(5)
    images = [random_image(generator, num_true, 40) for num_true in (1, 6, 15)]
    view = view_of([identity()] * 3, (400, 400))
    hidden = {image_id: true for image_id, (_, true) in enumerate(images)}
    for threshold in (0.3, 0.5, 0.75):
        ours = is_correct([pseudo for pseudo, _ in images], view, [0, 1, 2], hidden, iou_threshold=threshold)
        evaluator = COCOeval(*coco_of(images), iouType="bbox")
        evaluator.params.iouThrs, evaluator.params.maxDets = np.array([threshold]), [100]
        evaluator.evaluate()
        theirs = {}
        for result in filter(None, evaluator.evalImgs):
            if result["aRng"] == evaluator.params.areaRng[0]:
                theirs |= dict(zip(result["dtIds"], result["dtMatches"][0] > 0, strict=True))
        flat = [bool(value) for row in ours for value in row]
        assert flat == [bool(theirs[number]) for number in range(1, len(flat) + 1)]
        assert 0 < sum(flat) < len(flat)
    capsys.readouterr()


def coco_of(images: list[tuple[PseudoLabels, Any]]) -> tuple[COCO, COCO]:
    """Return hidden labels and pseudo-labels, numbered from 1, as pycocotools takes them."""

    def entry(number: int, image_id: int, label: int, box: list[float]) -> dict[str, Any]:
        x1, y1, x2, y2 = box
        bbox = [x1, y1, x2 - x1, y2 - y1]
        return {"id": number, "image_id": image_id, "category_id": label, "bbox": bbox, "area": bbox[2] * bbox[3]}

    document: dict[str, Any] = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": label, "name": str(label)} for label in range(3)],
    }
    true, found = [], []
    for image_id, (pseudo, (boxes, classes)) in enumerate(images):
        for box, label in zip(boxes.tolist(), classes.tolist(), strict=True):
            true.append({**entry(len(true) + 1, image_id, label, box), "iscrowd": 0})
        rows = zip(pseudo.boxes_xyxy.tolist(), pseudo.class_labels.tolist(), pseudo.scores.tolist(), strict=True)
        for box, label, score in rows:
            found.append({**entry(len(found) + 1, image_id, label, box), "score": score})
    sides = []
    for annotations in (true, found):
        coco = COCO()
        coco.dataset = {**document, "annotations": annotations}
        coco.createIndex()
        sides.append(coco)
    return sides[0], sides[1]


def test_the_order_of_pseudo_labels_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    pseudo, true = random_image(generator, 10, 30)
    order = torch.randperm(30, generator=generator)
    view = view_of([identity()])
    first = is_correct([pseudo], view, [0], {0: true})[0]
    second = is_correct([pseudo[order]], view, [0], {0: true})[0]
    assert first[order].tolist() == second.tolist()
    assert 0 < int(first.sum()) <= 10


def test_hidden_boxes_against_themselves_are_all_right_in_any_view() -> None:
    generator = torch.Generator().manual_seed(2)
    _, (boxes, classes) = random_image(generator, 6, 1)
    moves = [
        identity(),
        compose(horizontal_flip(200), scaling(0.9, 0.8)),
        compose(rotation(20, (100, 50)), translation(5, -3)),
    ]
    view = view_of(moves, (400, 400))
    pseudo = []
    for homography in moves:
        mapped = apply_to_boxes(homography, boxes).clamp(min=0)
        pseudo.append(PseudoLabels(boxes_xyxy=mapped, class_labels=classes, scores=torch.rand(6)))
    counts = count_matches(pseudo, view, ["a"] * 3, {"a": (boxes, classes)}, iou_threshold=0.99)
    assert (counts.matched, counts.predicted, counts.true) == (18, 18, 18)
    assert counts.mean_iou == pytest.approx(1.0, abs=1e-4)


def test_hidden_boxes_move_to_the_view_and_may_leave_it() -> None:
    # Mirrored at width 200 and halved: (20, 10, 60, 50) -> (140, 10, 180, 50) -> (70, 5, 90, 25).
    # The second box lands at x 0..1 (one pixel: not more than one is seen), the third at -5..5, clipped to 0..5.
    homography = compose(horizontal_flip(200), scaling(0.5, 0.5))
    hidden = {3: hidden_of([[20, 10, 60, 50], [198, 0, 200, 40], [190, 0, 210, 40]], [0, 0, 1])}
    pseudo = labels_of([[70, 5, 90, 25], [0, 0, 1, 20], [0, 0, 5, 20]], [0, 0, 1], [0.9, 0.8, 0.7])
    view = view_of([homography], (50, 100))
    assert is_correct([pseudo], view, [3], hidden)[0].tolist() == [True, False, True]
    assert count_matches([pseudo], view, [3], hidden) == QualityCounts(2, 3, 2, 2.0)


def test_a_batch_is_the_sum_of_its_images() -> None:
    generator = torch.Generator().manual_seed(3)
    images = [random_image(generator, 8, 20) for _ in range(2)]
    moves = [scaling(0.9, 0.9), horizontal_flip(200)]
    hidden = {image_id: true for image_id, (_, true) in zip("ab", images, strict=True)}
    pseudo = [labels for labels, _ in images]
    both = count_matches(pseudo, view_of(moves), ["a", "b"], hidden)
    single = [count_matches([pseudo[i]], view_of([moves[i]]), ["ab"[i]], hidden) for i in range(2)]
    assert both == single[0] + single[1]
    rows = is_correct(pseudo, view_of(moves), ["a", "b"], hidden)
    assert [row.tolist() for row in rows] == [
        is_correct([pseudo[i]], view_of([moves[i]]), ["ab"[i]], hidden)[0].tolist() for i in range(2)
    ]


def test_images_without_pseudo_labels_or_without_boxes_count() -> None:
    nothing, one = labels_of([], [], []), labels_of([[0, 0, 9, 9]], [0], [0.5])
    hidden = {"empty": hidden_of([], []), "box": hidden_of([[0, 0, 9, 9]], [0])}
    view = view_of([identity(), identity()])
    assert count_matches([nothing, one], view, ["box", "empty"], hidden) == QualityCounts(0, 1, 1, 0.0)
    assert [row.tolist() for row in is_correct([nothing, one], view, ["box", "empty"], hidden)] == [[], [False]]
    assert is_correct([nothing, one], view, ["box", "empty"], hidden)[0].dtype == torch.bool
    assert count_matches([], view_of([]), [], hidden) == QualityCounts()


def test_wrong_arguments_are_named() -> None:
    one, view = labels_of([[0, 0, 9, 9]], [0], [0.5]), view_of([identity()])
    hidden = {1: hidden_of([[0, 0, 9, 9]], [0])}
    with pytest.raises(KeyError, match="image id 'x.jpg' is not among the 1 images with hidden labels"):
        count_matches([one], view, ["x.jpg"], hidden)
    for function in (count_matches, is_correct):
        with pytest.raises(ValueError, match="0 entries of pseudo-labels came with 1 images in the view and 1 image"):
            function([], view, [1], hidden)
        for threshold in (0.0, 1.5):
            with pytest.raises(ValueError, match=f"iou_threshold={threshold}: must be above 0"):
                function([one], view, [1], hidden, iou_threshold=threshold)


def test_a_batch_takes_milliseconds() -> None:
    generator = torch.Generator().manual_seed(4)
    images = [random_image(generator, 20, 50) for _ in range(8)]
    hidden = {image_id: true for image_id, (_, true) in enumerate(images)}
    view, pseudo = view_of([scaling(0.9, 0.9)] * 8), [labels for labels, _ in images]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        count_matches(pseudo, view, range(8), hidden)
        times.append(time.perf_counter() - started)
    # A few milliseconds on a free core; the bound only tells them from a step's seconds.
    assert min(times) < 0.1


# ---- Hidden labels


def write_source(folder: Path, **options: Any) -> CocoSource:
    """Two images; of the first one's boxes the crowd, the ignored and the outer one are no hidden labels."""
    document = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
            {"id": "two", "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 10]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [30, 20, 20, 20]},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "ignore": 1},
            {"id": 5, "image_id": 1, "category_id": 3, "bbox": [40, 0, 9, 9]},
        ],
    }
    for entry in document["images"]:
        Image.new("RGB", (40, 30)).save(folder / str(entry["file_name"]))
    (folder / "labels.json").write_text(json.dumps(document))
    return CocoSource(folder / "labels.json", **options)


def test_hidden_labels_are_the_boxes_to_train_on(tmp_path) -> None:
    hidden = hidden_labels(write_source(tmp_path))
    assert list(hidden) == [1, "two"]
    # Categories by ascending id: cat (3) is label 0, dog (7) label 1. The second box ends at the image, 40 x 30.
    boxes, classes = hidden[1]
    assert (boxes.tolist(), classes.tolist()) == ([[10, 5, 30, 15], [30, 20, 40, 30]], [1, 0])
    boxes, classes = hidden["two"]
    assert (boxes.shape, boxes.dtype, classes.shape, classes.dtype) == ((0, 4), torch.float32, (0,), torch.int64)


def test_hidden_labels_are_what_the_reader_gives_without_opening_an_image(tmp_path) -> None:
    paths = write_digits_dataset(tmp_path / "digits", num_train=6, num_val=1)
    source = CocoSource(paths.train_json)
    samples = [source[i] for i in range(len(source))]
    for file in paths.train_images.iterdir():
        file.unlink()
    hidden = hidden_labels(source)
    assert list(hidden) == [sample.image_id for sample in samples]
    for sample in samples:
        assert len(sample.boxes_xyxy) > 0
        torch.testing.assert_close(hidden[sample.image_id], (sample.boxes_xyxy, sample.class_labels), rtol=0, atol=0)
    assert list(hidden_labels(source.subset([2]))) == [2]


def test_a_source_without_labels_has_no_hidden_ones(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"annotations=\[\] for all 2 images"):
        hidden_labels(write_source(tmp_path, labeled=False))
