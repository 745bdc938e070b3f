"""Box average precision as COCO defines it, of any transformers detector.

Source: pycocotools, the evaluation of the COCO data set; Semi-DETR (arXiv 2307.08095) reports its AP. As in the
released code, boxes are clipped to the image before they are scored. Where faster-coco-eval is installed, its
reimplementation in C++ counts instead; the numbers are the same, up to the last bit.
"""

import contextlib
import inspect
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image
from tqdm.auto import tqdm

try:
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None

logger = logging.getLogger(__name__)

ImageId = int | str


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


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The twelve COCO numbers and the AP of every class, all from 0 to 1; nan where there is nothing to find.

    Attributes:
        ap: mean over the IoU thresholds 0.5, 0.55 .. 0.95 and the classes.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of objects below 32 x 32 pixels.
        ap_medium: of objects from there to 96 x 96 pixels.
        ap_large: of objects above that.
        ar1: recall with one detection per image.
        ar10: recall with ten.
        ar100: recall with `max_detections`, by default 100.
        ar_small: the same, of small objects.
        ar_medium: the same, of medium objects.
        ar_large: the same, of large objects.
        per_class: category name -> AP.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, with `per_class` nested; None stands for nan, which JSON cannot hold."""
        values = asdict(self)
        values["per_class"] = {name: _none_if_nan(value) for name, value in self.per_class.items()}
        return {name: value if name == "per_class" else _none_if_nan(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectionMetrics":
        """Return the metrics that `to_dict` was called on."""
        numbers = {name: _nan_if_none(value) for name, value in values.items() if name != "per_class"}
        per_class = {name: _nan_if_none(value) for name, value in values["per_class"].items()}
        return cls(**numbers, per_class=per_class)


def coco_metrics(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], *, max_detections: int = 100
) -> DetectionMetrics:
    """Score detections against a COCO dict.

    Args:
        ground_truth: COCO dict with `images`, `annotations` and `categories`; image ids may be numbers or text.
        detections: dicts with `image_id`, `category_id` (those of `ground_truth`), `bbox` (x, y, width, height in
            pixels of the original image) and `score`; may be empty.
        max_detections: how many of the best detections of an image and class count, above 10.

    Raises:
        ValueError: if a detection or annotation has an image or category id that is not listed, or if `max_detections`
            is not above 10.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections={max_detections}: must be above 10, the second largest number COCO looks at")
    _check_ids(ground_truth, detections)
    # pycocotools needs numbers as image ids and takes annotation id 0 for "not matched", so both are renumbered.
    numbers = {image["id"]: number for number, image in enumerate(ground_truth["images"], start=1)}
    images = [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]]
    index, score = _scorer()
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (
            _indexed(index(), images, boxes, ground_truth["categories"], numbers)
            for boxes in (ground_truth["annotations"], detections)
        )
        evaluator = score(truth, found, iouType="bbox")
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return _summarize(evaluator, {category["id"]: category["name"] for category in ground_truth["categories"]})


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


