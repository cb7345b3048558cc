"""What a call costs by one list of rates: integer arithmetic on token counts, and nothing else.

Knows neither models nor providers. A rate is integer nano-USD for `per` units (a million, unless a published price
has more decimals than that can hold). Counts that are subsets of a total are priced at their own rate where there is
one, and the rest of the total at the total's rate, so no token is priced twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final, NoReturn

import msgspec

from fluxgate_mw.event import TokenUsage

__all__ = ["MILLION", "Rates", "Sheet", "UnpricedError", "cost_nanos", "overlay", "raised"]

MILLION: Final = 1_000_000
_SECONDS_PER_HOUR: Final = 3600
_MAX_NANOS: Final = 2**63 - 1


class UnpricedError(Exception):
    """These counts have no price; the message says why. Never leaves the package `pricing`."""


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Nano-USD for `per` tokens of each kind; None where that kind has no rate of its own.

    Args:
        requests: Fee of one request, in nano-USD for `per` requests.
        audio_hours: Nano-USD for `per` hours of audio.
        per: What the rates are for; a power of ten, at least a million.
        uncounted: Names of published prices for what token counts do not show (hours of audio, pages, searches).
        complete: False: a total without a rate is unknown; True: it costs nothing, as published.
    """

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    input_audio: int | None = None
    output_audio: int | None = None
    cache_read_audio: int | None = None
    input_image: int | None = None
    output_image: int | None = None
    requests: int | None = None
    audio_hours: int | None = None
    per: int = MILLION
    uncounted: tuple[str, ...] = ()
    complete: bool = True


Sheet = tuple[tuple[int, Rates], ...]
"""Rates by how many input tokens must be passed for them, ascending from 0; the last that applies is for all tokens."""

_Parts = tuple[tuple[int | None, int | None], ...]
_EXCEEDS: Final = {
    "input": "cached tokens exceed the input",
    "output": "reasoning, audio or image tokens exceed the output",
}

_RATE_NAMES: Final = tuple(name for name in Rates.__struct_fields__ if name not in ("per", "uncounted", "complete"))


def cost_nanos(sheet: Sheet, usage: TokenUsage) -> int:
    """Return the nano-USD of one call, rounded once, half to even.

    Raises:
        UnpricedError: The counts contradict each other, or what they count has no known price.
    """
    rates = sheet[0][1] if len(sheet) == 1 else _step(sheet, usage)
    numerator: int | Fraction = _input_numerator(rates, usage) + _output_numerator(rates, usage) + (rates.requests or 0)
    if usage.audio_seconds is not None:
        numerator += _duration_numerator(rates, usage.audio_seconds)
    if not numerator:
        _check_zero(rates, usage)
    per = rates.per
    nanos, rest = divmod(numerator, per)
    if (twice := rest + rest) > per or (twice == per and nanos & 1):
        nanos += 1
    if nanos > _MAX_NANOS:
        _reject("the counts are absurd")
    return nanos


def _step(sheet: Sheet, usage: TokenUsage) -> Rates:
    passed = usage.input_tokens
    if passed is None:
        passed = _total(None, "input", *_input_parts(usage))
    rates = sheet[0][1]
    for start, step in sheet:
        if passed <= start:
            break
        rates = step
    return rates


def _check_zero(rates: Rates, usage: TokenUsage) -> None:
    by_duration = rates.audio_hours is not None and usage.audio_seconds is not None
    if rates.uncounted and rates.input is None and rates.output is None and not by_duration:
        raise UnpricedError(f"priced by {' and '.join(rates.uncounted)}, which the usage does not count")
    totals = (rates.input, usage.input_tokens), (rates.output, usage.output_tokens)
    if any(rate and total is None for rate, total in totals):
        raise UnpricedError("the tokens that are billed are not reported")


def overlay(base: Sheet, over: Sheet) -> Sheet:
    """Return `base` with every rate that `over` gives in its place, at every step of either."""
    starts = sorted({start for start, _ in (*base, *over)})
    return tuple((start, _merged(_rates_past(base, start), _rates_past(over, start))) for start in starts)


@lru_cache(maxsize=256)
def raised(sheet: Sheet, percent: int) -> Sheet:
    """Return the sheet with every rate raised, exactly."""
    return tuple((start, _raised(rates, percent)) for start, rates in sheet)


def _raised(rates: Rates, percent: int) -> Rates:
    given = {name: getattr(rates, name) for name in _RATE_NAMES}
    values = {name: rate * (100 + percent) for name, rate in given.items() if rate is not None}
    return msgspec.structs.replace(rates, per=rates.per * 100, **values)


def _rates_past(sheet: Sheet, start: int) -> Rates:
    return next(rates for step, rates in reversed(sheet) if step <= start)


