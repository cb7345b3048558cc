"""The geometry of the stacked bars."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.dashboard.chart import SERIES, days_of, spark, stacked
from fluxgate_mw.dashboard.format import axis_cost
from fluxgate_mw.query import CostReport, CostRow, DayCost

TODAY = date(2026, 11, 23)


def _report(amounts: dict[tuple[int, int], int]) -> CostReport:
    """Return the report of `(days ago, key) -> nanos`, dearest key first."""
    sums: dict[int, int] = {}
    for (_, key), nanos in amounts.items():
        sums[key] = sums.get(key, 0) + nanos
    rows = [_row(str(key), nanos) for key, nanos in sorted(sums.items(), key=lambda item: -item[1])]
    days = [
        DayCost(day=TODAY - timedelta(days=ago), key=str(key), calls=1, cost_nanos=nanos)
        for (ago, key), nanos in amounts.items()
    ]
    return CostReport(dimension="feature", rows=tuple(rows), days=tuple(days), total=_row(None, sum(sums.values())))


def _row(key: str | None, nanos: int) -> CostRow:
    return CostRow(key=key, calls=1, cost_nanos=nanos, unpriced=0, errors=0, input_tokens=0, output_tokens=0)


amounts = st.dictionaries(
    st.tuples(st.integers(0, 400), st.integers(0, 12)),
    st.integers(0, 10**13),
    min_size=1,
    max_size=40,
)


@given(amounts)
def test_the_picture_shows_all_of_the_spend(amounts):
    """The segments sum to the spend, stand on each other without a gap, and stay inside of the picture."""
    report = _report(amounts)
    days = days_of(report, None, TODAY)
    chart = stacked(report, {row.key: row.key for row in report.rows}, days, TODAY)
    assert sum(bar.nanos for bar in chart.bars) == sum(amounts.values())
    columns: dict[float, list] = {}
    for bar in chart.bars:
        columns.setdefault(bar.x, []).append(bar)
    for bars in columns.values():
        floor = float(chart.floor)
        for bar in bars:
            assert bar.y + bar.height == pytest.approx(floor, abs=0.02)
            floor = bar.y
        assert floor >= 0
        assert 0 <= bars[0].x <= bars[0].x + bars[0].width <= 100.01
    assert len(columns) <= 120
    assert len(chart.legend) <= SERIES + 1
    assert len({series.css for series in chart.legend}) == len(chart.legend)
    assert 1 <= len(chart.ticks) <= 7


def test_the_axis_is_in_round_steps():
    """Four lines reach just past the dearest day."""
    chart = stacked(_report({(0, 1): 1_120_000_000}), {"1": "one"}, [TODAY], TODAY)
    assert [line.nanos for line in chart.grid] == [300_000_000, 600_000_000, 900_000_000, 1_200_000_000]
    assert chart.today is not None


@given(st.integers(1, 10**16))
def test_the_lines_of_the_axis_are_as_far_apart_as_they_say(nanos):
    """What stands at a line is its amount: four of them in even steps, none rounded onto another."""
    chart = stacked(_report({(0, 1): nanos}), {"1": "one"}, [TODAY], TODAY)
    said = [axis_cost(line.nanos, chart.grid[0].nanos) for line in chart.grid]
    read = [Decimal(text.strip("$M").replace(",", "")) for text in said]
    if len({text[-1] == "M" for text in said}) == 1:  # from a million on in millions
        assert read == [n * read[0] for n in (1, 2, 3, 4)]


def test_nothing_spent_draws_nothing():
    """Calls without a price leave the picture empty, with its days."""
    chart = stacked(_report({(3, 1): 0}), {"1": "one"}, days_of(_report({(3, 1): 0}), None, TODAY), TODAY)
    assert (chart.bars, chart.grid) == ((), ())
    assert len(chart.ticks) == 4


def test_the_days_of_a_range_are_all_there():
    """Days without a call are days; a range without a start begins at the first call."""
    report = _report({(5, 1): 1})
    assert days_of(report, None, TODAY)[0] == TODAY - timedelta(days=5)
    assert len(days_of(report, TODAY - timedelta(days=29), TODAY)) == 30
    assert days_of(report, TODAY + timedelta(days=3), TODAY) == (TODAY,)


def test_a_range_of_ages_is_not_drawn_day_by_day():
    """A start long ago gives way to the first call; wrong clocks, past or future, do not stretch the picture."""
    report = _report({(5, 1): 1})
    assert days_of(report, date.min, TODAY)[0] == TODAY - timedelta(days=5)
    assert len(days_of(_report({(20_000, 1): 1, (-9_000, 1): 1}), None, TODAY)) == 3 * 366
    assert days_of(report, None, date.min) == (date.min,)


def test_a_spark_shows_small_spend_too():
    """A day with any spend has a mark, a day without has none."""
    assert spark([0, 0]) == ""
    assert spark([10**12, 0, 1]).count("z") == 2
