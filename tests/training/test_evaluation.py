import json
import logging
import os
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
from scored_scenes import truth
from torch import nn
from transformers import DeformableDetrImageProcessor, DetrImageProcessor

from semidetr_hf.training.evaluation import detections_to_coco, evaluate

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
    setting["PYTHONPATH"] = str(Path(__file__).parents[1])
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
