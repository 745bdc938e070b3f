"""`semidetr predict`: what a detector finds on images, folders and videos."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Of the file of predictions."""

    COCO = "coco"
    PARQUET = "parquet"


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders (searched with their sub-folders), patterns such as 'photos/**/*.jpg', videos, a "
            "COCO json, or whatever else --unlabeled of train takes.",
            metavar="IMAGES",
        ),
    ],
    model: Annotated[Path, typer.Option(help="Folder of a saved detector, such as runs/mine/best.")],
    output: Annotated[Path, typer.Option(help="Folder for the predictions and the pictures with boxes.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images of a json, if not found.")] = None,
    threshold: Annotated[float, typer.Option(help="Smallest score of a detection.", min=0, max=1)] = 0.3,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    every: Annotated[int, typer.Option(help="Take every n-th frame of a video.", min=1, metavar="N")] = 1,
    draw: Annotated[bool, typer.Option(help="Write a picture with boxes for every image.")] = True,
    format: Annotated[
        Format, typer.Option(help="predictions.json, a COCO result list, or predictions.parquet, a row per image.")
    ] = Format.COCO,
    workers: Annotated[int, typer.Option(help="Processes that read and prepare images ahead; 0 for none.", min=0)] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run of the same command was, if there is one.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; an accelerator, if there is one.")] = None,
) -> None:
    """Detect and draw objects on images and videos.

    Large folders: images are read one batch after the other, and what was found is kept from the first one on.

    Example: semidetr predict photos clip.mp4 --model runs/mine/best --output found --threshold 0.5

    Example: semidetr predict archive --model runs/mine/best --output found --no-draw --format parquet --resume
    """
    from semidetr_hf.prediction import open_images, predict_to_folder, usable_device
    from semidetr_hf.training.saved_detectors import load_detector

    place = usable_device(device)
    opened = open_images(inputs, images, every_frame=every)
    detector, processor = load_detector("--model", model)
    count = predict_to_folder(
        detector.to(place),
        processor,
        opened,
        output,
        threshold=threshold,
        batch_size=batch_size,
        draw=draw,
        format=format.value,
        num_workers=workers,
        resume=resume,
        progress=not context.obj.quiet,
    )
    typer.echo(
        f"{count.detections} detections on {count.images} images, {count.unreadable} unreadable, "
        f"{count.images_per_second:.1f} images per second; in {output}"
    )
