"""A customer's own rates in place of the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import MONEY
from fluxgate_mw.pricing.rates import Rates

__all__ = ["CostOverride"]

_MAX_USD: Final = 1_000_000_000


class CostOverride(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rates in USD per million tokens; None takes the published one.

    Numbers, numerals and `Decimal` are accepted and kept as exact `Decimal`: 0.1 is a tenth. Rates count to the
    nano-USD per million tokens; finer ones are rounded half to even.

    Raises:
        ConfigurationError: A value is no number from 0 to 1000000000; the message names its key.

    Example:
        >>> CostOverride.from_mapping({"input_cost_per_1m_tokens": 0.1}).input_cost_per_1m_tokens
        Decimal('0.1')
    """

    input_cost_per_1m_tokens: Decimal | float | str | None = None
    output_cost_per_1m_tokens: Decimal | float | str | None = None
    cache_read_cost_per_1m_tokens: Decimal | float | str | None = None
    cache_write_cost_per_1m_tokens: Decimal | float | str | None = None
    reasoning_cost_per_1m_tokens: Decimal | float | str | None = None

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            value = getattr(self, key)
            if value is not None:
                msgspec.structs.force_setattr(self, key, _usd(key, value))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> CostOverride:
        """Return the override that a mapping of the same keys spells.

        Raises:
            ConfigurationError: It is no mapping, a key is unknown or a value is no number; the message names the key.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(f"cost_override: expected a mapping of {', '.join(cls.__struct_fields__)}")
        for key in mapping:
            if key not in cls.__struct_fields__:
                raise ConfigurationError(f"cost_override: {key!s:.60}: expected {', '.join(cls.__struct_fields__)}")
        return cls(**mapping)

    def rates(self) -> Rates:
        """Return the rates that are given."""
        return Rates(
            input=_nanos(self.input_cost_per_1m_tokens),
            output=_nanos(self.output_cost_per_1m_tokens),
            cache_read=_nanos(self.cache_read_cost_per_1m_tokens),
            cache_write=_nanos(self.cache_write_cost_per_1m_tokens),
            reasoning=_nanos(self.reasoning_cost_per_1m_tokens),
        )


def _usd(key: str, value: Any) -> Decimal:
    allowed = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)
    try:
        number = Decimal(str(value)) if allowed else None
    except (InvalidOperation, ValueError):  # ValueError: an integer of more digits than Python spells out
        number = None
    if number is None or not number.is_finite() or not 0 <= number <= _MAX_USD:
        raise ConfigurationError(f"cost_override: {key}: expected a number from 0 to {_MAX_USD} (USD)")
    return number


def _nanos(usd: Any) -> int | None:
    return None if usd is None else int(usd.scaleb(9, MONEY).to_integral_value(ROUND_HALF_EVEN, MONEY))
