"""From a configuration to what the trainer takes: the configuration itself, sources, detector, image processor."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import timm
import torch
import yaml
from transformers import HfArgumentParser

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import Source, open_source
from semidetr_hf.data.splits import labeled_subset
from semidetr_hf.model import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.training.backbone_weights import load_backbone_weights
from semidetr_hf.training.config import ModelConfig, TrainingConfig

logger = logging.getLogger(__name__)

_NOT_GIVEN = object()


class Sources(NamedTuple):
    """The images of a run; `unlabeled` is None for supervised training, `val` for a run without evaluation."""

    labeled: CocoSource
    unlabeled: Source | None
    val: CocoSource | None


def parse_config(arguments: Sequence[str] | None = None, *, description: str | None = None) -> TrainingConfig:
    """Read a configuration from command-line flags, one per field, on top of an optional `--config FILE.yaml`.

    Args:
        arguments: the flags; None for those of the process.
        description: for `--help`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a value or the file is wrong; names the field or the file.
        SystemExit: after `--help`, or with status 2 if a flag is unknown or not of the right kind.
    """
    sections = get_type_hints(TrainingConfig)
    parser = HfArgumentParser(
        list(sections.values()),
        description=description,
        usage="%(prog)s [--config RUN.yaml] [--FIELD VALUE ...]",
        # Otherwise the mistyped --learning_rat would be taken for --learning_rate.
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file such as the config.yaml of a run; flags take precedence")
    # What the parser requires may stand in the file; `from_dict` asks for it once the two are put together.
    for action in parser._actions:
        action.required = False
    names = [field.name for section in sections.values() for field in fields(section)]
    given = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, _NOT_GIVEN))))
    values = {} if given["config"] is None else read_yaml(given["config"])
    for name, section in sections.items():
        flags = {field.name: given[field.name] for field in fields(section) if given[field.name] is not _NOT_GIVEN}
        if flags:
            values[name] = {**(values.get(name) or {}), **flags}
    return TrainingConfig.from_dict(values)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not YAML, or does not hold a mapping whose values are mappings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict) or not all(isinstance(part, dict | None) for part in values.values()):
        raise ValueError(f"{path}: must hold sections such as `data:` with one `name: value` per line below them")
    return values


def open_sources(config: TrainingConfig) -> Sources:
    """Open the labeled, unlabeled and validation images of a run.

    With `label_fraction` the labeled set is divided: the drawn share keeps its boxes, the rest is unlabeled.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if the content of a file is wrong, or `label_fraction` and `unlabeled` are both given.
    """
    data = config.data
    if data.label_fraction is not None and data.unlabeled is not None:
        raise ValueError(
            f"label_fraction={data.label_fraction} already takes the unlabeled images from the labeled set; "
            f"leave out unlabeled={data.unlabeled!r}, or label_fraction"
        )
    labeled = _open_coco("labeled", data.labeled, data.labeled_images)
    unlabeled: Source | None = None
    if data.unlabeled is not None:
        unlabeled = open_source(data.unlabeled, data.unlabeled_images, labeled=False)
    elif data.label_fraction is not None:
        kept, lost = labeled_subset(labeled.image_ids, fraction=data.label_fraction, fold=data.fold)
        labeled, unlabeled = labeled.subset(kept), labeled.subset(lost)
    val = None if data.val is None else _open_coco("val", data.val, data.val_images)
    return Sources(labeled=labeled, unlabeled=unlabeled, val=val)


def _open_coco(field: str, path: str, image_folder: str | None) -> CocoSource:
    source = open_source(path, image_folder)
    if not isinstance(source, CocoSource):
        raise ValueError(f"{field}={path!r}: must be a COCO json")
    return source


def build_model(config: TrainingConfig, source: Source) -> SemiDetrForObjectDetection:
    """Build the detector of a run, with the categories of a source, and fill its backbone.

    Random weights follow the seed of the run, and are the same on every process.

    Args:
        config: `model` decides. With `init_from` everything but heads of another number of classes comes from there.
        source: the labeled images; names and original ids of its categories are stored in the model.

    Raises:
        FileNotFoundError: if a file of weights or `init_from` does not exist.
        ValueError: if the backbone is unknown, its weights do not fit, or `init_from` contradicts another field.
        RuntimeError: if weights cannot be downloaded.
    """
    torch.manual_seed(config.run.seed)
    choice = config.model
    names = source.category_names
    categories: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "category_ids": list(source.category_ids),
    }
    if choice.init_from is not None:
        return _load_detector(choice, categories)
    if choice.backbone is not None:
        categories["backbone_config"] = _timm_backbone(choice.backbone)
    sizes = {"nano": SemiDetrConfig.nano, "small": SemiDetrConfig.small, "base": SemiDetrConfig.base}
    model = SemiDetrForObjectDetection(sizes[choice.size](**categories))
    if choice.backbone_weights == "random":
        # Also for backbones that are not timm's, such as that of size nano, whose weights cannot be loaded.
        logger.info("backbone: random weights, as asked for")
    else:
        logger.info(load_backbone_weights(model, choice.backbone_weights))
    return model


def _timm_backbone(name: str) -> dict[str, Any]:
    if not timm.is_model(name):
        raise ValueError(f"backbone={name!r}: timm {timm.__version__} has no such model; see timm.list_models()")
    # The last three stages have strides 8, 16 and 32 in all usual networks, whether they have four stages or five.
    return {"model_type": "timm_backbone", "backbone": name, "out_indices": [-3, -2, -1]}


def _load_detector(choice: ModelConfig, categories: dict[str, Any]) -> SemiDetrForObjectDetection:
    if choice.backbone is not None:
        raise ValueError(
            f"backbone={choice.backbone!r} contradicts init_from={choice.init_from!r}; leave one of them out"
        )
    if choice.backbone_weights not in ("imagenet", "random"):
        raise ValueError(
            f"backbone_weights={choice.backbone_weights!r} would not be read: init_from={choice.init_from!r} "
            "brings its own; leave one of them out"
        )
    if not (Path(str(choice.init_from)) / "config.json").is_file():
        raise FileNotFoundError(f"init_from={choice.init_from!r}: no folder with the config.json of a saved detector")
    loaded: Any = SemiDetrForObjectDetection.from_pretrained(
        choice.init_from, **categories, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model, report = loaded
    fresh = sorted(key for key, *_ in report["mismatched_keys"])
    logger.info(
        "detector of its own size loaded from %s; started anew: %s", choice.init_from, ", ".join(fresh) or "nothing"
    )
    return model


def build_image_processor(config: TrainingConfig) -> SemiDetrImageProcessor:
    """Return the image processor of a run: images as large as the largest training views."""
    data = config.data
    return SemiDetrImageProcessor(size={"shortest_edge": max(data.short_edges), "longest_edge": data.long_edge})
