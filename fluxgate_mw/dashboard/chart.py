"""The geometry of the stacked bars, from a cost report to rectangles. Pure; drawn by the template, coloured by CSS.

Across, positions are per cent of the width, so the picture follows the page and its text keeps its size; down, they
are pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from fluxgate_mw.query import CostReport

__all__ = ["SERIES", "Bar", "Chart", "Grid", "Series", "days_of", "spark", "stacked"]

SERIES: Final = 6
_HEIGHT: Final = 280
_TOP: Final = 12
_BOTTOM: Final = 24
_MOST_COLUMNS: Final = 120
_MOST_DAYS: Final = 3 * 366
_MOST_TICKS: Final = 6
_WIDEST: Final = 6.0
_STEPS: Final = (1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)


@dataclass(frozen=True)
class Series:
    """One colour of the chart: its CSS class and the name it stands for."""

    css: str
    label: str


@dataclass(frozen=True)
class Bar:
    """One segment: `x` and `width` in per cent, `y` and `height` in pixels, and what it stands for."""

    x: float
    width: float
    y: float
    height: float
    series: Series
    day: date
    nanos: int


@dataclass(frozen=True)
class Grid:
    """A horizontal line with its amount, or a mark on the time axis with its day."""

    position: float
    nanos: int = 0
    day: date | None = None


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws. `today` is the x and width of the unfinished day's column, None if unseen."""

    height: int
    floor: int
    bars: tuple[Bar, ...]
    grid: tuple[Grid, ...]
    ticks: tuple[Grid, ...]
    legend: tuple[Series, ...]
    columns: int
    days_per_bar: int
    today: tuple[float, float] | None


def days_of(report: CostReport, first: date | None, last: date) -> tuple[date, ...]:
    """Return every day to draw, empty ones too: from `first`, or else the first day with a call, to `last`.

    A range longer than the report's starts with its first call, and what is older than three years, or dated in the
    future, is in the table alone.
    """
    seen = [point.day for point in report.days if point.day <= last]
    start = min([*seen, last])
    if first is not None and (last - first).days < _MOST_DAYS:
        start = min(first, last)
    start = max(start, last - timedelta(days=min(_MOST_DAYS, last.toordinal()) - 1))
    return tuple(start + timedelta(days=n) for n in range((last - start).days + 1))


def stacked(report: CostReport, labels: Mapping[str | None, str], days: Sequence[date], today: date) -> Chart:
    """Return the chart of spend per day: the six dearest values, dearest at the bottom, and the rest as Other.

    Args:
        report: Rows dearest first.
        labels: How to name each key of the report.
        days: The days of the axis, ascending, none missing.
        today: The day that is not over yet.
    """
    step = -(-len(days) // _MOST_COLUMNS)
    slot = 100 / -(-len(days) // step)
    width = min(slot * 0.8, _WIDEST)
    places = [(round(slot * n + (slot - width) / 2, 3), round(width, 3)) for n in range(-(-len(days) // step))]
    series, order = _series(report, labels)
    columns = _columns(report, series, days, step)
    unit = _unit(max((column.total() for column in columns.values()), default=0))
    return Chart(
        height=_HEIGHT,
        floor=_HEIGHT - _BOTTOM,
        bars=tuple(
            bar
            for n, column in sorted(columns.items())
            for bar in _column(column, order, days[n * step], places[n], 4 * unit)
        ),
        grid=tuple(Grid(_y(n * unit, 4 * unit), nanos=n * unit) for n in range(1, 5)) if unit else (),
        ticks=_ticks(days, step, slot),
        legend=order,
        columns=len(places),
        days_per_bar=step,
        today=places[days.index(today) // step] if today in days else None,
    )


def _series(
    report: CostReport,
    labels: Mapping[str | None, str],
) -> tuple[dict[str | None, Series], tuple[Series, ...]]:
    """Return the series of each key, and all of them from the bottom of a column to its top."""
    other = Series("other", f"Other ({len(report.rows) - SERIES})")
    series = {
        row.key: Series(f"s{n}", labels[row.key]) if n <= SERIES else other for n, row in enumerate(report.rows, 1)
    }
    return series, tuple(dict.fromkeys(series.values()))


def _columns(
    report: CostReport,
    series: Mapping[str | None, Series],
    days: Sequence[date],
    step: int,
) -> dict[int, Counter[Series]]:
    """Return the amounts of each column that has any, by its number."""
    index = {day: n // step for n, day in enumerate(days)}
    columns: dict[int, Counter[Series]] = {}
    for point in report.days:
        if point.day in index and point.key in series and point.cost_nanos > 0:
            columns.setdefault(index[point.day], Counter())[series[point.key]] += point.cost_nanos
    return columns


def _y(nanos: int, top: int) -> float:
    room = _HEIGHT - _BOTTOM - _TOP
    return round(_HEIGHT - _BOTTOM - room * nanos / top, 2)


def _column(
    amounts: Counter[Series],
    order: Sequence[Series],
    day: date,
    place: tuple[float, float],
    top: int,
) -> list[Bar]:
    bars: list[Bar] = []
    below = 0
    for series in order:
        nanos = amounts[series]
        if nanos:
            upper, lower = _y(below + nanos, top), _y(below, top)
            bars.append(Bar(*place, upper, round(lower - upper, 2), series, day, nanos))
            below += nanos
    return bars


def _unit(largest: int) -> int:
    """Return the round amount of which four reach past the largest column; 0 where there is none."""
    if largest <= 0:
        return 0
    quarter = -(-largest // 4)
    power = int(10 ** max(len(str(quarter)) - 2, 0))
    return next(step * power for step in _STEPS if step * power >= quarter)


def _ticks(days: Sequence[date], step: int, slot: float) -> tuple[Grid, ...]:
    columns = -(-len(days) // step)
    every = -(-columns // _MOST_TICKS)
    return tuple(Grid(round(slot * (n + 0.5), 3), day=days[n * step]) for n in range(every // 2, columns, every))


def spark(amounts: Sequence[int]) -> str:
    """Return the path of a small bar chart in a box of one unit a bar and 20 high; empty where nothing was spent."""
    largest = max(amounts, default=0)
    if largest <= 0:
        return ""
    heights = [max(round(20 * amount / largest, 1), 1) if amount > 0 else 0 for amount in amounts]
    return "".join(f"M{n}.1 20v-{height:g}h.8v{height:g}z" for n, height in enumerate(heights) if height)
