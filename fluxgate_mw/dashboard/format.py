"""Numbers as people read them: money from integer nano-USD, tokens, durations, shares and times. Pure functions.

Unknown is always a dash and never a zero. Money is rounded half to even, once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Final

__all__ = [
    "UNKNOWN",
    "aligned",
    "axis_cost",
    "call_cost",
    "count",
    "day",
    "duration",
    "exact",
    "share",
    "short_when",
    "tokens",
    "total_cost",
    "when",
]

UNKNOWN: Final = "—"
_NANOS: Final = 1_000_000_000
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FIGURE_SPACE: Final = "\u2007"
_POINT_SPACE: Final = "\u2008"


def _rounded(number: int, divisor: int) -> int:
    quotient, rest = divmod(number, divisor)
    return quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))


def _dollars(nanos: int, decimals: int) -> str:
    scaled = _rounded(nanos, 10 ** (9 - decimals))
    whole, part = divmod(scaled, 10**decimals)
    return f"${whole:,}.{part:0{decimals}d}" if decimals else f"${whole:,}"


def call_cost(nanos: int | None, *, estimated: bool = False) -> str:
    """Return the cost of one call: three significant digits within two to six decimals.

    Args:
        nanos: Nano-USD; None when unknown.
        estimated: The token counts behind it are estimated; marked with a tilde.

    >>> call_cost(4_640_000), call_cost(12_350_000_000), call_cost(7), call_cost(0), call_cost(None)
    ('$0.00464', '$12.35', '<$0.000001', '$0', '—')
    """
    if nanos is None:
        return UNKNOWN
    if nanos < 0:
        return f"-{call_cost(-nanos, estimated=estimated)}"
    return f"~{_call_cost(nanos)}" if estimated else _call_cost(nanos)


def _call_cost(nanos: int) -> str:
    if nanos == 0:
        return "$0"
    if nanos < 1000:  # noqa: PLR2004  (a millionth of a dollar)
        return "<$0.000001"
    if nanos >= 10_000 * _NANOS:
        return total_cost(nanos)
    decimals = min(max(12 - len(str(nanos)), 2), 6)
    carried = decimals > 2 and len(str(_rounded(nanos, 10 ** (9 - decimals)))) > 3  # noqa: PLR2004  (digits)
    return _dollars(nanos, decimals - 1 if carried else decimals)


def total_cost(nanos: int | None) -> str:
    """Return a sum of costs: cents, whole dollars from 10,000, millions from a million, finer below one cent.

    >>> total_cost(4_400_000_000), total_cost(104_383_400_000_000), total_cost(2_500_000_000_000_000)
    ('$4.40', '$104,383', '$2.50M')
    """
    if nanos is None:
        return UNKNOWN
    if nanos < 0:
        return f"-{total_cost(-nanos)}"
    if nanos < _NANOS // 100:
        return _call_cost(nanos)
    if _rounded(nanos, _NANOS // 100) < 1_000_000:  # noqa: PLR2004  (cents: 10,000 dollars)
        return _dollars(nanos, 2)
    if _rounded(nanos, _NANOS) < 1_000_000:  # noqa: PLR2004  (dollars)
        return _dollars(nanos, 0)
    return f"{_dollars(_rounded(nanos, 1_000_000), 2)}M"


def axis_cost(nanos: int, unit: int) -> str:
    """Return an amount on an axis with a line every `unit` nano-USD: a total, finer where cents would round the lines.

    >>> [axis_cost(n * 15_000_000, 15_000_000) for n in (1, 2, 3, 4)]
    ['$0.015', '$0.030', '$0.045', '$0.060']
    """
    if unit % (_NANOS // 100) == 0:
        return total_cost(nanos)
    digits = str(unit)
    return _dollars(nanos, 9 - len(digits) + len(digits.rstrip("0")))


def exact(nanos: int | None) -> str:
    """Return every digit of an amount of nano-USD, for titles and copying.

    >>> exact(4_640_000), exact(2_000_000_000)
    ('$0.00464', '$2')
    """
    if nanos is None:
        return UNKNOWN
    whole, part = divmod(abs(nanos), _NANOS)
    decimals = f".{part:09d}".rstrip("0").rstrip(".")
    return f"{'-' if nanos < 0 else ''}${whole:,}{decimals}"


def count(number: int | None) -> str:
    """Return a whole number with thousands separated; a dash for None.

    >>> count(364118)
    '364,118'
    """
    return UNKNOWN if number is None else f"{number:,}"


def tokens(number: int | None) -> str:
    """Return a token count, shortened from a hundred thousand.

    >>> tokens(4812), tokens(123_456), tokens(4_812_000), tokens(None)
    ('4,812', '123k', '4.81M', '—')
    """
    if number is None or number < 100_000:  # noqa: PLR2004  (the rule of the docstring)
        return count(number)
    if _rounded(number, 1000) < 1000:  # noqa: PLR2004  (thousands)
        return f"{_rounded(number, 1000)}k"
    return f"{_rounded(number, 10_000) / 100:,.2f}M"


def duration(milliseconds: float | None) -> str:
    """Return a duration: `412 ms`, `1.24 s`, `2 m 05 s`; a dash for None.

    >>> duration(412.3), duration(1240), duration(125_000), duration(0.2)
    ('412 ms', '1.24 s', '2 m 05 s', '<1 ms')
    """
    if milliseconds is None or milliseconds != milliseconds or abs(milliseconds) == float("inf"):  # noqa: PLR0124
        return UNKNOWN
    if milliseconds < 1:
        return "<1 ms"
    if round(milliseconds) < 1000:  # noqa: PLR2004  (milliseconds)
        return f"{round(milliseconds)} ms"
    if round(milliseconds / 10) < 6000:  # noqa: PLR2004  (hundredths of a second)
        return f"{milliseconds / 1000:.2f} s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes:,} m {seconds:02d} s"


def share(part: int, whole: int) -> str:
    """Return a part of a whole in per cent with one decimal; 100 only when it is all of it.

    >>> share(934, 1000), share(0, 0), share(1, 5000), share(4999, 5000)
    ('93.4 %', '—', '<0.1 %', '>99.9 %')
    """
    if whole <= 0:
        return UNKNOWN
    if part in (0, whole):
        return f"{100 * part // whole} %"
    tenths = _rounded(1000 * part, whole)
    if tenths in (0, 1000):
        return "<0.1 %" if tenths == 0 else ">99.9 %"
    return f"{tenths / 10:.1f} %"


def when(moment: datetime) -> str:
    """Return a moment in UTC, to the second.

    >>> when(datetime(2026, 11, 3, 9, 5, 7, tzinfo=UTC))
    '2026-11-03 09:05:07'
    """
    return moment.astimezone(UTC).isoformat(" ", "seconds")[:19]


def short_when(moment: datetime) -> str:
    """Return a moment in UTC, to the second, without its year.

    >>> short_when(datetime(2026, 11, 3, 9, 5, 7, tzinfo=UTC))
    'Nov 3 09:05:07'
    """
    utc = moment.astimezone(UTC)
    return f"{_MONTHS[utc.month - 1]} {utc.day} {utc:%H:%M:%S}"


def day(value: date) -> str:
    """Return a day without its year.

    >>> day(date(2026, 11, 3))
    'Nov 3'
    """
    return f"{_MONTHS[value.month - 1]} {value.day}"


def aligned(texts: Sequence[str]) -> list[str]:
    """Pad amounts of a right-aligned column so that their decimal points stand under each other.

    >>> [text.replace("\u2007", "_") for text in aligned(["$0.00464", "$1.23", "—"])]
    ['$0.00464', '$1.23___', '—']
    """
    longest = max((len(text.partition(".")[2]) for text in texts if text[-1:].isdigit()), default=0)
    return [_padded(text, longest) for text in texts]


def _padded(text: str, decimals: int) -> str:
    if not text[-1:].isdigit() or not decimals:
        return text
    _, point, part = text.partition(".")
    return text + ("" if point else _POINT_SPACE) + _FIGURE_SPACE * (decimals - len(part))
