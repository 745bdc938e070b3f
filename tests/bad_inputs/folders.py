"""Small data sets, detectors and command lines that are fine, for the bad inputs to spoil."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from tiny import tiny_model

from semidetr_hf import SemiDetrImageProcessor

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
IMAGES = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2, 3)]
BOXES = [
    {"id": i, "image_id": i, "category_id": category, "bbox": [10, 10, 30, 30]}
    for i, category in ((1, 3), (2, 7), (3, 3))
]
FLAGS = (
    "--size nano --backbone_weights random --short_edges 64 --long_edge 64 --num_steps 1 --labeled_batch_size 2 "
    "--unlabeled_batch_size 2 --num_workers 0 --cpu --baseline none --no_estimate"
).split()


def coco(folder: Path, name: str = "labels.json", **content: Any) -> Path:
    """Write three pictures with a box each as COCO; `content` replaces parts of the json, None removes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in (1, 2, 3):
        Image.new("RGB", (64, 64), (60 * i, 90, 90)).save(folder / f"{i}.png")
    document = {"images": IMAGES, "categories": CATEGORIES, "annotations": BOXES} | content
    text = json.dumps({key: value for key, value in document.items() if value is not None})
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def voc(folder: Path, xml: str | None = None, name: str = "1") -> Path:
    """Write a picture with an XML file beside it, as labelImg does."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (60, 90, 90)).save(folder / f"{name}.png")
    size = "<size><width>64</width><height>64</height></size>"
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    whole = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
    (folder / f"{name}.xml").write_text(whole if xml is None else xml, encoding="utf-8")
    return folder


def voc2007(folder: Path, image_set: str = "1\n") -> Path:
    """Write a VOC folder of one picture with an image set `trainval`."""
    voc(folder / "Annotations")
    (folder / "JPEGImages").mkdir()
    (folder / "Annotations" / "1.png").rename(folder / "JPEGImages" / "1.png")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(image_set)
    return folder


def box(**content: Any) -> list[dict[str, Any]]:
    """Return the annotations of COCO with another one behind them, number 8, changed by `content`."""
    return [*BOXES, {"id": 8, "image_id": 1, "category_id": 3, "bbox": [10, 10, 30, 30]} | content]


def train(folder: Path, *extra: str, labeled: Path | None = None) -> list[str]:
    """Return a command line of train_ssod.py that writes to `out`."""
    data = folder / "labels.json" if labeled is None else labeled
    return ["--labeled", str(data), "--output_dir", str(folder / "out"), *FLAGS, *extra]


def train_on(**content: Any) -> Callable[[Path], list[str]]:
    """Return what makes a training on a COCO file with these changes."""
    return lambda folder: train(folder, labeled=coco(folder, **content))


def train_with(flags: str, yaml: str | None = None) -> Callable[[Path], list[str]]:
    """Return what makes a training on good data with these flags; `{folder}` stands for the folder.

    Args:
        flags: put behind the others, which they overrule.
        yaml: content of the file for `--config`, None for no file.
    """

    def make(folder: Path) -> list[str]:
        coco(folder)
        if yaml is not None:
            (folder / "run.yaml").write_text(yaml.format(folder=folder), encoding="utf-8")
        file = [] if yaml is None else ["--config", str(folder / "run.yaml")]
        return train(folder, *file, *flags.format(folder=folder).split())

    return make


@functools.cache
def _saved_detector() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="detector-")  # removed when the process ends
    names = [category["name"] for category in CATEGORIES]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    tiny_model(**labels, category_ids=[3, 7]).save_pretrained(folder.name)
    SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder.name)
    return folder


def detector(folder: Path) -> Path:
    """Write a tiny detector of cats and dogs as a run would."""
    return Path(shutil.copytree(_saved_detector().name, folder / "detector"))


def change_config(folder: Path, **fields: Any) -> None:
    """Change fields in the config.json of a saved detector."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def predict(folder: Path, *extra: str, images: str = "pictures") -> list[str]:
    """Return a command line of predict.py on three pictures that writes to `found`."""
    if not (folder / "detector").exists():
        detector(folder)
    coco(folder / "pictures")
    paths = ["--model", str(folder / "detector"), "--images", str(folder / images), "--output", str(folder / "found")]
    return [*paths, "--device", "cpu", *extra]


def evaluate(folder: Path, *extra: str, data: Path | None = None) -> list[str]:
    """Return a command line of evaluate.py on three pictures."""
    if not (folder / "detector").exists():
        detector(folder)
    return ["--model", str(folder / "detector"), "--data", str(data or coco(folder)), "--cpu", *extra]


def finished_run(folder: Path) -> None:
    """Write what an earlier run left in `out`."""
    for name in ("best", "student", "teacher"):
        (folder / "out" / name).mkdir(parents=True)
        (folder / "out" / name / "model.safetensors").write_bytes(name.encode())
    (folder / "out" / "log.jsonl").write_text('{"step": 9}\n')
    (folder / "out" / "config.yaml").write_text("run: {}\n")
