"""What every `Store` guarantees, on each of them: once per id, sums that agree with the events, paging, filters."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxgate_mw.errors import ClosedError
from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.query import ERROR_STATUSES, CostReport, Dimension, EventCursor, EventFilter, EventQuery
from fluxgate_mw.stores import open_store
from fluxgate_mw.types import Store

KINDS = ["sqlite"]
DIMENSIONS: tuple[Dimension, ...] = ("feature", "user", "model", "provider", "route", "status")
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Store]:
    """A fresh and empty store of a kind."""
    store = open_store({"sqlite": f"sqlite:///{folder / 'store.sqlite3'}"}[kind])
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
async def store(kind, tmp_path, anyio_backend):
    async with opened(kind, tmp_path) as fresh:
        yield fresh


moments = st.builds(
    lambda day, offset: datetime(2026, 3, 1 + day, tzinfo=UTC) + timedelta(microseconds=offset),
    st.integers(0, 3),
    st.sampled_from([0, 1, 43_200_000_000, 86_399_999_999]),
)
events = st.builds(
    UsageEvent,
    occurred_at=moments,
    feature=st.sampled_from([None, "", "summarize", "Straße 50%", "chat_1"]),
    user=st.sampled_from([None, User(id=""), User(id="u1", name="Ann"), User(id="u2", email="bob@example.com")]),
    request_model=st.sampled_from([None, "gpt", "GPT_4"]),
    response_model=st.sampled_from([None, "", "gpt-4o"]),
    provider_name=st.sampled_from([None, "openai"]),
    route=st.sampled_from([None, "GET /{id}"]),
    status=st.sampled_from(["SUCCESS", "ERROR", "CANCELLED"]),
    cost_nanos=st.sampled_from([None, 0, 1, 2**53]),
    input_tokens=st.sampled_from([None, 0, 7]),
    output_tokens=st.sampled_from([None, 3]),
)
filters = st.builds(
    EventFilter,
    since=st.none() | moments,
    until=st.none() | moments,
    features=st.lists(st.sampled_from([None, "", "summarize", "chat_1", "nothing"]), max_size=2).map(tuple),
    users=st.lists(st.sampled_from([None, "", "u1"]), max_size=2).map(tuple),
    models=st.lists(st.sampled_from(["gpt", "gpt-4o", ""]), max_size=2).map(tuple),
    statuses=st.lists(st.sampled_from(["SUCCESS", "ERROR"]), max_size=2).map(tuple),
    text=st.sampled_from([None, "", "ANN", "%", "_", "STRASSE", "STRAßE", "gpt", "bob@", "\\"]),
)


def key_of(event: UsageEvent, dimension: Dimension) -> str | None:
    """The value of an event on a dimension, by the event's own properties."""
    if dimension == "user":
        return event.user.id if event.user else None
    return {
        "feature": event.feature,
        "model": event.model,
        "provider": event.provider_name,
        "route": event.route,
        "status": event.status,
    }[dimension]


def holds(event: UsageEvent, where: EventFilter) -> bool:
    """The meaning of a filter, in Python."""
    user = event.user or User(id="")
    texts = (event.feature, event.user and user.id, user.email, user.name, event.model)
    return (
        (where.since is None or event.occurred_at >= where.since)
        and (where.until is None or event.occurred_at < where.until)
        and (not where.features or event.feature in where.features)
        and (not where.users or key_of(event, "user") in where.users)
        and (not where.models or event.model in where.models)
        and (not where.statuses or event.status in where.statuses)
        and (not where.text or any(where.text.lower() in text.lower() for text in texts if text is not None))
    )


def sums(group: Iterable[UsageEvent]) -> tuple[int, ...]:
    """What a row of a report says of its events, in Python's unlimited integers."""
    group = list(group)
    return (
        len(group),
        sum(event.cost_nanos or 0 for event in group),
        sum(event.cost_nanos is None for event in group),
        sum(event.status in ERROR_STATUSES for event in group),
        sum(event.input_tokens or 0 for event in group),
        sum(event.output_tokens or 0 for event in group),
    )


def shown(
    report: CostReport,
) -> tuple[dict[str | None, tuple[int, ...]], dict[object, tuple[int, int]], tuple[int, ...]]:
    """A report as plain values: rows by key, days by day and key, the total."""

    def numbers(row):
        return (row.calls, row.cost_nanos, row.unpriced, row.errors, row.input_tokens, row.output_tokens)

    rows = {row.key: numbers(row) for row in report.rows}
    days = {(point.day, point.key): (point.calls, point.cost_nanos) for point in report.days}
    assert (len(rows), len(days)) == (len(report.rows), len(report.days)), "a key comes twice"
    return rows, days, numbers(report.total)


