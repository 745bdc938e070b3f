import logging
from pathlib import Path

import pytest
from run_folders import run_config, write_run

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report.after_training import report_after_training


@pytest.mark.slow
def test_a_process_of_its_own_writes_the_report_also_under_a_launcher(
    tmp_path: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    # One of two processes, of which the other has ended: a report that believed it would wait for ever.
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert report_after_training(folder) == folder / "report.html"
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_report_that_fails_is_a_warning_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert report_after_training(tmp_path) is None
    assert f"no report of the run (status 1); `semidetr report {tmp_path}` writes it" in caplog.text
