"""Stores and events for the dashboard's tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.query import CostReport, CostRow, Dimension, EventFilter, EventPage, EventQuery

NOW = datetime(2026, 11, 23, 18, 43, 15, tzinfo=UTC)
USERS = (
    User(id="u1", name="Ada Lovelace", email="ada@example.com"),
    User(id="u2", email="grace@example.com"),
    User(id="acct_55"),
    None,
)
FEATURES = ("summarizer", "chat", "POST /translate/{lang}", None)


def some_events(number: int, now: datetime = NOW) -> list[UsageEvent]:
    """Return events of the last days, all kinds mixed, the same every time."""
    return [_event(n, now - timedelta(minutes=97 * n)) for n in range(number)]


def _event(n: int, moment: datetime) -> UsageEvent:
    failed = n % 11 == 5
    return UsageEvent(
        occurred_at=moment,
        provider_name="openai",
        operation_name="chat",
        response_model="gpt-4o-mini" if n % 3 else "gpt-unknown",
        feature=FEATURES[n % 7 % 4],
        user=USERS[n % 4],
        request_id=f"request-{n // 2}",
        status="ERROR" if failed else "SUCCESS",
        error_type="RateLimitError" if failed else None,
        latency_ms=100.0 + 37 * n,
        input_tokens=None if failed else 100 + n,
        output_tokens=None if failed else 10 + n,
        usage_source="none" if failed else "provider",
        cost_nanos=None if failed or not n % 3 else 1_234_567 * (1 + n % 5),
        price_version="2026-11-20",
    )


class StillStore:
    """A store whose events never change and whose reports do not filter, for values that no database would keep."""

    name = "still"

    def __init__(self, events: Sequence[UsageEvent] = (), rows: Sequence[CostRow] = ()) -> None:
        self._events = tuple(events)
        self._rows = tuple(rows)

    async def insert(self, events: Sequence[UsageEvent], /) -> int:
        """Keep none."""
        return 0 * len(events)

    async def event(self, event_id: str, /) -> UsageEvent | None:
        """Return the event of that id."""
        return next((event for event in self._events if event.event_id == event_id), None)

    async def events(self, query: EventQuery, /) -> EventPage:
        """Return all of them."""
        return EventPage(events=self._events[: query.limit], older=None, newer=None)

    async def costs(self, dimension: Dimension, where: EventFilter, /) -> CostReport:
        """Return the rows given."""
        sums = {
            name: sum(getattr(row, name) for row in self._rows)
            for name in ("calls", "cost_nanos", "unpriced", "errors", "input_tokens", "output_tokens")
        }
        return CostReport(dimension=dimension, rows=self._rows, days=(), total=CostRow(key=None, **sums))

    async def count(self) -> int:
        """Return how many there are."""
        return len(self._events)

    async def aclose(self) -> None:
        """Hold nothing."""
