"""`semidetr validate`: the data of a run looked at before training, and cleaned where asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from semidetr_hf.data.coco_cleaning import Cleaning
    from semidetr_hf.data.data_problems import DataReport


def validate(
    context: typer.Context,
    labeled: Annotated[
        Path,
        typer.Option(
            help="Labeled images, as for train: a COCO json, a YOLO data.yaml, a VOC image set (.txt) or folder, a "
            "data set of the library datasets."
        ),
    ],
    labeled_images: Annotated[Path | None, typer.Option(help="Folder of the labeled images, if not found.")] = None,
    unlabeled: Annotated[
        Path | None, typer.Option(help="Unlabeled images: the same, or a folder, .txt list or .tar files of images.")
    ] = None,
    unlabeled_images: Annotated[Path | None, typer.Option(help="Folder of the unlabeled images.")] = None,
    val: Annotated[Path | None, typer.Option(help="Images to evaluate on, as for --labeled.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of the validation images.")] = None,
    bbox_format: Annotated[
        Literal["xywh", "xyxy", "xywh_relative", "xyxy_relative", "cxcywh_relative"],
        typer.Option(help="Boxes of a data set of datasets; relative = as shares of the image."),
    ] = "xywh",
    json_report: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the whole report, every problem, to this file."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write NAME.cleaned.json beside every COCO json that can be cleaned.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Threads that open images; one per processor.")] = None,
) -> int:
    """Check the data of a run before it.

    Looked at are every entry and every image, and what labeled, unlabeled and val images share.

    Example: semidetr validate --labeled my/train.json --unlabeled my/photos --val my/val.json

    Exit code 0: no error, training takes the data. 1: errors were found in the files given, whether or not --fix
    cleaned copies of them. 2: wrong arguments.
    """
    from semidetr_hf.data.coco_cleaning import require_replaceable, write_cleaned
    from semidetr_hf.data.data_check import check_data
    from semidetr_hf.data.splits import open_whole

    inputs = [path for path in (labeled, unlabeled, val) if path is not None]
    # After an hour of opening images it would be too late to find out.
    _require_report_place(json_report, inputs)
    if fix:
        for path in inputs:
            if path.suffix.lower() == ".json":
                require_replaceable(path)
    with _readers_silenced():
        report = check_data(
            labeled,
            labeled_images,
            unlabeled=unlabeled,
            unlabeled_images=unlabeled_images,
            val=val,
            val_images=val_images,
            bbox_format=bbox_format,
            workers=workers,
            progress=not context.obj.quiet,
        )
    typer.echo(report.to_text())
    if json_report is not None:
        with open_whole(json_report) as file:
            json.dump(report.to_dict(), file, indent=2)
            file.write("\n")
        typer.echo(f"\nthe whole report: {json_report}")
    if fix:
        cleanings = write_cleaned(report.sets)
        typer.echo("\n" + "\n".join(_describe_fixes(report, cleanings)))
    return 1 if report.num_errors else 0


@contextmanager
def _readers_silenced() -> Iterator[None]:
    """Keep back what the readers log, since the report says it."""
    logger = logging.getLogger("semidetr_hf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _require_report_place(json_report: Path | None, inputs: Sequence[Path]) -> None:
    if json_report is None:
        return
    if json_report.is_dir():
        raise ValueError(f"{json_report}: is a folder; give --json the name of a file")
    if any(json_report.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"{json_report}: is one of the data files; give --json the name of another file")


def _describe_fixes(report: DataReport, cleanings: Sequence[Cleaning]) -> list[str]:
    lines = [line for cleaning in cleanings for line in _describe(cleaning)]
    lines += [
        f"{checked.path}: only reported, since --fix cleans COCO json files alone"
        for checked in report.sets
        if not checked.is_coco and checked.problems
    ]
    return lines or ["nothing to clean"]


def _describe(cleaning: Cleaning) -> list[str]:
    left = ", ".join(f"{count} {kind}" for kind, count in cleaning.left.items())
    if cleaning.output is None:
        return [f"{cleaning.source}: no cleaned file, since --fix cannot mend it: {left}"] if left else []
    lines = [f"wrote {cleaning.output}; check it again, as it is to be used"]
    for what in dict.fromkeys(what for what, _ in cleaning.done):
        reasons = [(kind, count) for (step, kind), count in cleaning.done.items() if step == what]
        listed = ", ".join(f"{count} {kind}" for kind, count in reasons)
        lines.append(f"  {what}: {sum(count for _, count in reasons)} ({listed})")
    if left:
        lines.append(f"  left as it is: {left}")
    if cleaning.is_val:
        lines.append("  metrics on it cannot be compared with those on the original")
    return lines
