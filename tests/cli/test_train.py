import os
from pathlib import Path

import pytest
import torch
from bad_inputs.folders import FLAGS, coco

from semidetr_hf.cli import main
from semidetr_hf.cli.train import reason
from semidetr_hf.training import recipe
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml

Capture = pytest.CaptureFixture[str]


def flags(folder: Path) -> list[str]:
    """Flags of one supervised step, with - for _."""
    names = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in FLAGS]
    return ["train", "--labeled", str(coco(folder)), "--output-dir", str(folder / "out"), *names, "--no-estimate"]


def test_a_run_with_its_settings_as_flags(tmp_path: Path, capsys: Capture) -> None:
    assert main([*flags(tmp_path), "--learning-rate", "3e-4", "--ema_momentum", "0.9"]) == 0
    config = TrainingConfig.from_dict(read_yaml(tmp_path / "out" / "config.yaml"))
    assert (config.optimizer.learning_rate, config.schedule.ema_momentum, config.schedule.num_steps) == (3e-4, 0.9, 1)
    assert (tmp_path / "out" / "teacher" / "model.safetensors").is_file()
    assert "0 unreadable images skipped" in capsys.readouterr().out


def test_help_lists_every_field_by_section(capsys: Capture) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: semidetr train ")
    assert "Example: semidetr train --labeled" in out
    places = [out.index(title) for title in ("\ndata: ", "\nmodel: ", "\noptimizer: ", "\nschedule: ", "\nrun: ")]
    assert places == sorted(places)
    assert places[0] < out.index("--labeled_batch_size") < places[1] < out.index("--backbone_weights") < places[2]


@pytest.mark.parametrize(
    ("given", "lines", "message"),
    [
        (["--learning-rat", "1"], 2, "unrecognized arguments: --learning-rat 1"),
        (["--num-steps", "many"], 2, "invalid int value: 'many'"),
        (["--ema-momentum", "2"], 1, "ema_momentum=2.0: must be from 0, below 1"),
        (["--labeled", "nowhere.json"], 1, "nowhere.json: no such file"),
        (["--config", "nowhere.yaml"], 1, "nowhere.yaml: no such configuration file"),
    ],
)
def test_wrong_settings_give_status_2(
    tmp_path: Path, capsys: Capture, given: list[str], lines: int, message: str
) -> None:
    assert main([*flags(tmp_path), *given]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines  # argparse shows the usage, too
    assert message in shown[-1]
    assert not (tmp_path / "out").exists()


def test_an_interruption_tells_how_to_go_on(tmp_path: Path, monkeypatch, capsys: Capture) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train_with_baseline", interrupt)
    assert main(flags(tmp_path)) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert "--resume auto goes on" in line


def test_a_run_that_breaks_off_gives_status_1(tmp_path: Path, monkeypatch, capsys: Capture) -> None:
    def fill_the_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(recipe, "train_with_baseline", fill_the_memory)
    assert main(flags(tmp_path)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "out of memory (CUDA out of memory. Tried to allocate 2 GiB); lower labeled_batch_size" in line


def test_reasons_name_the_process_and_leave_bugs_alone(monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "2")
    assert reason(OSError("disk\n full")) == "process 2: disk full"
    assert reason(MemoryError("x")).startswith("process 2: out of memory (x); lower ")
    for bug in (KeyError("labels"), RuntimeError("shapes do not fit"), AssertionError("no")):
        with pytest.raises(type(bug)):
            reason(bug)
