"""What a detector finds on the images of a source, without duplicates and without boxes that nobody could check.

Legend: N detections of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torchvision.ops import batched_nms
from tqdm.auto import tqdm

from semidetr_hf.data.images import Sample
from semidetr_hf.data.sources import Source
from semidetr_hf.structures import PseudoLabels
from semidetr_hf.training.evaluation import detect


@dataclass(frozen=True, kw_only=True)
class DetectionRules:
    """Which predictions of a detector are detections.

    Attributes:
        min_score: lower scores are not kept account of, from 0 to 1.
        nms_iou: of two boxes of a class that overlap more, the lower-scored is dropped, from 0 to 1.
        min_box_size: boxes narrower or lower than this many pixels within the image are dropped, at least 1, below
            which readers drop them as well.
    """

    min_score: float = 0.05
    nms_iou: float = 0.5
    min_box_size: float = 2.0

    def __post_init__(self) -> None:
        for name in ("min_score", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        if not self.min_box_size >= 1:
            raise ValueError(f"min_box_size={self.min_box_size}: must be 1 pixel or more")


@dataclass(frozen=True, kw_only=True)
class DetectedImage:
    """One image of a source and what was found on it.

    Attributes:
        index: its place in the source.
        image_id: its id there.
        file_name: as the source writes it.
        size: (height, width) in pixels, upright.
        found: N detections, best first, boxes in pixels of the upright image and within it.
    """

    index: int
    image_id: int | str
    file_name: str
    size: tuple[int, int]
    found: PseudoLabels


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found on a source.

    Attributes:
        images: the readable ones, in the order of the source.
        unreadable: the id of every other image, and why it cannot be read.
    """

    images: list[DetectedImage]
    unreadable: list[tuple[int | str, str]]


@torch.no_grad()
def detect_source(
    model: nn.Module,
    image_processor: Any,
    source: Source,
    *,
    rules: DetectionRules,
    batch_size: int,
    accelerator: Accelerator,
    desc: str,
    progress: bool = True,
) -> Detections:
    """Detect on all images of a source; every process takes a share of them, and only batches are in memory.

    Args:
        model: a transformers detector on `accelerator.device`, in evaluation mode.
        image_processor: its image processor, with `post_process_object_detection`.
        source: its boxes, if it has any, are not looked at.
        rules: which predictions count.
        batch_size: images per process and forward pass, 1 or more.
        accelerator: says which process this is.
        desc: text before the progress bar.
        progress: whether the main process shows it.

    Returns:
        The same on every process.

    Raises:
        ValueError: if none of the images can be read, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    found: list[DetectedImage] = []
    unreadable: list[tuple[int | str, str]] = []
    with (
        accelerator.split_between_processes(list(range(len(source)))) as indices,
        tqdm(
            total=len(indices), desc=desc, unit="image", disable=not (progress and accelerator.is_main_process)
        ) as bar,
    ):
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            read = _read(source, chunk, unreadable)
            images = [sample.image for sample in read.values()]
            results = detect(model, image_processor, images, accelerator.device) if read else []
            for (index, sample), result in zip(read.items(), results, strict=True):
                found.append(
                    DetectedImage(
                        index=index,
                        image_id=sample.image_id,
                        file_name=sample.file_name,
                        size=(sample.image.height, sample.image.width),
                        found=without_duplicates(result, rules),
                    )
                )
            bar.update(len(chunk))
    found, unreadable = gather_object(found), gather_object(unreadable)
    if not found:
        raise ValueError(
            f"{source.name}: none of its {len(source)} images can be read, the first because: {unreadable[0][1]}"
        )
    return Detections(images=found, unreadable=unreadable)


def without_duplicates(result: dict[str, Tensor], rules: DetectionRules) -> PseudoLabels:
    """Return the detections of one image that the rules leave, best first.

    Args:
        result: `scores` (M,), `labels` (M,) and `boxes` (M, 4) xyxy in pixels, within the image.
        rules: see there.
    """
    boxes, scores, labels = result["boxes"], result["scores"], result["labels"]
    large = (boxes[:, 2:] - boxes[:, :2] >= rules.min_box_size).all(dim=1)
    chosen = torch.nonzero(large & (scores >= rules.min_score)).flatten()
    kept = chosen[batched_nms(boxes[chosen], scores[chosen], labels[chosen], rules.nms_iou)]
    return PseudoLabels(boxes_xyxy=boxes[kept], class_labels=labels[kept], scores=scores[kept])


def _read(source: Source, indices: Sequence[int], unreadable: list[tuple[int | str, str]]) -> dict[int, Sample]:
    """Return the readable images by their places; the id and reason of the others are added to `unreadable`."""
    read = {}
    for index in indices:
        try:
            read[index] = source[index]
        except OSError as error:
            unreadable.append((source.image_ids[index], str(error)))
    return read
