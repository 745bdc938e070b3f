import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import semidetr_hf
from semidetr_hf.cli import main
from semidetr_hf.cli.app import app

Capture = pytest.CaptureFixture[str]
COMMANDS = ("validate", "convert", "train", "eval", "predict", "label", "export", "report", "split", "push")
# Imports the command as the installed program does, whose name is the first argument of its process.
WITHOUT_TORCH = "import sys; sys.argv = ['semidetr']; from semidetr_hf.cli import main; main({0}); "
WITHOUT_TORCH += "sys.exit('imported' if {{'torch', 'transformers', 'numpy'}} & set(sys.modules) else 0)"


def test_help_lists_the_commands_and_tells_the_exit_codes(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if re.match(r"  \w", line)]
    assert set(COMMANDS) <= set(listed)
    text = " ".join(" ".join(lines).split())
    for code in ("0 for success", "1 if a check failed", "2 for wrong arguments", "130 after Ctrl+C"):
        assert code in text
    assert "--install-completion" in text


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"train"}))
def test_every_command_tells_what_it_takes(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: semidetr {command}" in out
    assert "Options:" in out


def test_help_and_version_come_without_torch() -> None:
    for arguments, shown in ((["--help"], "Commands:"), (["predict", "--help"], "--threshold")):
        code = WITHOUT_TORCH.format(arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert shown in done.stdout


def test_every_other_program_has_the_classes_at_once() -> None:
    assert Path(sys.argv[0]).stem != "semidetr"
    assert set(semidetr_hf.__all__) <= set(vars(semidetr_hf))


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"semidetr {semidetr_hf.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["trian"], "No such command 'trian'"),
        (["--quite", "train"], "No such option: --quite"),
        (["--quiet", "--verbose", "validate", "--labeled", "x"], "--quiet contradicts --verbose"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("semidetr: error: ")
    assert message in err


def test_a_missing_library_is_one_line_that_says_what_to_install(monkeypatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["eval", "nowhere.json", "--model", "nowhere"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "accelerate" in line
    assert "pip install 'semidetr-hf[train]'" in line


@pytest.mark.parametrize(("flags", "level"), [(["-q"], logging.ERROR), ([], logging.WARNING), (["-v"], logging.INFO)])
def test_quiet_and_verbose_choose_what_is_logged(flags: list[str], level: int, monkeypatch, tmp_path: Path) -> None:
    levels = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: levels.append(options["level"]))
    assert main([*flags, "predict", str(tmp_path / "nowhere"), "--model", "x", "--output", "y"]) == 2
    assert levels == [level]


def test_completion_knows_the_commands() -> None:
    environment = {"_SEMIDETR_COMPLETE": "complete_bash", "COMP_WORDS": "semidetr pre", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], env=environment, prog_name="semidetr")
    assert done.output.split() == ["predict"]


def test_every_command_is_a_function_of_a_file_of_its_own() -> None:
    modules = [command.callback.__module__ for command in app.registered_commands if command.callback is not None]
    assert len(set(modules)) == len(modules) == len(app.registered_commands)
    assert all(isinstance(command, typer.models.CommandInfo) for command in app.registered_commands)
