"""Line charts as numbers of an SVG: where lines, ticks and phases are drawn. The template writes them down.

Lines differ by color and dash, so that they can be told apart without colors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from semidetr_hf.report.run_folder import Phase

WIDTH, HEIGHT = 360, 226  # units of the SVG; few, so that text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 20, 192  # edges of the plot
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
HEADROOM = 0.04  # of the range of the values, above the highest
LETTER_WIDTH = 6.0  # of a letter of the labels of phases, on average

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: its points by rising x, the number of its color, and whether it is dashed."""

    name: str
    points: list[Point]
    color: int = 0
    is_dashed: bool = False


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in units of the SVG, and what is written there."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line as it is drawn: the path of the SVG, and its points as dots where they are few."""

    name: str
    color: int
    is_dashed: bool
    path: str
    dots: list[Point]


@dataclass(frozen=True)
class Band:
    """The ground of a phase; the label is empty where there is no room for it."""

    name: str
    x: float
    width: float
    label: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """A chart, ready to be drawn.

    Attributes:
        title: above the chart.
        x_label: below it.
        note: a sentence below the title; empty for none.
        description: what it shows, in words, for those who cannot see it.
        lines: in the order of the legend.
        bands: grounds of the phases.
        x_ticks: on the horizontal axis.
        y_ticks: on the vertical one.
        values: for the hover text: edges of the plot, range of its horizontal axis, and the points of every line.
    """

    title: str
    x_label: str
    note: str
    description: str
    lines: list[Line]
    bands: list[Band]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    values: dict[str, Any] = field(repr=False)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "optimizer steps",
    note: str = "",
    phases: Sequence[Phase] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> LineChart | None:
    """Lay out a line chart.

    Args:
        title: above the chart.
        series: those without a point are left out.
        x_label: below the chart.
        note: a sentence below the title.
        phases: parts of the run, drawn as grounds behind the lines.
        x_range: ends of the horizontal axis; None for those of the points.
        y_range: ends of the vertical axis; None for from 0, or the lowest point below it, to the highest one.

    Returns:
        The chart, None if no series has a point.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    x_low, x_high = x_range or _widened(min(xs), max(xs))
    lowest = min(0.0, *ys)
    y_low, y_high = y_range or _widened(lowest, max(ys) + HEADROOM * (max(ys) - lowest))

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (RIGHT - LEFT)
        y = BOTTOM - (point[1] - y_low) / (y_high - y_low) * (BOTTOM - TOP)
        return round(x, 1), round(y, 1)

    return LineChart(
        title=title,
        x_label=x_label,
        note=note,
        description=f"{title}. " + " ".join(map(_described, drawn)),
        lines=[_line(one, [place(point) for point in one.points]) for one in drawn],
        bands=[band for phase in phases if (band := _band(phase, place, x_high)) is not None],
        x_ticks=[Tick(place((mark, y_low))[0], shown(mark)) for mark in _marks(x_low, x_high, most=5)],
        y_ticks=[Tick(place((x_low, mark))[1], shown(mark)) for mark in _marks(y_low, y_high)],
        values={
            "frame": [LEFT, RIGHT],
            "x": [x_low, x_high],
            "lines": [{"name": one.name, "points": [[x, float(f"{y:.4g}")] for x, y in one.points]} for one in drawn],
        },
    )


def shown(value: float) -> str:
    """Return a number as it is written on an axis and in a sentence: three digits, thousands apart."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        rounded = float(f"{value:.3g}") if abs(value) < 1000 else round(value)
        return f"{rounded:,g}" if abs(value) < 1000 else f"{rounded:,}"
    return f"{value:.2g}"


def _line(one: Series, places: list[Point]) -> Line:
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    return Line(one.name, one.color, one.is_dashed, path, places if len(places) <= 30 else [])


def _band(phase: Phase, place: Any, x_high: float) -> Band | None:
    if phase.start >= x_high:
        return None
    left = max(place((phase.start, 0.0))[0], LEFT)
    right = place((min(phase.end, x_high), 0.0))[0]
    label = phase.name if len(phase.name) * LETTER_WIDTH <= right - left else ""
    return Band(phase.name, left, round(right - left, 1), label)


def _described(one: Series) -> str:
    (first_x, first_y), (last_x, last_y) = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return f"{one.name}: {shown(first_y)} at {shown(first_x)}."
    return f"{one.name}: from {shown(first_y)} at {shown(first_x)} to {shown(last_y)} at {shown(last_x)}."


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def _marks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range, 1, 2 or 5 of a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]
