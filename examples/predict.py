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

import semidetr_hf  # noqa: F401  (makes the Auto classes know the model)
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.data.splits import open_whole
from semidetr_hf.visualization import draw_boxes, enlarge_small

try:
    from tqdm.auto import tqdm

    from semidetr_hf.training.evaluation import detections_to_coco
    from semidetr_hf.training.saved_detectors import load_detector
except ModuleNotFoundError as error:
    sys.exit(f"predict.py: error: {error}; install what it needs: pip install 'semidetr-hf[train]'")


def score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no score; give a number from 0 to 1")
    return value


def device(text: str) -> torch.device:
    try:
        return torch.zeros(1, device=text).cpu().new_empty(0, device=text).device
    # A build of torch without CUDA says so with an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used ({reason}); give another, such as cpu") from error


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder of a saved detector")
    parser.add_argument("--images", required=True, help="folder of images, searched with its sub-folders")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--threshold", type=score, default=0.3, help="smallest score of a detection")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


@torch.no_grad()
def detect(model, processor, image: Image.Image, threshold: float) -> dict[str, Tensor]:
    """Return `scores`, `labels` and `boxes` (N, 4) xyxy in pixels of one image, best first."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    size = (image.height, image.width)
    [result] = processor.post_process_object_detection(model(**inputs), threshold=threshold, target_sizes=[size])
    return {name: value.cpu() for name, value in result.items()}


def save(picture: Image.Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error.strerror}); make room, or give another --output") from error


def predict(args: argparse.Namespace) -> int:
    """Write all predictions and return how many images were skipped."""
    model, processor = load_detector("--model", args.model)
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
        save(picture, path)
    if skipped == len(source):
        raise ValueError(
            f"--images {args.images}: none of the {skipped} images can be read; see above for the reasons"
        )
    with open_whole(Path(args.output) / "predictions.json") as file:
        file.write(json.dumps(detections, indent=1) + "\n")
    print(f"{len(detections)} detections on {len(source) - skipped} images, {skipped} unreadable; in {args.output}")
    return skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        if Path(args.output).exists() and not Path(args.output).is_dir():
            raise NotADirectoryError(f"--output {args.output}: a file; give a folder")
        Path(args.output).mkdir(parents=True, exist_ok=True)
        predict(args)
    except (ValueError, OSError) as error:
        print(f"predict.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
