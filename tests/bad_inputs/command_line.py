"""Bad inputs: the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.case import FIELD_NAMED, FILE_NAMED, FLAG_NAMED, Case
from bad_inputs.data import splits, supervised
from bad_inputs.folders import coco, evaluate, predict, train_with


def misused(title: str, program: str, make: Callable[[Path], list[str]], says: str, **more: Any) -> Case:
    return Case(title=title, program=program, make=make, says=says, **({"happens": FLAG_NAMED, "status": 2} | more))


def train(title: str, flags: str, says: str) -> Case:
    return misused(title, "train_ssod", train_with(flags), says)


def with_flags(command: Callable[..., list[str]], flags: str) -> Callable[[Path], list[str]]:
    return lambda folder: command(folder, *flags.format(folder=folder).split())


CASES = [
    train("an unknown flag", "--learning_rat 0.1", "unrecognized arguments: --learning_rat"),
    train("an abbreviated flag", "--learn 0.1", "unrecognized arguments: --learn"),
    train("a flag with one dash", "-cpu", "unrecognized arguments: -cpu"),
    train("a flag without its value", "--learning_rate", "argument --learning_rate.*: expected one argument"),
    train("a word for a number", "--learning_rate fast", "argument --learning_rate.*: invalid float value: 'fast'"),
    train("half a step", "--num_steps 1.5", "argument --num_steps.*: invalid int value: '1.5'"),
    train("neither yes nor no", "--cpu maybe", "argument --cpu: .*got maybe but expected one of yes/no"),
    train("an unknown size", "--size huge", "argument --size: invalid choice: 'huge' .*nano.*small.*base"),
    train(
        "an unknown method", "--method official", "argument --method: invalid choice: 'official' .*paper.*reference"
    ),
    train("an unknown precision", "--mixed_precision fp8", "argument --mixed_precision.* 'fp8' .*no.*bf16.*fp16"),
    train("an unknown assigner", "--one_to_many_assigner hungarian", "argument --one_to_many_assigner.*alignment"),
    misused(
        "nothing is given",
        "train_ssod",
        lambda folder: [],
        "`data` lacks labeled, which has no default",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused("predict: nothing is given", "predict", lambda folder: [], "required: --model, --images, --output"),
    misused("predict: an abbreviated flag", "predict", with_flags(predict, "--thresh 1"), "unrecognized .*--thresh"),
    misused(
        "predict: a threshold above 1", "predict", with_flags(predict, "--threshold 3"), "--threshold: 3 .*0 to 1"
    ),
    misused(
        "predict: a threshold of NaN", "predict", with_flags(predict, "--threshold nan"), "--threshold: nan .*0 to 1"
    ),
    misused(
        "predict: an unknown device", "predict", with_flags(predict, "--device gpu"), "--device: 'gpu' .*give another"
    ),
    misused(
        "predict: a GPU that is not there",
        "predict",
        with_flags(predict, "--device cuda:99"),
        "--device: 'cuda:99' cannot be used .*give another",
    ),
    misused(
        "evaluate: an abbreviated flag", "evaluate", with_flags(evaluate, "--out x"), "unrecognized arguments: --out"
    ),
    misused(
        "evaluate: an empty batch",
        "evaluate",
        with_flags(evaluate, "--batch_size 0"),
        "3 images in batches of 0: both must be at least 1",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused(
        "evaluate: a folder for the numbers",
        "evaluate",
        with_flags(evaluate, "--output {folder}"),
        "--output .*: a folder; give the name of a file",
        status=1,
        happens=FILE_NAMED,
    ),
    misused(
        "predict: a file for the folder of pictures",
        "predict",
        with_flags(predict, "--output {folder}/pictures/1.png"),
        r"1\.png: a file; give a folder",
        status=1,
        happens=FILE_NAMED,
    ),
    misused(
        "splits: a file for the folder",
        "make_splits",
        splits("--output {folder}/labels.json"),
        r"labels\.json: a file, .*; give another",
        status=1,
        happens=FILE_NAMED,
    ),
    misused("splits: a word for a percentage", "make_splits", splits("--percents ten"), "--percents: invalid .*'ten'"),
    misused("splits: no percentage", "make_splits", splits("--percents"), "--percents: expected at least one"),
    misused(
        "splits: all images",
        "make_splits",
        splits("--percents 100"),
        r"percents: 100\.0 must be larger than 0 and smaller than 100",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused(
        "splits: a percentage twice",
        "make_splits",
        splits("--percents 5 5"),
        r"percents=\['5', '5'\]: .*none twice",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused(
        "splits: a fold below 0",
        "make_splits",
        splits("--percents 5 --folds -1"),
        r"folds=\[-1\], seed=0: all must be 0 or larger",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused(
        "splits: a seed beyond all",
        "make_splits",
        splits("--percents 50 --seed 99999999999"),
        r"seed=99999999999: their sum must be below 2\*\*32",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused(
        "supervised: digits and a json", "train_supervised", supervised("--digits 3"), "--digits: not allowed with"
    ),
    misused(
        "supervised: neither of them", "train_supervised", lambda f: ["--output_dir", str(f)], "--train_json --digits"
    ),
    misused("supervised: no step", "train_supervised", supervised("--max_steps 0"), "--max_steps: 0 .*from 1"),
    misused(
        "supervised: an empty batch", "train_supervised", supervised("--batch_size 0"), "--batch_size: 0 .*from 1"
    ),
    misused(
        "supervised: images of size 0", "train_supervised", supervised("--image_size 0"), "--image_size: 0 .*from 1"
    ),
    misused(
        "supervised: a learning rate below 0",
        "train_supervised",
        supervised("--learning_rate -1"),
        r"Invalid learning rate: -1\.0",
        status=1,
        happens=FIELD_NAMED,
    ),
    misused("conversion: nothing is given", "conversion", lambda folder: [], "required: checkpoint, output"),
    misused(
        "conversion: an unknown network",
        "conversion",
        lambda folder: [str(coco(folder)), str(folder / "out"), "--network", "ema"],
        "argument --network: invalid choice: 'ema' .*teacher.*student",
    ),
]
