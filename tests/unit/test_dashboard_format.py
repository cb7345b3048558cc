"""Numbers as people read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.dashboard import format as fmt


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (None, "—"),
        (0, "$0"),
        (1, "<$0.000001"),
        (999, "<$0.000001"),
        (1_000, "$0.000001"),
        (999_600, "$0.00100"),
        (4_640_000, "$0.00464"),
        (9_996_000, "$0.0100"),
        (12_300_000, "$0.0123"),
        (999_600_000, "$1.00"),
        (1_230_000_000, "$1.23"),
        (12_350_000_000, "$12.35"),
        (1_234_560_000_000, "$1,234.56"),
        (104_383_400_000_000, "$104,383"),
        (-4_640_000, "-$0.00464"),
    ],
)
def test_the_cost_of_one_call_has_three_significant_digits(nanos, text):
    """Three significant digits within two to six decimals; nothing is $0, unknown is a dash."""
    assert fmt.call_cost(nanos) == text


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (None, "—"),
        (0, "$0"),
        (4_640_000, "$0.00464"),
        (10_000_000, "$0.01"),
        (4_400_000_000, "$4.40"),
        (9_999_990_000_000, "$9,999.99"),
        (9_999_996_000_000, "$10,000"),
        (104_383_400_000_000, "$104,383"),
        (999_999_600_000_000, "$1.00M"),
        (2_500_000_000_000_000, "$2.50M"),
        (-4_400_000_000, "-$4.40"),
    ],
)
def test_totals_are_in_cents_then_dollars_then_millions(nanos, text):
    """A sum is rounded once, also where rounding carries it into the next form."""
    assert fmt.total_cost(nanos) == text


def test_an_estimate_is_marked():
    """A tilde stands before a cost whose tokens are estimated, and never before a dash."""
    assert fmt.call_cost(3_100_000, estimated=True) == "~$0.00310"
    assert fmt.call_cost(None, estimated=True) == "—"


@given(st.integers(min_value=1_000, max_value=10**15))
def test_a_rounded_cost_is_within_half_a_last_digit(nanos):
    """What is shown for one call differs from the exact amount by at most half of its last digit."""
    text = fmt.call_cost(nanos).removeprefix("$").replace(",", "")
    step = Decimal(1).scaleb(-len(text.partition(".")[2]))
    if not text.endswith("M"):
        assert abs(Decimal(text) - Decimal(nanos).scaleb(-9)) <= step / 2


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_the_exact_amount_loses_nothing(nanos):
    """The text for titles and copying is the amount to the nano-dollar."""
    assert Decimal(fmt.exact(nanos).replace("$", "").replace(",", "")) == Decimal(nanos).scaleb(-9)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "—"),
        (0, "0"),
        (4812, "4,812"),
        (99_999, "99,999"),
        (100_000, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (4_812_000, "4.81M"),
        (12_345_678_900, "12,345.68M"),
    ],
)
def test_token_counts_are_shortened_from_a_hundred_thousand(number, text):
    """Small counts are exact, large ones are short, unknown is a dash."""
    assert fmt.tokens(number) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "—"),
        (float("nan"), "—"),
        (float("inf"), "—"),
        (0, "<1 ms"),
        (-3, "<1 ms"),
        (412.4, "412 ms"),
        (999.7, "1.00 s"),
        (1240, "1.24 s"),
        (59_999, "1 m 00 s"),
        (125_000, "2 m 05 s"),
    ],
)
def test_durations_are_read_at_a_glance(milliseconds, text):
    """Milliseconds, seconds, minutes; what is no duration is a dash."""
    assert fmt.duration(milliseconds) == text


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_a_share_is_whole_only_when_it_is(part, rest):
    """Neither 0 % nor 100 % is ever shown for a part that is neither."""
    whole = part + rest
    text = fmt.share(part, whole)
    assert (text == "0 %") == (part == 0)
    assert text != "100 %"
    assert text not in ("0.0 %", "100.0 %")
    assert fmt.share(whole, whole) == "100 %"


def test_a_column_of_amounts_aligns_on_the_decimal_point():
    """Every amount has as many characters after its point as the longest, and a dash is left alone."""
    texts = fmt.aligned(["$0.00464", "$12.35", "$0", "—", "~$0.0031"])
    assert [text.rstrip("\u2007\u2008") for text in texts] == ["$0.00464", "$12.35", "$0", "—", "~$0.0031"]
    tails = [len(re.split(r"[.\u2008]", text)[1]) for text in texts if text != "—"]
    assert tails == [5, 5, 5, 5]
    assert fmt.aligned([]) == []


def test_times_are_shown_in_utc():
    """A moment of another zone is converted, also at the edge of a year."""
    moment = datetime(2026, 12, 31, 23, 30, tzinfo=timezone(-timedelta(hours=1)))
    assert fmt.when(moment) == "2027-01-01 00:30:00"
    assert fmt.short_when(moment) == "Jan 1 00:30:00"
    assert fmt.when(datetime(5, 1, 1, tzinfo=UTC)) == "0005-01-01 00:00:00"
