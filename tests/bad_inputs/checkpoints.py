"""Bad inputs: saved detectors, weights of a backbone, published checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_inputs.case import FILE_NAMED, Case
from bad_inputs.folders import change_config, coco, detector, evaluate, predict, train, train_with
from safetensors.torch import load_file, save_file

WEIGHTS, PROCESSOR, CONFIG = "model.safetensors", "preprocessor_config.json", "config.json"
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "train_ssod": lambda folder: train(folder, "--init_from", str(folder / "detector"), labeled=coco(folder)),
    "predict": predict,
    "evaluate": evaluate,
}


class WritesAFile:
    """Unpickled, it writes a file `executed` into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.folder / "executed"), "w")


def refused(title: str, make: Callable[[Path], list[str]], says: str, program: str, **more: Any) -> Case:
    return Case(title=title, make=make, says=says, program=program, happens=FILE_NAMED, **more)


def broken(title: str, program: str, damage: Callable[[Path], None], says: str) -> Case:
    """Return the case of a program that meets a saved detector which was damaged."""

    def make(folder: Path) -> list[str]:
        damage(detector(folder))
        return COMMANDS[program](folder)

    flag = "init_from" if program == "train_ssod" else "--model"
    return refused(title, make, f"{flag}='.*detector': .*{says}", program, finished_run=program == "train_ssod")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def change(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **fields)


def make_weights_nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["class_head.bias"].fill_(float("nan"))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["class_head.bias"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def pickle_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"weights": WritesAFile(folder)}, folder / "pytorch_model.bin")


def backbone_from(content: Any, name: str = "weights.pth") -> Callable[[Path], list[str]]:
    """Start from a backbone's weights: bytes as they are, something else as torch saves it."""

    def make(folder: Path) -> list[str]:
        coco(folder)
        save(content, folder / name)
        return train(folder, "--size", "small", "--backbone_weights", str(folder / name))

    return make


def save(content: Any, path: Path) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(WritesAFile(path.parent) if content is WritesAFile else content, path)


def convert(content: Any, flags: str = "", output: str = "converted") -> Callable[[Path], list[str]]:
    """Convert a published checkpoint: None for a file that is not there."""

    def make(folder: Path) -> list[str]:
        if content is not None:
            save(content, folder / "published.pth")
        return [str(folder / "published.pth"), str(folder / output), *flags.format(folder=folder).split()]

    return make


def convert_into_full_folder(folder: Path) -> list[str]:
    (folder / "converted").mkdir()
    (folder / "converted" / "mine").write_text("precious")
    return convert(DINO)(folder)


def convert_with_categories(content: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "classes.json").write_text(json.dumps(content))
        return convert(DINO, "--categories {folder}/classes.json")(folder)

    return make


DINO = {"model": {"transformer.x": torch.zeros(1)}}
TEACHER = {"state_dict": {"teacher.bbox_head.x": torch.zeros(1)}}
TWICE = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
BERT = b'{"model_type": "bert"}'
NOT_PLAIN = r"weights\.{}: not a \.safetensors file or a \.pth file of plain tensors \({}.*\); save"

WAY_OUT = "; give the folder of a whole saved detector"
# What every program that loads a detector refuses.
BROKEN_DETECTORS = [
    ("no config.json", remove(CONFIG), r"no folder with the config\.json of a saved detector"),
    ("a config.json that is no json", write(CONFIG, b"{"), rf"config\.json' is not a valid JSON file.*{WAY_OUT}"),
    ("a config.json that is a list", write(CONFIG, b"[]"), f"model_type.*{WAY_OUT}"),
    ("the config.json of a language model", write(CONFIG, BERT), f"[Bb]ert.*{WAY_OUT}"),
    ("a width that is text", change(d_model="wide"), f"d_model.*wide.*{WAY_OUT}"),
    ("a width that its heads do not divide", change(encoder_attention_heads=7), f"d_model = 32 .*heads = 7{WAY_OUT}"),
    (
        "a width that is not that of the weights",
        change(d_model=64),
        rf"do not fit .*32,?\) in .*64,?\) in .*{WAY_OUT}",
    ),
    ("more layers than weights", change(decoder_layers=3), rf"not there: model\.decoder\.layers\.2\..*{WAY_OUT}"),
    ("no weights, as after half a copy", remove(WEIGHTS), rf"no file named model\.safetensors.*{WAY_OUT}"),
    ("weights that are cut off", cut_weights, f"incomplete metadata.*{WAY_OUT}"),
    ("weights that are an empty file", write(WEIGHTS, b""), f"header too small{WAY_OUT}"),
    ("weights that are some other file", write(WEIGHTS, b"no weights"), f"header too large{WAY_OUT}"),
    ("one weight less", drop_a_weight, rf"not there: class_head\.bias and 0 more are missing{WAY_OUT}"),
    ("weights that are not finite", make_weights_nan, rf"not finite: class_head\.bias .*{WAY_OUT}"),
    ("weights that would run code", pickle_code, rf"no file named model\.safetensors.*{WAY_OUT}"),
]
# What the programs for detection alone need.
BROKEN_PROCESSORS = [
    ("no image processor", remove(PROCESSOR), rf"preprocessor_config\.json.*{WAY_OUT}"),
    ("an image processor that is no json", write(PROCESSOR, b"{"), rf"preprocessor_config\.json' is not .*{WAY_OUT}"),
    ("fewer category ids than labels", change(category_ids=[3]), rf"category_ids=\[3\] for 2 labels{WAY_OUT}"),
]

