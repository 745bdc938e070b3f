import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import run_config, write_run
from small_runs import SIZE, forget_accelerator

from semidetr_hf.cli import main
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    forget_accelerator()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsPaths:
    return write_digits_dataset(tmp_path_factory.mktemp("data") / "digits", num_train=8, num_val=4, image_size=SIZE)


def test_the_report_is_written_into_the_folder_of_the_run(
    tmp_path: Path, digits: DigitsPaths, capsys: Capture
) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    assert main(["report", str(folder), "--no-evaluate"]) == 0
    assert capsys.readouterr().out == f"the report: {folder / 'report.html'}\n"
    assert "left out, as asked for" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_networks_are_used_and_the_file_can_be_chosen(tmp_path: Path, digits: DigitsPaths) -> None:
    folder, output = write_run(run_config(tmp_path / "run", digits)), tmp_path / "new" / "a.html"
    assert main(["--quiet", "report", str(folder), "--output", str(output), "--pictures", "1"]) == 0
    page = output.read_text(encoding="utf-8")
    assert page.count('<figure class="photo">') == 4  # both views, the best and the worst image
    assert [file.name for file in output.parent.iterdir()] == ["a.html"]


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"semidetr: error: {tmp_path}: no run in this folder, it has no config.yaml and log.jsonl; give the "
        "output_dir of a training\n"
    )
