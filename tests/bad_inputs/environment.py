"""Bad inputs: the machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.case import Case
from bad_inputs.data import splits
from bad_inputs.folders import coco, evaluate, predict, train, train_with

BEFORE = "ends before anything is computed; names the place and the reason"
DISK_FULL = "ends; names the file and the reason; what stood there before stays, nothing is there in part"
INSTALL = "ends at once; says what to install"


def hit(title: str, make: Callable[[Path], list[str]], says: str, happens: str, **more: Any) -> Case:
    return Case(title=title, make=make, says=says, happens=happens, **more)


def train_into_a_file(below: str = "") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = coco(folder)
        (folder / "mine").write_text("precious")
        return train(folder, "--output_dir", str(folder / "mine" / below), labeled=path)

    return make


def evaluate_into(name: str, content: str | None = None) -> Callable[[Path], list[str]]:
    """Write the numbers to a file, which holds those of an earlier evaluation."""

    def make(folder: Path) -> list[str]:
        if content is not None:
            (folder / name).write_text(content)
        return evaluate(folder, "--output", str(folder / name))

    return make


ALONE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}

CASES = [
    hit(
        "the output folder is a file",
        train_into_a_file(),
        r"output_dir='.*mine': nothing can be written there \(.*\); give another folder",
        BEFORE,
    ),
    hit(
        "the output folder is below a file",
        train_into_a_file("deeper/still"),
        r"output_dir='.*still': nothing can be written there \(.*mine: Not a directory\); give another folder",
        BEFORE,
    ),
    hit(
        "the output folder is where nothing can be written",
        train_with("--output_dir /proc/nowhere"),
        r"output_dir='/proc/nowhere': nothing can be written there \(/proc: .*\); give another folder",
        BEFORE,
    ),
    hit(
        "train_ssod: the disk is full",
        train_with(""),
        r"out/(student|checkpoints.*): cannot be written \(.*; make room",
        DISK_FULL,
        largest_file=100_000,
        started=True,
    ),
    hit(
        "predict: the disk is full",
        predict,
        r"found/predictions\.partial\.jsonl: cannot be written \(File too large\); make room, or give another folder",
        DISK_FULL,
        program="predict",
        largest_file=50,
        started=True,
    ),
    hit(
        "evaluate: the disk is full",
        evaluate_into("numbers.json", "{}"),
        r"numbers\.json: cannot be written \(File too large\); make room",
        DISK_FULL + "; the numbers are printed before",
        program="evaluate",
        largest_file=50,
        started=True,
    ),
    hit(
        "evaluate: the numbers go to a device that is full",
        lambda folder: evaluate(folder, "--output", "/dev/full"),
        r"/dev/full: cannot be written \(No space left on device\); make room",
        DISK_FULL + "; the numbers are printed before",
        program="evaluate",
        started=True,
    ),
    hit(
        "make_splits: the disk is full",
        splits("--percents 50 --folds 1"),
        r"labels\.1@50\.json: cannot be written \(File too large\); make room",
        DISK_FULL,
        program="make_splits",
        largest_file=100,
        started=True,
    ),
    hit(
        "ImageNet weights, but no network",
        train_with("--size small --backbone_weights imagenet"),
        r"no ImageNet weights for backbone resnet18: .* give a local file .*, or .*\(--backbone_weights random\)",
        "ends before anything is computed; names three ways out",
        environment={"HF_HUB_OFFLINE": "1", "HF_HOME": "{folder}/cache"},
        own_process=True,
    ),
    hit(
        "accelerate is not installed",
        train_with(""),
        r"No module named 'accelerate'; .* pip install 'semidetr-hf\[train\]'",
        INSTALL,
        missing_package="accelerate",
    ),
    hit(
        "pycocotools is not installed, but faster-coco-eval is",
        evaluate,
        r"(?i)ap50",
        "works: either of them scores",
        program="evaluate",
        status=0,
        started=True,
        missing_package="pycocotools",
    ),
    hit(
        "matplotlib is not installed",
        predict,
        "detections on 3 images, 0 unreadable",
        "works: only diagrams need it",
        program="predict",
        status=0,
        started=True,
        missing_package="matplotlib",
    ),
    hit(
        "OMP_NUM_THREADS is no number",
        train_with(""),
        "(?s)0 unreadable images skipped.*OMP_NUM_THREADS",
        "trains; the OpenMP library says that it ignores the value",
        status=0,
        started=True,
        environment={"OMP_NUM_THREADS": "abc"},
        own_process=True,
    ),
    hit(
        "the environment says two processes, but there is no launcher",
        train_with(""),
        "`MASTER_ADDR` env was not set",
        "ends before the first step; names the variable that is missing",
        environment=ALONE,
    ),
]
