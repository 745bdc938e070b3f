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
import sys
from collections.abc import Sequence

import torch

try:
    from semidetr_hf.data.folder import FolderSource
    from semidetr_hf.prediction import predict_to_folder, usable_device
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
        return usable_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder of a saved detector")
    parser.add_argument("--images", required=True, help="folder of images, searched with its sub-folders")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--threshold", type=score, default=0.3, help="smallest score of a detection")
    parser.add_argument("--device", type=device, default=usable_device(None))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        model, processor = load_detector("--model", args.model)
        images = [FolderSource(args.images)]
        count = predict_to_folder(model.to(args.device), processor, images, args.output, threshold=args.threshold)
    except (ValueError, OSError) as error:
        print(f"predict.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{count.detections} detections on {count.images} images, {count.unreadable} unreadable; in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
