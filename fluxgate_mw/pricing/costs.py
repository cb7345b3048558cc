"""The cost of one call: its model's tariff, and the arithmetic of its usage."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from fluxgate_mw.event import TokenUsage
from fluxgate_mw.pricing import Price
from fluxgate_mw.pricing.override import CostOverride
from fluxgate_mw.pricing.rates import Rates, Sheet, UnpricedError, cost_nanos, overlay, raised
from fluxgate_mw.pricing.regions import uplift_percent
from fluxgate_mw.pricing.table import index, tariff_of

__all__ = ["lacks_half", "price", "table_version"]

_OVERRIDE_VERSION: Final = "cost_override"
_AUDIO_APART: Final = "audio-preview"
"""Models whose audio tokens cost more than their text, by rates that the tables lack.
Source: https://platform.openai.com/docs/pricing (read 2026-11)."""
_AUDIO_UNPRICED: Final = Price(None, None, "the audio tokens of this model have no known price")
_PRICED_APART: Final = frozenset({"priority", "fast", "ultrafast", "flex", "batch"})
"""Service tiers that cost more or less than the usual one, wherever they are sold.
Source: https://developers.openai.com/api/docs/pricing, https://docs.x.ai/developers/advanced-api-usage/priority-processing,
https://learn.microsoft.com/azure/foundry/openai/concepts/priority-processing (read 2026-11)."""
_PRICED_ALIKE: Final = frozenset({("groq", "flex")})
"""But for these. Source: https://console.groq.com/docs/flex-processing (read 2026-11)."""
_LEAST_SECONDS: Final = {"groq": 10}
"""What is billed of audio that is shorter. Source: `genai_prices.types` (ModelInfo.calc_price), version 0.2.3."""
_NO_OUTPUT: Final = "embed"
"""Part of the names of models that put out no tokens, though a table may have a rate for them, as for `mistral-embed`.
Source: genai-prices 0.2.3."""
_NOT_COUNTS: Final = Price(None, None, "invalid usage: the counts are no whole numbers")


def table_version() -> str:
    """Return what the tables were made from, as `price_version` spells it: `genai-prices 0.2.3`."""
    return index().version


def price(
    provider: str | None,
    model: str | None,
    usage: TokenUsage,
    *,
    at: datetime,
    service_tier: str | None = None,
    override: CostOverride | None = None,
    override_version: str = _OVERRIDE_VERSION,
    regional: bool = False,
) -> Price:
    """Return what a call cost.

    Args:
        provider: As `provider_of_host` gives it, or any common name of the provider.
        model: As the provider or a gateway spells it, in any case.
        usage: Reported totals that include their subsets.
        at: When the call was made; a naive time is taken as UTC.
        service_tier: As the response says, `batch` included; None and an unknown one mean the usual rates, and one that
            is known to be priced apart, without rates in the table, is unpriced.
        override: Own rates; what it leaves out is taken from the table, where the model is in one.
        override_version: How `price_version` names them.
        regional: Whether it was sent to the endpoint of a region (`is_regional`); then `price_version` says what that
            added to the published rates.

    Guarantees: raises nothing, whatever the counts are; a cost that is not known is None, never 0.

    Concurrency: any thread.

    >>> from datetime import UTC, datetime
    >>> price("openai", "gpt-4o-mini", TokenUsage(input_tokens=1000, output_tokens=10), at=datetime.now(UTC)).cost_nanos
    156000
    """
    if usage.audio_seconds is not None and provider in _LEAST_SECONDS:
        usage = _at_least(usage, _LEAST_SECONDS[provider])
    published = _published(provider, model, at, service_tier, regional=regional)
    if override is not None:
        own = override.rates()
        if isinstance(published, str):
            return _priced(((0, msgspec.structs.replace(own, complete=False)),), usage, override_version)
        sheet, version = published
        return _priced(overlay(sheet, ((0, own),)), usage, f"{override_version}, {version}")
    if isinstance(published, str):
        return Price(None, None, published)
    sheet, version = published
    if _AUDIO_APART in (model or "").lower() and _has_unrated_audio(sheet[0][1], usage):
        return _AUDIO_UNPRICED
    return _priced(sheet, usage, version)


