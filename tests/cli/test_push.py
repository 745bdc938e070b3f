from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs.folders import detector
from hub.hub_server import TOKEN, Hub, as_the_hub

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.cli import main
from semidetr_hf.training.saved_detectors import save_detector

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    with as_the_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A detector as a training saves it, with the code."""
    plain = detector(tmp_path_factory.mktemp("plain"))
    folder = tmp_path_factory.mktemp("saved") / "best"
    processor = SemiDetrImageProcessor.from_pretrained(plain)
    save_detector(SemiDetrForObjectDetection.from_pretrained(plain), processor, folder)
    (folder / "notes.txt").write_text("not for the Hub")
    return folder


def test_a_dry_run_lists_files_and_needs_neither_token_nor_network(
    saved: Path, tmp_path: Path, monkeypatch, capsys: Capture
) -> None:
    monkeypatch.setattr("semidetr_hf.hub.upload.HfApi", None)
    monkeypatch.setattr("semidetr_hf.hub.upload.get_token", None)
    look = tmp_path / "look"
    assert main(["push", str(saved), "me/mushrooms", "--dry-run", "--bundle", str(look)]) == 0
    out = capsys.readouterr().out
    names = [line.split()[-1] for line in out.splitlines()[:-1]]
    assert names == sorted(path.name for path in look.iterdir())
    assert {"README.md", "config.json", "model.safetensors", "modeling_semidetr.py", "handler.py"} <= set(names)
    assert "notes.txt" not in names
    total = sum(path.stat().st_size for path in look.iterdir())
    assert out.splitlines()[-1].strip() == f"{total:,} bytes in {len(names)} files would go to me/mushrooms"
    # The folder is not mixed with what is in one already.
    assert main(["push", str(saved), "me/mushrooms", "--dry-run", "--bundle", str(look)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_detector_is_uploaded_with_its_examples(hub: Hub, saved: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "fly agaric.png").write_bytes(b"picture")
    options = ["--private", "--message", "First", "--license", "mit", "--example", str(tmp_path / "fly agaric.png")]
    assert main(["push", str(saved), "mushrooms", *options]) == 0
    assert f"uploaded: {hub.endpoint}/me/mushrooms" in capsys.readouterr().out
    repository = hub.repositories["me/mushrooms"]
    assert (repository.private, [commit["message"] for commit in repository.commits]) == (True, ["First"])
    assert repository.files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert repository.files["examples/fly agaric.png"] == b"picture"
    assert "license: mit" in repository.files["README.md"].decode()


def test_without_a_token_the_way_to_one_is_told(saved: Path, monkeypatch, capsys: Capture) -> None:
    monkeypatch.setattr("semidetr_hf.hub.upload.get_token", lambda: None)
    assert main(["push", str(saved), "mushrooms"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "hf auth login" in line


def test_a_hub_that_refuses_is_one_line_without_the_token(hub: Hub, saved: Path, capsys: Capture) -> None:
    hub.fail("/preupload/", 401)
    assert main(["push", str(saved), "me/mushrooms"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semidetr: error")]
    assert len(lines) == 1
    assert "me/mushrooms: not uploaded (" in lines[0]
    assert TOKEN not in lines[0]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no folder with the config.json of a saved detector"),
        ("model.safetensors", "has no weights"),
        ("modeling_semidetr.py", "names the code modeling_semidetr.py, which is not there"),
    ],
)
def test_an_incomplete_folder_is_refused(
    saved: Path, tmp_path: Path, capsys: Capture, missing: str, message: str
) -> None:
    for path in saved.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["push", str(tmp_path), "mushrooms", "--dry-run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert message in line


def test_wrong_arguments_are_one_line_each(tmp_path: Path, saved: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    for arguments, message in (
        ([str(tmp_path), "x"], "names no code"),
        ([str(saved), "my model"], "'my model'"),
        ([str(saved), "x", "--example", "none.png"], "none.png: no such example picture"),
        ([str(saved), "x", "--also", str(saved)], f"--also {saved}: no detector in the folder of a run"),
    ):
        assert main(["push", *arguments, "--dry-run"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line
