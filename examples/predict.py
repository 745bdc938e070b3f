# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train]"]
# ///
"""Detect objects on every image of a folder.

    python examples/predict.py --model runs/coco10/best --images pictures --output found --threshold 0.3

The output folder receives one picture with boxes per image, and `predictions.json`: a COCO result list with boxes
[x, y, width, height] in pixels, the category ids of the data set the detector was trained on, and the file name as
`image_id` and `file_name`. Unreadable images are skipped, named and counted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import semidetr_hf  # noqa: F401  (makes the Auto classes know the model)
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.training.checkpoints import reading_detector
from semidetr_hf.training.evaluation import detections_to_coco
from semidetr_hf.visualization import draw_boxes, enlarge_small


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a saved detector")
    parser.add_argument("--images", required=True, help="folder of images, searched with its sub-folders")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--threshold", type=float, default=0.3, help="smallest score of a detection")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


@torch.no_grad()
def detect(model, processor, image: Image.Image, threshold: float) -> dict[str, Tensor]:
    """Return `scores`, `labels` and `boxes` (N, 4) xyxy in pixels of one image, best first."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    size = (image.height, image.width)
    [result] = processor.post_process_object_detection(model(**inputs), threshold=threshold, target_sizes=[size])
    return {name: value.cpu() for name, value in result.items()}


def predict(args: argparse.Namespace) -> int:
    """Write all predictions and return how many images were skipped."""
    with reading_detector("--model", args.model):
        model = AutoModelForObjectDetection.from_pretrained(args.model).eval()
        processor = AutoImageProcessor.from_pretrained(args.model)
    source = FolderSource(args.images)
    model.to(args.device)
    names = model.config.id2label
    category_ids = getattr(model.config, "category_ids", None) or sorted(names)
    detections, skipped = [], 0
    for index, file_name in enumerate(tqdm(source.image_ids, desc="predict")):
        try:
            image = source[index].image
        except UnreadableImageError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            skipped += 1
            continue
        result = detect(model, processor, image, args.threshold)
        found = detections_to_coco([result], [file_name], category_ids)
        detections += [{**detection, "file_name": file_name} for detection in found]
        labels = [names[i] for i in result["labels"].tolist()]
        enlarged, factor = enlarge_small(image)
        picture = draw_boxes(enlarged, result["boxes"] * factor, labels, result["scores"])
        path = Path(args.output) / f"{file_name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (Path(args.output) / "predictions.json").write_text(json.dumps(detections, indent=1) + "\n", encoding="utf-8")
    print(f"{len(detections)} detections on {len(source) - skipped} images, {skipped} unreadable; in {args.output}")
    return skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        predict(args)
    except (ValueError, OSError) as error:
        print(f"predict.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
