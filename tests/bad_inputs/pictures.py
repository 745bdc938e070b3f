"""Bad inputs: image files, folders of them, and Pascal VOC's XML files."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.case import FILE_NAMED, Case
from bad_inputs.folders import BOXES, IMAGES, coco, evaluate, predict, train, train_on, train_with, voc, voc2007
from PIL import Image


def refused(title: str, make: Callable[[Path], list[str]], says: str, **more: Any) -> Case:
    return Case(title=title, make=make, says=says, **({"happens": FILE_NAMED} | more))


def spoil(content: bytes | None, *numbers: int) -> Callable[[Path], None]:
    """Return what replaces these pictures by files with this content, or removes them if it is None."""

    def change(folder: Path) -> None:
        for number in numbers:
            if content is None:
                (folder / f"{number}.png").unlink()
            else:
                (folder / f"{number}.png").write_bytes(content)

    return change


def train_on_spoiled(content: bytes | None, *numbers: int, flags: str = "") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        coco(folder)
        spoil(content, *numbers)(folder)
        return train(folder, *flags.split())

    return make


def train_on_floats(folder: Path) -> list[str]:
    path = coco(folder, images=[{"id": 1, "file_name": "1.tiff"}], annotations=BOXES[:1])
    Image.new("F", (64, 64)).save(folder / "1.tiff")
    return train(folder, labeled=path)


def train_on_a_bomb(folder: Path) -> list[str]:
    path = coco(folder, images=IMAGES[:1], annotations=BOXES[:1])
    (folder / "1.png").write_bytes(BOMB)
    return train(folder, labeled=path)


def train_on_a_link_to_itself(folder: Path) -> list[str]:
    coco(folder)
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to("2.png")
    return train(folder)


def train_in_two_folders(folder: Path) -> list[str]:
    path = coco(folder)
    for name in ("a", "b"):
        (folder / name).mkdir()
        shutil.copy(folder / "1.png", folder / name)
    spoil(None, 1, 2, 3)(folder)
    return train(folder, labeled=path)


def unlabeled_without_pictures(folder: Path) -> list[str]:
    coco(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "read me.txt").write_text("pictures follow")
    return train(folder, "--unlabeled", str(folder / "notes"))


def unlabeled_folder_in_itself(folder: Path) -> list[str]:
    coco(folder)
    (folder / "more").mkdir()
    (folder / "more" / "again").symlink_to(folder / "more")
    return train(folder, "--unlabeled", str(folder / "more"))


def unlabeled_name_that_is_no_text(folder: Path) -> list[str]:
    coco(folder)
    (folder / "more").mkdir()
    shutil.copy(folder / "1.png", folder / "more" / "good.png")
    Path(os.fsdecode(os.fsencode(folder / "more") + b"/\xff.png")).write_bytes(b"no picture")
    return train(folder, "--unlabeled", str(folder / "more"))


def evaluate_unreadable(folder: Path) -> list[str]:
    arguments = evaluate(folder)
    spoil(b"no picture", 1, 2, 3)(folder)
    return arguments


def predict_unreadable(*numbers: int) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        arguments = predict(folder)
        spoil(b"no picture", *numbers)(folder / "pictures")
        return arguments

    return make


def train_on_xml(xml: str) -> Callable[[Path], list[str]]:
    return lambda folder: train(folder, labeled=voc(folder / "voc", xml))


def xml_object(content: str) -> str:
    size = "<size><width>64</width><height>64</height></size>"
    return f"<annotation>{size}<object>{content}</object></annotation>"


def xml_box(corners: str) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True)
    return xml_object(f"<name>cat</name><bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in tags)}</bndbox>")


def train_on_xml_without_picture(folder: Path) -> list[str]:
    voc(folder / "voc", name="2")
    (voc(folder / "voc") / "1.png").unlink()
    return train(folder, labeled=folder / "voc")


def train_on_xml_with_two_pictures(folder: Path) -> list[str]:
    Image.new("RGB", (64, 64)).save(voc(folder / "voc") / "1.jpg")
    return train(folder, labeled=folder / "voc")


def train_on_set(image_set: str, name: str = "trainval") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        sets = voc2007(folder / "VOC2007", image_set) / "ImageSets" / "Main"
        return train(folder, labeled=sets / f"{name}.txt")

    return make


def train_on_devkit(folder: Path) -> list[str]:
    voc2007(folder / "VOCdevkit" / "VOC2007")
    return train(folder, labeled=folder / "VOCdevkit")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a part of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HALF = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
BOMB = HALF[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
ALL = r"labels: none of \d images tried of the labeled source can be read; the first: .*1\.{}: {}"
UNREADABLE = ALL.format("png", r"not a readable image \(.+\); replace or remove it")
ENTITY = '<!DOCTYPE a [<!ENTITY b "cat">]><annotation><object><name>&b;</name></object></annotation>'
SKIPS = {"happens": "skips the image, names it in a warning and counts it at the end", "status": 0, "started": True}
LATE = {"happens": "ends; names the images and the reasons", "started": True}

CASES = [
    refused(
        "a picture is missing", train_on_spoiled(None, 2), r"2\.png: .* 3 image files .* are missing; correct the"
    ),
    refused(
        "all pictures are missing",
        train_on_spoiled(None, 1, 2, 3),
        r"labels\.json: its image '1\.png' was not found in .*; give labeled_images",
        finished_run=True,
    ),
    refused("all pictures are some other file", train_on_spoiled(b"no picture", 1, 2, 3), UNREADABLE),
    refused("all pictures are empty files", train_on_spoiled(b"", 1, 2, 3), UNREADABLE),
    refused("all pictures are cut off", train_on_spoiled(HALF, 1, 2, 3), UNREADABLE),
    refused(
        "one picture cannot be read",
        train_on_spoiled(b"no picture", 2, flags="--num_steps 3"),
        r"(?s)2\.png: not a readable image.*1 unreadable images skipped",
        **SKIPS,
    ),
    refused(
        "one picture becomes unreadable during training",
        train_with("--num_steps 3"),
        r"(?s)2\.png: not a readable image.*1 unreadable images skipped",
        after_check=spoil(b"no picture", 2),
        **SKIPS,
    ),
    refused(
        "all pictures become unreadable during training",
        train_with(""),
        r"3 images in a row cannot be read: .*2\.png: not a readable image .* replace or remove it",
        after_check=spoil(b"no picture", 1, 2, 3),
        **LATE,
    ),
    refused(
        "all pictures become unreadable, and a worker reads them",
        train_with("--num_workers 1"),
        r"error: 3 images in a row cannot be read: .*2\.png: not a readable image .* replace or remove it",
        after_check=spoil(b"no picture", 1, 2, 3),
        **LATE,
    ),
    refused(
        "pictures are of another size than the json says",
        train_on(images=[entry | {"width": 60} for entry in IMAGES]),
        ALL.format("png", "the picture is 64x64 .* say 60x64; correct width and height"),
    ),
    refused("a picture stores floats", train_on_floats, ALL.format("tiff", ".*floating-point .* save it with 8 bits")),
    refused("a small file holds 400 million pixels", train_on_a_bomb, UNREADABLE.replace("(.+", "(.*400000000.*")),
    refused("a picture is a link to itself", train_on_a_link_to_itself, r"2\.png: .* image files .* missing; correct"),
    refused(
        "the given folder does not have the pictures",
        train_with("--labeled_images {folder}/nowhere"),
        r"labels\.json: its image '1\.png' is not in the given folder .*nowhere; give another",
    ),
    refused(
        "two folders have a picture of that name",
        train_in_two_folders,
        r"labels\.json: its image '1\.png' is in several folders \(.*a, .*b\); give labeled_images",
    ),
    refused(
        "the labeled images are a bare folder", train_with("--labeled {folder}"), "a bare folder has no boxes; give"
    ),
    refused(
        "the labeled images are a picture", train_with("--labeled {folder}/1.png"), r"1\.png: .*accepted are a COCO"
    ),
    refused(
        "the labeled images are any text file", train_with("--labeled {folder}/x.txt"), r"x\.txt: .*VOC image set"
    ),
    refused(
        "the unlabeled images are nowhere", train_with("--unlabeled {folder}/nowhere"), "nowhere: no such file or f"
    ),
    refused("the unlabeled folder has no pictures", unlabeled_without_pictures, r"notes: no image found .* \.jpg"),
    refused("the unlabeled folder holds a link to itself", unlabeled_folder_in_itself, r"more: no image found in it"),
    refused(
        "an unreadable unlabeled picture has a name that is no text",
        unlabeled_name_that_is_no_text,
        r"(?s)\\udcff\.png: not a readable image.*1 unreadable images skipped",
        **SKIPS,
    ),
    refused(
        "a folder of pictures is given for a folder of pictures",
        train_with("--unlabeled {folder} --unlabeled_images {folder}/x"),
        r"says itself where its images are; unlabeled_images='.*x' only fits a \.json",
    ),
    refused(
        "no evaluated picture can be read",
        evaluate_unreadable,
        r"none of the 3 images can be read, the first because: .*1\.png: not a readable image",
        program="evaluate",
        **LATE,
    ),
    refused(
        "one picture to predict on cannot be read",
        predict_unreadable(1),
        r"(?s)(2 images, 1 unreadable.*)?skipped: .*1\.png: not a readable image",
        program="predict",
        **SKIPS,
    ),
    refused(
        "no picture to predict on can be read",
        predict_unreadable(1, 2, 3),
        r"pictures: none of the 3 images can be read",
        program="predict",
        **LATE,
    ),
    refused(
        "predictions for a file instead of a folder",
        lambda folder: predict(folder, images="pictures/1.png"),
        r"1\.png: not a folder; give a folder that holds image files",
        program="predict",
    ),
    refused(
        "an XML file is broken", train_on_xml("<annotation><object>"), r"1\.xml: not a readable XML file \(no elem"
    ),
    refused("an XML file is not of VOC", train_on_xml("<html/>"), r"1\.xml: holds <html>, .* remove or replace it"),
    refused(
        "an XML file has no size", train_on_xml("<annotation/>"), r"1\.xml: has no <size>; write width and height"
    ),
    refused(
        "an object has no name", train_on_xml(xml_object("<bndbox/>")), r"1\.xml: object 1 has no <name>.* fill it"
    ),
    refused(
        "an object has no box", train_on_xml(xml_object("<name>cat</name>")), r"1\.xml: object 1 \(cat\) has no <bnd"
    ),
    refused(
        "a box ends before it begins", train_on_xml(xml_box("30 5 20 30")), r"1\.xml: object 1 .*xmin=30.*xmax=20"
    ),
    refused(
        "a corner is a word", train_on_xml(xml_box("3 five 20 30")), r"1\.xml: object 1 .*ymin='five'; write a fin"
    ),
    refused("an XML file defines entities", train_on_xml(ENTITY), r"1\.xml: .*document type 'a'.*remove the declarat"),
    refused(
        "an XML file has no picture", train_on_xml_without_picture, r"voc: no picture named '1' in .*; restore it"
    ),
    refused(
        "an XML file has two pictures", train_on_xml_with_two_pictures, r"1\.jpg and 1\.png are both .*'1'; keep one"
    ),
    refused(
        "an image set names an image twice", train_on_set("1\n1\n"), r"trainval\.txt: line 2 repeats '1' of line 1"
    ),
    refused(
        "an image set is empty", train_on_set("\n"), r"trainval\.txt: lists no image; write one image name per line"
    ),
    refused(
        "the image set does not exist", train_on_set("1\n", "trainvla"), r"trainvla\.txt: .*; there are: trainval"
    ),
    refused(
        "an image of the set has no XML file", train_on_set("1\n2\n"), r"2\.xml: no such annotation file; restore it"
    ),
    refused(
        "an image set is of one class", train_on_set("1 -1\n"), r"trainval\.txt: says of each image .*; give a set"
    ),
    refused(
        "the folder above VOC2007 is given", train_on_devkit, r"VOCdevkit: holds the VOC folders VOC2007; give one"
    ),
]
