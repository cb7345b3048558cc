"""The query string, parsed once: what a page or its JSON twin shows. Pure: no request, no clock, no store.

Repeated keys are alternatives, different keys all hold, an empty value means not given. `without=feature` selects the
calls that have none. What cannot be understood is an error that names the field, never a guess.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, get_args
from urllib.parse import parse_qsl, urlencode

from fluxgate_mw.query import Dimension, EventCursor, EventFilter, EventQuery
from fluxgate_mw.semconv import Status

__all__ = ["DIMENSIONS", "FACETS", "FIELDS", "RANGES", "GroupBy", "QueryError", "View", "parse"]

GroupBy = Literal["feature", "user", "model"]
DIMENSIONS: Final[tuple[GroupBy, ...]] = get_args(GroupBy)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
RANGES: Final[Mapping[str, timedelta | None]] = MappingProxyType(
    {
        "15m": timedelta(minutes=15),
        "1h": timedelta(hours=1),
        "24h": timedelta(hours=24),
        "7d": timedelta(days=7),
        "30d": timedelta(days=30),
        "90d": timedelta(days=90),
        "all": None,
    },
)
_RANGE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "15m": "in the last 15 minutes",
        "1h": "in the last hour",
        "24h": "in the last 24 hours",
        "7d": "in the last 7 days",
        "30d": "in the last 30 days",
        "90d": "in the last 90 days",
        "all": "in all",
    },
)
FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {"feature": "features", "user": "users", "model": "models", "status": "statuses"},
)
"""Filter key of the query string to the field of `EventFilter` and `View` that it fills."""
FACETS: Final[tuple[Dimension, ...]] = ("feature", "user", "model", "status")

_DEFAULT_RANGE: Final = "30d"
_DEFAULT_LIMIT: Final = 50
_LARGEST_LIMIT: Final = 200
_LONGEST_TEXT: Final = 200
_MOST_VALUES: Final = 50
_MANY: Final = (*FIELDS, "without")
_SINGLE: Final = ("range", "since", "until", "q", "after", "before", "limit", "by")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class QueryError(ValueError):
    """A part of the query string cannot be understood; `field` is its key."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown: the range, the filters, the place in the list and the grouping. Its query string is its name.

    Args:
        range: A key of `RANGES`; without effect where `since` or `until` is given.
        since: Start of the range, included, aware UTC; None = by `range`.
        until: End of the range, excluded, aware UTC; None = open.
        features: Alternatives; None among them selects the calls that have none. So with `users`.
        text: Substring searched for; None = not given.
        limit: Rows on a page, 1 to 200.
    """

    range: str = _DEFAULT_RANGE
    since: datetime | None = None
    until: datetime | None = None
    features: tuple[str | None, ...] = ()
    users: tuple[str | None, ...] = ()
    models: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    text: str | None = None
    after: EventCursor | None = None
    before: EventCursor | None = None
    limit: int = _DEFAULT_LIMIT
    by: GroupBy = "feature"

    @property
    def custom_range(self) -> bool:
        """Whether the range is given by dates rather than by name."""
        return self.since is not None or self.until is not None

    @property
    def range_words(self) -> str:
        """The range in words, as the end of a sentence."""
        return "in this range" if self.custom_range else _RANGE_WORDS[self.range]

    def where(self, now: datetime) -> EventFilter:
        """Return the store's filter. Ranges of days start at midnight UTC, so that every day shown is whole."""
        since = self.since
        length = RANGES[self.range]
        if not self.custom_range and length is not None:
            since = now - length
            if length > timedelta(days=1):
                since = now.replace(hour=0, minute=0, second=0, microsecond=0) - length + timedelta(days=1)
        return EventFilter(
            since=since,
            until=self.until,
            features=self.features,
            users=self.users,
            models=self.models,
            statuses=self.statuses,
            text=self.text,
        )

    def page(self, now: datetime) -> EventQuery:
        """Return the store's query for one page of the list."""
        return EventQuery(where=self.where(now), after=self.after, before=self.before, limit=self.limit)

    def link(self, **changes: Any) -> str:
        """Return the query string (with its question mark, or nothing) of this view with changes, from the first page.

        >>> View().link(), View(features=("a&b", None)).link(range="7d")
        ('', '?range=7d&feature=a%26b&without=feature')
        """
        pairs = _pairs(replace(self, **{"after": None, "before": None, **changes}))
        return f"?{urlencode(pairs, errors='replace')}" if pairs else ""

    def only(self, field: str, key: str | None) -> str:
        """Return the link to this view with one filter set to one value (a key of `FIELDS`)."""
        return self.link(**{FIELDS[field]: (key,)})

    def drop(self, field: str, key: str | None) -> str:
        """Return the link to this view without one value of one filter."""
        kept = tuple(value for value in getattr(self, FIELDS[field]) if value != key)
        return self.link(**{FIELDS[field]: kept})

    def chosen(self) -> list[tuple[str, str | None]]:
        """Return the filters that are set, as pairs of field and value."""
        return [(field, value) for field, name in FIELDS.items() for value in getattr(self, name)]


