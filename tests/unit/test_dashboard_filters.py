"""The query string of the dashboard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxgate_mw.dashboard.filters import DIMENSIONS, RANGES, STATUSES, QueryError, View, parse
from fluxgate_mw.query import EventCursor

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 18, 43, 15, tzinfo=UTC)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
moments = st.integers(1, 7_000_000_000_000_000).map(lambda us: EPOCH + timedelta(microseconds=us))
cursors = st.builds(EventCursor, moments, words.filter(lambda text: text == text.strip()))
values = st.lists(words, unique=True, max_size=4).map(tuple)
nullable = st.tuples(values, st.sampled_from([(), (None,)])).map(lambda pair: (*pair[0], *pair[1]))


@st.composite
def views(draw):
    """Any view that a link of ours can name."""
    since, until = sorted([draw(moments), draw(moments)])
    custom = draw(st.booleans()) and since < until
    place = draw(st.sampled_from(["after", "before", None]))
    return View(
        range="30d" if custom else draw(st.sampled_from(list(RANGES))),
        since=since if custom else None,
        until=until if custom and draw(st.booleans()) else None,
        features=draw(nullable),
        users=draw(nullable),
        models=draw(values),
        statuses=tuple(status for status in STATUSES if draw(st.booleans())),
        text=draw(st.none() | words.map(str.strip).filter(bool)),
        limit=draw(st.integers(1, 200)),
        by=draw(st.sampled_from(DIMENSIONS)),
        **({place: draw(cursors)} if place else {}),
    )


@given(views())
def test_a_link_names_its_view(view):
    """Parsing the link of a view gives the same view: a link can be kept, sent and followed."""
    assert parse(view.link(after=view.after, before=view.before).removeprefix("?")) == view


keys = [
    "range",
    "since",
    "until",
    "feature",
    "user",
    "model",
    "status",
    "without",
    "q",
    "after",
    "before",
    "limit",
    "by",
]
pairs = st.tuples(st.sampled_from([*keys, "x"]), st.text(max_size=30) | st.integers().map(str))


@given(st.text() | st.lists(pairs, max_size=5).map(lambda found: "&".join(f"{key}={value}" for key, value in found)))
@example("after=999999999999999999999999,x")
@example("after=" + "9" * 190 + ",x")
@example("since=0001-01-01T00:00:00%2B10:00")
@example("limit=" + "9" * 150)
@example("limit=²")
@example("&".join(["feature=x"] * 300))
def test_any_query_string_parses_or_names_what_is_wrong(query_string):
    """Nothing that is typed into the address can raise anything but the error that names its field."""
    wrong: QueryError | None = None
    try:
        assert 1 <= parse(query_string).page(NOW).limit <= 200
    except QueryError as error:
        wrong = error
    assert wrong is None or str(wrong).startswith(f"{wrong.field}: ")


@pytest.mark.parametrize(
    ("query_string", "message"),
    [
        ("feture=x", "feture: no such filter; did you mean feature?"),
        ("range=9d", "range: expected one of 15m, 1h, 24h, 7d, 30d, 90d, all"),
        ("status=DONE", "status: expected one of SUCCESS"),
        ("since=tomorrow", "since: expected an ISO 8601 date"),
        ("since=2026-11-02&until=2026-11-01", "until: expected a moment after since"),
        ("after=1,a&before=1,a", "before: expected at most one of after and before"),
        ("after=yesterday", "after: expected a place in the list"),
        ("after=yesterday,some-id", "after: expected a place in the list"),
        ("before=1", "before: expected a place in the list"),
        ("before=1,", "before: expected a place in the list"),
        ("limit=0", "limit: expected a whole number from 1 to 200"),
        ("by=colour", "by: expected one of feature, user, model"),
        ("range=1h&range=7d", "range: expected at most 1 value"),
        ("without=model", "without: expected one of feature, user"),
        (f"q={'x' * 201}", "q: expected at most 200 characters"),
    ],
)
def test_what_is_wrong_is_said(query_string, message):
    """The error names the field and what is allowed."""
    with pytest.raises(QueryError) as caught:
        parse(query_string)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("field", ["feature", "user", "model"])
def test_a_long_name_has_a_link_that_is_understood(field):
    """Ids of users have up to 256 characters, features and models any number."""
    name = "n" * 3000
    assert parse(View().only(field, name)[1:]).chosen() == [(field, name)]


def test_ranges_of_days_start_at_midnight():
    """Seven days are today and the six before it, whole; hours are counted back from now."""
    assert View(range="7d").where(NOW).since == datetime(2026, 11, 17, tzinfo=UTC)
    assert View(range="24h").where(NOW).since == NOW - timedelta(hours=24)
    assert View(range="all").where(NOW).since is None
    assert View().where(NOW).until is None


def test_dates_beat_the_named_range():
    """A start or an end that is given stands, and the other side stays open."""
    where = parse("range=1h&until=2026-11-02").where(NOW)
    assert (where.since, where.until) == (None, datetime(2026, 11, 2, tzinfo=UTC))


def test_a_moment_without_an_offset_is_utc_and_another_offset_is_minded():
    """Whatever the time zone of the machine is."""
    where = parse("since=2026-11-01T09:30&until=2026-11-01T14:30%2B02:00").where(NOW)
    assert where.since == datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
    assert where.until == datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
    assert where.until.utcoffset() == timedelta(0)


def test_empty_values_are_not_given():
    """A form that is sent with empty fields filters nothing."""
    assert parse("q=&feature=&since=&range=&limit=") == View()


def test_links_change_one_thing():
    """A filter is set or dropped without the others, and the list starts again at its newest row."""
    view = View(features=("a", None), users=("u",), range="7d", after=EventCursor(NOW, "x"))
    assert parse(view.only("feature", "b").removeprefix("?")) == View(features=("b",), users=("u",), range="7d")
    assert parse(view.drop("feature", None).removeprefix("?")) == View(features=("a",), users=("u",), range="7d")
    assert parse(view.drop("user", "u").removeprefix("?")) == View(features=("a", None), range="7d")