CASES = [
    *(
        broken(f"{program}: a detector with {title}", program, damage, says)
        for program in COMMANDS
        for title, damage, says in BROKEN_DETECTORS
    ),
    *(
        broken(f"{program}: a detector with {title}", program, damage, says)
        for program in ("predict", "evaluate")
        for title, damage, says in BROKEN_PROCESSORS
    ),
    refused("init_from is nowhere", train_with("--init_from nowhere"), "init_from='nowhere': no folder", "train_ssod"),
    refused(
        "init_from is a file", train_with("--init_from {folder}/1.png"), r"'.*1\.png': no folder with", "train_ssod"
    ),
    refused(
        "backbone weights that are not there",
        train_with("--size small --backbone_weights nowhere.pth"),
        r"--backbone_weights nowhere\.pth: no such file; give `imagenet`, `random` or",
        "train_ssod",
    ),
    refused("backbone weights of some other file", backbone_from(b"junk"), NOT_PLAIN.format("pth", ""), "train_ssod"),
    refused(
        "backbone weights of some other file, called .safetensors",
        backbone_from(b"junk", "weights.safetensors"),
        NOT_PLAIN.format("safetensors", ".*header"),
        "train_ssod",
    ),
    refused(
        "backbone weights that would run code",
        backbone_from(WritesAFile),
        NOT_PLAIN.format("pth", "it holds other objects, which were not loaded since they could run code"),
        "train_ssod",
    ),
    refused(
        "backbone weights inside of a whole checkpoint",
        backbone_from({"state_dict": {"conv1.weight": torch.zeros(1)}}),
        r"weights\.pth: holds no state dict .*; save `timm_model\.state_dict\(\)`",
        "train_ssod",
    ),
    refused(
        "backbone weights of another network",
        backbone_from({"conv1.weight": torch.zeros(3)}),
        r"weights\.pth do not fit backbone resnet18: .* missing .*another shape \(conv1\.weight\); give weights of",
        "train_ssod",
    ),
    refused("conversion: no such file", convert(None), r"published\.pth: no such file", "conversion"),
    refused(
        "conversion: some other file", convert(b"junk"), r"published\.pth: not a checkpoint of torch", "conversion"
    ),
    refused("conversion: a list", convert([1]), r"published\.pth: not a checkpoint but list", "conversion"),
    refused("conversion: nothing in it", convert({}), r"published\.pth: .*empty dictionary", "conversion"),
    refused(
        "conversion: a checkpoint that would run code",
        convert(WritesAFile),
        r"published\.pth: holds an object of \S*open, and loading it could run code\. If you trust the file",
        "conversion",
    ),
    refused(
        "conversion: tensors with numbers for names",
        convert({"model": {3: torch.zeros(1)}}),
        r"published\.pth: no state dict: 3 is not a tensor with a name; give one",
        "conversion",
    ),
    refused(
        "conversion: a network of another kind",
        convert({"conv1.weight": torch.zeros(1)}),
        r"published\.pth: neither official DINO nor Semi-DETR; its entries begin with conv1\.weight",
        "conversion",
    ),
    refused(
        "conversion: most tensors are missing",
        convert(DINO),
        r"published\.pth: the checkpoint has nothing that becomes model\.level_embedding\.weight",
        "conversion",
    ),
    refused(
        "conversion: the student of a file with a teacher",
        convert(TEACHER, "--network student"),
        r"published\.pth: the checkpoint has no network 'student'; it has teacher",
        "conversion",
    ),
    refused(
        "conversion: NMS by iteration, of a file without one",
        convert(DINO | {"meta": {"iter": "many"}}, "--one_to_many_steps 5"),
        r"published\.pth: has no meta\['iter'\] to compare with --one_to_many_steps",
        "conversion",
    ),
    refused(
        "conversion: into a folder that holds something",
        convert_into_full_folder,
        r"converted: exists already; give another folder or remove it",
        "conversion",
    ),
    refused(
        "conversion: categories that are not there",
        convert(DINO, "--categories {folder}/nowhere.json"),
        r"--categories .*nowhere\.json: no such file; give a COCO json",
        "conversion",
    ),
    refused(
        "conversion: categories of numbers", convert_with_categories([1]), r"classes\.json: not a json", "conversion"
    ),
    refused(
        "conversion: a category twice", convert_with_categories(TWICE), r"classes\.json: 2 .* 1 diff", "conversion"
    ),
]