@torch.no_grad()
def evaluate(
    model: nn.Module,
    image_processor: Any,
    source: EvaluationSource,
    *,
    batch_size: int,
    accelerator: Accelerator,
    desc: str = "evaluate",
) -> tuple[DetectionMetrics, list[dict[str, Any]]]:
    """Detect on all images of a source and score the detections; every process takes a share of the images.

    The model runs in evaluation mode and in its own precision, and every module gets its mode back. Images that cannot
    be read are left out of the ground truth, and one warning counts them.

    Args:
        model: a transformers detector on `accelerator.device`, not wrapped for distributed training.
        image_processor: its image processor, with `post_process_object_detection`.
        source: the images and boxes.
        batch_size: images per process and forward pass.
        accelerator: says which process this is.
        desc: text before the progress bar of the main process.

    Returns:
        The metrics and the COCO result list (ids of the source, boxes in pixels of the original images), both the same
        on every process.

    Raises:
        ValueError: if the source is empty, none of its images can be read, or `batch_size` is below 1.
    """
    if len(source) == 0 or batch_size < 1:
        raise ValueError(f"cannot evaluate {len(source)} images in batches of {batch_size}: both must be at least 1")
    with _evaluation_mode(model), accelerator.split_between_processes(list(range(len(source)))) as indices:
        detections: list[dict[str, Any]] = []
        unreadable: list[tuple[ImageId, str]] = []
        starts = range(0, len(indices), batch_size)
        for start in tqdm(starts, desc=desc, disable=not accelerator.is_main_process, leave=False):
            images, image_ids = _read_images(source, indices[start : start + batch_size], unreadable)
            if images:
                results = _detect(model, image_processor, images, accelerator.device)
                detections += detections_to_coco(results, image_ids, source.category_ids)
    detections, unreadable = gather_object(detections), gather_object(unreadable)
    if len(unreadable) == len(source):
        raise ValueError(f"none of the {len(source)} images can be read, the first because: {unreadable[0][1]}")
    metrics = None
    if accelerator.is_main_process:
        if unreadable:
            logger.warning(
                "%d of %d images cannot be read and are not evaluated, the first because: %s",
                len(unreadable),
                len(source),
                unreadable[0][1],
            )
        skipped = {image_id for image_id, _ in unreadable}
        metrics = coco_metrics(_without_images(source.coco_ground_truth(), skipped), detections)
    return broadcast_object_list([metrics])[0], detections


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


def _detect(
    model: nn.Module, image_processor: Any, images: list[Any], device: torch.device
) -> list[dict[str, Tensor]]:
    """Return the detections of PIL images as `detections_to_coco` takes them, boxes clipped to their image."""
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


def _check_ids(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> None:
    for field, listed in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[listed]}
        for what, entries in (("detections", detections), ("annotations", ground_truth["annotations"])):
            unknown = sorted({entry[field] for entry in entries} - known, key=str)
            if unknown:
                raise ValueError(
                    f"{what} have {field} {unknown[0]!r}, which is not among the {len(known)} {listed} of the ground "
                    f"truth; {len(unknown)} such ids in all"
                )


def _scorer() -> tuple[type[Any], type[Any]]:
    """Return the classes that hold boxes and that score them; both packages offer the same two."""
    if faster_coco_eval is None:
        logger.debug("scoring with pycocotools; faster-coco-eval is not installed")
        return COCO, COCOeval
    logger.debug("scoring with faster-coco-eval %s", faster_coco_eval.__version__)
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _indexed(
    coco: Any,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    numbers: dict[ImageId, int],
) -> Any:
    coco.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [
            {
                "area": annotation["bbox"][2] * annotation["bbox"][3],
                "iscrowd": 0,
                **annotation,
                "id": number,
                "image_id": numbers[annotation["image_id"]],
            }
            for number, annotation in enumerate(annotations, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _summarize(evaluator: Any, category_names: dict[int, str]) -> DetectionMetrics:
    # T IoU thresholds, R recall thresholds, K classes, A area ranges (all, small, medium, large), M detection limits
    precision = evaluator.eval["precision"]  # (T, R, K, A, M), -1 where there is nothing to find
    recall = evaluator.eval["recall"]  # (T, K, A, M), the same
    thresholds = evaluator.params.iouThrs
    return DetectionMetrics(
        ap=_mean(precision[..., 0, 2]),
        ap50=_mean(precision[np.isclose(thresholds, 0.5), ..., 0, 2]),
        ap75=_mean(precision[np.isclose(thresholds, 0.75), ..., 0, 2]),
        ap_small=_mean(precision[..., 1, 2]),
        ap_medium=_mean(precision[..., 2, 2]),
        ap_large=_mean(precision[..., 3, 2]),
        ar1=_mean(recall[..., 0, 0]),
        ar10=_mean(recall[..., 0, 1]),
        ar100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
        per_class={
            category_names[category_id]: _mean(precision[:, :, row, 0, 2])
            for row, category_id in enumerate(evaluator.params.catIds)
        },
    )


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value