def _merged(base: Rates, over: Rates) -> Rates:
    per = max(base.per, over.per)
    values: dict[str, int | None] = {}
    for name in _RATE_NAMES:
        rates = base if getattr(over, name) is None else over
        rate = getattr(rates, name)
        values[name] = None if rate is None else rate * (per // rates.per)
    uncounted = tuple(dict.fromkeys((*base.uncounted, *over.uncounted)))
    return Rates(**values, per=per, uncounted=uncounted, complete=base.complete)


def _input_parts(usage: TokenUsage) -> Sequence[int | None]:
    return (
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        usage.input_audio_tokens,
        usage.input_image_tokens,
        usage.cache_read_input_audio_tokens,
    )


def _input_numerator(rates: Rates, usage: TokenUsage) -> int:
    rate = rates.input
    if rate is None and rates.complete:
        return _unbilled("input", usage.input_tokens, *_input_parts(usage))
    if rate is None or usage.input_audio_tokens or usage.input_image_tokens or usage.cache_read_input_audio_tokens:
        return _mixed_input(rates, usage)
    read, write = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    if not (read or write):
        return _rest(usage.input_tokens or 0, rate, "input")
    parts = (read, rates.cache_read), (write, rates.cache_write)
    return _split(usage.input_tokens, rate, parts, "input")


def _mixed_input(rates: Rates, usage: TokenUsage) -> int:
    rest = _total(usage.input_tokens, "input", *_input_parts(usage))
    _unbilled("input", rest, *_input_parts(usage))
    both = _cached_audio(rates, usage)
    numerator = both * (rates.cache_read_audio or 0)
    rest -= both
    for name, rate, count, inner in (
        ("cached", rates.cache_read, usage.cache_read_input_tokens, usage.cache_read_input_audio_tokens),
        ("cache write", rates.cache_write, usage.cache_creation_input_tokens, None),
        ("audio", rates.input_audio, usage.input_audio_tokens, usage.cache_read_input_audio_tokens),
        ("image", rates.input_image, usage.input_image_tokens, None),
    ):
        if rate is None:
            continue
        share = _total(count, name, inner) - (both if inner else 0)
        if share < 0:
            _reject(f"cached audio tokens exceed the {name} tokens")
        numerator += share * rate
        rest -= share
    if rest < 0:
        _reject("cached, audio or image tokens exceed the input")
    return numerator + _rest(rest, rates.input, "input")


def _cached_audio(rates: Rates, usage: TokenUsage) -> int:
    read, audio = usage.cache_read_input_tokens, usage.input_audio_tokens
    if read and usage.input_image_tokens and "cache_image_read_mtok" in rates.uncounted:
        raise UnpricedError("how many of the image tokens were cached is not known")
    if rates.cache_read_audio is None:
        return 0
    both = usage.cache_read_input_audio_tokens
    if both is None and read and audio:
        raise UnpricedError("how many of the audio tokens were cached is not known")
    return both or 0


def _output_numerator(rates: Rates, usage: TokenUsage) -> int:
    rate = rates.output
    reasoning, audio, image = usage.reasoning_output_tokens, usage.output_audio_tokens, usage.output_image_tokens
    if rate is None and rates.complete:
        return _unbilled("output", usage.output_tokens, reasoning, audio, image)
    if not (reasoning or audio or image):
        return _rest(usage.output_tokens or 0, rate, "output")
    parts = (reasoning, rates.reasoning), (audio, rates.output_audio), (image, rates.output_image)
    return _split(usage.output_tokens, rate, parts, "output")


def _duration_numerator(rates: Rates, seconds: float) -> Fraction:
    if seconds < 0:
        _reject("the audio is shorter than 0 seconds")
    if rates.audio_hours is None and not rates.complete:
        raise UnpricedError("no price of audio by the hour known")
    return Fraction(str(seconds)) * (rates.audio_hours or 0) / _SECONDS_PER_HOUR


def _split(total: int | None, rate: int | None, parts: _Parts, name: str) -> int:
    rest = total or 0
    numerator = 0
    for count, own_rate in parts:
        if not count:
            continue
        if total is None or count < 0:
            _reject(f"parts of the {name} tokens below 0 or without their total")
        if own_rate is not None:
            numerator += count * own_rate
            rest -= count
    if rest < 0:
        _reject(_EXCEEDS[name])
    return numerator + _rest(rest, rate, name)


def _rest(count: int, rate: int | None, name: str) -> int:
    if count < 0:
        _reject(f"the {name} tokens are below 0")
    if rate is None and count:
        raise UnpricedError(f"no {name} price known")
    return count * (rate or 0)


def _total(total: int | None, name: str, *parts: int | None) -> int:
    if total is None and any(parts):
        _reject(f"parts of the {name} tokens without their total")
    return total or 0


def _unbilled(name: str, *counts: int | None) -> int:
    if any(count < 0 for count in counts if count is not None):
        _reject(f"the {name} tokens are below 0")
    return 0


def _reject(what: str) -> NoReturn:
    raise UnpricedError(f"invalid usage: {what}")