def lacks_half(
    provider: str | None, model: str | None, usage: TokenUsage, *, at: datetime, service_tier: str | None = None
) -> bool:
    """Return whether only the input or only the output is counted, and the other one has a published rate.

    The arguments are those of `price`, of a call that has both input and output.

    Concurrency: any thread.

    >>> from datetime import UTC, datetime
    >>> lacks_half("openai", "gpt-4o-mini", TokenUsage(input_tokens=1000), at=datetime.now(UTC))
    True
    """
    no_input, no_output = usage.input_tokens is None, usage.output_tokens is None
    if no_input == no_output or usage.audio_seconds is not None:
        return False
    tariff = tariff_of(provider, model)
    if isinstance(tariff, str) or (no_output and _NO_OUTPUT in (model or "").lower()):
        return False
    return any(rates.output if no_output else rates.input for _, rates in tariff.sheet(at, service_tier))


def _published(
    provider: str | None, model: str | None, at: datetime, service_tier: str | None, *, regional: bool
) -> tuple[Sheet, str] | str:
    """Return the rates of a call and their version, or why there are none."""
    tariff = tariff_of(provider, model)
    if isinstance(tariff, str):
        return tariff
    if service_tier is not None and _is_priced_apart(provider, service_tier) and not tariff.has_tier(at, service_tier):
        return f"no price for service tier {service_tier!r}"
    sheet = tariff.sheet(at, service_tier)
    percent = uplift_percent(model or "") if regional else 0
    if percent is None:
        return f"what a regional endpoint adds to the price of {model!r} is not known"
    return (raised(sheet, percent), f"{tariff.version}, regional +{percent} %") if percent else (sheet, tariff.version)


def _is_priced_apart(provider: str | None, service_tier: str) -> bool:
    return service_tier in _PRICED_APART and (provider, service_tier) not in _PRICED_ALIKE


def _has_unrated_audio(rates: Rates, usage: TokenUsage) -> bool:
    counts = (rates.input_audio, usage.input_audio_tokens), (rates.output_audio, usage.output_audio_tokens)
    return any(rate is None and count for rate, count in counts)


def _at_least(usage: TokenUsage, least: int) -> TokenUsage:
    seconds = usage.audio_seconds
    shorter = isinstance(seconds, int | float) and 0 < seconds < least
    return msgspec.structs.replace(usage, audio_seconds=least) if shorter else usage


def _billed(sheet: Sheet, usage: TokenUsage) -> TokenUsage:
    """Return what is billed of a usage that tells how long the audio in its input was: not the tokens of that.

    Raises:
        UnpricedError: It has no price by its length, or which of the tokens are audio is not known.
    """
    audio = usage.input_audio_tokens
    if any(rates.audio_hours is None for _, rates in sheet):
        raise UnpricedError("no price of audio by the hour known")
    if audio is None and usage.input_tokens and any(rates.input for _, rates in sheet):
        raise UnpricedError("how many of the input tokens were audio is not known")
    rest = None if usage.input_tokens is None else usage.input_tokens - (audio or 0)
    seconds = usage.input_audio_seconds
    return msgspec.structs.replace(usage, input_tokens=rest, input_audio_tokens=None, audio_seconds=seconds)


def _priced(sheet: Sheet, usage: TokenUsage, version: str) -> Price:
    if usage.input_tokens is None and usage.output_tokens is None and usage.audio_seconds is None:
        return Price(None, None, "no usage")
    try:
        nanos = cost_nanos(sheet, usage if usage.input_audio_seconds is None else _billed(sheet, usage))
    except UnpricedError as error:
        return Price(None, None, str(error))
    except (TypeError, ValueError, ArithmeticError):
        return _NOT_COUNTS
    return Price(nanos, version) if type(nanos) is int else _NOT_COUNTS
