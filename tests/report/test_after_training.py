import logging
from pathlib import Path

import pytest
from run_folders import run_config, write_run

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report.after_training import report_after_training

OF_TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_one_process_writes_the_report_itself(tmp_path: Path, digits: DigitsPaths) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    assert report_after_training(folder) == folder / "report.html"
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_of_several_processes_a_new_one_writes_it(
    tmp_path: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    # The other one of the two has ended: a report that believed these would wait for ever.
    for name, value in OF_TWO.items():
        monkeypatch.setenv(name, value)
    assert report_after_training(folder) == folder / "report.html"
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("environment", [{}, OF_TWO])
def test_a_report_that_fails_is_a_warning_with_the_reason(
    tmp_path: Path, environment: dict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert report_after_training(tmp_path) is None
    reason = "status 1" if environment else f"{tmp_path}: no run in this folder"
    assert caplog.records[-1].getMessage().startswith(f"no report of the run ({reason}")
    assert caplog.records[-1].getMessage().endswith(f"`semidetr report {tmp_path}` writes it")
