"""`semidetr split`: which images of one data set keep their labels, as files."""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer


def split(
    data: Annotated[str, typer.Argument(help="Images with boxes: a COCO json, or whatever --labeled of train takes.")],
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    label_fraction: Annotated[
        list[float], typer.Option(help="Share of labeled images, such as 0.1; may be given several times.")
    ],
    fold: Annotated[list[int], typer.Option(help="Which draw; may be given several times.")] = [1],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Added to the fold, for draws other than the usual ones.", min=0)] = 0,
    ids: Annotated[bool, typer.Option("--ids", help="Write lists of image ids, also of a COCO json.")] = False,
) -> None:
    """Divide images into labeled and unlabeled ones.

    The draw is the same on every machine: that of --label-fraction and --fold of train, which needs no files. A
    COCO json becomes two of them and a manifest; of other formats the ids of the images are written, one list each.


    Example: semidetr split my/all.json --label-fraction 0.1 --fold 1 --output my/splits
    """
    from semidetr_hf.data.sources import find_reader, open_source
    from semidetr_hf.data.splits import labeled_subset, write_coco_splits, write_ids

    for fraction in label_fraction:
        if not 0 < fraction < 1:
            raise ValueError(f"--label-fraction {fraction}: must be above 0 and below 1 (10 percent is 0.1)")
    percents = [round(100 * fraction, 6) for fraction in label_fraction]  # 0.07 is 7 percent, not 7.000000000000001
    if not ids and find_reader(data, labeled=True).reader == "coco":
        for made in write_coco_splits(data, output, percents=percents, folds=fold, seed=seed):
            typer.echo(
                f"fold {made.fold}, {made.percent:g} percent: --labeled {made.labeled} --unlabeled {made.unlabeled}"
            )
        return
    source = open_source(data)
    for draw, percent in product(fold, percents):
        labeled, unlabeled = labeled_subset(source.image_ids, fraction=percent / 100, fold=draw, seed=seed)
        base = f"{source.name}.{draw}@{percent:g}"
        write_ids(output / f"{base}-labeled-ids.json", labeled)
        write_ids(output / f"{base}-unlabeled-ids.json", unlabeled)
        typer.echo(f"fold {draw}, {percent:g} percent: {output / base}-labeled-ids.json, {base}-unlabeled-ids.json")
