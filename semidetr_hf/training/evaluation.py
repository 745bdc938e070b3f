"""Detections of any transformers detector on the images of a source, and what they score.

As in the released code of Semi-DETR, boxes are clipped to the image before they are scored.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image
from tqdm.auto import tqdm

from semidetr_hf.metrics.coco_detection.coco_metrics import DetectionMetrics, ImageId, coco_metrics

logger = logging.getLogger(__name__)


class EvaluationSource(Protocol):
    """Images that `evaluate` can read, with their boxes as a COCO dict."""

    @property
    def image_ids(self) -> Sequence[ImageId]:
        """Return the id of every image."""

    @property
    def category_ids(self) -> Sequence[int]:
        """Return the category id of every class label."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Any:
        """Return a sample whose `image` is a PIL image.

        Raises:
            OSError: if the image cannot be read.
        """

    def coco_ground_truth(self) -> dict[str, Any]:
        """Return the images, annotations and categories as a COCO dict."""


def detections_to_coco(
    results: Sequence[dict[str, Tensor]], image_ids: Sequence[ImageId], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Turn detections into a COCO result list.

    Args:
        results: per image `scores` (N,), `labels` (N,) and `boxes` (N, 4) xyxy in pixels, as
            `post_process_object_detection` returns them.
        image_ids: one per result.
        category_ids: row i is the category id of class label i.

    Returns:
        One dict per box, images in the given order.

    Raises:
        ValueError: if the numbers of results and image ids differ or a label has no category id.
    """
    if len(results) != len(image_ids):
        raise ValueError(f"{len(results)} results came with {len(image_ids)} image ids; give one id per result")
    detections = []
    for result, image_id in zip(results, image_ids, strict=True):
        labels = result["labels"].tolist()
        if labels and max(labels) >= len(category_ids):
            raise ValueError(
                f"image {image_id!r}: class label {max(labels)} has no category id, there are {len(category_ids)}; "
                "the model's num_labels must be the number of categories of the data"
            )
        boxes = result["boxes"].double()
        boxes_xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        for score, label, box in zip(result["scores"].tolist(), labels, boxes_xywh, strict=True):
            detections.append(
                {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": float(score)}
            )
    return detections


class Detections(NamedTuple):
    """What a detector found on the images of a source, for any metric.

    Attributes:
        found: COCO result list, ids of the source, boxes in pixels of the original images.
        ground_truth: COCO dict of the source without the images that cannot be read.
    """

    found: list[dict[str, Any]]
    ground_truth: dict[str, Any]


def evaluate(
    model: nn.Module,
    image_processor: Any,
    source: EvaluationSource,
    *,
    batch_size: int,
    accelerator: Accelerator,
    desc: str = "evaluate",
) -> tuple[DetectionMetrics, list[dict[str, Any]]]:
    """Detect on all images of a source and score the detections as COCO does; arguments and errors as in `detect_all`.

    Returns:
        The metrics and the COCO result list, both the same on every process.
    """
    found, ground_truth = detect_all(
        model, image_processor, source, batch_size=batch_size, accelerator=accelerator, desc=desc
    )
    metrics = coco_metrics(ground_truth, found) if accelerator.is_main_process else None
    return broadcast_object_list([metrics])[0], found


@torch.no_grad()
def detect_all(
    model: nn.Module,
    image_processor: Any,
    source: EvaluationSource,
    *,
    batch_size: int,
    accelerator: Accelerator,
    desc: str = "detect",
    progress: bool = True,
) -> Detections:
    """Detect on all images of a source; every process takes a share of the images.

    The model runs in evaluation mode and in its own precision, and every module gets its mode back. Images that cannot
    be read are left out of the ground truth, and one warning counts them.

    Args:
        model: a transformers detector on `accelerator.device`, not wrapped for distributed training.
        image_processor: its image processor, with `post_process_object_detection`.
        source: the images and boxes.
        batch_size: images per process and forward pass.
        accelerator: says which process this is.
        desc: text before the progress bar of the main process.
        progress: False for no bar.

    Returns:
        Detections and ground truth, the same on every process.

    Raises:
        ValueError: if the source is empty, none of its images can be read, or `batch_size` is below 1.
    """
    if len(source) == 0 or batch_size < 1:
        raise ValueError(f"cannot evaluate {len(source)} images in batches of {batch_size}: both must be at least 1")
    with _evaluation_mode(model), accelerator.split_between_processes(list(range(len(source)))) as indices:
        detections: list[dict[str, Any]] = []
        unreadable: list[tuple[ImageId, str]] = []
        starts = range(0, len(indices), batch_size)
        for start in tqdm(starts, desc=desc, disable=not (progress and accelerator.is_main_process), leave=False):
            images, image_ids = _read_images(source, indices[start : start + batch_size], unreadable)
            if images:
                results = detect(model, image_processor, images, accelerator.device)
                detections += detections_to_coco(results, image_ids, source.category_ids)
    detections, unreadable = gather_object(detections), gather_object(unreadable)
    if len(unreadable) == len(source):
        raise ValueError(f"none of the {len(source)} images can be read, the first because: {unreadable[0][1]}")
    if unreadable and accelerator.is_main_process:
        logger.warning(
            "%d of %d images cannot be read and are not evaluated, the first because: %s",
            len(unreadable),
            len(source),
            unreadable[0][1],
        )
    skipped = {image_id for image_id, _ in unreadable}
    return Detections(detections, _without_images(source.coco_ground_truth(), skipped))


def _read_images(
    source: EvaluationSource, indices: Sequence[int], unreadable: list[tuple[ImageId, str]]
) -> tuple[list[Any], list[ImageId]]:
    """Return the readable images and their ids; the id and reason of the other ones are added to `unreadable`."""
    images, image_ids = [], []
    for index in indices:
        try:
            images.append(source[index].image)
        except OSError as error:
            unreadable.append((source.image_ids[index], str(error)))
        else:
            image_ids.append(source.image_ids[index])
    return images, image_ids


def detect(
    model: nn.Module, image_processor: Any, images: Sequence[Any], device: torch.device
) -> list[dict[str, Tensor]]:
    """Return the detections of one batch of images, whatever their scores.

    Args:
        model: a transformers detector on `device`, in evaluation mode; the caller switches gradients off.
        image_processor: its image processor, with `post_process_object_detection`.
        images: PIL images.
        device: where the model is.

    Returns:
        Per image, on the CPU, `scores` (N,), `labels` (N,) and `boxes` (N, 4) xyxy in pixels, clipped to the image.
    """
    inputs = image_processor(images=images, return_tensors="pt").to(device)
    outputs = model(**inputs)
    sizes = [(image.height, image.width) for image in images]
    post_process = image_processor.post_process_object_detection
    # The processors of detectors with a background class return one detection per query and take no top_k.
    # COCO counts 100 detections of an image and class, and 300 in all hold them; so do DINO and Semi-DETR.
    limit = {"top_k": 300} if "top_k" in inspect.signature(post_process).parameters else {}
    results = post_process(outputs, threshold=0.0, target_sizes=sizes, **limit)
    return [
        {
            "scores": result["scores"].cpu(),
            "labels": result["labels"].cpu(),
            "boxes": clip_boxes_to_image(result["boxes"].float().cpu(), size),
        }
        for result, size in zip(results, sizes, strict=True)
    ]


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and give every module its own mode back, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _without_images(ground_truth: dict[str, Any], image_ids: set[ImageId]) -> dict[str, Any]:
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] not in image_ids],
        "annotations": [box for box in ground_truth["annotations"] if box["image_id"] not in image_ids],
    }
