"""Make the price tables from the `genai-prices` package: `python -m fluxgate_mw.pricing.compile [folder]`.

The only module that imports `genai_prices`, which is never needed at run time. What is written depends on that
package's data alone: the same version gives the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
from genai_prices import __version__ as source_version
from genai_prices import types as source
from genai_prices.data import providers
from genai_prices.data_units import unit_data
from genai_prices.units import UnitRegistry
from genai_prices.validation import validate_model_price

from fluxgate_mw.pricing.matching import Clause
from fluxgate_mw.pricing.rates import MILLION, Rates, Sheet
from fluxgate_mw.pricing.table import ModelRow, ProviderRow
from fluxgate_mw.pricing.terms import ALWAYS, Dated, Terms, Variant, When

__all__ = ["main", "tables"]

_RATE_OF: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "cache_audio_read_mtok": "cache_read_audio",
    "input_image_mtok": "input_image",
    "output_image_mtok": "output_image",
    "requests_kcount": "requests",
}
"""Published price to the rate of ours; the other prices are for what `TokenUsage` does not count in tokens."""

_HOURS: Final = "audio_hours"
"""The one price for a duration that becomes a rate: that of all of the audio. Held by the hour, exactly."""

_UNITS: Final = UnitRegistry(unit_data)
_MAX_RATE: Final = 2**63
_DENOMINATORS: Final = (MILLION, *(10**power for power in range(7, 25)))

_SHORT: Final = {
    source.ClauseEquals: ("=", "equals"),
    source.ClauseStartsWith: ("^", "starts_with"),
    source.ClauseEndsWith: ("$", "ends_with"),
    source.ClauseContains: ("*", "contains"),
    source.ClauseOr: ("|", "or_"),
    source.ClauseAnd: ("&", "and_"),
}


def tables() -> dict[str, bytes]:
    """Return every table file by name, as `genai-prices` has the prices now.

    Raises:
        ValueError: A price cannot be held exactly, or a model's prices contradict each other.
    """
    files = {f"{provider.id}.json": _table_bytes(provider) for provider in providers}
    rows = tuple(_provider_row(provider) for provider in providers)
    return files | {"index.json": _lines("providers", rows, {"version": f"genai-prices {source_version}"})}


def main(folder: Path | None = None) -> None:
    """Write the tables into a folder (None: the package's own) and take away those that are no more."""
    target = folder or Path(__file__).parent / "tables"
    target.mkdir(parents=True, exist_ok=True)
    files = tables()
    for stale in {path.name for path in target.glob("*.json")} - files.keys():
        (target / stale).unlink()
    for name, content in files.items():
        (target / name).write_bytes(content)
    sys.stdout.write(f"{len(files)} files, {sum(map(len, files.values()))} bytes\n")


def _table_bytes(provider: source.Provider) -> bytes:
    return _lines("models", [_model_row(model) for model in provider.models], {"provider": provider.id})


def _lines(key: str, rows: Iterable[msgspec.Struct], head: Mapping[str, str]) -> bytes:
    lines = b",\n".join(map(msgspec.json.encode, rows))
    return msgspec.json.encode(head)[:-1] + f',"{key}":[\n'.encode() + lines + b"\n]}\n"


def _provider_row(provider: source.Provider) -> ProviderRow:
    return ProviderRow(
        provider.id,
        match=_clause(provider.provider_match) if provider.provider_match else None,
        model_match=_clause(provider.model_match) if provider.model_match else None,
        fallbacks=tuple(provider.fallback_model_providers or ()),
    )


def _model_row(model: source.ModelInfo) -> ModelRow:
    alternatives = model.match.or_ if isinstance(model.match, source.ClauseOr) else [model.match]
    names = tuple(part.equals.lower() for part in alternatives if isinstance(part, source.ClauseEquals))
    others = [_clause(part) for part in alternatives if not isinstance(part, source.ClauseEquals)]
    match = None if not others else others[0] if len(others) == 1 else ("|", others)
    return ModelRow(names, msgspec.Raw(msgspec.json.encode(_terms(model))), match)


def _clause(clause: Any) -> Clause:
    if isinstance(clause, source.ClauseRegex):
        return "~", clause.regex
    kind, field = _SHORT[type(clause)]
    value = getattr(clause, field)
    return kind, value.lower() if isinstance(value, str) else [_clause(part) for part in value]


def _terms(model: source.ModelInfo) -> Terms:
    prices = model.prices
    conditional = [source.ConditionalPrice(prices=prices)] if isinstance(prices, source.ModelPrice) else prices
    return Terms(
        prices=tuple(Dated(_sheet(price.prices), _when(price.constraint)) for price in conditional),
        variants=tuple(
            Variant(variant.when, _sheet(variant.prices, whole=False), _when(variant.constraint))
            for variant in model.price_variants or ()
        ),
    )


def _when(constraint: source.StartDateConstraint | source.TimeOfDateConstraint | None) -> When:
    if constraint is None:
        return ALWAYS
    if isinstance(constraint, source.StartDateConstraint):
        return When(start_date=constraint.start_date)
    times = constraint.start_time, constraint.end_time
    if any(time.utcoffset() for time in times):
        raise ValueError(f"a price holds between times of another zone than UTC: {times}")
    return When(start_time=times[0].replace(tzinfo=None), end_time=times[1].replace(tzinfo=None))


def _sheet(price: source.ModelPrice, *, whole: bool = True) -> Sheet:
    published = {key: value for key, value in price.__dict__.items() if value is not None}
    if whole:
        validate_model_price(set(published), _UNITS)
    tiered = [value for value in published.values() if isinstance(value, source.TieredPrices)]
    starts = sorted({0, *(tier.start for value in tiered for tier in value.tiers)})
    return tuple((start, _rates({key: _at(value, start) for key, value in published.items()})) for start in starts)


def _at(price: Decimal | source.TieredPrices, start: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    return next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base)


def _rates(published: Mapping[str, Decimal]) -> Rates:
    counted = {
        name: published[key] / _UNITS.unit_for_price_key(key).per for key, name in _RATE_OF.items() if key in published
    }
    if _HOURS in published:
        counted["audio_hours"] = published[_HOURS]
    per = next(per for per in _DENOMINATORS if all(_is_whole(usd.scaleb(9) * per) for usd in counted.values()))
    rates: dict[str, Any] = {name: int(usd.scaleb(9) * per) for name, usd in counted.items()}
    if any(rate >= _MAX_RATE for rate in rates.values()):
        raise ValueError(f"a price has too many decimals: {published}")
    return Rates(**rates, per=per, uncounted=tuple(sorted(published.keys() - _RATE_OF.keys())))


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