def expected(stored: Iterable[UsageEvent], dimension: Dimension):
    """The report that the events themselves give."""
    rows, days = defaultdict(list), defaultdict(list)
    stored = list(stored)
    for event in stored:
        key = key_of(event, dimension)
        rows[key].append(event)
        days[event.occurred_at.date(), key].append(event)
    return (
        {key: sums(group) for key, group in rows.items()},
        {key: sums(group)[:2] for key, group in days.items()},
        sums(stored),
    )


@pytest.mark.anyio
async def test_an_event_comes_back_as_it_was(store):
    """Every field survives, times of another zone as the same moment."""
    event = UsageEvent(
        occurred_at=datetime(2026, 3, 2, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        provider_name="openai",
        operation_name="chat",
        request_model="gpt-4o-mini",
        response_model="gpt-4o-mini-2024-07-18",
        response_id="chatcmpl-1",
        finish_reasons=("stop", "length"),
        feature="sum\0mary",
        feature_source="decorator",
        user=User(id="u1", email="a@example.com", name="Ann", image="https://example.com/a.png", monthly_revenue=9.5),
        user_source="scope",
        metadata={"nested": {"list": [1, None, True, 2.5, "é"]}},
        http_status=200,
        latency_ms=412.25,
        stream=True,
        retries=2,
        input_tokens=0,
        output_tokens=2**53,
        reasoning_output_tokens=3,
        usage_source="provider",
        cost_nanos=0,
    )
    assert await store.insert([event]) == 1
    assert await store.event(event.event_id) == event
    assert await store.event("another") is None


@pytest.mark.anyio
async def test_a_bare_event_comes_back_as_it_was(store):
    """Unknown stays None and never becomes zero or an empty text."""
    event = UsageEvent()
    await store.insert([event])
    assert await store.event(event.event_id) == event


@pytest.mark.anyio
async def test_inserting_again_changes_nothing(store):
    """A repeated batch, a repeat inside one batch and an overlapping batch count each event once.

    BerriAI/litellm#15740, NangoHQ/nango#6122: retries of a batch made the sums grow.
    """
    batch = [UsageEvent(occurred_at=NOON, feature="a", cost_nanos=5, input_tokens=1) for _ in range(10)]
    assert await store.insert([*batch, *batch]) == 10
    report = await store.costs("feature", EventFilter())
    for _ in range(4):
        assert await store.insert(batch) == 0
    assert await store.insert([*batch[:5], UsageEvent(occurred_at=NOON, feature="b")]) == 1
    assert await store.count() == 11
    after = await store.costs("feature", EventFilter())
    assert [row for row in after.rows if row.key == "a"] == list(report.rows)


@pytest.mark.anyio
async def test_an_empty_insert_stores_nothing(store):
    """It proves that the store can be written, and that is all."""
    assert await store.insert([]) == 0
    assert await store.count() == 0


@pytest.mark.anyio
async def test_unknown_cost_is_not_zero(store):
    """A call without a price is counted as unpriced, a free call is not."""
    await store.insert([UsageEvent(cost_nanos=None), UsageEvent(cost_nanos=0), UsageEvent(cost_nanos=4)])
    for where in (EventFilter(), EventFilter(text="", statuses=("SUCCESS",))):
        total = (await store.costs("feature", where)).total
        assert (total.calls, total.cost_nanos, total.unpriced) == (3, 4, 1)


@pytest.mark.anyio
async def test_days_are_utc_days(store):
    """The last microsecond of a day belongs to it, and the next midnight to the next day; ranges are half open."""
    midnight = datetime(2026, 3, 3, tzinfo=UTC)
    before = midnight - timedelta(microseconds=1)
    await store.insert([UsageEvent(occurred_at=before, cost_nanos=1), UsageEvent(occurred_at=midnight, cost_nanos=2)])
    days = (await store.costs("feature", EventFilter())).days
    assert [(point.day.day, point.cost_nanos) for point in days] == [(2, 1), (3, 2)]
    assert (await store.costs("feature", EventFilter(since=midnight))).total.cost_nanos == 2
    assert (await store.costs("feature", EventFilter(until=midnight))).total.cost_nanos == 1
    assert (await store.costs("feature", EventFilter(since=before, until=midnight))).total.cost_nanos == 1
    assert (await store.costs("feature", EventFilter(since=midnight, until=before))).total.calls == 0


@pytest.mark.anyio
async def test_users_are_labelled_and_rows_are_dearest_first(store):
    """A row of a user shows the name, else the e-mail; the dearest comes first."""
    await store.insert(
        [
            UsageEvent(user=User(id="1", name="Ann", email="a@example.com"), cost_nanos=1),
            UsageEvent(user=User(id="2", email="b@example.com"), cost_nanos=9),
            UsageEvent(cost_nanos=4),
        ],
    )
    rows = (await store.costs("user", EventFilter())).rows
    assert [(row.key, row.label) for row in rows] == [("2", "b@example.com"), (None, None), ("1", "Ann")]
    partial_day = EventFilter(until=datetime.now(UTC) + timedelta(seconds=1))
    assert (await store.costs("user", partial_day)).rows == rows


@pytest.mark.anyio
async def test_text_that_no_encoding_holds_is_stored(store):
    """Lone surrogates, NUL and numbers past 64 bits lose no event; numbers too large to be true become unknown."""
    event = UsageEvent(
        feature="\ud800",
        user=User(id="a\0b", name="\udfff"),
        error_message="\ud83d",
        metadata={"\ud800": "\udc00"},
        input_tokens=2**70,
        cost_nanos=2**63,
        http_status=-(2**64),
        occurred_at=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
    )
    assert await store.insert([event, UsageEvent()]) == 2
    stored = await store.event(event.event_id)
    assert stored is not None
    assert (stored.feature, stored.user, stored.error_message) == ("\\ud800", User("a\0b", name="\\udfff"), "\\ud83d")
    assert (stored.input_tokens, stored.cost_nanos, stored.http_status) == (None, None, None)
    assert stored.metadata == {"\ud800": "\udc00"}
    page = await store.events(EventQuery(where=EventFilter(features=("\ud800",), text="\ud800")))
    assert page.events == (stored,)
    assert (await store.costs("feature", EventFilter())).total.unpriced == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(events, max_size=6), max_size=4), where=filters, repeats=st.integers(0, 2))
