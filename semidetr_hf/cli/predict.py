"""`semidetr predict`: what a detector finds on images, folders and videos."""

from pathlib import Path
from typing import Annotated

import typer


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
    output: Annotated[Path, typer.Option(help="Folder for predictions.json and the pictures with boxes.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images of a json, if not found.")] = None,
    threshold: Annotated[float, typer.Option(help="Smallest score of a detection.", min=0, max=1)] = 0.3,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    every: Annotated[int, typer.Option(help="Take every n-th frame of a video.", min=1, metavar="N")] = 1,
    draw: Annotated[bool, typer.Option(help="Write a picture with boxes for every image.")] = True,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; an accelerator, if there is one.")] = None,
) -> None:
    """Detect and draw objects on images and videos.

    They are also written as a COCO result list, predictions.json.

    Example: semidetr predict photos clip.mp4 --model runs/mine/best --output found --threshold 0.5
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
        progress=not context.obj.quiet,
    )
    typer.echo(f"{count.detections} detections on {count.images} images, {count.unreadable} unreadable; in {output}")
