"""`semidetr convert`: a data set with boxes written in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    data: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="COCO json, YOLO data.yaml, VOC image set (.txt) or folder, or data set of the library datasets "
            "(folder, .parquet, OWNER/NAME on the Hub). data.yaml:val picks the images of one part.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder.", show_default=False)],
    to: Annotated[Literal["coco", "yolo", "voc", "datasets"], typer.Option(help="Format of the new folder.")],
    image_folder: Annotated[
        Path | None, typer.Option(help="Folder of the images, if they are not found beside a json or XML files.")
    ] = None,
    images: Annotated[
        Literal["copy", "link", "keep"],
        typer.Option(
            help="Copy the images, link them (hard links, on one disk), or keep them where they are: COCO only."
        ),
    ] = "copy",
    split: Annotated[
        str, typer.Option(help="Name of the image set, of the key in the yaml, or of the split.")
    ] = "train",
    bbox_format: Annotated[
        Literal["xywh", "xyxy", "xywh_relative", "xyxy_relative", "cxcywh_relative"],
        typer.Option(help="Boxes of a data set of datasets; relative = as shares of the image."),
    ] = "xywh",
    corners: Annotated[
        Literal["auto", "exact", "written", "released"],
        typer.Option(help="How VOC boxes become edges; auto = exact in VOC folders, as written in others."),
    ] = "auto",
) -> None:
    """Write a data set with boxes as a COCO json, a YOLO, VOC or datasets folder.

    Classes keep their names and ids (in category_ids.json where a format has no place for them), images their files
    and their order, so that a split or an AP is the same from every format. What a format cannot hold is counted.
    """
    from semidetr_hf.data.coco import CocoSource
    from semidetr_hf.data.sources import open_source
    from semidetr_hf.data.writing import write_source

    source = open_source(
        data,
        image_folder,
        part="val" if split in ("val", "validation") else "train",
        corners=None if corners == "auto" else corners,
        bbox_format=bbox_format,
    )
    if not isinstance(source, CocoSource):
        raise ValueError(f"{data}: has no boxes to convert; give images with boxes")
    written = write_source(source, output, to, images=images, split=split)
    typer.echo(
        f"wrote {written.num_images:,} images with {written.num_boxes:,} boxes of {len(source.category_ids)} classes; "
        f"--labeled {written.path!r} takes them"
    )
    for what, count in written.lost.items():
        typer.echo(f"  {count:,} {what}")
