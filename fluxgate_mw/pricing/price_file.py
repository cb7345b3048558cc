"""A user's own price list: negotiated rates by model, each with the dates from and until which it holds."""

from __future__ import annotations

import json
import tomllib
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.pricing.override import CostOverride
from fluxgate_mw.pricing.table import provider_spelled

__all__ = ["PriceFile"]

_OWN: Final = frozenset({"model", "provider", "from", "until"})


class _Entry(msgspec.Struct, frozen=True):
    model: str
    provider: str | None
    first: date | None
    until: date | None
    rates: CostOverride

    def holds(self, provider: str | None, model: str, at: date) -> bool:
        """Say whether it is for a model, in lower case, of a provider, by its id, on a day."""
        named = model.startswith(self.model[:-1]) if self.model.endswith("*") else model == self.model
        return (
            named
            and self.provider in (None, provider)
            and (self.first is None or at >= self.first)
            and (self.until is None or at < self.until)
        )


class PriceFile:
    """The entries of one price list; of several that hold, the last counts.

    A file in TOML or JSON with a list `prices`. Each entry names its `model` (a `*` at the end means any ending) and
    rates as in `cost_override`, one at least; `provider`, `from` (a date, UTC, inclusive) and `until` (exclusive, later
    than `from`) may be left out. Names are of any case, and a provider's is any that the tables spell out. A rate that
    an entry leaves out is the published one.

    Args:
        path: Ends in `.toml` or `.json`.

    Raises:
        ConfigurationError: The file cannot be read, or an entry of it is not valid; the message says which.

    Concurrency: any thread; never changes.

    Example of a file::

        [[prices]]
        model = "gpt-4o*"
        from = 2026-01-01
        input_cost_per_1m_tokens = 1.75
        output_cost_per_1m_tokens = 7
    """

    def __init__(self, path: Path) -> None:
        where = f"price_file (FLUXGATE_PRICE_FILE): {path.name}"
        try:
            text = path.read_text("utf-8")
            content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except RecursionError:
            raise ConfigurationError(f"{where}: nested too deeply") from None
        except OSError as error:
            raise ConfigurationError(f"{where}: {error.strerror}: {path.absolute()}") from None
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        entries = content.get("prices") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ConfigurationError(f"{where}: expected a list named prices")
        self._entries = tuple(_entry(f"{where}: prices[{n}]", item) for n, item in enumerate(entries))

    def rates(self, provider: str | None, model: str, at: datetime) -> CostOverride | None:
        """Return the rates of a model at a moment (aware UTC); None where the list has none."""
        of, name, day = provider and provider_spelled(provider), model.lower(), at.date()
        held = (entry for entry in reversed(self._entries) if entry.holds(of, name, day))
        return next((entry.rates for entry in held), None)


def _entry(where: str, item: Any) -> _Entry:
    if not isinstance(item, dict) or not isinstance(item.get("model"), str) or not item["model"]:
        raise ConfigurationError(f"{where}: expected an entry that names its model")
    if "*" in item["model"][:-1]:
        raise ConfigurationError(f"{where}: model: expected * at the end only")
    provider = item.get("provider")
    if provider is not None and not isinstance(provider, str):
        raise ConfigurationError(f"{where}: provider: expected a name")
    first, until = _day(where, "from", item.get("from")), _day(where, "until", item.get("until"))
    if first is not None and until is not None and first >= until:
        raise ConfigurationError(f"{where}: until: expected a date later than from ({first})")
    try:
        rates = CostOverride.from_mapping({key: value for key, value in item.items() if key not in _OWN})
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {str(error).removeprefix('cost_override: ')}") from None
    if rates == CostOverride():
        raise ConfigurationError(f"{where}: expected a rate, such as input_cost_per_1m_tokens")
    return _Entry(item["model"].lower(), provider and provider_spelled(provider), first, until, rates)


def _day(where: str, key: str, value: Any) -> date | None:
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{where}: {key}: expected a date such as 2026-01-31") from None