def _pairs(view: View) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if view.range != _DEFAULT_RANGE and not view.custom_range:
        pairs.append(("range", view.range))
    pairs += [(name, moment.isoformat()) for name in ("since", "until") if (moment := getattr(view, name))]
    for field, value in view.chosen():
        pairs.append(("without", field) if value is None else (field, value))
    if view.text:
        pairs.append(("q", view.text))
    pairs += [(name, _cursor_text(cursor)) for name in ("after", "before") if (cursor := getattr(view, name))]
    if view.limit != _DEFAULT_LIMIT:
        pairs.append(("limit", str(view.limit)))
    if view.by != "feature":
        pairs.append(("by", view.by))
    return pairs


def _cursor_text(cursor: EventCursor) -> str:
    return f"{(cursor.occurred_at - _EPOCH) // _MICROSECOND},{cursor.event_id}"


def parse(query_string: str) -> View:
    """Return what a query string asks for.

    Args:
        query_string: Without its question mark, percent-encoded.

    Raises:
        QueryError: A key is unknown, a value is not allowed, or a single value is given more than once.
    """
    values = _values(query_string)
    since, until = _moment(values, "since"), _moment(values, "until")
    if since and until and since >= until:
        raise QueryError("until", "expected a moment after since")
    after, before = _cursor(values, "after"), _cursor(values, "before")
    if after and before:
        raise QueryError("before", "expected at most one of after and before")
    empty = _without(values)
    return View(
        range=_word(values, "range", tuple(RANGES), _DEFAULT_RANGE),
        since=since,
        until=until,
        features=(*_texts(values, "feature"), *empty["feature"]),
        users=(*_texts(values, "user"), *empty["user"]),
        models=_texts(values, "model"),
        statuses=tuple(status for status in STATUSES if status in _allowed(values, "status", STATUSES)),
        text=_first(values, "q"),
        after=after,
        before=before,
        limit=_limit(values),
        by=next(dimension for dimension in DIMENSIONS if dimension == _word(values, "by", DIMENSIONS, "feature")),
    )


def _values(query_string: str) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query_string, errors="replace", max_num_fields=200)
    except ValueError as error:
        raise QueryError("query", str(error)) from None
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        if key not in _MANY and key not in _SINGLE:
            close = difflib.get_close_matches(key[:40], (*_MANY, *_SINGLE), n=1)
            raise QueryError(key[:40], f"no such filter{f'; did you mean {close[0]}?' if close else ''}")
        if key in _SINGLE and len(value) > _LONGEST_TEXT:  # a name may be longer, and has its links
            raise QueryError(key, f"expected at most {_LONGEST_TEXT} characters")
        values.setdefault(key, []).append(value)
    for key, given in values.items():
        most = _MOST_VALUES if key in _MANY else 1
        if len(given) > most:
            raise QueryError(key, f"expected at most {most} value{'s' if most > 1 else ''}")
    return values


def _first(values: Mapping[str, list[str]], key: str) -> str | None:
    return values[key][0].strip() or None if key in values else None


def _texts(values: Mapping[str, list[str]], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values.get(key, ())))


def _allowed(values: Mapping[str, list[str]], key: str, words: tuple[str, ...]) -> tuple[str, ...]:
    given = _texts(values, key)
    if any(value not in words for value in given):
        raise QueryError(key, f"expected one of {', '.join(words)}")
    return given


def _word(values: Mapping[str, list[str]], key: str, words: tuple[str, ...], default: str) -> str:
    return next(iter(_allowed(values, key, words)), default)


def _without(values: Mapping[str, list[str]]) -> dict[str, tuple[None, ...]]:
    named = _allowed(values, "without", ("feature", "user"))
    return {field: (None,) if field in named else () for field in ("feature", "user")}


def _limit(values: Mapping[str, list[str]]) -> int:
    text = _first(values, "limit")
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _LARGEST_LIMIT):
        raise QueryError("limit", f"expected a whole number from 1 to {_LARGEST_LIMIT}")
    return int(text)


def _moment(values: Mapping[str, list[str]], key: str) -> datetime | None:
    text = _first(values, key)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise QueryError(key, "expected an ISO 8601 date or time, as 2026-11-01 or 2026-11-01T09:30:00Z") from None


def _cursor(values: Mapping[str, list[str]], key: str) -> EventCursor | None:
    text = _first(values, key)
    if text is None:
        return None
    microseconds, _, event_id = text.partition(",")
    try:
        moment = _EPOCH + int(microseconds) * _MICROSECOND
    except (ValueError, OverflowError):
        moment = None
    if moment is None or not event_id:
        raise QueryError(key, "expected a place in the list, as the Older and Newer links give it")
    return EventCursor(moment, event_id)
