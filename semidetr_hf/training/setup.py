"""From a configuration to what the trainer takes: sources, detector, image processor, losses."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
import torch

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import Part, Source, open_source
from semidetr_hf.data.splits import labeled_subset
from semidetr_hf.data.voc import Categories, Corners
from semidetr_hf.model import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.ssod.class_thresholds import ClassThresholds
from semidetr_hf.ssod.objective import SemiDetrObjective
from semidetr_hf.ssod.one_to_many import Assigner, OneToManyAssigner, OneToManyCriterion
from semidetr_hf.ssod.one_to_many_variants import ATSSAssigner, MaxIoUAssigner, SimOTAAssigner
from semidetr_hf.ssod.query_consistency import QueryProjector
from semidetr_hf.ssod.rules import ConsistencyRules, PseudoLabelRules
from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.training.backbone_weights import load_backbone_weights
from semidetr_hf.training.config import DataConfig, MatchingConfig, ModelConfig, TrainingConfig
from semidetr_hf.training.saved_detectors import reading_quietly, require_whole

logger = logging.getLogger(__name__)

# Weights of a detector that are new where it gets another number of classes.
_DEPEND_ON_CLASSES = ("class_head.", "model.proposal_class_head.", "label_embedding.")


class Sources(NamedTuple):
    """The images of a run; `unlabeled` is None for supervised training, `val` for a run without evaluation."""

    labeled: CocoSource
    unlabeled: Source | None
    val: CocoSource | None


def open_sources(config: TrainingConfig) -> Sources:
    """Open the labeled, unlabeled and validation images of a run.

    With `label_fraction` the labeled set is divided: the drawn share keeps its boxes, the rest is unlabeled.
    With `val_fraction` a share of the images that keep their boxes becomes the validation set, and is not trained on.
    Validation images with XML files, or with plain names for classes, have the categories of the labeled ones,
    whichever of them occur.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ConnectionError: if a data set of the Hub cannot be had.
        ValueError: if the content of a file is wrong, or `label_fraction` and `unlabeled` are both given.
    """
    data = config.data
    if data.label_fraction is not None and data.unlabeled is not None:
        raise ValueError(
            f"label_fraction={data.label_fraction} already takes the unlabeled images from the labeled set; "
            f"leave out unlabeled={data.unlabeled!r}, or label_fraction"
        )
    labeled = _open_coco("train", data)
    unlabeled: Source | None = None
    if data.unlabeled is not None:
        with _opening("unlabeled"):
            unlabeled = open_source(data.unlabeled, data.unlabeled_images, labeled=False)
    elif data.label_fraction is not None:
        kept, lost = labeled_subset(labeled.image_ids, fraction=data.label_fraction, fold=data.fold)
        if not lost:
            raise ValueError(
                f"label_fraction={data.label_fraction}: leaves none of the {len(kept)} images of {data.labeled} "
                "unlabeled; leave it out, or give more images"
            )
        labeled, unlabeled = labeled.subset(kept), labeled.subset(lost)
    val = None
    if data.val is not None:
        # XML files list no categories, and those of the validation images may lack one that was labeled.
        categories = dict(zip(labeled.category_ids, labeled.category_names, strict=True))
        val = _open_coco("val", data, categories)
    elif data.val_fraction is not None:
        labeled, val = _hold_out(labeled, data.val_fraction, data.fold)
    return Sources(labeled=labeled, unlabeled=unlabeled, val=val)


def _hold_out(labeled: CocoSource, fraction: float, fold: int) -> tuple[CocoSource, CocoSource]:
    """Return what stays to train on, and the share to evaluate on."""
    held_out, kept = labeled_subset(labeled.image_ids, fraction=fraction, fold=fold)
    for purpose, image_ids in (("train", kept), ("evaluate", held_out)):
        if not image_ids or labeled.subset(image_ids).num_boxes == 0:
            raise ValueError(
                f"val_fraction={fraction}: of {len(labeled)} labeled images it leaves none with boxes to {purpose} "
                "on; give another share, another fold, or images of their own (val)"
            )
    return labeled.subset(kept), labeled.subset(held_out)


def _open_coco(part: Part, data: DataConfig, categories: Categories | None = None) -> CocoSource:
    field = "val" if part == "val" else "labeled"
    path, images = getattr(data, field), getattr(data, f"{field}_images")
    corners: Corners | None = None if data.voc_corners == "auto" else data.voc_corners
    with _opening(field):
        source = open_source(
            path, images, part=part, corners=corners, categories=categories, bbox_format=data.bbox_format
        )
    if not isinstance(source, CocoSource):
        raise ValueError(f"{field}={path!r}: must be images with boxes")
    return source


@contextmanager
def _opening(field: str) -> Iterator[None]:
    """Name the field of the run where a source names its own argument."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(str(error).replace("image_folder", f"{field}_images")) from error


