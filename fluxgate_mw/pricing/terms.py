"""Which rates hold for a model at a time and for a service tier. Knows neither names nor arithmetic."""

from __future__ import annotations

from bisect import bisect
from datetime import UTC, date, datetime, time
from typing import Final

import msgspec

from fluxgate_mw.pricing.rates import Sheet, overlay

__all__ = ["ALWAYS", "Dated", "Tariff", "Terms", "Variant", "When"]


class When(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a price holds: from midnight UTC of a date, or between two UTC times of each day (the end left out)."""

    start_date: date | None = None
    start_time: time | None = None
    end_time: time | None = None

    def holds(self, at: datetime) -> bool:
        """Say whether it holds at a moment of UTC."""
        if self.start_date is not None:
            return at.date() >= self.start_date
        if self.start_time is None or self.end_time is None:
            return True
        now = at.time()
        if self.end_time < self.start_time:
            return now >= self.start_time or now < self.end_time
        return self.start_time <= now < self.end_time


ALWAYS: Final = When()


class Dated(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sheet and when it holds."""

    sheet: Sheet
    when: When = ALWAYS


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rates in place of the usual ones for requests of a kind, such as `{"service_tier": "flex"}`."""

    context: dict[str, str]
    sheet: Sheet
    when: When = ALWAYS


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every price of one model, as stored.

    Of several prices that hold the last counts; where none does, the first. Of several variants that hold and give
    the same rate the first counts. Variants are for the provider's own requests, not for those of who resells it.
    """

    prices: tuple[Dated, ...]
    variants: tuple[Variant, ...] = ()


class Tariff:
    """The terms of one model, made quick to ask.

    Args:
        terms: As stored.
        version: What the prices were made from.

    Attributes:
        plain: The usual sheet, where no time changes it; else None.

    Concurrency: any thread; what is kept is the same whoever makes it, at most one sheet a date and tier in the terms.
    """

    __slots__ = ("_dates", "_kept", "_terms", "_tiers", "_timed", "plain", "version")

    def __init__(self, terms: Terms, version: str) -> None:
        conditions = [price.when for price in terms.prices] + [variant.when for variant in terms.variants]
        self.version = version
        self.plain: Sheet | None = terms.prices[0].sheet if len(terms.prices) == 1 else None
        self._terms = terms
        self._timed = any(when.start_time is not None for when in conditions)
        self._dates = sorted({when.start_date for when in conditions if when.start_date is not None})
        self._tiers = {value for variant in terms.variants for value in variant.context.values()}
        self._kept: dict[tuple[str | None, int], Sheet] = {}

    def sheet(self, at: datetime, service_tier: str | None) -> Sheet:
        """Return the rates of a moment and a tier; None and an unknown tier mean the usual rates.

        Args:
            at: A naive time is taken as UTC.
            service_tier: As the provider spells it; `batch` also means batch processing.
        """
        tier = service_tier if service_tier in self._tiers else None
        if tier is None and self.plain is not None:
            return self.plain
        moment = _utc(at)
        if self._timed:
            return self._made(moment, tier)
        key = (tier, bisect(self._dates, moment.date()))
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = self._made(moment, tier)
        return kept

    def has_tier(self, at: datetime, service_tier: str) -> bool:
        """Return whether rates of a tier are known for a moment; arguments as of `sheet`."""
        return bool(self._variants(_utc(at), service_tier))

    def _made(self, moment: datetime, tier: str | None) -> Sheet:
        prices = self._terms.prices
        sheet = next((dated for dated in reversed(prices) if dated.when.holds(moment)), prices[0]).sheet
        if tier is None:
            return sheet
        for variant in reversed(self._variants(moment, tier)):
            sheet = overlay(sheet, variant.sheet)
        return sheet

    def _variants(self, moment: datetime, tier: str) -> list[Variant]:
        context = {"service_tier": tier} | ({"processing": "batch"} if tier == "batch" else {})
        return [
            variant
            for variant in self._terms.variants
            if variant.context.items() <= context.items() and variant.when.holds(moment)
        ]


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo is UTC or at.tzinfo is None else at.astimezone(UTC)
