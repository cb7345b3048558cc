"""What can be asked of a store, and the shapes of its answers. Values only: no SQL, no HTML, no clock.

Filters: an empty tuple filters nothing; several values of one filter are alternatives; different filters all hold.
The value None inside `features` or `users` selects the calls that have none.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Final, Literal

import msgspec

from fluxgate_mw.event import UsageEvent
from fluxgate_mw.semconv import Status

__all__ = [
    "ERROR_STATUSES",
    "CostReport",
    "CostRow",
    "DayCost",
    "Dimension",
    "EventCursor",
    "EventFilter",
    "EventPage",
    "EventQuery",
]

ERROR_STATUSES: Final[frozenset[Status]] = frozenset(
    {"ERROR", "BLOCKED", "CONTENT_FILTER", "RECITATION", "MALFORMED_REQUEST"},
)
"""What `CostRow.errors` counts: calls that failed; neither cut off at a token limit nor given up by the caller."""

Dimension = Literal["feature", "user", "model", "provider", "route", "status"]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events: a half-open time range `[since, until)` of aware UTC (None = open) and value filters.

    `users` are user ids. `text` is a case-insensitive substring of feature, user id, e-mail, name or model.
    """

    since: datetime | None = None
    until: datetime | None = None
    features: tuple[str | None, ...] = ()
    users: tuple[str | None, ...] = ()
    models: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    text: str | None = None


class EventCursor(msgspec.Struct, frozen=True):
    """A place in the list of events, newest first: the key of the last row seen (keyset paging)."""

    occurred_at: datetime
    event_id: str


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One page of events, newest first: at most `limit` (1 to 1,000) rows older than `after` or newer than `before`.

    At most one of the two cursors is given; with neither, the page starts at the newest event.
    """

    where: EventFilter = EventFilter()
    after: EventCursor | None = None
    before: EventCursor | None = None
    limit: int = 50


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of events, newest first; `older`/`newer` is the cursor of the next page that way, None at the end."""

    events: tuple[UsageEvent, ...]
    older: EventCursor | None
    newer: EventCursor | None


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of one value of the dimension over the range.

    `key` is the value, None for the calls that have none; `label` is how to show it (a user's name, say).
    `cost_nanos` sums the priced calls; `unpriced` counts the calls whose cost is unknown.
    """

    key: str | None
    label: str | None = None
    calls: int
    cost_nanos: int
    unpriced: int
    errors: int
    input_tokens: int
    output_tokens: int


class DayCost(msgspec.Struct, frozen=True, kw_only=True):
    """The spend of one value of the dimension on one UTC day."""

    day: date
    key: str | None
    calls: int
    cost_nanos: int


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """Spend by one dimension: a row per value (dearest first), a point per day and value, and the grand total."""

    dimension: Dimension
    rows: tuple[CostRow, ...]
    days: tuple[DayCost, ...]
    total: CostRow
