"""Image processor: resize, normalise and pad images; turn predictions back into pixel boxes."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, DeformableDetrImageProcessor

from .box_ops import class_wise_nms, cxcywh_to_xyxy

# Which file of a saved folder holds the class of each backend, for trust_remote_code=True.
AUTO_MAP = {"AutoImageProcessor": {"torchvision": "image_processing_semidetr.SemiDetrImageProcessor"}}


class SemiDetrImageProcessor(DeformableDetrImageProcessor):
    """Prepare images and annotations for Semi-DETR.

    It differs from its parent where a detector with a pixel mask needs it:

    - boxes of labels stay relative to the *unpadded* image, because the model predicts in that frame;
    - images of any mode are converted to RGB and turned upright by their EXIF tag;
    - 16-bit greys are scaled to 8 bits instead of clipped;
    - annotations may lack `area` and may have an `image_id` that is not a number.

    `pipeline()` of transformers turns pictures into RGB itself before this processor sees them, which clips 16-bit
    greys to white: give it 8-bit pictures, for example as `semidetr_hf.data.images.load_image` reads them.

    `post_process_object_detection` gives the best `top_k` of all (query, class) pairs, like its parent. With `nms_iou`
    set, duplicates are removed first: a detector whose training stopped in the one-to-many stage needs it, and its
    checkpoint says so in its `preprocessor_config.json`.
    """

    do_convert_rgb = True
    nms_iou: float | None = None  # Semi-DETR's released code uses 0.6 in the first stage
    nms_min_score: float = 0.01  # released code: scores up to it do not take part

    def preprocess(self, images: Any, annotations: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        """Turn images into `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W; 1 = real pixel) and perhaps `labels`.

        Args:
            images: one image or a list: PIL, numpy or torch.
            annotations: one or a list of `{"image_id", "annotations": [{"bbox": [x, y, w, h], "category_id"}]}`; the
                category id must be the model's label (0-based). Crowd and empty boxes are dropped. Labels hold numbers
                only: an `image_id` that is text or missing becomes the position of the image in the batch.
            *args: as in the parent.
            **kwargs: overrides of any attribute, e.g. `size`, and `return_tensors`.

        Raises:
            ValueError: if an annotation is not a dictionary with "annotations", a box is not four numbers, or a PIL
                image has floating-point pixels, whose range is unknown.
        """
        if annotations is not None:
            several = isinstance(annotations, (list, tuple))
            given = annotations if several else [annotations]
            cleaned = [_complete_annotation(annotation, place) for place, annotation in enumerate(given)]
            annotations = cleaned if several else cleaned[0]
        upright = [_to_rgb(i) for i in images] if isinstance(images, (list, tuple)) else _to_rgb(images)
        return super().preprocess(upright, annotations, *args, **kwargs)

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None, top_k: int = 100
    ) -> list[dict[str, torch.Tensor]]:
        """Turn the output of a detector into detections.

        Args:
            outputs: with `logits` (B, Q, C) and `pred_boxes` (B, Q, 4) cxcywh normalised by the unpadded image.
            threshold: detections score above it.
            target_sizes: (height, width) of every image in pixels, (B, 2) or a list; None leaves boxes normalised.
            top_k: most detections of one image.

        Returns:
            Per image `scores` (N,), `labels` (N,) and `boxes` (N, 4) xyxy, best first.

        Raises:
            ValueError: if `target_sizes` has not one entry per image, or `nms_iou` is not from 0 to 1.
        """
        if self.nms_iou is None:
            return super().post_process_object_detection(outputs, threshold, target_sizes, top_k)
        if not isinstance(self.nms_iou, Real) or not 0 <= self.nms_iou <= 1:
            raise ValueError(f"nms_iou = {self.nms_iou!r} of the image processor must lie between 0 and 1, or be None")
        sizes = [(1, 1)] * len(outputs.logits) if target_sizes is None else target_sizes
        if len(sizes) != len(outputs.logits):
            raise ValueError(f"{len(sizes)} target_sizes were given for {len(outputs.logits)} images; give one each")
        results = []
        for logits, boxes, (height, width) in zip(outputs.logits, outputs.pred_boxes, sizes, strict=True):
            corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1) * boxes.new_tensor(
                [float(width), float(height), float(width), float(height)], dtype=torch.float32
            )
            kept, labels, scores = class_wise_nms(
                corners,
                logits.float().sigmoid(),
                iou_threshold=self.nms_iou,
                min_score=max(threshold, self.nms_min_score),
                max_detections=top_k,
            )
            results.append({"scores": scores, "labels": labels, "boxes": kept})
        return results

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved. `auto_map` names the backend: a plain string makes `pipeline` ask for consent."""
        return {**super().to_dict(), "auto_map": AUTO_MAP}

    def _update_annotation_for_padded_image(
        self, annotation: dict, input_image_size: Any, output_image_size: Any, padding: Any, update_bboxes: bool
    ) -> dict:
        return super()._update_annotation_for_padded_image(
            annotation, input_image_size, output_image_size, padding, update_bboxes=False
        )


def _to_rgb(image: Any) -> Any:
    """Turn a PIL image upright and into RGB, as the readers of training images do; other images stay as they are."""
    if not isinstance(image, Image.Image):
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("an image has floating-point pixels of unknown range; convert it to 8 bits per channel")
    if image.mode.startswith("I"):
        # Pillow clips wide integers to 255 instead of scaling them, which turns the picture white.
        values = np.asarray(image).astype(np.int64)
        if values.size and values.max() > 255:
            values = values // 257
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _complete_annotation(annotation: Any, place: int) -> dict:
    """Fill in what the parent requires and COCO files often lack; `place` is the position in the batch."""
    if not isinstance(annotation, dict) or "annotations" not in annotation:
        raise ValueError(f"an annotation must be a dictionary with the key 'annotations', got {annotation!r}"[:300])
    image_id = annotation.get("image_id", place)
    objects = []
    for item in annotation["annotations"]:
        box = _four_numbers(item.get("bbox"))
        if box is None:
            raise ValueError(
                f"image {image_id!r}: bbox must be four numbers [x, y, width, height], got {item.get('bbox')!r}"
            )
        if "category_id" not in item:
            raise ValueError(f"image {image_id!r}: the box {box} has no category_id, the model's label")
        objects.append({"area": box[2] * box[3], "iscrowd": 0, **item, "bbox": box})
    return {**annotation, "image_id": image_id if isinstance(image_id, Integral) else place, "annotations": objects}


def _four_numbers(box: Any) -> list[float] | None:
    """Return a box as four finite floats, None if it is not one."""
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == 4 and all(math.isfinite(number) for number in numbers) else None