def build_model(config: TrainingConfig, source: Source) -> SemiDetrForObjectDetection:
    """Build the detector of a run, with the categories of a source, and fill its backbone.

    Random weights follow the seed of the run, and are the same on every process.

    Args:
        config: `model` decides. With `init_from` everything but heads of another number of classes comes from there.
        source: the labeled images; names and original ids of its categories are stored in the model.

    Raises:
        FileNotFoundError: if a file of weights or `init_from` does not exist.
        ValueError: if there is no category, the backbone is unknown, its weights do not fit, or `init_from` holds no
            whole detector or contradicts another field.
        ConnectionError: if weights cannot be downloaded.
    """
    torch.manual_seed(config.run.seed)
    choice, matching = config.model, config.matching
    names = source.category_names
    if not names:
        raise ValueError(
            f"{source.name}: lists no category, so there is nothing to find; give it categories and boxes"
        )
    values: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "category_ids": list(source.category_ids),
        "bbox_loss_coefficient": matching.bbox_loss_coefficient,
        "class_agnostic_encoder_loss": matching.class_agnostic_encoder_loss,
        "class_loss_normalizer": matching.class_loss_normalizer,
        "denoise_empty_images": matching.denoise_empty_images,
        "matcher_eps": matching.matcher_eps,
    }
    if choice.init_from is not None:
        return _load_detector(choice, values)
    if choice.backbone is not None:
        values["backbone_config"] = _timm_backbone(choice.backbone)
    sizes = {"nano": SemiDetrConfig.nano, "small": SemiDetrConfig.small, "base": SemiDetrConfig.base}
    model = SemiDetrForObjectDetection(sizes[choice.size](**values))
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


