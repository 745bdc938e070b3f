import dataclasses
import typing

import pytest
import yaml
from transformers import HfArgumentParser

from semidetr_hf.training.config import (
    ConsistencyConfig,
    DataConfig,
    HealthConfig,
    MatchingConfig,
    ModelConfig,
    OptimizerConfig,
    PseudoLabelConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from semidetr_hf.training.recipe_config import RecipeConfig

PARTS: dict[str, typing.Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "matching": MatchingConfig,
    "pseudo_labels": PseudoLabelConfig,
    "consistency": ConsistencyConfig,
    "health": HealthConfig,
    "recipe": RecipeConfig,
    "run": RunConfig,
}


def smallest(**sections: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Return the least that `from_dict` takes, with the given sections on top."""
    values: dict[str, typing.Any] = {"data": {"labeled": "train.json"}, "run": {"output_dir": "out"}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def parse(arguments: list[str]) -> TrainingConfig:
    parsed = HfArgumentParser(list(PARTS.values())).parse_args_into_dataclasses(arguments)
    return TrainingConfig(**dict(zip(PARTS, parsed, strict=True)))


def test_defaults_of_data_optimizer_and_schedule_are_those_of_the_released_code() -> None:
    config = TrainingConfig.from_dict(smallest())
    # detr_ssod_dino_detr_r50_coco_120k.py and its base configs.
    assert (config.data.labeled_batch_size, config.data.unlabeled_batch_size) == (1, 4)
    assert config.data.short_edges == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    assert (config.optimizer.learning_rate, config.optimizer.backbone_lr_factor) == (1e-4, 0.1)
    assert (config.schedule.num_steps, config.schedule.unsupervised_weight) == (120_000, 4.0)
    assert (config.pseudo_labels.score_threshold, config.pseudo_labels.nms_iou) == (0.4, 0.6)


def test_field_names_are_unique_and_every_field_has_a_help_text() -> None:
    fields = [field for part in PARTS.values() for field in dataclasses.fields(part)]
    names = [field.name for field in fields]
    assert sorted(set(names)) == sorted(names)
    # "%" in a help text breaks argparse's --help.
    assert [field.name for field in fields if "%" in field.metadata.get("help", "%")] == []
    HfArgumentParser(list(PARTS.values())).format_help()


def test_flags_reach_their_part() -> None:
    config = parse(
        "--labeled a.json --unlabeled pool --output_dir out --short_edges 96 128 --long_edge 128 --num_steps 10 "
        "--no_mean_std_filter --trackers tensorboard --lr_schedule step --lr_drop_steps 5 8 "
        "--label_fraction 0.1 --cpu --one_to_many_steps 4 --evaluated_networks teacher --scale_consistency "
        "--no_denoise_empty_images --candidate_filter top_k --instruments".split()
    )
    assert config.data.short_edges == [96, 128]
    assert config.data.label_fraction == 0.1
    assert config.pseudo_labels.mean_std_filter is False
    assert config.optimizer.lr_drop_steps == [5, 8]
    assert config.run.trackers == ["tensorboard"]
    assert config.run.cpu is True
    assert (config.run.evaluated_networks, config.run.instruments) == (["teacher"], True)
    assert config.schedule.first_stage_steps == 4
    assert (config.consistency.scale_consistency, config.consistency.candidate_filter) == (True, "top_k")
    assert config.matching.denoise_empty_images is False


def test_flags_and_dict_give_the_same_configuration() -> None:
    assert parse(["--labeled", "train.json", "--output_dir", "out"]) == TrainingConfig.from_dict(smallest())


def test_saved_file_gives_back_the_configuration(tmp_path) -> None:
    config = TrainingConfig.from_dict(
        smallest(data={"unlabeled": "bilder/größe"}, optimizer={"learning_rate": 1e-5, "weight_decay": 0.0})
    )
    config.save(tmp_path / "config.yaml")
    loaded = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert TrainingConfig.from_dict(loaded) == config
    assert list(loaded) == list(PARTS)


def test_instances_share_no_list() -> None:
    first, second = OptimizerConfig(), OptimizerConfig()
    first.lr_drop_steps.append(3)
    assert second.lr_drop_steps == []


@pytest.mark.parametrize(
    ("section", "field", "value", "accepted"),
    [
        ("data", "labeled", "", "a path"),
        ("data", "labeled_batch_size", 0, "at least 1"),
        ("data", "unlabeled_batch_size", 0, "at least 1"),
        ("data", "num_workers", -1, "at least 0"),
        ("data", "short_edges", [], "one or more"),
        ("data", "short_edges", [0], "at least 1 pixel"),
        ("data", "long_edge", 799, "800"),
        ("data", "flip_probability", 1.5, "from 0 to 1"),
        ("data", "label_fraction", 1.0, "between 0 and 1"),
        ("data", "label_fraction", 0.0, "between 0 and 1"),
        ("data", "fold", 0, "at least 1"),
        ("data", "voc_corners", "inclusive", "one of auto, exact, written, released"),
        ("data", "unlabeled_images", "pool", "give both"),
        ("data", "val_images", "val", "give both"),
        ("model", "size", "huge", "nano, small, base"),
        ("model", "backbone", "", "timm"),
        ("model", "backbone_weights", "", "imagenet"),
        ("model", "init_from", "", "a folder"),
        ("optimizer", "learning_rate", 0.0, "above 0"),
        ("optimizer", "learning_rate", float("nan"), "above 0"),
        ("optimizer", "learning_rate", float("inf"), "above 0"),
        ("optimizer", "backbone_lr_factor", -0.1, "at least 0"),
        ("optimizer", "weight_decay", -1.0, "at least 0"),
        ("optimizer", "max_grad_norm", 0.0, "above 0"),
        ("optimizer", "warmup_steps", -1, "at least 0"),
        ("optimizer", "lr_drop_steps", [8, 5], "rising"),
        ("optimizer", "lr_drop_steps", [5], "only for it"),
        ("optimizer", "lr_drop_factor", 0.0, "above 0"),
        ("optimizer", "lr_schedule", "linear", "constant, step, cosine"),
        ("schedule", "num_steps", 0, "at least 1"),
        ("schedule", "burn_in_steps", 120_000, "below num_steps=120000"),
        ("schedule", "unsupervised_weight", -1.0, "at least 0"),
        ("schedule", "unsupervised_weight", float("nan"), "at least 0"),
        ("schedule", "one_to_many_fraction", -0.1, "from 0 to 1"),
        ("schedule", "one_to_many_fraction", 1.1, "from 0 to 1"),
        ("schedule", "one_to_many_steps", -1, "from 0 to num_steps=120000"),
        ("schedule", "one_to_many_steps", 120_001, "from 0 to num_steps=120000"),
        ("schedule", "one_to_many_steps", 0.5, "a whole number or none"),
        ("schedule", "ema_momentum", 1.0, "below 1"),
        ("schedule", "ema_warmup", -1, "at least 0"),
        ("matching", "one_to_many_assigner", "hungarian", "one of alignment, max_iou, atss, sim_ota"),
        ("matching", "one_to_many_top_k", 0, "at least 1"),
        ("matching", "alignment_alpha", -1.0, "at least 0"),
        ("matching", "alignment_beta", 0.0, "above 0"),
        ("matching", "alignment_beta", float("inf"), "above 0"),
        ("matching", "task_aligned_gamma", -0.5, "at least 0"),
        ("matching", "bbox_loss_coefficient", -5.0, "at least 0"),
        ("matching", "bbox_loss_coefficient", float("nan"), "at least 0"),
        ("matching", "matcher_eps", 0.0, "above 0"),
        ("matching", "class_agnostic_encoder_loss", "yes", "true or false"),
        ("matching", "class_loss_normalizer", "mean", "one of global, process"),
        ("matching", "denoise_empty_images", 1, "true or false"),
        ("pseudo_labels", "confident_source", "all", "one of detections, candidates"),
        ("pseudo_labels", "denoise_pseudo_labels", "never", "one of one_to_one, always"),
        ("pseudo_labels", "min_box_size", float("inf"), "at least 0, or none"),
        ("pseudo_labels", "score_threshold", 1.1, "from 0 to 1"),
        ("pseudo_labels", "nms_iou", -0.1, "from 0 to 1"),
        ("pseudo_labels", "min_score", 2.0, "from 0 to 1"),
        ("pseudo_labels", "max_detections", 0, "at least 1"),
        ("pseudo_labels", "min_box_size", -1.0, "at least 0"),
        ("consistency", "consistency_weight", -1.0, "at least 0"),
        ("consistency", "consistency_weight", float("inf"), "at least 0"),
        ("consistency", "scale_consistency", 4.0, "true or false"),
        ("consistency", "consistency_stages", "one_to_one", "one of all, one_to_many"),
        ("consistency", "consistency_source", "student", "one of exchanged, teacher"),
        ("consistency", "consistency_copies", 0, "at least 1"),
        ("consistency", "consistency_rows", "some", "one of real, all"),
        ("consistency", "consistency_unit_length", None, "true or false"),
        ("consistency", "candidate_filter", "score", "one of cost, none, top_k, mean_std"),
        ("consistency", "candidate_top_k", 0, "at least 1"),
        ("consistency", "cost_threshold", 0.3, "one of mean, densest"),
        ("consistency", "projector_width", 0, "at least 1"),
        ("run", "evaluated_networks", [], "one or both of student, teacher"),
        ("run", "evaluated_networks", ["teacher", "teacher"], "one or both of student, teacher"),
        ("run", "evaluated_networks", ["ema"], "one or both of student, teacher"),
        ("run", "evaluated_networks", "teacher", "a list of text values"),
        ("run", "instruments", "all", "true or false"),
        ("run", "eval_every", 0, "at least 1"),
        ("run", "output_dir", "", "a folder"),
        ("run", "seed", -1, "from 0"),
        ("run", "mixed_precision", "fp8", "no, bf16, fp16"),
        ("run", "log_every", 0, "at least 1"),
        ("run", "gradient_accumulation_steps", 0, "at least 1"),
        # Wrong types, as a YAML file may bring them.
        ("optimizer", "learning_rate", "1e-4", "1.0e-4"),
        ("optimizer", "learning_rate", True, "a number"),
        ("data", "num_workers", 2.0, "a whole number"),
        ("data", "val", 7, "text or none"),
        ("data", "short_edges", 480, "a list of a whole number"),
        ("data", "short_edges", [480.5], "a list of a whole number"),
        ("run", "cpu", 1, "true or false"),
    ],
)
def test_refuses_a_bad_value_by_name(section: str, field: str, value: object, accepted: str) -> None:
    with pytest.raises(ValueError) as caught:
        TrainingConfig.from_dict(smallest(**{section: {field: value}}))
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r}") or f"{field}=" in message
    assert accepted in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({}, 60_000),
        # 0.3 x 5 = 1.5 steps are rounded to the even number.
        ({"num_steps": 5, "one_to_many_fraction": 0.3}, 2),
        ({"num_steps": 10, "one_to_many_fraction": 0.0}, 0),
        ({"num_steps": 10, "one_to_many_fraction": 1.0}, 10),
        # A number of steps, 0 too, takes precedence.
        ({"num_steps": 10, "one_to_many_fraction": 1.0, "one_to_many_steps": 3}, 3),
        ({"num_steps": 10, "one_to_many_fraction": 1.0, "one_to_many_steps": 0}, 0),
    ],
)
def test_steps_of_the_first_stage(schedule: dict[str, typing.Any], steps: int) -> None:
    assert ScheduleConfig(**schedule).first_stage_steps == steps


def test_the_parser_does_not_weaken_the_type_checks() -> None:
    # HfArgumentParser rewrites `str | None` to `str` in the dataclass fields themselves.
    parse(["--labeled", "train.json", "--output_dir", "out"])
    assert DataConfig(labeled="a.json", val=None).val is None
    with pytest.raises(ValueError, match="text or none"):
        DataConfig(labeled="a.json", val=7)  # type: ignore[arg-type]


def test_whole_numbers_are_numbers() -> None:
    assert ScheduleConfig(unsupervised_weight=2).unsupervised_weight == 2


def test_parts_must_agree() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps=100: must be below num_steps=100"):
        TrainingConfig.from_dict(smallest(schedule={"num_steps": 100}, optimizer={"warmup_steps": 100}))
    step = {"lr_schedule": "step", "lr_drop_steps": [50, 100, 160]}
    with pytest.raises(ValueError, match=r"lr_drop_steps=\[100, 160\]"):
        TrainingConfig.from_dict(smallest(schedule={"num_steps": 100}, optimizer=step))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"labeled": "a.json"}}, "`run` lacks output_dir"),
        (smallest(run={"sed": 1}), "`run` has unknown sed (is seed meant?); known are cpu"),
        ({**smallest(), "optimiser": {}}, "unknown optimiser (is optimizer meant?); known are consistency, data"),
        ({**smallest(), "model": "base"}, "`model` is 'base': must be a mapping"),
        ("text", "the configuration is 'text': must be a mapping"),
    ],
)
def test_from_dict_names_what_it_does_not_know(values: typing.Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TrainingConfig.from_dict(values)
    assert message in str(caught.value)


def test_an_empty_section_is_all_defaults() -> None:
    # A YAML key without a value is loaded as None.
    assert TrainingConfig.from_dict({**smallest(), "model": None}) == TrainingConfig.from_dict(smallest())


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ScheduleConfig().num_steps = 5  # type: ignore[misc]
