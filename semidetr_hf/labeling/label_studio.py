"""Pseudo-labels as tasks of Label Studio with predictions, and the labeling setup that shows them.

Source: https://labelstud.io/guide/predictions for the tasks, https://labelstud.io/guide/storage for local files.
Boxes are in percent of the upright image.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from semidetr_hf.data.splits import open_whole
from semidetr_hf.labeling.coco import label_rows
from semidetr_hf.labeling.labels import LabeledImage

LOCAL_FILES = "/data/local-files/?d="


def write_label_studio(
    path: Path,
    images: Sequence[LabeledImage],
    files: Sequence[Path],
    names: Sequence[str],
    *,
    model_version: str,
    prefix: str = LOCAL_FILES,
    root: Path = Path("/"),
) -> None:
    """Write the tasks; imported into a project, they show the boxes as predictions to accept or correct.

    The `score` of a prediction is 2 ** -uncertainty, from 0 to 1: Label Studio sorts tasks by it, lowest first, which
    is the order of the images here.

    Args:
        path: the json file to write.
        images: in this order.
        files: of the images, absolute.
        names: of the class labels.
        model_version: under which Label Studio lists the predictions.
        prefix: what stands before the path of an image in its address; an address of a server that has the images, or
            Label Studio's own for files of its machine.
        root: where the paths behind the prefix start. With the default prefix it is Label Studio's setting
            LOCAL_FILES_DOCUMENT_ROOT, which is the root of the disk if nothing was set.

    Raises:
        ValueError: if an image is not below `root`.
    """
    tasks = []
    for image, file in zip(images, files, strict=True):
        prediction = {
            "model_version": model_version,
            "score": 2.0**-image.uncertainty,
            "result": _result(image, names),
        }
        data = {
            "image": prefix + quote(_below(root, file)),
            "image_id": image.detected.image_id,
            "uncertainty": round(image.uncertainty, 4),
        }
        tasks.append({"data": data, "predictions": [prediction]})
    with open_whole(path) as text:
        json.dump(tasks, text, ensure_ascii=False)
        text.write("\n")


def write_labeling_setup(path: Path, names: Sequence[str]) -> None:
    """Write the XML to paste into a project's labeling setup: the names in the predictions are those of its tags."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    with open_whole(path) as text:
        text.write(
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <RectangleLabels name="label" toName="image">\n{labels}\n  </RectangleLabels>\n</View>\n'
        )


def _result(image: LabeledImage, names: Sequence[str]) -> list[dict[str, Any]]:
    height, width = image.detected.size
    return [
        {
            "id": f"box{place}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {
                "x": 100 * x / width,
                "y": 100 * y / height,
                "width": 100 * box_width / width,
                "height": 100 * box_height / height,
                "rotation": 0,
                "rectanglelabels": [names[label]],
            },
        }
        for place, (label, score, (x, y, box_width, box_height)) in enumerate(label_rows(image))
    ]


def _below(root: Path, file: Path) -> str:
    root = root.absolute()
    if not file.is_relative_to(root):
        raise ValueError(f"{file}: not below label_studio_root={str(root)!r}; give the folder that holds all images")
    return file.relative_to(root).as_posix()
