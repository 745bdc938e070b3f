from pathlib import Path

import pytest

from semidetr_hf.training.command_line import parse_config
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "data: {labeled: a.json, fold: 3}\nschedule: {num_steps: 50, burn_in_steps: 7}\n"
    )
    flags = ["--config", str(tmp_path / "run.yaml"), "--output_dir", "out", "--num_steps", "60"]
    config = parse_config([*flags, "--short_edges", "64", "96", "--no_mean_std_filter", "--cpu"])
    assert (config.data.labeled, config.data.fold, config.run.output_dir) == ("a.json", 3, "out")
    assert (config.schedule.num_steps, config.schedule.burn_in_steps) == (60, 7)
    assert config.data.short_edges == [64, 96]
    assert (config.pseudo_labels.mean_std_filter, config.run.cpu) == (False, True)
    # Neither in the file nor a flag: the defaults.
    assert (
        config.optimizer
        == TrainingConfig.from_dict({"data": {"labeled": "a.json"}, "run": {"output_dir": "out"}}).optimizer
    )


def test_a_written_configuration_is_read_back_unchanged(tmp_path: Path) -> None:
    config = TrainingConfig.from_dict(
        {
            "data": {"labeled": "a.json", "val": "val.json"},
            "optimizer": {"lr_schedule": "step", "lr_drop_steps": [5, 9]},
            "run": {"output_dir": "out"},
        }
    )
    config.save(tmp_path / "config.yaml")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_help_shows_every_field_with_its_default(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--ema_momentum" in text
    assert "--method {paper,reference}" in text
    assert "(default: 0.999)" in text


def test_an_empty_section_is_one_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {labeled: a.json}\nrun: {output_dir: out}\nschedule:\n")
    assert read_yaml(tmp_path / "run.yaml")["schedule"] is None
    assert parse_config(["--config", str(tmp_path / "run.yaml")]).schedule.num_steps == 120_000


@pytest.mark.parametrize("value", ["!!bool x", "!!timestamp x", "!!int ''", "!!map [1]"])
def test_values_that_their_yaml_tag_does_not_fit_are_complaints_about_the_file(tmp_path: Path, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{labeled: {value}}}\n")
    with pytest.raises(ValueError, match="run.yaml: not a YAML file"):
        read_yaml(path)


def test_a_config_whose_name_no_disk_can_hold_is_no_file() -> None:
    with pytest.raises(FileNotFoundError, match="xxx: no such configuration file"):
        parse_config(["--config", "x" * 5000])


def test_corners_are_automatic_unless_chosen_and_by_method() -> None:
    flags = ["--labeled", "VOC2007", "--output_dir", "out"]
    assert parse_config(flags).data.voc_corners == "auto"
    assert parse_config([*flags, "--method", "reference"]).data.voc_corners == "released"
    assert parse_config([*flags, "--method", "reference", "--voc_corners", "exact"]).data.voc_corners == "exact"


def test_a_preset_is_below_the_file_and_the_flags(tmp_path: Path, caplog) -> None:
    (tmp_path / "run.yaml").write_text("schedule: {burn_in_steps: 7}\n")
    flags = ["--labeled", "a.json", "--output_dir", "out", "--preset", "small-data"]
    config = parse_config([*flags, "--config", str(tmp_path / "run.yaml"), "--eval_every", "50"])
    assert (config.recipe.warm_start, config.pseudo_labels.class_thresholds) == (True, "adaptive")
    assert (config.schedule.burn_in_steps, config.run.eval_every) == (7, 50)
    assert "--preset small-data: --config decides otherwise on burn_in_steps" in caplog.text
    # Under the preset there is still the reading of the method.
    reference = parse_config([*flags, "--method", "reference"])
    assert (reference.consistency.consistency_copies, reference.schedule.num_steps) == (5, 4000)


def test_the_first_stage_of_a_preset_can_be_given_otherwise() -> None:
    flags = ["--labeled", "a.json", "--output_dir", "out", "--preset", "small-data"]
    assert parse_config(flags).schedule.first_stage_steps == 4000
    assert parse_config([*flags, "--one_to_many_steps", "100"]).schedule.first_stage_steps == 100
    assert parse_config([*flags, "--one_to_many_fraction", "0"]).schedule.first_stage_steps == 0


def test_an_unknown_preset_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--labeled", "a.json", "--output_dir", "out", "--preset", "large-data"])
    assert ended.value.code == 2
    assert "large-data" in capsys.readouterr().err
