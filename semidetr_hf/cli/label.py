"""`semidetr label`: pseudo-labels for people to review, the most uncertain images first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# ---- Options, with the help that the command shows

Images = Annotated[
    str, typer.Argument(help="The images: whatever --unlabeled of train takes.", metavar="IMAGES", show_default=False)
]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="coco, yolo or label-studio; may be given several times.", show_default="coco"),
]
Threshold = Annotated[float | None, typer.Option(help="Smallest score of a label.", show_default="0.3", min=0, max=1)]
Precision = Annotated[
    float | None,
    typer.Option(help="Wanted share of right labels; every class gets the threshold for it. Needs --calibrate-on."),
]
CalibrateOn = Annotated[
    str | None, typer.Option(help="Labeled images that the detector was not trained on, such as the validation set.")
]
Sheet = Annotated[int, typer.Option(help="Images on the picture of the most uncertain ones; 0 for none.", min=0)]
NmsIou = Annotated[
    float, typer.Option(help="Of two boxes of a class that overlap more, the better one stays.", min=0, max=1)
]
MinBoxSize = Annotated[float, typer.Option(help="Narrower or lower boxes are left out, in pixels.", min=1)]
YoloConfidence = Annotated[
    bool, typer.Option("--yolo-confidence", help="Write scores into YOLO files; no longer files to train on.")
]
Prefix = Annotated[
    str | None,
    typer.Option(help="What the address of an image begins with.", show_default="Label Studio's for local files"),
]
Root = Annotated[Path, typer.Option(help="Folder where the paths behind the prefix start: LOCAL_FILES_DOCUMENT_ROOT.")]


def label(
    context: typer.Context,
    images: Images,
    model: Annotated[str, typer.Option(help="Folder of a saved detector, such as runs/mine/best, or its Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    image_folder: Annotated[Path | None, typer.Option(help="Folder of the images of a json, if not found.")] = None,
    formats: Formats = None,
    threshold: Threshold = None,
    precision: Precision = None,
    calibrate_on: CalibrateOn = None,
    calibrate_images: Annotated[Path | None, typer.Option(help="Folder of its images, if not found.")] = None,
    top: Annotated[int | None, typer.Option(help="Write only the so many most uncertain images.", min=1)] = None,
    sheet: Sheet = 12,
    nms_iou: NmsIou = 0.5,
    min_box_size: MinBoxSize = 2,
    yolo_confidence: YoloConfidence = False,
    label_studio_prefix: Prefix = None,
    label_studio_root: Root = Path("/"),
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 8,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is an accelerator.")] = False,
) -> None:
    """Label images with a detector, for people to review: the images it is most unsure about come first.

    Writes labels.json (COCO, with scores), yolo/, label_studio.json as --format says, and ranking.csv,
    most_uncertain.png, review.json. COCO and YOLO files are labeled data to train on as they are, in
    which an image without labels counts as one that shows nothing: look at it first.

    Example: semidetr label photos --model runs/mine/best --output review --precision 0.9 --calibrate-on my/val.json
    """
    if threshold is not None and precision is not None:
        raise ValueError("--threshold contradicts --precision, from which thresholds follow; leave one of them out")
    if (precision is None) != (calibrate_on is None):
        raise ValueError("--precision and --calibrate-on need each other; give both, or --threshold alone")
    from accelerate import Accelerator
    from transformers.utils.logging import disable_progress_bar

    from semidetr_hf.data.sources import open_source
    from semidetr_hf.labeling.detection import DetectionRules
    from semidetr_hf.labeling.label_studio import LOCAL_FILES
    from semidetr_hf.labeling.pseudo_labeling import write_review
    from semidetr_hf.labeling.review import ReviewConfig

    disable_progress_bar()  # of loading weights
    config = ReviewConfig(
        formats=tuple(formats or ["coco"]),
        threshold=0.3 if threshold is None else threshold,
        precision=precision,
        top=top,
        sheet=sheet,
        batch_size=batch_size,
        rules=DetectionRules(nms_iou=nms_iou, min_box_size=min_box_size),
        yolo_confidence=yolo_confidence,
        label_studio_prefix=LOCAL_FILES if label_studio_prefix is None else label_studio_prefix,
        label_studio_root=label_studio_root,
        progress=not context.obj.quiet,
    )
    accelerator = Accelerator(cpu=cpu)
    review = write_review(
        model,
        open_source(images, image_folder, labeled=False),
        output,
        config,
        calibrate_on=calibrate_on,
        calibrate_images=calibrate_images,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        typer.echo(review.to_text())
