from pathlib import Path

import pytest
from run_folders import run_config, write_run
from small_runs import configure

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report.progress import progress_charts, pseudo_label_charts
from semidetr_hf.report.run_folder import RunFolder, phases_of, read_run


@pytest.fixture
def run(tmp_path: Path, digits: DigitsPaths) -> RunFolder:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    supervised = [{"step": 4, "loss": 5.0}, {"step": 4, "student/ap": 0.15, "teacher/ap": 0.12}]
    write_run(run_config(folder / "supervised", digits), supervised, networks=())
    return read_run(folder)


def test_losses_rate_and_ap_are_drawn_with_the_supervised_run_and_the_phases(run: RunFolder) -> None:
    charts = {chart.title: chart for chart in progress_charts(run, phases_of(run.config, has_unlabeled=True))}
    assert list(charts) == [
        "AP on the validation images",
        "Total loss",
        "Losses on labeled images",
        "Losses on pseudo-labels",
        "Consistency loss",
        "Learning rate",
    ]
    ap = charts["AP on the validation images"]
    assert [line.name for line in ap.lines] == ["teacher", "student", "supervised, averaged", "supervised"]
    assert [line["points"] for line in ap.values["lines"]] == [
        [[2, 0.05], [6, 0.3]],
        [[2, 0.1], [6, 0.2]],
        [[4, 0.12]],
        [[4, 0.15]],
    ]
    for chart in charts.values():
        assert [band.name for band in chart.bands] == ["burn-in", "one-to-many", "one-to-one"]
        assert chart.values["x"] == [0.0, 6.0]
    assert len({(line.color, line.is_dashed) for line in ap.lines}) == 4


def test_pseudo_labels_have_counts_quality_and_thresholds(run: RunFolder) -> None:
    charts = {chart.title: chart for chart in pseudo_label_charts(run, [])}
    assert list(charts) == [
        "Pseudo-labels per unlabeled image",
        "Precision of pseudo-labels",
        "Recall of pseudo-labels",
        "Score thresholds",
        "Cost threshold of label mining",
    ]
    precision = charts["Precision of pseudo-labels"].values["lines"]
    assert [(line["name"], line["points"]) for line in precision] == [
        ("confident", [[4, 0.75], [6, 0.8]]),
        ("mined", [[4, 0.6]]),
    ]
    assert charts["Score thresholds"].values["lines"][0]["points"] == [[4, 0.0], [6, 0.0]]


def test_a_threshold_that_is_not_in_use_is_not_drawn(tmp_path: Path, digits: DigitsPaths) -> None:
    adaptive = run_config(tmp_path / "run", digits, pseudo_labels={"class_thresholds": "adaptive"})
    run = read_run(write_run(adaptive, networks=()))
    assert "Score thresholds" not in [chart.title for chart in pseudo_label_charts(run, [])]


def test_adaptive_thresholds_are_drawn_as_mean_and_range(tmp_path: Path, digits: DigitsPaths) -> None:
    adaptive = run_config(tmp_path / "run", digits, pseudo_labels={"class_thresholds": "adaptive"})
    row = {"step": 4, "score_threshold": 0.3, "score_threshold_lowest": 0.1, "score_threshold_highest": 0.5}
    run = RunFolder(folder=tmp_path, config=adaptive, log=[row], resources=[], result=None, baseline=None)
    (chart,) = [chart for chart in pseudo_label_charts(run, []) if chart.title == "Score thresholds"]
    assert [(line["name"], line["points"]) for line in chart.values["lines"]] == [
        ("mean over classes", [[4, 0.3]]),
        ("lowest class", [[4, 0.1]]),
        ("highest class", [[4, 0.5]]),
    ]


def test_an_empty_log_has_no_charts(tmp_path: Path) -> None:
    config = configure(tmp_path)
    run = RunFolder(folder=tmp_path, config=config, log=[], resources=[], result=None, baseline=None)
    assert progress_charts(run, []) == [] and pseudo_label_charts(run, []) == []
