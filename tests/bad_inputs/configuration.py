"""Bad inputs: settings, on the command line and in a YAML file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.case import FIELD_NAMED, Case
from bad_inputs.folders import coco, train, train_with

FILE_REFUSED = "ends before anything is computed; names the file and the place in it"


def refused(title: str, flags: str, says: str, **more: Any) -> Case:
    return Case(title=title, make=train_with(flags), says=says, **({"happens": FIELD_NAMED} | more))


def bad_file(title: str, content: str | bytes, says: str, **more: Any) -> Case:
    return Case(title=title, make=train_from(content), says=says, **({"happens": FILE_REFUSED} | more))


def train_from(content: str | bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        coco(folder)
        (folder / "run.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return train(folder, "--config", str(folder / "run.yaml"))

    return make


NOT_YAML = r"run\.yaml: not a YAML file in UTF-8 \(.*{}"
NO_SECTIONS = r"run\.yaml: must hold sections such as `data:`"
CODE = "run: {seed: !!python/object/apply:os.mkdir [executed]}"

CASES = [
    refused(
        "a learning rate below 0", "--learning_rate -1", r"learning_rate=-1\.0: must be above 0", finished_run=True
    ),
    refused("a learning rate that is no number", "--learning_rate nan", "learning_rate=nan: must be above 0"),
    refused("an infinite learning rate", "--learning_rate inf", "learning_rate=inf: must be above 0"),
    refused("no step at all", "--num_steps 0", "num_steps=0: must be at least 1"),
    refused("an empty batch", "--labeled_batch_size 0", "labeled_batch_size=0: must be at least 1"),
    refused("fewer than no worker", "--num_workers -1", "num_workers=-1: must be at least 0"),
    refused("a seed below 0", "--seed -1", r"seed=-1: must be from 0 to 2\*\*32 - 1"),
    refused("a momentum of 1", "--ema_momentum 1", r"ema_momentum=1\.0: must be from 0, below 1"),
    refused("a score threshold in percent", "--score_threshold 40", r"score_threshold=40\.0: must be from 0 to 1"),
    refused("a label fraction in percent", "--label_fraction 10", r"label_fraction=10\.0: must be between 0 and 1"),
    refused("a fold of 0", "--label_fraction 0.5 --fold 0", "fold=0: must be at least 1"),
    refused("a fold beyond all seeds", "--label_fraction 0.5 --fold 99999999999", r"fold=99999999999.* below 2\*\*32"),
    refused("no short edge", "--short_edges", r"short_edges=\[\]: must be one or more lengths of at least 1 pixel"),
    refused("a long edge below the short one", "--short_edges 96 --long_edge 64", "long_edge=64: .* short edge, 96"),
    refused("an empty name of a folder", "--output_dir=", "output_dir='': must be a folder"),
    refused("no copy of a query", "--consistency_copies 0", "consistency_copies=0: must be at least 1"),
    refused("an unknown network to evaluate", "--evaluated_networks ema", r"networks=\['ema'\]: .*student, teacher"),
    refused("an unknown tracker", "--trackers abacus", r"trackers=\['abacus'\]: 'abacus' is unknown; choose"),
    refused("an unknown backbone", "--backbone resnet1234", r"backbone='resnet1234': .*; see timm\.list_models\(\)"),
    refused(
        "a backbone for images of one size",
        "--backbone vit_tiny_patch16_224",
        "backbone 'vit_tiny_patch16_224' does not take images of any size .*; choose one that does",
    ),
    refused(
        "ImageNet weights for a size that has none",
        "--backbone_weights imagenet",
        "has no TimmBackbone .*; use --backbone_weights random",
    ),
    refused(
        "fp16 on a CPU", "--mixed_precision fp16", "mixed_precision='fp16': not possible on .* cpu; use bf16 or no"
    ),
    refused(
        "a layer that no memory can hold",
        "--unlabeled {folder} --projector_width 1000000000000",
        "out of memory .*; lower .*projector_width",
        happens="ends before the first step; says how much memory was asked for and what to lower",
    ),
    refused("more steps in the first stage than in all", "--one_to_many_steps 2", "steps=2: .* from 0 to num_steps=1"),
    refused("a burn-in as long as the training", "--burn_in_steps 1", "burn_in_steps=1: must be .* below num_steps=1"),
    refused("a warm-up as long as the training", "--warmup_steps 1", "warmup_steps=1: must be below num_steps=1"),
    refused(
        "a drop of the learning rate after the end", "--lr_schedule step --lr_drop_steps 5", r"\[5\]: .*leave them"
    ),
    refused("drops, but a constant learning rate", "--lr_drop_steps 5", r"lr_drop_steps=\[5\]: .* `step` schedule"),
    refused(
        "a step schedule without drops", "--lr_schedule step", r"lr_drop_steps=\[\]: must be given for the `step`"
    ),
    refused(
        "unlabeled images given twice over",
        "--unlabeled {folder} --label_fraction 0.5",
        r"label_fraction=0\.5 already .*; leave out unlabeled='.*', or label_fraction",
        finished_run=True,
    ),
    refused(
        "a folder for validation images that are not", "--val_images x", "val_images='x' .*without `val`; give both"
    ),
    refused(
        "a folder for unlabeled images that are not", "--unlabeled_images x", "unlabeled_images='x' .*; give both"
    ),
    refused(
        "a backbone, and a detector to start from", "--backbone resnet18 --init_from x", "'resnet18' contrad.* one of"
    ),
    refused(
        "backbone weights, and a detector to start from",
        "--backbone_weights x.pth --init_from x",
        r"backbone_weights='x\.pth' would not be read: init_from='x' .*; leave one of them out",
    ),
    refused(
        "instruments without hidden labels",
        "--unlabeled {folder} --instruments",
        "instruments=True: the unlabeled images have no labels; use label_fraction, or leave it out",
    ),
    refused(
        "a configuration file that is not there", "--config {folder}/x.yaml", r"x\.yaml: no such configuration file"
    ),
    refused("a folder as configuration file", "--config {folder}", "no such configuration file"),
    refused("a picture as configuration file", "--config {folder}/1.png", r"1\.png: not a YAML file in UTF-8"),
    bad_file("a YAML file is broken", "schedule: {", NOT_YAML.format("line 1")),
    bad_file("a YAML file is indented by tabs", "schedule:\n\tnum_steps: 3\n", NOT_YAML.format(r"'\\t'.*line 2")),
    bad_file("a YAML file is empty", "", NO_SECTIONS),
    bad_file("a YAML file holds a list", "[1, 2]", NO_SECTIONS),
    bad_file("a YAML file has no sections", "num_steps: 3", NO_SECTIONS),
    bad_file("a section is a number", "schedule: 3", NO_SECTIONS),
    bad_file("a YAML file is two documents", "data: {}\n---\nrun: {}\n", NOT_YAML.format("single document.*line 2")),
    bad_file("a YAML file is in UTF-16", "run: {}".encode("utf-16"), NOT_YAML.format("decode")),
    bad_file("a YAML file is nested too deep", "run: " + "[" * 1000, NOT_YAML.format("recursion")),
    bad_file("a YAML file asks for code to run", CODE, NOT_YAML.format(r"os\.mkdir.*line 1"), finished_run=True),
    bad_file(
        "a field is given twice", "schedule: {num_steps: 3, num_steps: 9}", NOT_YAML.format("'num_steps' is given t")
    ),
    bad_file(
        "a section is given twice", "run: {seed: 3}\nrun: {cpu: true}\n", NOT_YAML.format("'run' is given twice")
    ),
    bad_file("a date that does not exist", "data: {val: 2024-13-45}", NOT_YAML.format("month")),
    bad_file(
        "an unknown section",
        "schedules: {num_steps: 3}",
        r"unknown schedules \(is schedule meant\?\); known are .*schedule",
        happens=FIELD_NAMED,
    ),
    bad_file(
        "an unknown field",
        "schedule: {num_step: 3}",
        r"`schedule` has unknown num_step \(is num_steps meant\?\); known are",
        happens=FIELD_NAMED,
    ),
    bad_file(
        "a field of another section", "data: {seed: 3}", "`data` has unknown seed; known are", happens=FIELD_NAMED
    ),
    bad_file(
        "a number that YAML takes for text",
        "optimizer: {weight_decay: 1e-4}",
        r"weight_decay='1e-4': must be a number, in YAML with a point \(1\.0e-4\)",
        happens=FIELD_NAMED,
    ),
    bad_file("a field is empty", "run: {seed: }", "seed=None: must be a whole number", happens=FIELD_NAMED),
    bad_file("yes for a number", "schedule: {burn_in_steps: yes}", "steps=True: must be a whole", happens=FIELD_NAMED),
    bad_file(
        "a date for a file", "data: {val: 2024-01-01}", "val=.*2024.*: must be text or none", happens=FIELD_NAMED
    ),
]
