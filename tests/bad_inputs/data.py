"""Bad inputs: annotations in COCO json, and the splits made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.case import FILE_NAMED, Case
from bad_inputs.folders import (
    BOXES,
    CATEGORIES,
    IMAGES,
    box,
    coco,
    detector,
    evaluate,
    train,
    train_on,
    train_with,
)


def refused(title: str, make: Callable[[Path], list[str]], says: str, **more: Any) -> Case:
    return Case(title=title, make=make, says=says, **({"happens": FILE_NAMED} | more))


def train_on_bytes(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        coco(folder).write_bytes(content)
        return train(folder)

    return make


def train_on_half_a_json(folder: Path) -> list[str]:
    text = coco(folder).read_text()
    (folder / "labels.json").write_text(text[: len(text) // 2])
    return train(folder)


def train_on_utf16(folder: Path) -> list[str]:
    path = coco(folder)
    path.write_text(path.read_text(), encoding="utf-16")
    return train(folder)


def train_on_folder_named_json(folder: Path) -> list[str]:
    (folder / "labels.json").mkdir()
    return train(folder)


def train_on_link_to_itself(folder: Path) -> list[str]:
    coco(folder).unlink()
    (folder / "labels.json").symlink_to("labels.json")
    return train(folder)


def image(**content: Any) -> list[dict[str, Any]]:
    """Return the images of COCO, of which the third is changed by `content`."""
    return [*IMAGES[:2], IMAGES[2] | content]


def train_on_one_image(folder: Path) -> list[str]:
    path = coco(folder, images=IMAGES[:1], annotations=BOXES[:1])
    return train(folder, "--label_fraction", "0.5", labeled=path)


def val_on(**content: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        coco(folder)
        return train(folder, "--val", str(coco(folder / "val", "val.json", **content)))

    return make


def evaluate_other_categories(folder: Path) -> list[str]:
    detector(folder)
    return evaluate(folder, data=coco(folder, categories=OTHER_CATEGORIES))


def supervised(flags: str = "", **content: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = coco(folder, **content)
        size = "--max_steps 1 --image_size 64".split()
        return ["--train_json", str(path), "--output_dir", str(folder / "out"), *size, *flags.split()]

    return make


def splits(flags: str = "--percents 50", **content: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = coco(folder, **content)
        text = flags.format(folder=folder)
        return ["--annotations", str(path), "--output", str(folder / "out"), *text.split()]

    return make


def splits_of_bytes(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        arguments = splits()(folder)
        (folder / "labels.json").write_bytes(content)
        return arguments

    return make


OTHER_CATEGORIES = [CATEGORIES[0], {"id": 7, "name": "cow"}]
DEEP, LONG = b'{"images": ' + b"[" * 100_000, b'{"images": [' + b"1" * 5000 + b"]}"
NOT_JSON = r"labels\.json: not a json file \(.+\); export it again as COCO json, in UTF-8"
NO_BOX = "not one usable box; give it annotations"
OUTSIDE = [annotation | {"bbox": [900, 900, 5, 5]} for annotation in BOXES]

CASES = [
    refused("the json is not there", train, r"labels\.json: no such file or folder; expected a COCO \.json"),
    refused("the json is some other text", train_on_bytes(b"images: 3"), NOT_JSON, finished_run=True),
    refused("the json is empty", train_on_bytes(b""), NOT_JSON),
    refused("the json is cut off", train_on_half_a_json, NOT_JSON),
    refused("the json is written in UTF-16", train_on_utf16, NOT_JSON),
    refused("the json begins with a byte order mark", train_on_bytes(b"\xef\xbb\xbf{}"), NOT_JSON),
    refused("the json is nested 100,000 deep", train_on_bytes(DEEP), NOT_JSON),
    refused("a number in the json has 5,000 digits", train_on_bytes(LONG), NOT_JSON),
    refused(
        "the json holds a list", train_on_bytes(b"[1]"), r"labels\.json: .* holds a list, a COCO file is an object"
    ),
    refused(
        "a folder is named like the json", train_on_folder_named_json, r"labels\.json: a bare folder has no boxes"
    ),
    refused("the json is a link to itself", train_on_link_to_itself, r"labels\.json: no such file or folder"),
    refused("there is no list of annotations", train_on(annotations=None), r'labels\.json: has no list "annotations"'),
    refused("the annotations are no list", train_on(annotations={}), r'labels\.json: has no list "annotations"'),
    refused(
        "the list of images is empty",
        train_on(images=[], annotations=[]),
        r'labels\.json: "images" is empty; a source needs at least one image',
    ),
    refused(
        "the list of categories is empty",
        train_on(categories=[], annotations=[]),
        "labels: lists no category, .*; give it",
    ),
    refused(
        "two images have the same id",
        train_on(images=[*IMAGES, IMAGES[1]]),
        r"labels\.json: image id 2 occurs twice; give every image its own",
    ),
    refused(
        "an image has no id", train_on(images=[*IMAGES, {"file_name": "4.png"}]), r'json: entry 3 .*"id"; add one'
    ),
    refused("an image has no file name", train_on(images=image(file_name=None)), r"json: image 3 .*name=None; write"),
    refused("an image is 0 pixels wide", train_on(images=image(width=0)), r"json: image 3 has width=0.*; write whole"),
    refused("an image is 1e400 pixels wide", train_on(images=image(width=10**400)), r"json: image 3 has width=10+,.*"),
    refused(
        "a file name has a line break", train_on(images=image(file_name="x\ny.png")), r"x y\.png: .*missing; corr"
    ),
    refused(
        "two categories have the same id",
        train_on(categories=[*CATEGORIES, CATEGORIES[0]]),
        r"labels\.json: category id 3 occurs twice; give every category its own",
    ),
    refused(
        "a category id is text",
        train_on(categories=[*CATEGORIES, {"id": "9", "name": "cow"}]),
        r"""labels\.json: category .*'9'.* needs an integer "id\"""",
    ),
    refused(
        "a box is of an unknown category",
        train_on(annotations=box(category_id=5)),
        r"labels\.json: annotation 8 has category_id=5, .*; add or correct it",
        finished_run=True,
    ),
    refused(
        "a box is of an unknown image",
        train_on(annotations=box(image_id=44)),
        r"labels\.json: annotation 8 has image_id=44, .*; add the image or remove it",
    ),
    refused(
        "a box is written as corners",
        train_on(annotations=box(bbox=[10, 10, -30, 30])),
        r"labels\.json: annotation 8 .*\[10, 10, -30, 30\] of negative size; write \[x, y, width, height\]",
    ),
    refused(
        "a box has three numbers", train_on(annotations=box(bbox=[1, 1, 3])), r"annotation 8 .*\[1, 1, 3\]; write"
    ),
    refused("a box has a text", train_on(annotations=box(bbox=[1, 1, 3, "3"])), r"annotation 8 .*'3'\]; write four"),
    refused(
        "a box holds NaN", train_on(annotations=box(bbox=[1, 1, 3, float("nan")])), r"annotation 8 .*nan\]; write"
    ),
    refused("a box holds infinity", train_on(annotations=box(bbox=[1, 1, 3, 1e999])), r"annotation 8 .*inf\]; write"),
    refused(
        "a box holds 1e400", train_on(annotations=box(bbox=[1, 1, 3, 10**400])), r"annotation 8 .*0\]; write four"
    ),
    refused("an area is negative", train_on(annotations=box(area=-1)), r"annotation 8 has area=-1; write .*leave it"),
    refused("there is no box at all", train_on(annotations=[]), f"labels: the labeled .* 3 images .*{NO_BOX}"),
    refused("all boxes are outside of their images", train_on(annotations=OUTSIDE), f"labels: the labeled .*{NO_BOX}"),
    refused(
        "a class has no box",
        train_on(categories=[*CATEGORIES, {"id": 9, "name": "cow"}]),
        "no labeled box of 1 classes, which cannot be learned: cow",
        happens="trains; a warning names the class",
        status=0,
        started=True,
    ),
    refused(
        "label_fraction of a single image",
        train_on_one_image,
        r"label_fraction=0\.5: leaves none of the 1 images of .*labels\.json unlabeled; leave it out",
    ),
    refused("the validation images have no box", val_on(annotations=[]), f"val: the validation .*{NO_BOX}"),
    refused("the validation json is broken", val_on(annotations=None), r'val\.json: has no list "annotations"'),
    refused(
        "the validation images have other categories",
        val_on(categories=OTHER_CATEGORIES),
        r"differ in 1 ids \(id 7 is 'dog' in labels but 'cow' in val\); write the same",
    ),
    refused(
        "the labeled images are the validation images",
        train_with("--val {folder}/labels.json"),
        r"labels: 3 validation images are also labeled, the metric will be too good: .*1\.png",
        happens="trains; a warning names the images",
        status=0,
        started=True,
    ),
    refused(
        "evaluated data has other categories than the detector",
        evaluate_other_categories,
        r"labels\.json: its categories \('cat', 'cow'\) are not those of the model, \('cat', 'dog'\)",
        program="evaluate",
    ),
    refused(
        "supervised: no box at all", supervised(annotations=[]), f"labels: .*{NO_BOX}", program="train_supervised"
    ),
    refused(
        "splits of a json with an image twice",
        splits(images=[*IMAGES, IMAGES[0]]),
        r"labels\.json: image id 1 occurs twice; give every image its own",
        program="make_splits",
        finished_run=True,
    ),
    refused(
        "splits of a json with a box of an unknown image",
        splits(annotations=box(image_id=44)),
        r"labels\.json: an annotation has image_id=44, .*; add the image or remove it",
        program="make_splits",
    ),
    refused("splits of a json that is nested too deep", splits_of_bytes(DEEP), NOT_JSON, program="make_splits"),
    refused("splits of a json with 5,000 digits", splits_of_bytes(LONG), NOT_JSON, program="make_splits"),
    refused(
        "splits of a single image",
        splits(images=IMAGES[:1], annotations=[]),
        r"labels\.json: 50\.0 percent of 1 images leave none unlabeled",
        program="make_splits",
    ),
]
