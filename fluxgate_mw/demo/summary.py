"""The demo's last words: a table made from both the provider's ledger and the store's own file.

The store is read by SQL, past the store's code and the flusher's counts, so that the comparison stands on what is
really there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from fluxgate_mw.demo.reconcile import Accounts, StoredCall
from fluxgate_mw.event import usd

__all__ = ["read_stored", "summary_lines"]

_SHOWN_PROBLEMS: Final = 20
_COLUMNS: Final = StoredCall.__struct_fields__


def read_stored(path: Path, *, since_ms: int = 0) -> list[StoredCall]:
    """Return the rows of table `events` whose ids are of that Unix millisecond or later; none without a file."""
    if not path.exists():
        return []
    first_id = f"{since_ms:012x}"
    query = f"SELECT {', '.join(_COLUMNS)} FROM events WHERE event_id >= ?"  # noqa: S608  (our own column names)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query, (f"{first_id[:8]}-{first_id[8:]}",)).fetchall()
    return msgspec.convert([dict(zip(_COLUMNS, row, strict=True)) for row in rows], list[StoredCall], strict=False)


def summary_lines(accounts: Accounts, events: Sequence[StoredCall]) -> list[str]:
    """Return the summary for a terminal: the accounts, the cost by feature, and the verdict."""
    losses = accounts.losses
    figures = [
        ("calls sent", accounts.calls),
        ("  HTTP calls answered", accounts.http_calls),
        ("  of them retries", accounts.retries),
        ("stored", accounts.stored),
        ("dropped", losses.dropped),
        ("dead-lettered", losses.dead_lettered),
        ("still buffered", losses.buffered),
    ]
    return [
        "",
        *(f"{name:<28}{'not known' if count is None else f'{count:,}':>12}" for name, count in figures),
        "",
        f"{'cost by feature':<44}{'calls':>8}{'unpriced':>10}{'cost, USD':>14}",
        *_cost_lines(events),
        "",
        *_verdict(accounts),
    ]


def _cost_lines(events: Sequence[StoredCall]) -> list[str]:
    by_feature: dict[str, list[int | None]] = {}
    for event in events:
        by_feature.setdefault(event.feature or "(no feature)", []).append(event.cost_nanos)
    dearest_first = sorted(by_feature.items(), key=lambda row: -sum(filter(None, row[1])))
    return [_cost_line(*row) for row in (*dearest_first, ("total", [event.cost_nanos for event in events]))]


def _cost_line(name: str, costs: Sequence[int | None]) -> str:
    """Return one row; the cost of calls that are all unpriced is not known, which is not nothing."""
    known = [nanos for nanos in costs if nanos is not None]
    cost = f"{usd(sum(known)):.6f}" if known or not costs else "-"
    return f"{name:<44}{len(costs):>8,}{len(costs) - len(known):>10,}{cost:>14}"


def _verdict(accounts: Accounts) -> list[str]:
    if accounts.holds:
        return ["Every call that was answered is stored or counted, for the right user and feature."]
    shown = accounts.problems[:_SHOWN_PROBLEMS]
    rest = len(accounts.problems) - len(shown)
    return [
        "THE ACCOUNTS DO NOT BALANCE:",
        *(f"  {problem}" for problem in shown),
        *([f"  and {rest:,} more"] if rest else []),
    ]
