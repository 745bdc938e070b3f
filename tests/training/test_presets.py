"""The presets against the table of settings: both readings of the method, and the three runs of the paper."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from semidetr_hf import SemiDetrConfig
from semidetr_hf.structures import Stage
from semidetr_hf.training.batch_scaling import scale_with_batch
from semidetr_hf.training.command_line import parse_config
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.presets import (
    DIFFERENCES,
    Method,
    coco_full,
    coco_partial,
    main,
    method,
    own_data,
    voc,
)
from semidetr_hf.training.presets import SETTINGS as SETTINGS_OF_OWN_DATA
from semidetr_hf.training.setup import build_schedule

# What the table lists: (what, section, field, paper, reference).
TABLE: list[tuple[str, str, str, Any, Any]] = [
    ("corners of VOC boxes", "data", "voc_corners", "auto", "released"),
    ("L1 coefficient, 5 added twice in the released code", "matching", "bbox_loss_coefficient", 5.0, 10.0),
    ("labels of the encoder loss", "matching", "class_agnostic_encoder_loss", False, True),
    ("normalizer of the class loss", "matching", "class_loss_normalizer", "global", "process"),
    ("content of consistency queries", "consistency", "consistency_source", "exchanged", "teacher"),
    ("coefficient of the consistency loss", "consistency", "consistency_weight", 1.0, 10.0),
    ("... times the weight of unlabeled images", "consistency", "scale_consistency", False, True),
    ("when there is a consistency loss", "consistency", "consistency_stages", "all", "one_to_many"),
    ("copies of consistency queries", "consistency", "consistency_copies", 1, 5),
    ("rows of the consistency loss", "consistency", "consistency_rows", "real", "all"),
    ("rule of the cost threshold", "consistency", "cost_threshold", "mean", "densest"),
    ("what confident pseudo-labels are taken from", "pseudo_labels", "confident_source", "detections", "candidates"),
    ("boxes without area in the strong view", "pseudo_labels", "min_box_size", 1.0, None),
    ("networks that are evaluated", "run", "evaluated_networks", ["student", "teacher"], ["teacher"]),
]
# Not in the table: what empty images and the length of decoder states count for, a term inside logarithms, and which
# images share a batch.
FURTHER = {
    ("data", "group_by_aspect_ratio"),
    ("matching", "denoise_empty_images"),
    ("matching", "matcher_eps"),
    ("consistency", "consistency_unit_length"),
}
METHODS: tuple[Method, ...] = ("paper", "reference")

PRESETS: dict[str, Callable[..., TrainingConfig]] = {
    "coco_partial": lambda **kw: coco_partial(10, 1, coco="coco", output_dir="out", **kw),
    "coco_full": lambda **kw: coco_full(coco="coco", output_dir="out", **kw),
    "voc": lambda **kw: voc(voc2007="VOC2007", voc2012="VOC2012", output_dir="out", **kw),
}
# preset -> steps, steps of the first stage (paper, reference), score threshold, weight of the unlabeled images
SETTINGS = {
    "coco_partial": (120_000, (60_000, 60_000), 0.4, 4.0),
    "coco_full": (240_000, (180_000, 120_000), 0.4, 2.0),
    "voc": (80_000, (40_000, 40_000), 0.4, 4.0),
}


# ---- The two readings


@pytest.mark.parametrize(("section", "field", "values"), [(s, f, (p, r)) for _, s, f, p, r in TABLE])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_of_the_table_in_every_preset(preset: str, section: str, field: str, values: tuple) -> None:
    configs = [PRESETS[preset](follow=follow) for follow in METHODS]
    assert tuple(getattr(getattr(config, section), field) for config in configs) == values


def test_the_table_and_four_further_fields_are_all_differences() -> None:
    listed = {(section, field) for _, section, field, _, _ in TABLE} | FURTHER
    assert {(section, field) for section, part in DIFFERENCES.items() for field in part} == listed
    assert all(paper != reference for part in DIFFERENCES.values() for paper, reference in part.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_else_differs_but_the_first_stage_of_coco_full(preset: str) -> None:
    paper, reference = (PRESETS[preset](follow=follow).to_dict() for follow in METHODS)
    differing = {
        (section, field)
        for section in paper
        for field in paper[section]
        if paper[section][field] != reference[section][field]
    }
    expected = {(section, field) for section, part in DIFFERENCES.items() for field in part}
    assert differing == expected | ({("schedule", "one_to_many_steps")} if preset == "coco_full" else set())


def test_every_default_is_that_of_the_paper() -> None:
    config = TrainingConfig.from_dict({"data": {"labeled": "a.json"}, "run": {"output_dir": "out"}})
    for section, part in method("paper").items():
        for field, value in part.items():
            assert getattr(getattr(config, section), field) == value, field
    # The sections about the method are wholly those of the presets; only data, optimizer, schedule and folder differ.
    preset = PRESETS["coco_partial"]()
    assert (config.matching, config.pseudo_labels, config.consistency, config.model) == (
        preset.matching,
        preset.pseudo_labels,
        preset.consistency,
        preset.model,
    )


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="method='official': must be paper or reference"):
        method("official")  # type: ignore[arg-type]


def test_changing_what_method_returned_changes_no_preset() -> None:
    method("paper")["consistency"]["consistency_weight"] = 7.0
    method("paper")["run"]["evaluated_networks"].append("third")
    assert method("paper")["consistency"]["consistency_weight"] == 1.0
    assert method("paper")["run"]["evaluated_networks"] == ["student", "teacher"]


@pytest.mark.parametrize(
    ("follow", "stage", "expected"),
    [
        # 1, not times 4, in all steps; and 10 x 4 in the first stage alone.
        ("paper", Stage.ONE_TO_MANY, (4.0, 1.0, False)),
        ("paper", Stage.ONE_TO_ONE, (4.0, 1.0, True)),
        ("reference", Stage.ONE_TO_MANY, (4.0, 40.0, False)),
        ("reference", Stage.ONE_TO_ONE, (4.0, 0.0, True)),
    ],
)
def test_weights_of_the_losses(follow: Method, stage: Stage, expected: tuple[float, float, bool]) -> None:
    weights = build_schedule(PRESETS["coco_partial"](follow=follow)).loss_weights(stage)
    assert (weights.pseudo, weights.consistency, weights.denoises_pseudo_labels) == expected


# ---- The runs


@pytest.mark.parametrize("column", [0, 1], ids=METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_stage_threshold_and_weight_of_every_run(preset: str, column: int) -> None:
    num_steps, first, threshold, weight = SETTINGS[preset]
    config = PRESETS[preset](follow=METHODS[column])
    assert (config.schedule.num_steps, config.schedule.first_stage_steps) == (num_steps, first[column])
    assert (config.pseudo_labels.score_threshold, config.schedule.unsupervised_weight) == (threshold, weight)
    assert config.schedule.burn_in_steps == 0
    schedule = build_schedule(config)
    assert schedule.stage_at(first[column] - 1) is Stage.ONE_TO_MANY
    assert schedule.stage_at(first[column]) is Stage.ONE_TO_ONE


@pytest.mark.parametrize("follow", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_constants_that_all_runs_share(preset: str, follow: Method) -> None:
    config = PRESETS[preset](follow=follow)
    matching, labels, optimizer = config.matching, config.pseudo_labels, config.optimizer
    assert (matching.one_to_many_assigner, matching.one_to_many_top_k) == ("alignment", 13)
    assert (matching.alignment_alpha, matching.alignment_beta, matching.task_aligned_gamma) == (1.0, 6.0, 2.0)
    assert (labels.nms_iou, labels.min_score, labels.max_detections, labels.mean_std_filter) == (0.6, 0.01, 300, True)
    assert (config.schedule.ema_momentum, config.schedule.ema_warmup) == (0.999, 0)
    assert config.consistency.candidate_filter == "cost"
    assert (optimizer.learning_rate, optimizer.backbone_lr_factor, optimizer.weight_decay) == (1e-4, 0.1, 1e-4)
    assert (optimizer.max_grad_norm, optimizer.warmup_steps) == (0.1, 0)
    assert (config.model.size, config.run.mixed_precision, config.run.gradient_accumulation_steps) == ("base", "no", 1)
    if preset == "coco_full":
        assert (optimizer.lr_schedule, optimizer.lr_drop_steps, optimizer.lr_drop_factor) == (
            "step",
            [120_000, 160_000],
            0.1,
        )
    else:
        assert (optimizer.lr_schedule, optimizer.lr_drop_steps) == ("constant", [])


def test_constants_of_the_detector() -> None:
    config = SemiDetrConfig.base()
    assert (config.num_queries, config.encoder_layers, config.decoder_layers) == (900, 6, 6)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.encoder_attention_heads) == (2048, 2048, 8)
    assert (config.encoder_n_points, config.decoder_n_points, config.num_feature_levels) == (4, 4, 4)
    assert (config.focal_alpha, config.focal_gamma) == (0.25, 2.0)
    assert (config.num_denoising_queries, config.denoising_box_noise) == (100, 0.4)
    assert (config.class_loss_coefficient, config.giou_loss_coefficient) == (2.0, 2.0)


def test_data_of_the_runs() -> None:
    partial, full, pascal = (PRESETS[name]().data for name in ("coco_partial", "coco_full", "voc"))
    train = Path("coco", "annotations", "instances_train2017.json")
    assert (Path(partial.labeled), partial.unlabeled, partial.label_fraction, partial.fold) == (train, None, 0.1, 1)
    assert (Path(full.labeled), full.unlabeled, full.label_fraction) == (
        train,
        str(Path("coco", "unlabeled2017")),
        None,
    )
    assert (Path(pascal.labeled), Path(str(pascal.unlabeled)), Path(str(pascal.val))) == (
        Path("VOC2007", "ImageSets", "Main", "trainval.txt"),
        Path("VOC2012", "ImageSets", "Main", "trainval.txt"),
        Path("VOC2007", "ImageSets", "Main", "test.txt"),
    )
    # 5 images per process: 1 + 4; all of COCO 4 + 4.
    batches = [(data.labeled_batch_size, data.unlabeled_batch_size) for data in (partial, full, pascal)]
    assert batches == [(1, 4), (4, 4), (1, 4)]


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_fraction=1\.0: must be between 0 and 1"):
        coco_partial(100, 1, coco="coco", output_dir="out")


# ---- As a program, and under the flags of a run


@pytest.mark.parametrize("follow", METHODS)
@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("coco_partial", "--percent 10 --fold 1 --coco coco"),
        ("coco_full", "--coco coco"),
        ("voc", "--voc2007 VOC2007 --voc2012 VOC2012"),
    ],
)
def test_a_written_preset_is_read_back(tmp_path: Path, preset: str, flags: str, follow: Method) -> None:
    path = tmp_path / "run.yaml"
    arguments = [preset, *flags.split(), "--output_dir", "out", "--method", follow, "--save", str(path)]
    assert main(arguments) == 0
    assert parse_config(["--config", str(path)]) == PRESETS[preset](follow=follow)


def test_the_program_of_the_docstring(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semidetr_hf.training.presets", "coco_partial", "--percent", "10", "--fold", "1"]
    command += ["--coco", "coco", "--output_dir", "out", "--save", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert parse_config(["--config", str(tmp_path / "run.yaml")]) == PRESETS["coco_partial"]()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ("coco_partial --percent 100 --fold 1 --coco c --output_dir o --save {folder}/run.yaml", "label_fraction=1.0"),
        ("coco_partial --percent 10 --fold 0 --coco c --output_dir o --save {folder}/run.yaml", "fold=0"),
        ("coco_full --coco c --output_dir o --save /dev/null/run.yaml", "/dev/null/run.yaml: cannot be written"),
        ("coco_full --coco c --output_dir o --method official --save {folder}/run.yaml", "official"),
        ("coco_half --coco c", "coco_half"),
        ("voc --voc2007 v --output_dir o --save {folder}/run.yaml", "--voc2012"),
    ],
)
def test_a_wrong_argument_is_status_two(tmp_path: Path, capsys, arguments: str, culprit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.format(folder=tmp_path).split())
    assert ended.value.code == 2
    assert culprit in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_method_is_below_the_file_and_the_flags(tmp_path: Path, caplog) -> None:
    (tmp_path / "run.yaml").write_text("consistency: {consistency_copies: 3}\nmatching:\n")
    flags = ["--labeled", "a.json", "--output_dir", "out", "--config", str(tmp_path / "run.yaml")]
    config = parse_config([*flags, "--method", "reference", "--consistency_weight", "2"])
    reference = method("reference")
    assert config.consistency.consistency_copies == 3
    assert config.consistency.consistency_weight == 2.0
    # An empty section in the file is one without fields.
    assert config.matching.bbox_loss_coefficient == 10.0
    for section, part in reference.items():
        for field in set(part) - {"consistency_copies", "consistency_weight"}:
            assert getattr(getattr(config, section), field) == part[field]
    assert "--method reference: --config decides otherwise on consistency_copies" in caplog.text


def test_a_file_with_all_fields_leaves_nothing_to_the_method_and_that_is_said(tmp_path: Path, caplog) -> None:
    paper = PRESETS["voc"]()
    paper.save(tmp_path / "run.yaml")
    assert parse_config(["--config", str(tmp_path / "run.yaml"), "--method", "paper"]) == paper
    assert caplog.text == ""
    assert parse_config(["--config", str(tmp_path / "run.yaml"), "--method", "reference"]) == paper
    for part in DIFFERENCES.values():
        assert all(field in caplog.text for field in part)


def test_without_a_method_it_is_the_paper_and_every_difference_is_a_field() -> None:
    flags = ["--labeled", "a.json", "--output_dir", "out"]
    assert parse_config(flags) == parse_config([*flags, "--method", "paper"])
    sections = get_type_hints(TrainingConfig)
    for section, part in DIFFERENCES.items():
        assert set(part) <= {field.name for field in fields(sections[section])}


# ---- Settings for one's own images


@pytest.mark.parametrize("name", SETTINGS_OF_OWN_DATA)
def test_settings_for_own_images_as_a_program_and_as_a_flag_are_the_same(tmp_path: Path, name: str) -> None:
    images = ["--labeled", "a.json", "--unlabeled", "photos", "--val", "val.json", "--output_dir", "out"]
    assert main([name, *images, "--save", str(tmp_path / "run.yaml")]) == 0
    config = parse_config(["--config", str(tmp_path / "run.yaml")])
    assert config == parse_config([*images, "--preset", name])
    assert config == own_data(name, labeled="a.json", unlabeled="photos", val="val.json", output_dir="out")
    # All of them compare with a supervised run; the paper's runs do not.
    assert config.recipe.baseline == "train"
    assert PRESETS["voc"]().recipe.baseline == "none"


def test_unlabeled_and_validation_images_may_be_left_out() -> None:
    config = own_data("small-data", labeled="a.json", output_dir="out")
    assert (config.data.unlabeled, config.data.val) == (None, None)


@pytest.mark.parametrize(("name", "processes"), [("1x24GB", 1), ("8x", 8)])
def test_a_step_of_the_gpu_presets_has_the_images_of_the_paper(name: str, processes: int) -> None:
    config = own_data(name, labeled="a.json", output_dir="out")
    scaling = scale_with_batch(config, num_processes=processes, has_unlabeled=True)
    assert (scaling.images_per_step, scaling.factor) == (40, 1.0)
    assert scaling.config == config


def test_settings_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="settings='2x': must be one of small-data, 1x24GB, 8x"):
        own_data("2x", labeled="a.json", output_dir="out")