def _load_detector(choice: ModelConfig, values: dict[str, Any]) -> SemiDetrForObjectDetection:
    if choice.backbone is not None:
        raise ValueError(
            f"backbone={choice.backbone!r} contradicts init_from={choice.init_from!r}; leave one of them out"
        )
    if choice.backbone_weights not in ("imagenet", "random"):
        raise ValueError(
            f"backbone_weights={choice.backbone_weights!r} would not be read: init_from={choice.init_from!r} "
            "brings its own; leave one of them out"
        )
    with reading_quietly("init_from", str(choice.init_from)):
        content, _ = SemiDetrConfig.get_config_dict(str(choice.init_from))
        kind = content.get("model_type") if isinstance(content, dict) else content
        if kind != SemiDetrConfig.model_type:
            raise ValueError(f"its config.json is of the model_type {kind!r}, not {SemiDetrConfig.model_type!r}")
        stored = SemiDetrConfig.from_pretrained(str(choice.init_from))
        if stored.label_embedding_rows is not None and stored.label_embedding_rows < len(values["id2label"]):
            # The table of a converted checkpoint has as many rows as its data set needed; a new one has enough.
            values["label_embedding_rows"] = None
        loaded: Any = SemiDetrForObjectDetection.from_pretrained(
            choice.init_from, **values, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
        model, report = loaded
        # transformers sets the fields given here one by one, unchecked; a label table may be too short for them.
        model.config.validate()
        fresh = require_whole(model, report, may_differ=_DEPEND_ON_CLASSES)
    logger.info(
        "detector of its own size loaded from %s; started anew: %s", choice.init_from, ", ".join(fresh) or "nothing"
    )
    return model


def build_schedule(config: TrainingConfig) -> StageSchedule:
    """Return the course of a run."""
    schedule, consistency = config.schedule, config.consistency
    return StageSchedule(
        burn_in_steps=schedule.burn_in_steps,
        one_to_many_steps=schedule.first_stage_steps,
        unsupervised_weight=schedule.unsupervised_weight,
        consistency_weight=consistency.consistency_weight,
        scales_consistency=consistency.scale_consistency,
        consistency_in_one_to_one=consistency.consistency_stages == "all",
        denoises_in_one_to_many=config.pseudo_labels.denoise_pseudo_labels == "always",
        max_ema_momentum=schedule.ema_momentum,
        ema_warmup=schedule.ema_warmup,
    )


def build_objective(
    config: TrainingConfig,
    student: SemiDetrForObjectDetection,
    *,
    has_unlabeled: bool,
    boxes_per_image: Sequence[float],
) -> SemiDetrObjective:
    """Return the losses of a run; without a consistency loss there is no projector.

    Random weights of the projector follow the seed of the run, and are the same on every process.

    Args:
        config: the run.
        student: the network that is trained.
        has_unlabeled: whether there will be unlabeled images, on which alone there is a consistency loss.
        boxes_per_image: (C,) expected of each class, for thresholds that follow it; see `smoothed_rates`.
    """
    torch.manual_seed(config.run.seed)
    if config.run.gradient_checkpointing:
        # transformers before 5.23 has it under the other name alone.
        enable = getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    rules = config.consistency
    projector = None
    if rules.consistency_weight > 0 and has_unlabeled:
        projector = QueryProjector(student.config.d_model, rules.projector_width).to(student.device)
    thresholds = None
    if config.pseudo_labels.class_thresholds == "adaptive" and has_unlabeled:
        share, lowest = config.pseudo_labels.class_share, config.pseudo_labels.lowest_threshold
        thresholds = ClassThresholds([share * rate for rate in boxes_per_image], lowest=lowest).to(student.device)
    return SemiDetrObjective(
        student,
        PseudoLabelRules(
            score_threshold=config.pseudo_labels.score_threshold,
            confident_source=config.pseudo_labels.confident_source,
            mean_std_filter=config.pseudo_labels.mean_std_filter,
            nms_iou=config.pseudo_labels.nms_iou,
            min_score=config.pseudo_labels.min_score,
            max_detections=config.pseudo_labels.max_detections,
            min_box_size=config.pseudo_labels.min_box_size,
            mixing=config.pseudo_labels.mixing,
        ),
        one_to_many=OneToManyCriterion(
            _build_assigner(config.matching), student.criterion, gamma=config.matching.task_aligned_gamma
        ),
        class_thresholds=thresholds,
        projector=projector,
        consistency=ConsistencyRules(
            candidate_filter=rules.candidate_filter,
            cost_threshold=rules.cost_threshold,
            top_k=rules.candidate_top_k,
            source=rules.consistency_source,
            copies=rules.consistency_copies,
            rows=rules.consistency_rows,
            unit_length=rules.consistency_unit_length,
        ),
    )


def _build_assigner(matching: MatchingConfig) -> Assigner:
    alpha, beta = matching.alignment_alpha, matching.alignment_beta
    match matching.one_to_many_assigner:
        case "alignment":
            return OneToManyAssigner(top_k=matching.one_to_many_top_k, alpha=alpha, beta=beta)
        case "max_iou":
            return MaxIoUAssigner(alpha=alpha, beta=beta)
        case "atss":
            return ATSSAssigner(alpha=alpha, beta=beta)
        case "sim_ota":
            return SimOTAAssigner(alpha=alpha, beta=beta)


def build_augment(config: TrainingConfig) -> AugmentConfig:
    """Return how the views of a run are made."""
    data = config.data
    return AugmentConfig(
        short_edges=tuple(data.short_edges),
        long_edge=data.long_edge,
        flip_probability=data.flip_probability,
        labeled_geometry=data.labeled_geometry,
    )


def build_image_processor(config: TrainingConfig) -> SemiDetrImageProcessor:
    """Return the image processor of a run: images as large as the largest training views."""
    data = config.data
    return SemiDetrImageProcessor(size={"shortest_edge": max(data.short_edges), "longest_edge": data.long_edge})
