"""Where events end up: one module per database, chosen by the scheme of its address.

A store knows the event and the questions of `query`; it knows neither buffer nor flusher nor page.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.extras import load
from fluxgate_mw.settings import mask_url
from fluxgate_mw.types import Store

__all__ = ["open_store"]

_STORES: Final = MappingProxyType({"sqlite": ("fluxgate_mw.stores.sqlite:SQLiteStore", "sqlite")})
_ANNOUNCED: Final = frozenset({"postgresql", "clickhouse"})


def open_store(url: str) -> Store:
    """Return the store that the address names. Nothing is opened before its first use.

    Args:
        url: `sqlite:///relative.sqlite3` or `sqlite:////absolute.sqlite3`.

    Raises:
        ConfigurationError: The address names no store that this version has.
        MissingExtraError: The store's driver is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme in _ANNOUNCED:
        raise ConfigurationError(f"store_url: {scheme}:// is not supported by this version yet; use sqlite:///file")
    if scheme not in _STORES:
        raise ConfigurationError(f"store_url: {mask_url(url)!r} names no store; use sqlite:///file")
    target, extra = _STORES[scheme]
    store: Store = load(target, extra=extra, needed_for=f"{scheme}://").from_url(url)
    return store
