import pytest

from semidetr_hf.report.charts import BOTTOM, LEFT, RIGHT, TOP, Series, line_chart, shown
from semidetr_hf.report.run_folder import Phase


def test_points_are_placed_by_the_ranges_of_the_axes() -> None:
    chart = line_chart("t", [Series("a", [(0, 0.0), (5, 0.5), (10, 1.0)])], x_range=(0, 10), y_range=(0, 1))
    assert chart is not None
    middle = f"{(LEFT + RIGHT) / 2:g} {(TOP + BOTTOM) / 2:g}"
    assert chart.lines[0].path == f"M{LEFT} {BOTTOM}L{middle}L{RIGHT} {TOP}"
    assert len(chart.lines[0].dots) == 3
    assert chart.values["lines"] == [{"name": "a", "points": [[0, 0.0], [5, 0.5], [10, 1.0]]}]


def test_marks_are_round_numbers_within_the_axis() -> None:
    chart = line_chart("t", [Series("a", [(0, 0.0), (1200, 27.0)])])
    assert chart is not None
    # 27 and 4 % of it: six marks at most, 5 apart; 1200 in five: 500 apart would be three marks, 250 is not round.
    assert [tick.text for tick in chart.y_ticks] == ["0", "5", "10", "15", "20", "25"]
    assert [tick.text for tick in chart.x_ticks] == ["0", "500", "1,000"]
    assert all(LEFT <= tick.place <= RIGHT for tick in chart.x_ticks)
    assert all(TOP <= tick.place <= BOTTOM for tick in chart.y_ticks)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_one_value_alone_stays_inside_the_plot(value: float) -> None:
    chart = line_chart("t", [Series("a", [(4, value), (4, value)])])
    assert chart is not None
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in chart.lines[0].dots)


def test_many_points_are_drawn_without_dots() -> None:
    chart = line_chart("t", [Series("a", [(x, 1.0) for x in range(100)])])
    assert chart is not None and chart.lines[0].dots == [] and chart.lines[0].path.count("L") == 99


def test_series_without_points_are_left_out_and_none_makes_no_chart() -> None:
    assert line_chart("t", [Series("a", [])]) is None
    chart = line_chart("t", [Series("a", []), Series("b", [(1, 1.0)])])
    assert chart is not None and [line.name for line in chart.lines] == ["b"]


def test_phases_are_bands_and_their_names_are_written_where_they_fit() -> None:
    phases = [
        Phase("burn-in", 0, 50),
        Phase("one-to-many", 50, 55),
        Phase("one-to-one", 55, 100),
        Phase("on", 100, 120),
    ]
    chart = line_chart("t", [Series("a", [(0, 1.0), (100, 2.0)])], phases=phases, x_range=(0, 100))
    assert chart is not None
    assert [(band.name, band.label) for band in chart.bands] == [
        ("burn-in", "burn-in"),
        ("one-to-many", ""),
        ("one-to-one", "one-to-one"),
    ]
    assert chart.bands[0].x == LEFT
    assert sum(band.width for band in chart.bands) == pytest.approx(RIGHT - LEFT, abs=0.3)


def test_the_description_says_where_lines_begin_and_end() -> None:
    chart = line_chart("AP", [Series("teacher", [(100, 0.1), (2000, 0.25)]), Series("student", [(100, 0.2)])])
    assert chart is not None
    assert chart.description == "AP. teacher: from 0.1 at 100 to 0.25 at 2,000. student: 0.2 at 100."


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (12.34, "12.3"), (1234.5, "1,234"), (120_000, "120,000"), (0.0001, "0.0001")]
    + [(2e6, "2e+06"), (-3.0, "-3"), (1.6e-3, "0.0016")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert shown(value) == text
