import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import run_config, write_run
from small_runs import forget_accelerator

from semidetr_hf.cli import main
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.report.run_folder import read_run

gradio = pytest.importorskip("gradio", reason="gradio is not installed (the extra `demo`)")

from semidetr_hf.demo_page.opening import NUM_COMPARED, open_page, read_examples  # noqa: E402


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    forget_accelerator()


def parts(page: Any, kind: str) -> list[dict[str, Any]]:
    """Return the properties of all parts of a kind, such as `markdown`."""
    return [part["props"] for part in page.get_config_file()["components"] if part["type"] == kind]


def texts(page: Any) -> str:
    return "\n".join(part["value"] for part in parts(page, "markdown"))


def test_a_run_has_examples_and_its_pseudo_labels(run_folder: Path) -> None:
    page = open_page(run_folder, device="cpu")
    assert page.title == "Detections of mine/best"
    assert [tab["label"] for tab in parts(page, "tabitem")] == ["Pictures", "Pseudo-labels"]
    assert texts(page).count("pseudo-labels\n") == NUM_COMPARED
    assert "score of 0.5 or more" in texts(page)
    (examples,) = parts(page, "dataset")
    assert len(examples["samples"]) == 4  # all images for validation
    (switch,) = parts(page, "checkbox")
    assert switch["value"] is True and "above 0.3" in switch["info"]


def test_a_detector_alone_has_no_tabs(run_folder: Path, digits: DigitsPaths) -> None:
    page = open_page(run_folder / "student", digits.train_json, device="cpu")
    assert page.title == "Detections of student" and parts(page, "tabitem") == []
    (examples,) = parts(page, "dataset")
    assert len(examples["samples"]) == 8  # of ten
    assert parts(page, "checkbox")[0]["value"] is False
    assert [name for name, _ in parts(page, "dropdown")[0]["choices"]] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schedule": {"unsupervised_weight": 0.0}}, "This run learned from labeled images alone."),
        ({}, "The run has no saved student; it is saved when the run ends."),
    ],
)
def test_why_there_are_no_pseudo_labels_is_said(
    tmp_path: Path, digits: DigitsPaths, change: dict[str, Any], reason: str
) -> None:
    page = open_page(write_run(run_config(tmp_path / "run", digits, **change)), device="cpu")
    assert texts(page).endswith(reason)


def test_a_run_whose_images_are_gone_still_has_its_detector(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "moved")
    config = folder / "config.yaml"
    labeled = read_run(folder).config.data.labeled
    config.write_text(config.read_text().replace(labeled, str(tmp_path / "gone.json")))
    page = open_page(folder, device="cpu")
    assert "The images of the run cannot be opened" in texts(page) and "gone.json" in texts(page)
    assert parts(page, "dataset") == []


def test_nothing_is_asked_of_others(run_folder: Path) -> None:
    page = open_page(run_folder / "student", device="cpu")
    assert page.analytics_enabled is False


def test_unreadable_examples_are_left_out(tmp_path: Path, digits: DigitsPaths) -> None:
    pictures = sorted(digits.val_json.parent.glob("images/val/*"))
    shutil.copy(pictures[0], tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    assert [example.size for example in read_examples(FolderSource(tmp_path))] == [(96, 96)]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"no example can be read, the first because: .*b\.jpg"):
        read_examples(FolderSource(tmp_path))


def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, digits: DigitsPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write_run(run_config(tmp_path / "run", digits), networks=())
    assert main(["demo", str(empty)]) == 2
    assert main(["demo", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"semidetr: error: {empty}: no network was saved in this run yet; wait for its first evaluation",
        f"semidetr: error: MODEL='{tmp_path}/none': no folder with the config.json of a saved detector",
    ]
