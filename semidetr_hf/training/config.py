"""Everything that can be chosen about a training run, as frozen dataclasses that check themselves.

The defaults are those of the released code's COCO run (`detr_ssod_dino_detr_r50_coco_120k.py`, "120k config" below),
except where it is mended or contradicts the paper: `presets.py` has both values of each such field side by side.
Field names are unique over all parts, so that `transformers.HfArgumentParser` gives one flat flag per field.
"""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import yaml

from semidetr_hf.data.splits import open_whole
from semidetr_hf.training.config_checks import check_names, check_types, option, require
from semidetr_hf.training.recipe_config import RecipeConfig
from semidetr_hf.training.run_config import HealthConfig, RunConfig

MAX_EDGE = 2**14  # pixels; one picture of this size fills a large GPU


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images and boxes come from and how they are batched.

    Without `unlabeled` and without `label_fraction` a run is supervised and `unlabeled_batch_size` is not used.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    labeled: str = option(
        help="labeled images: COCO json, YOLO yaml, VOC image set (.txt) or folder with XML files, or a data set of "
        "the library datasets (folder, parquet, or OWNER/NAME on the Hub); data.yaml:test picks a part"
    )
    labeled_images: str | None = option(None, help="folder of the labeled images (default: found next to `labeled`)")
    unlabeled: str | None = option(
        None, help="folder of images, .txt list of images, .tar files, or as `labeled`; boxes are ignored"
    )
    unlabeled_images: str | None = option(None, help="folder of the unlabeled images, when `unlabeled` is a file")
    val: str | None = option(None, help="evaluate on these images with boxes, as `labeled`")
    val_images: str | None = option(None, help="folder of the evaluation images (default: found next to `val`)")
    val_fraction: float | None = option(
        None, help="without `val`: hold out this share of the labeled images to evaluate on; `fold` draws it"
    )
    voc_corners: Literal["auto", "exact", "written", "released"] = option(
        "auto", help="how VOC boxes become edges (default: exact in VOC folders, as written in other ones)"
    )  # released code: released
    bbox_format: Literal["xywh", "xyxy", "xywh_relative", "xyxy_relative", "cxcywh_relative"] = option(
        "xywh", help="boxes of a data set of the library datasets; relative = as shares of the image"
    )
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
    labeled_geometry: bool = option(
        False, help="turn, shear or shift labeled images as well as unlabeled ones; boxes that are turned become wider"
    )  # released code: false
    # Released code: always, in two groups, wider than high and not.
    group_by_aspect_ratio: bool = option(False, help="put images of similar shape into a batch, which pads them less")
    label_fraction: float | None = option(
        None, help="use only this share of the labeled images as labeled, the other ones as unlabeled"
    )
    fold: int = option(1, help="which of the reproducible draws of `label_fraction` to use, from 1")

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "labeled", self.labeled != "", "a path")
        require(self, "labeled_batch_size", self.labeled_batch_size >= 1, "at least 1")
        require(self, "unlabeled_batch_size", self.unlabeled_batch_size >= 1, "at least 1")
        require(self, "num_workers", self.num_workers >= 0, "at least 0")
        edges = self.short_edges
        require(self, "short_edges", bool(edges) and min(edges) >= 1, "one or more lengths of at least 1 pixel")
        require(self, "long_edge", self.long_edge >= max(edges), f"at least the largest short edge, {max(edges)}")
        require(self, "long_edge", self.long_edge <= MAX_EDGE, f"at most {MAX_EDGE} pixels")
        require(self, "flip_probability", 0 <= self.flip_probability <= 1, "from 0 to 1")
        fraction = self.label_fraction
        require(self, "label_fraction", fraction is None or 0 < fraction < 1, "between 0 and 1, or none for all")
        require(self, "fold", self.fold >= 1, "at least 1")
        if self.unlabeled_images is not None and self.unlabeled is None:
            raise ValueError(f"unlabeled_images={self.unlabeled_images!r} is of no use without `unlabeled`; give both")
        if self.val_images is not None and self.val is None:
            raise ValueError(f"val_images={self.val_images!r} is of no use without `val`; give both")
        share = self.val_fraction
        require(self, "val_fraction", share is None or 0 < share < 1, "between 0 and 1, or none")
        if share is not None and self.val is not None:
            raise ValueError(f"val_fraction={share} contradicts val={self.val!r}; leave one of them out")


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
        check_types(self)
        require(self, "backbone", self.backbone != "", "a timm model name")
        require(self, "backbone_weights", self.backbone_weights != "", "`imagenet`, `random` or a file")
        require(self, "init_from", self.init_from != "", "a folder")


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
        check_types(self)
        require(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0")
        require(self, "backbone_lr_factor", 0 <= self.backbone_lr_factor < math.inf, "at least 0")
        require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        require(self, "max_grad_norm", 0 < self.max_grad_norm < math.inf, "above 0")
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        drops = self.lr_drop_steps
        require(self, "lr_drop_steps", drops == sorted(set(drops)) and min(drops, default=1) >= 1, "rising, from 1")
        needs_drops = self.lr_schedule == "step"
        require(self, "lr_drop_steps", bool(drops) == needs_drops, "given for the `step` schedule, and only for it")
        require(self, "lr_drop_factor", 0 < self.lr_drop_factor <= 1, "above 0, at most 1")


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
    # Paper and 120k config: 60,000 of 120,000 steps.
    one_to_many_fraction: float = option(
        0.5, help="share of the steps in the first stage, which gives every box several predictions; 0 leaves it out"
    )
    one_to_many_steps: int | None = option(None, help="the same as a number of steps; takes precedence")
    ema_momentum: float = option(0.999, help="share of the old teacher in an update, at its highest")  # released code
    ema_warmup: int = option(0, help="larger values let the teacher follow the student longer")  # released code

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "num_steps", self.num_steps >= 1, "at least 1")
        require(
            self,
            "burn_in_steps",
            0 <= self.burn_in_steps < self.num_steps,
            f"from 0, below num_steps={self.num_steps}",
        )
        require(self, "unsupervised_weight", 0 <= self.unsupervised_weight < math.inf, "at least 0")
        require(self, "one_to_many_fraction", 0 <= self.one_to_many_fraction <= 1, "from 0 to 1")
        steps = self.one_to_many_steps
        require(
            self,
            "one_to_many_steps",
            steps is None or 0 <= steps <= self.num_steps,
            f"from 0 to num_steps={self.num_steps}, or none for one_to_many_fraction",
        )
        require(self, "ema_momentum", 0 <= self.ema_momentum < 1, "from 0, below 1")
        require(self, "ema_warmup", self.ema_warmup >= 0, "at least 0")

    @property
    def first_stage_steps(self) -> int:
        """Number of steps of the one-to-many stage."""
        if self.one_to_many_steps is not None:
            return self.one_to_many_steps
        return round(self.one_to_many_fraction * self.num_steps)


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """How predictions are given to boxes and compared with them; what inference does not need to know.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    one_to_many_assigner: Literal["alignment", "max_iou", "atss", "sim_ota"] = option(
        "alignment",
        help="rule of the first stage; `alignment` is the paper's, the other ones are those of its ablation",
    )
    one_to_many_top_k: int = option(13, help="predictions per box that `alignment` takes")  # paper; released code
    alignment_alpha: float = option(1.0, help="exponent of the score in the alignment")  # paper; released code
    alignment_beta: float = option(6.0, help="exponent of the IoU in the alignment")  # paper; released code
    task_aligned_gamma: float = option(2.0, help="exponent of the class loss of the first stage")  # paper
    bbox_loss_coefficient: float = option(5.0, help="weight of the L1 loss of boxes")  # released code: 5, added twice
    class_agnostic_encoder_loss: bool = option(
        False, help="encoder proposals learn objects instead of classes"
    )  # released code: true
    class_loss_normalizer: Literal["global", "process"] = option(
        "global", help="divide the class loss by the boxes of all processes or of each"
    )  # released code: process
    matcher_eps: float = option(1e-8, help="added inside the logarithms of the matching cost")  # released code: 1e-12
    denoise_empty_images: bool = option(
        True, help="denoising queries of images without boxes count as background"
    )  # released code: false

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "one_to_many_top_k", self.one_to_many_top_k >= 1, "at least 1")
        require(self, "alignment_alpha", 0 <= self.alignment_alpha < math.inf, "at least 0")
        require(self, "alignment_beta", 0 < self.alignment_beta < math.inf, "above 0")
        require(self, "task_aligned_gamma", 0 <= self.task_aligned_gamma < math.inf, "at least 0")
        require(self, "matcher_eps", 0 < self.matcher_eps < math.inf, "above 0")
        require(self, "bbox_loss_coefficient", 0 <= self.bbox_loss_coefficient < math.inf, "at least 0")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Which detections of the teacher become pseudo-labels.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    score_threshold: float = option(0.4, help="smallest score of a pseudo-label")  # paper, tau_s; 120k config
    # LabelMatch (arXiv 2206.06608); neither paper nor released code.
    class_thresholds: Literal["fixed", "adaptive"] = option(
        "fixed", help="`adaptive` gives every class the threshold at which it is as frequent as in the labeled images"
    )
    class_share: float = option(1.0, help="of that frequency, for adaptive thresholds")
    lowest_threshold: float = option(0.05, help="no adaptive threshold is below this")
    # MixPL (arXiv 2312.07006); neither paper nor released code.
    mixing: Literal["none", "mixup", "mosaic", "both"] = option(
        "none", help="also train on unlabeled images laid over one another in pairs, or four in one"
    )
    # Released code: "candidates", which loses both of two detections of an image, however sure they are.
    confident_source: Literal["detections", "candidates"] = option(
        "detections", help="take pseudo-labels of all detections, or of those that passed the mean + deviation filter"
    )
    # Neither paper nor released code denoise pseudo-labels in the first stage.
    denoise_pseudo_labels: Literal["one_to_one", "always"] = option(
        "one_to_one", help="stages in which denoising queries are made of pseudo-labels"
    )
    # Released code: keep the detections above the mean plus the standard deviation of the image's scores.
    mean_std_filter: bool = option(True, help="also ask for a score above mean + standard deviation of the image")
    nms_iou: float = option(0.6, help="boxes of a class that overlap more than this are duplicates")  # released code
    min_score: float = option(
        0.01, help="smallest score of a detection before duplicates are removed"
    )  # released code
    max_detections: int = option(300, help="most detections of one image")  # released code
    min_box_size: float | None = option(
        1.0, help="smallest width and height of a pseudo-label in the strong view, in pixels; none keeps all"
    )  # released code: none

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "score_threshold", 0 <= self.score_threshold <= 1, "from 0 to 1")
        require(self, "class_share", 0 < self.class_share < math.inf, "above 0")
        require(self, "lowest_threshold", 0 <= self.lowest_threshold <= 0.9, "from 0 to 0.9")
        require(self, "nms_iou", 0 <= self.nms_iou <= 1, "from 0 to 1")
        require(self, "min_score", 0 <= self.min_score <= 1, "from 0 to 1")
        require(self, "max_detections", self.max_detections >= 1, "at least 1")
        size = self.min_box_size
        require(self, "min_box_size", size is None or 0 <= size < math.inf, "at least 0, or none")


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Cross-view query consistency, and the mining of candidates for it.

    Raises:
        ValueError: if a value has the wrong type or lies outside its range; the message names field, value and range.
    """

    consistency_weight: float = option(
        1.0, help="weight of the consistency loss of every decoder layer; 0 leaves it out"
    )  # paper, w_c; released code: 10
    scale_consistency: bool = option(False, help="multiply that weight by unsupervised_weight")  # released code: true
    consistency_stages: Literal["all", "one_to_many"] = option(
        "all", help="stages with a consistency loss"
    )  # released code: one_to_many
    consistency_source: Literal["exchanged", "teacher"] = option(
        "exchanged", help="content of the queries: from both views and exchanged, or the teacher's for both"
    )  # released code: teacher
    consistency_copies: int = option(1, help="equal copies of every query")  # released code: 5
    consistency_rows: Literal["real", "all"] = option(
        "real", help="the loss is a mean over real boxes, or over dummies too"
    )  # released code: all
    consistency_unit_length: bool = option(
        False, help="compare decoder states scaled to length 1, whose errors are d_model times smaller"
    )  # released code: true
    candidate_filter: Literal["cost", "none", "top_k", "mean_std"] = option(
        "cost", help="which candidates below score_threshold become consistency queries; `cost` is the paper's"
    )
    candidate_top_k: int = option(10, help="candidates of each image for the filter `top_k`")
    cost_threshold: Literal["mean", "densest"] = option(
        "mean", help="candidates are kept up to the mean, or the densest sample, of the cheap component of the costs"
    )  # released code: densest
    projector_width: int = option(1024, help="hidden width of the projector of the queries")  # released code

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "consistency_weight", 0 <= self.consistency_weight < math.inf, "at least 0")
        for name in ("consistency_copies", "candidate_top_k", "projector_width"):
            require(self, name, getattr(self, name) >= 1, "at least 1")


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
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
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
        """Write the configuration to a YAML file, in the order in which it is declared.

        Raises:
            OSError: if it cannot be written; names the file. One that stood there stays as it was.
        """
        with open_whole(path) as file:
            yaml.safe_dump(self.to_dict(), file, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from nested dicts, such as a loaded YAML file; what is left out keeps its default.

        Raises:
            ValueError: if a part or field is unknown, missing though it has no default, of the wrong type or outside
                its range; the message names it.
        """
        sections = get_type_hints(cls)
        check_names("the configuration", values, known=set(sections), required=set())
        parts = {}
        for name, section in sections.items():
            given = {} if values.get(name) is None else values[name]
            required = {f.name for f in fields(section) if f.default is MISSING and f.default_factory is MISSING}
            check_names(f"`{name}`", given, known={f.name for f in fields(section)}, required=required)
            parts[name] = section(**given)
        return cls(**parts)
