import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from PIL import Image

from semidetr_hf.deployment.space import write_space


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    return write_space(tmp_path_factory.mktemp("spaces") / "mine", "me/mushrooms", examples=examples)


def test_the_front_matter_tells_the_hub_how_to_run_it(space: Path) -> None:
    data = SpaceCard.load(space / "README.md").data.to_dict()
    assert (data["sdk"], data["app_file"], data["models"]) == ("gradio", "app.py", ["me/mushrooms"])
    assert data["title"] == "Detections of mushrooms"
    assert data["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert int(data["sdk_version"].split(".")[0]) >= 6


def test_the_requirements_are_those_of_the_package_without_gradio(space: Path) -> None:
    lines = (space / "requirements.txt").read_text().splitlines()
    names = {Requirement(line).name for line in lines}
    assert {"torch", "transformers", "accelerate", "typer"} <= names
    assert not names & {"gradio", "pytest", "deformops", "semidetr-hf"}
    assert len(names) == len(lines)


def test_the_package_and_the_examples_go_along(space: Path) -> None:
    package = Path(__file__).parents[2] / "semidetr_hf"
    assert {path.name for path in space.iterdir()} == {
        *("README.md", "app.py", "requirements.txt", "semidetr_hf", "examples"),
    }
    copied = {path.relative_to(space / "semidetr_hf").as_posix() for path in (space / "semidetr_hf").rglob("*.py")}
    assert copied == {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert not list(space.rglob("__pycache__"))
    sizes = {path.name: Image.open(path).size for path in (space / "examples").iterdir()}
    assert sizes == {"00.png": (8, 6), "01.png": (8, 6)}
    assert "MODEL = 'me/mushrooms'" in (space / "app.py").read_text()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; give a folder that does not exist yet"):
        write_space(tmp_path, "me/mushrooms")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpaceCard, "save", fail)
    with pytest.raises(OSError, match=r"mine: cannot be written \(No space left on device\)"):
        write_space(tmp_path / "mine", "me/mushrooms")
    assert list(tmp_path.iterdir()) == []
