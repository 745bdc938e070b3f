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

try:
    from accelerate import Accelerator

    from semidetr_hf.data.splits import open_whole
    from semidetr_hf.training.saved_evaluation import evaluate_saved_detector
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
    accelerator = Accelerator(cpu=args.cpu)
    scores = evaluate_saved_detector(
        args.model, args.data, args.images, accelerator=accelerator, batch_size=args.batch_size
    )
    if not accelerator.is_main_process:
        return
    print(f"\n{scores.to_text()}")
    if args.output:
        with open_whole(args.output) as file:
            file.write(json.dumps(scores.to_dict(), indent=2) + "\n")


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
