"""What a call costs, from compiled tables of published prices: integer nano-USD, or None and the reason.

Nothing is read or imported before the first price is asked for, and then only the table of the provider that is met.
The tables are made by `python -m fluxgate_mw.pricing.compile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from fluxgate_mw.extras import load
from fluxgate_mw.pricing.hosts import is_regional, provider_of_host

if TYPE_CHECKING:
    from fluxgate_mw.pricing.costs import lacks_half, price, table_version
    from fluxgate_mw.pricing.override import CostOverride
    from fluxgate_mw.pricing.price_file import PriceFile
    from fluxgate_mw.pricing.table import is_at_hand

__all__ = [
    "CostOverride",
    "Price",
    "PriceFile",
    "is_at_hand",
    "is_regional",
    "lacks_half",
    "price",
    "provider_of_host",
    "table_version",
]

_LATER: Final = {
    "CostOverride": "override",
    "PriceFile": "price_file",
    "is_at_hand": "table",
    "lacks_half": "costs",
    "price": "costs",
    "table_version": "costs",
}


class Price(msgspec.Struct, frozen=True, gc=False):
    """What one call cost.

    Args:
        cost_nanos: Nano-USD; None when unknown.
        price_version: Which prices it was made from; None where there is no cost.
        reason: Why there is no cost; None where there is one.
    """

    cost_nanos: int | None
    price_version: str | None = None
    reason: str | None = None


def __getattr__(name: str) -> Any:
    """Import what prices a call when the first one is priced."""
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = load(f"{__name__}.{module}:{name}", extra="all", needed_for=name)
    return found
