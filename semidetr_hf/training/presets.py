"""Whole runs of the paper, settings for one's own images, and the readings of the method: `paper` and `reference`.

`paper` follows the paper, with the defects of the released code mended; it is also the default of every field.
`reference` follows the released code. The two differ in the fields of `DIFFERENCES`, and in the length of the first
stage of `coco_full`.

Source: Semi-DETR (arXiv 2307.08095), and the released code. The paper's values are those that other people report
of it; its own text was not at hand.

As a program it writes one of the runs to a file for `--config`:

    python -m semidetr_hf.training.presets coco_full --coco coco --output_dir runs/full --save full.yaml
    python -m semidetr_hf.training.presets small-data --labeled my/train.json --unlabeled my/photos --val my/val.json \
        --output_dir runs/mine --save mine.yaml

Settings for one's own images are also the `--preset` of `semidetr train`.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from semidetr_hf.training.config import TrainingConfig

Method = Literal["paper", "reference"]

# section -> field -> (paper, reference)
DIFFERENCES: dict[str, dict[str, tuple[Any, Any]]] = {
    "data": {
        # "auto" is exact in a VOC folder; the released conversion moves the last pixel of a box as it does the first.
        "voc_corners": ("auto", "released"),
        # Two groups in the released code, wider than high and not; finer here.
        "group_by_aspect_ratio": (False, True),
    },
    "matching": {
        # The released code adds the L1 loss of centers and sizes to that of boxes, which doubles it.
        "bbox_loss_coefficient": (5.0, 10.0),
        "class_agnostic_encoder_loss": (False, True),
        "class_loss_normalizer": ("global", "process"),
        "denoise_empty_images": (True, False),
        "matcher_eps": (1e-8, 1e-12),
    },
    "pseudo_labels": {
        "confident_source": ("detections", "candidates"),
        "min_box_size": (1.0, None),
    },
    "consistency": {
        "consistency_source": ("exchanged", "teacher"),
        "consistency_weight": (1.0, 10.0),
        "scale_consistency": (False, True),
        "consistency_stages": ("all", "one_to_many"),
        "consistency_copies": (1, 5),
        "consistency_rows": ("real", "all"),
        # The weight of 1 belongs to plain states, the weight of 10 to states of length 1: 256 times smaller errors.
        "consistency_unit_length": (False, True),
        "cost_threshold": ("mean", "densest"),
    },
    "run": {
        "evaluated_networks": (["student", "teacher"], ["teacher"]),
    },
}

# preset -> section -> field -> value; what is not there keeps its default, or is for the user to say.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # Tens of labeled images, on any machine.
    "small-data": {
        # As many unlabeled images as labeled ones, which are repeated often enough as it is.
        "data": {"labeled_batch_size": 4, "unlabeled_batch_size": 4},
        # The baseline makes all these steps, the run that starts from it those after the burn-in. One-to-many to the
        # end, and so with NMS: to unlearn duplicates takes more steps than there are.
        "schedule": {
            "num_steps": 4000,
            "burn_in_steps": 1000,
            "one_to_many_fraction": 1.0,
            "one_to_many_steps": None,
            "unsupervised_weight": 1.0,
        },
        "pseudo_labels": {"mixing": "both", "class_thresholds": "adaptive"},
        "recipe": {"warm_start": True, "early_stopping_patience": 8, "scale_with_batch": 8},
        # Few labels are soon learned by heart.
        "run": {"eval_every": 250},
    },
    # One GPU of 24 GB; not measured. Accumulated batches make the paper's 8 x (1 + 4) images of a step.
    "1x24GB": {
        "data": {"labeled_batch_size": 1, "unlabeled_batch_size": 4},
        "model": {"size": "base"},
        "recipe": {"scale_with_batch": 40},
        "run": {"mixed_precision": "bf16", "gradient_checkpointing": True, "gradient_accumulation_steps": 8},
    },
    # Eight GPUs, one process for each as in the paper; not measured.
    "8x": {
        "data": {"labeled_batch_size": 1, "unlabeled_batch_size": 4},
        "model": {"size": "base"},
        "recipe": {"scale_with_batch": 40},
        "run": {"gradient_accumulation_steps": 1},
    },
}


def method(name: Method) -> dict[str, dict[str, Any]]:
    """Return the fields in which the two readings differ, with the values of one of them, by section.

    Raises:
        ValueError: if the name is neither `paper` nor `reference`.
    """
    if name not in get_args(Method):
        raise ValueError(f"method={name!r}: must be paper or reference")
    column = 0 if name == "paper" else 1
    return {
        section: {field: copy.copy(values[column]) for field, values in differing.items()}
        for section, differing in DIFFERENCES.items()
    }


def coco_partial(
    percent: float, fold: int, *, coco: str | Path, output_dir: str | Path, follow: Method = "paper"
) -> TrainingConfig:
    """Return the run on `percent` % of COCO with labels and the rest without: 120,000 steps, 8 processes.

    Reported AP of the teacher on val2017 at 1 / 5 / 10 %: 30.5 / 40.1 / 43.5; with this package: not measured.
    Reported hardware: 8 A100. Start it with `accelerate launch --num_processes 8`, for the batch of 8 x (1 + 4)
    images counts: users report 39.2 instead of 43.5 with two processes.

    Args:
        percent: share of labeled images, 1, 5 or 10 in the paper.
        fold: which of the draws, 1 to 5 in the paper.
        coco: folder with `annotations`, `train2017` and `val2017`.
        output_dir: for checkpoints and logs.
        follow: the reading of the method.
    """
    coco = Path(coco)
    return _run(
        follow,
        data={
            "labeled": str(coco / "annotations" / "instances_train2017.json"),
            "labeled_images": str(coco / "train2017"),
            "val": str(coco / "annotations" / "instances_val2017.json"),
            "val_images": str(coco / "val2017"),
            "label_fraction": percent / 100,
            "fold": fold,
            "labeled_batch_size": 1,
            "unlabeled_batch_size": 4,
        },
        optimizer={"lr_schedule": "constant"},
        schedule={"num_steps": 120_000, "one_to_many_steps": 60_000, "unsupervised_weight": 4.0},
        output_dir=output_dir,
    )


def coco_full(*, coco: str | Path, output_dir: str | Path, follow: Method = "paper") -> TrainingConfig:
    """Return the run on all of train2017 with labels and unlabeled2017 without: 240,000 steps, 8 processes.

    Reported AP of the teacher on val2017: 50.5; with this package: not measured. Reported hardware: 8 A100.

    Args:
        coco: folder with `annotations`, `train2017`, `unlabeled2017` and `val2017`.
        output_dir: for checkpoints and logs.
        follow: the reading of the method; the first stage has 180,000 steps in the paper, 120,000 in the released
            code.
    """
    coco = Path(coco)
    return _run(
        follow,
        data={
            "labeled": str(coco / "annotations" / "instances_train2017.json"),
            "labeled_images": str(coco / "train2017"),
            "unlabeled": str(coco / "unlabeled2017"),
            "val": str(coco / "annotations" / "instances_val2017.json"),
            "val_images": str(coco / "val2017"),
            "labeled_batch_size": 4,
            "unlabeled_batch_size": 4,
        },
        # Inherited by the released code from a base configuration of 180,000 steps.
        optimizer={"lr_schedule": "step", "lr_drop_steps": [120_000, 160_000]},
        schedule={
            "num_steps": 240_000,
            "one_to_many_steps": 180_000 if follow == "paper" else 120_000,
            "unsupervised_weight": 2.0,
        },
        output_dir=output_dir,
    )


def voc(
    *, voc2007: str | Path, voc2012: str | Path, output_dir: str | Path, follow: Method = "paper"
) -> TrainingConfig:
    """Return the run on VOC07 trainval with labels and VOC12 trainval without: 80,000 steps, 8 processes.

    Reported AP / AP50 of the teacher on VOC07 test: 65.2 / 86.1; with this package: not measured.

    Args:
        voc2007: folder with `Annotations`, `ImageSets` and `JPEGImages` of VOC 2007.
        voc2012: the same of VOC 2012.
        output_dir: for checkpoints and logs.
        follow: the reading of the method.
    """
    sets = Path("ImageSets") / "Main"
    return _run(
        follow,
        data={
            "labeled": str(Path(voc2007) / sets / "trainval.txt"),
            "unlabeled": str(Path(voc2012) / sets / "trainval.txt"),
            "val": str(Path(voc2007) / sets / "test.txt"),
            "labeled_batch_size": 1,
            "unlabeled_batch_size": 4,
        },
        optimizer={"lr_schedule": "constant"},
        schedule={"num_steps": 80_000, "one_to_many_steps": 40_000, "unsupervised_weight": 4.0},
        output_dir=output_dir,
    )


def own_data(
    settings: str,
    *,
    labeled: str | Path,
    unlabeled: str | Path | None = None,
    val: str | Path | None = None,
    output_dir: str | Path,
    follow: Method = "paper",
) -> TrainingConfig:
    """Return a run on one's own images with the settings of a preset; AP, time and memory depend on the images.

    Args:
        settings: `small-data` for tens of labeled images, `1x24GB` for one GPU of 24 GB, `8x` for eight processes,
            started with `accelerate launch --num_processes 8`. The first was measured on the embedded digits alone,
            with fewer steps (`benchmarks/small_data.py`), the last two not at all.
        labeled: images with boxes, in any format that a run takes.
        unlabeled: images without.
        val: images to evaluate on.
        output_dir: for checkpoints and logs.
        follow: the reading of the method.

    Raises:
        ValueError: if there are no such settings.
    """
    if settings not in SETTINGS:
        raise ValueError(f"settings={settings!r}: must be one of {', '.join(SETTINGS)}")
    sections: dict[str, dict[str, Any]] = method(follow)
    for name, fields in copy.deepcopy(SETTINGS[settings]).items():
        sections[name] = {**sections.get(name, {}), **fields}
    images = {"labeled": labeled, "unlabeled": unlabeled, "val": val}
    sections["data"] |= {role: None if path is None else str(path) for role, path in images.items()}
    sections["run"]["output_dir"] = str(output_dir)
    return TrainingConfig.from_dict(sections)


def _run(
    follow: Method,
    *,
    data: dict[str, Any],
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    output_dir: str | Path,
) -> TrainingConfig:
    sections = method(follow)
    sections["run"] = {**sections["run"], "output_dir": str(output_dir)}
    sections["data"] = {**sections["data"], **data}
    # Reported results have no supervised run beside them, which takes as many steps again.
    recipe = {"baseline": "none"}
    return TrainingConfig.from_dict({**sections, "optimizer": optimizer, "schedule": schedule, "recipe": recipe})


_OWN_IMAGES: dict[str, type] = {"labeled": str, "unlabeled": str, "val": str}
_OPTIONAL = {"unlabeled", "val"}
# preset -> function and, besides output_dir and method, its arguments
_PRESETS: dict[str, tuple[Callable[..., TrainingConfig], dict[str, type]]] = {
    "coco_partial": (coco_partial, {"percent": float, "fold": int, "coco": str}),
    "coco_full": (coco_full, {"coco": str}),
    "voc": (voc, {"voc2007": str, "voc2012": str}),
    **{name: (partial(own_data, name), _OWN_IMAGES) for name in SETTINGS},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a preset to a YAML file and return 0.

    Args:
        arguments: name of the preset and its flags; None for those of the process.

    Raises:
        SystemExit: after `--help`, or with status 2 after a line that says which argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m semidetr_hf.training.presets",
        description="Write a run of the paper, or one on your own images, to a YAML file for --config.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="preset", required=True)
    for name, (_, own) in _PRESETS.items():
        command = commands.add_parser(name, allow_abbrev=False)
        for argument, kind in own.items():
            command.add_argument(f"--{argument}", type=kind, required=argument not in _OPTIONAL)
        command.add_argument("--output_dir", required=True, help="for checkpoints and logs of the run")
        command.add_argument("--method", dest="follow", choices=get_args(Method), default="paper")
        command.add_argument("--save", required=True, help="YAML file to write")
    given = vars(parser.parse_args(arguments))
    build, path = _PRESETS[given.pop("preset")][0], given.pop("save")
    try:
        build(**given).save(path)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
