"""`semidetr eval`: what a detector scores on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def evaluate(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="Images with boxes, as for --val of train: a COCO json, a YOLO data.yaml, a VOC image set (.txt) or "
            "folder, a data set of the library datasets."
        ),
    ],
    model: Annotated[Path, typer.Option(help="Folder of a saved detector, such as runs/mine/best.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if not found beside the data.")] = None,
    voc_corners: Annotated[
        Literal["auto", "exact", "written", "released"],
        typer.Option(help="How VOC boxes become edges; auto = exact in VOC folders, as written in others."),
    ] = "auto",
    bbox_format: Annotated[
        Literal["xywh", "xyxy", "xywh_relative", "xyxy_relative", "cxcywh_relative"],
        typer.Option(help="Boxes of a data set of datasets; relative = as shares of the image."),
    ] = "xywh",
    batch_size: Annotated[int, typer.Option(help="Images per process and forward pass.", min=1)] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to this file, too.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is an accelerator.")] = False,
) -> None:
    """Score a detector on a data set.

    Shown are the twelve COCO numbers, AP of every class and, for VOC data, AP50 as VOC counts it.

    Example: semidetr eval my/val.json --model runs/mine/best --json scores.json
    """
    from accelerate import Accelerator

    from semidetr_hf.data.splits import open_whole
    from semidetr_hf.training.saved_evaluation import evaluate_saved_detector

    if json_file is not None and json_file.is_dir():
        raise IsADirectoryError(f"--json {json_file}: a folder; give the name of a file for the numbers")
    accelerator = Accelerator(cpu=cpu)
    scores = evaluate_saved_detector(
        model,
        data,
        images,
        accelerator=accelerator,
        batch_size=batch_size,
        corners=None if voc_corners == "auto" else voc_corners,
        bbox_format=bbox_format,
        progress=not context.obj.quiet,
    )
    if not accelerator.is_main_process:
        return
    typer.echo(scores.to_text())
    if json_file is not None:
        with open_whole(json_file) as file:
            file.write(json.dumps(scores.to_dict(), indent=2) + "\n")
        typer.echo(f"\nthe numbers: {json_file}")
