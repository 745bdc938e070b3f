"""Everything that can be chosen about a training run, as frozen dataclasses that check themselves.

The defaults are those of the released code's COCO run (`detr_ssod_dino_detr_r50_coco_120k.py`, "120k config" below).
Field names are unique over all parts, so that `transformers.HfArgumentParser` gives one flat flag per field.
"""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import yaml


def option(default: Any = MISSING, *, help: str) -> Any:
    """Return a dataclass field with a help text; a list default is copied for every instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images and boxes come from and how they are batched.

    Without `unlabeled` and without `label_fraction` a run is supervised and `unlabeled_batch_size` is not used.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    labeled: str = option(help="COCO json with the labeled training images")
    labeled_images: str | None = option(None, help="folder of the labeled images (default: found next to the json)")
    unlabeled: str | None = option(None, help="folder of images or COCO json (its boxes are ignored)")
    unlabeled_images: str | None = option(None, help="folder of the unlabeled images, when `unlabeled` is a json")
    val: str | None = option(None, help="COCO json to evaluate on")
    val_images: str | None = option(None, help="folder of the evaluation images (default: found next to the json)")
    # Released code: 5 images per GPU, 1 labeled to 4 unlabeled.
    labeled_batch_size: int = option(1, help="labeled images per process and step")
    unlabeled_batch_size: int = option(4, help="unlabeled images per process and step")
    num_workers: int = option(2, help="processes that load images, per data loader")
    # Released code, base config: short edge drawn from 480..800 in steps of 32, long edge at most 1333.
    short_edges: list[int] = option(
        list(range(480, 801, 32)), help="lengths of the short edge to draw from, in pixels"
    )
    long_edge: int = option(1333, help="largest length of the long edge, in pixels")
    flip_probability: float = option(0.5, help="probability of a horizontal flip")
    label_fraction: float | None = option(
        None, help="use only this share of the labeled images as labeled, the other ones as unlabeled"
    )
    fold: int = option(1, help="which of the reproducible draws of `label_fraction` to use, from 1")

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "labeled", self.labeled != "", "a path")
        _require(self, "labeled_batch_size", self.labeled_batch_size >= 1, "at least 1")
        _require(self, "unlabeled_batch_size", self.unlabeled_batch_size >= 1, "at least 1")
        _require(self, "num_workers", self.num_workers >= 0, "at least 0")
        edges = self.short_edges
        _require(self, "short_edges", bool(edges) and min(edges) >= 1, "one or more lengths of at least 1 pixel")
        _require(self, "long_edge", self.long_edge >= max(edges), f"at least the largest short edge, {max(edges)}")
        _require(self, "flip_probability", 0 <= self.flip_probability <= 1, "from 0 to 1")
        fraction = self.label_fraction
        _require(self, "label_fraction", fraction is None or 0 < fraction < 1, "between 0 and 1, or none for all")
        _require(self, "fold", self.fold >= 1, "at least 1")
        if self.unlabeled_images is not None and self.unlabeled is None:
            raise ValueError(f"unlabeled_images={self.unlabeled_images!r} is of no use without `unlabeled`; give both")
        if self.val_images is not None and self.val is None:
            raise ValueError(f"val_images={self.val_images!r} is of no use without `val`; give both")

    @property
    def has_unlabeled(self) -> bool:
        """Whether the run has unlabeled images; if not it is supervised."""
        return self.unlabeled is not None or self.label_fraction is not None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which detector to train and what it starts from.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    size: Literal["nano", "small", "base"] = option("base", help="size of the detector; base is that of the paper")
    backbone: str | None = option(None, help="timm name of another backbone (default: that of the size)")
    backbone_weights: str = option(
        "imagenet", help="`imagenet` (downloaded by timm), `random`, or a local .safetensors or .pth file"
    )
    init_from: str | None = option(None, help="folder of a saved detector to start from")

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "backbone", self.backbone != "", "a timm model name")
        _require(self, "backbone_weights", self.backbone_weights != "", "`imagenet`, `random` or a file")
        _require(self, "init_from", self.init_from != "", "a folder")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    learning_rate: float = option(1e-4, help="learning rate")  # released code, 120k config
    backbone_lr_factor: float = option(0.1, help="factor on the learning rate of the backbone")  # released code
    weight_decay: float = option(1e-4, help="weight decay, on every parameter")  # released code, 120k config
    max_grad_norm: float = option(0.1, help="gradients are scaled down to this L2 norm")  # released code, 120k config
    # Released code: step at 120k and 160k, which is constant over the 120k steps of this config.
    lr_schedule: Literal["constant", "step", "cosine"] = option("constant", help="course of the learning rate")
    warmup_steps: int = option(0, help="steps of linear warm-up")  # released code: none
    lr_drop_steps: list[int] = option([], help="steps at which the `step` schedule lowers the learning rate")
    lr_drop_factor: float = option(0.1, help="factor on the learning rate at each of those steps")  # released code

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0")
        _require(self, "backbone_lr_factor", 0 <= self.backbone_lr_factor < math.inf, "at least 0")
        _require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        _require(self, "max_grad_norm", 0 < self.max_grad_norm < math.inf, "above 0")
        _require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        drops = self.lr_drop_steps
        _require(self, "lr_drop_steps", drops == sorted(set(drops)) and min(drops, default=1) >= 1, "rising, from 1")
        needs_drops = self.lr_schedule == "step"
        _require(self, "lr_drop_steps", bool(drops) == needs_drops, "given for the `step` schedule, and only for it")
        _require(self, "lr_drop_factor", 0 < self.lr_drop_factor <= 1, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The course of the semi-supervised training.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    num_steps: int = option(120_000, help="optimizer steps in all")  # released code, 120k config
    # Released code: none, pseudo-labels are used from the first step.
    burn_in_steps: int = option(0, help="first steps, on labeled images alone")
    unsupervised_weight: float = option(
        4.0, help="weight of the losses on unlabeled images"
    )  # paper, w_u; 120k config
    ema_momentum: float = option(0.999, help="share of the old teacher in an update, at its highest")  # released code
    ema_warmup: int = option(0, help="larger values let the teacher follow the student longer")  # released code

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "num_steps", self.num_steps >= 1, "at least 1")
        _require(
            self,
            "burn_in_steps",
            0 <= self.burn_in_steps < self.num_steps,
            f"from 0, below num_steps={self.num_steps}",
        )
        _require(self, "unsupervised_weight", 0 <= self.unsupervised_weight < math.inf, "at least 0")
        _require(self, "ema_momentum", 0 <= self.ema_momentum < 1, "from 0, below 1")
        _require(self, "ema_warmup", self.ema_warmup >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Which detections of the teacher become pseudo-labels.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    score_threshold: float = option(0.4, help="smallest score of a pseudo-label")  # paper, tau_s; 120k config
    # Released code: keep the detections above the mean plus the standard deviation of the image's scores.
    mean_std_filter: bool = option(True, help="also ask for a score above mean + standard deviation of the image")
    nms_iou: float = option(0.6, help="boxes of a class that overlap more than this are duplicates")  # released code
    min_score: float = option(
        0.01, help="smallest score of a detection before duplicates are removed"
    )  # released code
    max_detections: int = option(300, help="most detections of one image")  # released code
    min_box_size: float = option(1.0, help="smallest width and height of a pseudo-label, in pixels")

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "score_threshold", 0 <= self.score_threshold <= 1, "from 0 to 1")
        _require(self, "nms_iou", 0 <= self.nms_iou <= 1, "from 0 to 1")
        _require(self, "min_score", 0 <= self.min_score <= 1, "from 0 to 1")
        _require(self, "max_detections", self.max_detections >= 1, "at least 1")
        _require(self, "min_box_size", 0 <= self.min_box_size < math.inf, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is carried out and recorded.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    output_dir: str = option(help="folder for checkpoints, logs and the resolved configuration")
    seed: int = option(0, help="seed of everything random")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", help="number format of the forward pass")
    gradient_accumulation_steps: int = option(1, help="batches per optimizer step")
    log_every: int = option(50, help="steps between two lines of the log")
    eval_every: int = option(4000, help="steps between two evaluations")
    trackers: list[str] = option([], help="trackers of Accelerate to report to, such as tensorboard")
    cpu: bool = option(False, help="train on the CPU even where there is an accelerator")

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "output_dir", self.output_dir != "", "a folder")
        _require(self, "seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        for name in ("gradient_accumulation_steps", "log_every", "eval_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One whole training run.

    Raises:
        ValueError: if the parts contradict each other; the message names the fields and values.
    """

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    pseudo_labels: PseudoLabelConfig
    run: RunConfig

    def __post_init__(self) -> None:
        schedule, optimizer = self.schedule, self.optimizer
        if optimizer.warmup_steps >= schedule.num_steps:
            raise ValueError(
                f"warmup_steps={optimizer.warmup_steps!r}: must be below num_steps={schedule.num_steps}, "
                "or the learning rate never reaches its value"
            )
        late = [step for step in optimizer.lr_drop_steps if step >= schedule.num_steps]
        if late:
            raise ValueError(f"lr_drop_steps={late!r}: must be below num_steps={schedule.num_steps}; leave them out")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the configuration as nested dicts of plain values, as `from_dict` takes it."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the configuration to a YAML file, in the order in which it is declared."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from nested dicts, such as a loaded YAML file; what is left out keeps its default.

        Raises:
            ValueError: if a part or field is unknown, missing though it has no default, of the wrong type or outside
                its range; the message names it.
        """
        sections = get_type_hints(cls)
        _check_names("the configuration", values, known=set(sections), required=set())
        parts = {}
        for name, section in sections.items():
            given = values.get(name) or {}
            required = {f.name for f in fields(section) if f.default is MISSING and f.default_factory is MISSING}
            _check_names(f"`{name}`", given, known={f.name for f in fields(section)}, required=required)
            parts[name] = section(**given)
        return cls(**parts)


def _require(config: object, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: must be {accepted}")


def _check_names(where: str, given: Any, *, known: set[str], required: set[str]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}: must be a mapping of names to values")
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise ValueError(f"{where} has unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    missing = sorted(required - set(given))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}, which has no default")


def _check_types(config: Any) -> None:
    """Refuse values of a wrong type, such as the text that YAML makes of 1e-4."""
    # HfArgumentParser narrows `field.type` in place (`str | None` becomes `str`); the annotations stay whole.
    for name, expected in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _has_type(value, expected):
            hint = ", in YAML with a point (1.0e-4)" if isinstance(value, str) and _has_type(1.0, expected) else ""
            raise ValueError(f"{name}={value!r}: must be {_type_name(expected)}{hint}")


def _has_type(value: Any, expected: Any) -> bool:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_has_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, int | float) if expected is float else isinstance(value, expected)


def _type_name(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is UnionType:
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is list:
        return f"a list of {_type_name(arguments[0])} values"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "none"}
    return names[expected]