def test_reports_agree_with_the_events(batches, where, repeats):
    """For every filter and dimension the sums are those of the events, however often a batch was repeated.

    ClickHouse/ClickHouse#70417: base table and sums drifted apart.
    """

    async def check(kind: str, folder: Path) -> None:
        async with opened(kind, folder) as store:
            for batch in batches:
                for _ in range(repeats + 1):
                    await store.insert(batch)
            everything = [event for batch in batches for event in batch]
            assert await store.count() == len(everything)
            selected = [event for event in everything if holds(event, where)]
            for dimension in DIMENSIONS:
                assert shown(await store.costs(dimension, where)) == expected(selected, dimension)
            page = await store.events(EventQuery(where=where, limit=1000))
            newest_first = sorted(selected, key=lambda event: (event.occurred_at, event.event_id), reverse=True)
            assert list(page.events) == newest_first

    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(check, kind, Path(folder))


@settings(max_examples=40)
@given(batch=st.lists(events, max_size=25), limit=st.integers(1, 7))
def test_paging_shows_every_event_once_both_ways(batch, limit):
    """Following `older` from the top and `newer` from the bottom gives the same list, each event once."""

    async def check(kind: str, folder: Path) -> None:
        async with opened(kind, folder) as store:
            await store.insert(batch)
            newest_first = sorted(batch, key=lambda event: (event.occurred_at, event.event_id), reverse=True)
            page = await store.events(EventQuery(limit=limit))
            assert page.newer is None
            down = list(page.events)
            while page.older is not None:
                page = await store.events(EventQuery(limit=limit, after=page.older))
                down += page.events
            assert down == newest_first
            up = list(page.events)
            while page.newer is not None:
                page = await store.events(EventQuery(limit=limit, before=page.newer))
                up = [*page.events, *up]
            assert up == newest_first

    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(check, kind, Path(folder))


@pytest.mark.anyio
async def test_a_page_is_bounded_and_takes_one_cursor(store):
    """A limit outside of 1 to 1,000 is brought inside; two cursors at once are the caller's mistake."""
    await store.insert([UsageEvent() for _ in range(1001)])
    assert len((await store.events(EventQuery(limit=0))).events) == 1
    assert len((await store.events(EventQuery(limit=10**6))).events) == 1000
    cursor = EventCursor(NOON, "x")
    with pytest.raises(ValueError, match="at most one"):
        await store.events(EventQuery(after=cursor, before=cursor))


@pytest.mark.anyio
async def test_calls_may_overlap(store):
    """Readers and writers of one loop do not disturb each other."""
    batches = [[UsageEvent(feature=f"f{number}") for _ in range(20)] for number in range(10)]
    async with anyio.create_task_group() as group:
        for batch in batches:
            group.start_soon(store.insert, batch)
            group.start_soon(store.costs, "feature", EventFilter())
            group.start_soon(store.events, EventQuery())
    assert await store.count() == 200


@pytest.mark.anyio
async def test_a_closed_store_says_so(store):
    """Closing twice is harmless; use afterwards is an error of ours."""
    await store.insert([UsageEvent()])
    await store.aclose()
    await store.aclose()
    with pytest.raises(ClosedError):
        await store.insert([UsageEvent()])
    with pytest.raises(ClosedError):
        await store.count()
