# /// script
# requires-python = ">=3.11"
# dependencies = ["semidetr-hf[train]"]
# ///
"""Divide a COCO json into labeled and unlabeled images, as the COCO-partial protocol does.

    python examples/make_splits.py --annotations coco/annotations/instances_train2017.json \
        --percents 1 5 10 --folds 1 2 3 4 5 --output coco/annotations/semi_supervised

Of the 118,287 images of train2017, 1,182, 5,914 and 11,828 keep their boxes. Every fold and percentage becomes
`instances_train2017.{fold}@{percent}.json`, the same with `-unlabeled.json`, and with `-manifest.json`, which says how
the two were made. The draw depends on nothing but the order of the images, fold and seed. Training on one of them:

    accelerate launch examples/train_ssod.py --labeled .../instances_train2017.1@10.json \
        --unlabeled .../instances_train2017.1@10-unlabeled.json --labeled_images coco/train2017 \
        --unlabeled_images coco/train2017 --val coco/annotations/instances_val2017.json --output_dir runs/coco10
"""

import argparse
import sys
from collections.abc import Sequence

from semidetr_hf.data.splits import write_coco_splits


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--annotations", required=True, help="COCO json to divide")
    parser.add_argument("--percents", type=float, nargs="+", default=[1, 5, 10], help="shares of labeled images")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="which draws to make")
    parser.add_argument("--seed", type=int, default=0, help="added to the fold, for draws other than the usual ones")
    parser.add_argument("--output", required=True, help="folder for the files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        splits = write_coco_splits(
            args.annotations, args.output, percents=args.percents, folds=args.folds, seed=args.seed
        )
    except (ValueError, OSError) as error:
        print(f"make_splits.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for split in splits:
        print(f"fold {split.fold}, {split.percent:g} percent: {split.labeled}, {split.unlabeled.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
