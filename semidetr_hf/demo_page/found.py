"""What a detector finds on one picture, and what of it is shown: picture, table and json. Nothing here needs gradio.

Legend: N detections of one picture.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from semidetr_hf.data.images import Sample, load_image
from semidetr_hf.labeling.detector_folder import detector_folder
from semidetr_hf.prediction import predict, usable_device
from semidetr_hf.training.saved_detectors import load_detector
from semidetr_hf.visualization import draw_boxes, enlarge_small

LOWEST_SCORE = 0.05  # below it nothing is kept, so the slider begins here
NMS_IOU = 0.6  # of a detector whose processor names none; Semi-DETR's released code, in the first stage
MAX_EDGE = 1280  # pixels of a drawn picture: it is drawn anew, and sent, whenever the slider moves
# One color per class, again from the start when they run out; white letters are readable on each.
COLORS = ("#d81b4a", "#1565c0", "#2e7d32", "#7b3fa0", "#b34700", "#00747f", "#8a4b2d", "#ad1f7a", "#5d6100", "#455a64")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A loaded detector.

    Attributes:
        name: to show.
        model: in evaluation mode, on its device.
        processor: its image processor, without suppression of duplicates.
        nms_iou: of two boxes of a class that overlap more, the lower-scored is a duplicate.
        needs_nms: whether its checkpoint says that duplicates have to be removed.
    """

    name: str
    model: Any
    processor: Any
    nms_iou: float
    needs_nms: bool

    @property
    def names(self) -> list[str]:
        """The name of class label i at place i."""
        return [str(name) for _, name in sorted(self.model.config.id2label.items())]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Detections of one picture, best first.

    Attributes:
        picture: RGB, with no edge above `MAX_EDGE`.
        size: (height, width) of the whole picture in pixels.
        boxes_xyxy: (N, 4) float, pixels of the whole picture, clipped to it.
        class_labels: (N,) int64.
        scores: (N,) float, from 0 to 1.
        is_best: (N,) bool, False for duplicates of a detection of the same class with a higher score.
    """

    picture: Image.Image
    size: tuple[int, int]
    boxes_xyxy: Tensor
    class_labels: Tensor
    scores: Tensor
    is_best: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def open_detector(model: str | Path, device: str | None = None, *, name: str | None = None) -> Detector:
    """Load a detector for the page.

    Args:
        model: folder of a saved detector of transformers, or its id on the Hub.
        device: as torch calls it; None for the accelerator of the machine, if it has one.
        name: to show; None for that of the folder, or the id.

    Raises:
        FileNotFoundError: if there is no such folder.
        ConnectionError: if it is an id, and the Hub cannot be reached or does not have it.
        ValueError: if files of the detector are wrong or missing, or there is no such device.
    """
    place = usable_device(device)
    network, processor = load_detector("MODEL", detector_folder(model))
    nms_iou = getattr(processor, "nms_iou", None)
    if nms_iou is not None:
        processor.nms_iou = None
    return Detector(
        name=name or (Path(model).resolve().name if Path(model).is_dir() else str(model)),
        model=network.to(place),
        processor=processor,
        nms_iou=NMS_IOU if nms_iou is None else nms_iou,
        needs_nms=nms_iou is not None,
    )


def detect(detector: Detector, picture: str | Path | Image.Image) -> Found:
    """Run a detector on one picture, once; what is a duplicate is told beside.

    The 100 best detections are looked at. Those that the processor itself would leave with its `nms_iou` are the same,
    down to the score of the hundredth: a duplicate only ever falls to a detection that scores higher.

    Args:
        detector: as `open_detector` returns it.
        picture: a file that Pillow reads, or an upright RGB picture.

    Raises:
        UnreadableImageError: if the file is missing or broken.
    """
    image = picture if isinstance(picture, Image.Image) else load_image(picture)
    sample = Sample(
        image=image,
        boxes_xyxy=torch.zeros((0, 4)),
        class_labels=torch.zeros(0, dtype=torch.int64),
        image_id="",
        file_name="",
    )
    (found,) = predict(detector.model, detector.processor, [sample], threshold=LOWEST_SCORE)
    is_best = torch.zeros(len(found.scores), dtype=torch.bool)
    is_best[batched_nms(found.boxes_xyxy, found.scores, found.class_labels, detector.nms_iou)] = True
    whole = on_picture(image, found.boxes_xyxy, found.class_labels, found.scores)
    return replace(whole, is_best=is_best)


def on_picture(image: Image.Image, boxes_xyxy: Tensor, class_labels: Tensor, scores: Tensor) -> Found:
    """Put detections and their picture together; none of them is a duplicate.

    Args:
        image: RGB.
        boxes_xyxy: (N, 4) float, pixels of `image`.
        class_labels: (N,) int64.
        scores: (N,) float.
    """
    shown = image.copy()
    shown.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    return Found(
        picture=shown,
        size=(image.height, image.width),
        boxes_xyxy=boxes_xyxy,
        class_labels=class_labels,
        scores=scores,
        is_best=torch.ones(len(scores), dtype=torch.bool),
    )


def choose(found: Found, *, threshold: float, nms: bool, labels: Sequence[int] = ()) -> Found:
    """Return the detections that the controls of the page leave.

    Args:
        found: all of them.
        threshold: smallest score, from 0 to 1.
        nms: whether duplicates are left out.
        labels: class labels that are wanted; none for all.
    """
    kept = found.scores >= threshold
    if nms:
        kept &= found.is_best
    if labels:
        kept &= torch.isin(found.class_labels, torch.tensor(list(labels)))
    rows = {name: getattr(found, name)[kept] for name in ("boxes_xyxy", "class_labels", "scores", "is_best")}
    return replace(found, **rows)


def draw(found: Found, names: Sequence[str]) -> Image.Image:
    """Return the picture with the detections, every class in its color.

    Args:
        found: what is to be drawn.
        names: of the class labels.
    """
    canvas, _ = enlarge_small(found.picture)
    boxes = found.boxes_xyxy * (canvas.width / found.size[1])
    for label in sorted(set(found.class_labels.tolist())):
        of_class = found.class_labels == label
        texts = [names[label]] * int(of_class.sum())
        canvas = draw_boxes(canvas, boxes[of_class], texts, found.scores[of_class], COLORS[label % len(COLORS)])
    return canvas


def table(found: Found, names: Sequence[str]) -> list[list[str | float]]:
    """Return a row per detection: class, score, and x, y, width and height of the box in pixels."""
    rows: list[list[str | float]] = []
    for box, label, score in _rows(found):
        x1, y1, x2, y2 = box
        rows.append([names[label], round(score, 3), *(round(edge, 1) for edge in (x1, y1, x2 - x1, y2 - y1))])
    return rows


def to_json(found: Found, names: Sequence[str]) -> str:
    """Return the detections as text in the form of the pipeline "object-detection", boxes in pixels."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    answer = [
        {
            "score": round(score, 4),
            "label": names[label],
            "box": {edge: round(value, 1) for edge, value in zip(edges, box, strict=True)},
        }
        for box, label, score in _rows(found)
    ]
    return json.dumps(answer, indent=1, ensure_ascii=False)


def _rows(found: Found) -> list[tuple[list[float], int, float]]:
    return list(zip(found.boxes_xyxy.tolist(), found.class_labels.tolist(), found.scores.tolist(), strict=True))
