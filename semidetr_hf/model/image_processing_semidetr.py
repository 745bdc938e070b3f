"""Image processor: resize, normalise and pad images; turn predictions back into pixel boxes."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature, DeformableDetrImageProcessor

# Which file of a saved folder holds the class of each backend, for trust_remote_code=True.
AUTO_MAP = {"AutoImageProcessor": {"torchvision": "image_processing_semidetr.SemiDetrImageProcessor"}}


class SemiDetrImageProcessor(DeformableDetrImageProcessor):
    """Prepare images and annotations for Semi-DETR.

    It differs from its parent where a detector with a pixel mask needs it:

    - boxes of labels stay relative to the *unpadded* image, because the model predicts in that frame;
    - images of any mode are converted to RGB and turned upright by their EXIF tag;
    - annotations may lack `area` and may have an `image_id` that is not a number.

    `post_process_object_detection` is the parent's: sigmoid scores, the best `top_k` of all (query, class) pairs.
    """

    do_convert_rgb = True

    def preprocess(self, images: Any, annotations: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        """Turn images into `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W; 1 = real pixel) and perhaps `labels`.

        Args:
            images: one image or a list: PIL, numpy or torch.
            annotations: one or a list of `{"image_id", "annotations": [{"bbox": [x, y, w, h], "category_id"}]}`; the
                category id must be the model's label (0-based). Crowd and empty boxes are dropped.
            *args: as in the parent.
            **kwargs: overrides of any attribute, e.g. `size`, and `return_tensors`.

        Raises:
            ValueError: if an annotation is not a dictionary with "annotations", or a box is not four numbers.
        """
        if annotations is not None:
            several = isinstance(annotations, (list, tuple))
            cleaned = [_complete_annotation(a) for a in (annotations if several else [annotations])]
            annotations = cleaned if several else cleaned[0]
        upright = [_upright(i) for i in images] if isinstance(images, (list, tuple)) else _upright(images)
        return super().preprocess(upright, annotations, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved. `auto_map` names the backend: a plain string makes `pipeline` ask for consent."""
        return {**super().to_dict(), "auto_map": AUTO_MAP}

    def _update_annotation_for_padded_image(
        self, annotation: dict, input_image_size: Any, output_image_size: Any, padding: Any, update_bboxes: bool
    ) -> dict:
        return super()._update_annotation_for_padded_image(
            annotation, input_image_size, output_image_size, padding, update_bboxes=False
        )


def _upright(image: Any) -> Any:
    """Apply the EXIF orientation of a PIL image; other images have none. 16-bit greys are brought to 8 bits."""
    if not isinstance(image, Image.Image):
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips everything above 255 to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _complete_annotation(annotation: Any) -> dict:
    """Fill in what the parent requires and COCO files often lack."""
    if not isinstance(annotation, dict) or "annotations" not in annotation:
        raise ValueError(f"an annotation must be a dictionary with the key 'annotations', got {annotation!r}"[:300])
    image_id = annotation.get("image_id", 0)
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
    return {**annotation, "image_id": image_id if isinstance(image_id, int) else 0, "annotations": objects}


def _four_numbers(box: Any) -> list[float] | None:
    """Return a box as four finite floats, None if it is not one."""
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == 4 and all(math.isfinite(number) for number in numbers) else None
