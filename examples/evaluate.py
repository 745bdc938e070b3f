# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train]"]
# ///
"""Evaluate a detector on a COCO json or on Pascal VOC: the twelve COCO numbers, and AP and AP50 of every class.

On Pascal VOC also its own AP at IoU 0.5, where a difficult object is neither hit nor miss.

    python examples/evaluate.py --model runs/coco10/best --data coco/annotations/instances_val2017.json
    python examples/evaluate.py --model runs/voc/best --data VOC2007/ImageSets/Main/test.txt

On several GPUs: `accelerate launch examples/evaluate.py ...`; every process takes a share of the images.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import semidetr_hf  # noqa: F401  (makes the Auto classes know the model)
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.splits import open_whole
from semidetr_hf.data.voc import VocSource

try:
    from accelerate import Accelerator

    from semidetr_hf.metrics.coco_detection.coco_metrics import coco_metrics, in_words
    from semidetr_hf.metrics.voc import voc_metrics
    from semidetr_hf.training.evaluation import detect_all
    from semidetr_hf.training.saved_detectors import load_detector
except ModuleNotFoundError as error:
    sys.exit(f"evaluate.py: error: {error}; install what it needs: pip install 'semidetr-hf[train]'")


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder of a saved detector")
    parser.add_argument("--data", required=True, help="COCO json, VOC image set (.txt) or folder with XML files")
    parser.add_argument("--images", help="folder of its images (default: found next to the data)")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--output", help="json file for the metrics")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is an accelerator")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    if args.output and Path(args.output).is_dir():
        raise IsADirectoryError(f"--output {args.output}: a folder; give the name of a file for the numbers")
    model, processor = load_detector("--model", args.model)
    ours = tuple(model.config.id2label[label] for label in sorted(model.config.id2label))
    # Every source with boxes is one; a bare folder of images is refused.
    source = cast(CocoSource, open_source(args.data, args.images, categories=ours))
    accelerator = Accelerator(cpu=args.cpu)
    model.to(accelerator.device)
    if ours != source.category_names:
        raise ValueError(f"{args.data}: its categories {source.category_names} are not those of the model, {ours}")
    found, truth = detect_all(model, processor, source, batch_size=args.batch_size, accelerator=accelerator)
    if not accelerator.is_main_process:
        return
    metrics = coco_metrics(truth, found)
    numbers = metrics.to_dict()
    print(f"\n{metrics.to_text()}")
    if isinstance(source, VocSource):
        area, eleven = (voc_metrics(truth, found, interpolation=kind) for kind in ("area", "11-point"))
        numbers["voc"] = area.to_dict()
        print(f"\n{area.to_text()}\n\nmean of the eleven points of VOC2007: {in_words(eleven.ap50)}")
    if args.output:
        with open_whole(args.output) as file:
            file.write(json.dumps(numbers, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stdout)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"evaluate.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
