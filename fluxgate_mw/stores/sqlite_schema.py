r"""The SQLite file's layout: its tables, and the way of an event into a row and back.

Table `events` has a column for each field of the event, the user's flattened, so that any tool that reads SQLite
can read it. `daily_costs` holds one row per UTC day, dimension and value: the marginal sums of each dimension, not
their product, so its size is the number of features plus users plus models ... a day, however many calls there are.

What a column cannot hold is stored as near as can be: a whole number past the limits below as NULL (unknown), a lone
surrogate as its escape (`\ud800`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, get_args

import msgspec

from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.query import ERROR_STATUSES, Dimension

__all__ = [
    "COLUMNS",
    "DIMENSIONS",
    "INSERT_EVENT",
    "MODEL",
    "SCHEMA_VERSION",
    "UPSERT_DAILY_COSTS",
    "clean_text",
    "create_schema",
    "daily_costs",
    "event_from_row",
    "iso_utc",
    "row_from_event",
    "storable",
]

SCHEMA_VERSION: Final = 1
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
MODEL: Final = "COALESCE(NULLIF(response_model, ''), request_model)"
"""`UsageEvent.model` in SQL."""

_LARGEST_SUMMED: Final = 2**53
_LARGEST_INTEGER: Final = 2**63 - 1
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_JSON: Final = msgspec.json.Encoder(enc_hook=repr)

_USER_TYPES: Final = {
    "user_id": "TEXT",
    "user_email": "TEXT",
    "user_name": "TEXT",
    "user_image": "TEXT",
    "user_monthly_revenue": "REAL",
}
_TYPES: Final = {
    "occurred_at": "TEXT NOT NULL",
    "event_id": "TEXT NOT NULL PRIMARY KEY",
    "http_status": "INTEGER",
    "latency_ms": "REAL",
    "time_to_first_chunk_ms": "REAL",
    "stream": "INTEGER NOT NULL",
    "retries": "INTEGER",
    "cost_nanos": "INTEGER",
}


def _column_type(name: str) -> str:
    return _TYPES.get(name) or ("INTEGER" if name.endswith("_tokens") else "TEXT")


_FIELDS: Final = UsageEvent.__struct_fields__
_USER_AT: Final = _FIELDS.index("user")
_COLUMN_TYPES: Final = {
    column: kind
    for field in _FIELDS
    for column, kind in (_USER_TYPES.items() if field == "user" else ((field, _column_type(field)),))
}
COLUMNS: Final = tuple(_COLUMN_TYPES)
"""The columns of `events`, in the order of the event's fields."""

_AT: Final = {column: place for place, column in enumerate(COLUMNS)}
_OCCURRED_AT, _FINISH_REASONS, _METADATA = _AT["occurred_at"], _AT["finish_reasons"], _AT["metadata"]
_SUMMED: Final = tuple(_AT[name] for name in ("cost_nanos", "input_tokens", "output_tokens"))
_USER: Final = slice(_USER_AT, _USER_AT + len(_USER_TYPES))
_NOBODY: Final = (None,) * len(_USER_TYPES)

INSERT_EVENT: Final = (
    f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (event_id) DO NOTHING"
)
UPSERT_DAILY_COSTS: Final = """
INSERT INTO daily_costs
       (day, dimension, known, value, label, calls, cost_nanos, unpriced, errors, input_tokens, output_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (dimension, day, known, value) DO UPDATE SET
       label = COALESCE(excluded.label, label),
       calls = calls + excluded.calls,
       cost_nanos = cost_nanos + excluded.cost_nanos,
       unpriced = unpriced + excluded.unpriced,
       errors = errors + excluded.errors,
       input_tokens = input_tokens + excluded.input_tokens,
       output_tokens = output_tokens + excluded.output_tokens
"""
_SCHEMA: Final = (
    f"CREATE TABLE events ({', '.join(f'{name} {kind}' for name, kind in _COLUMN_TYPES.items())})",
    "CREATE INDEX events_by_time ON events (occurred_at)",
    "CREATE INDEX events_by_feature ON events (feature, occurred_at)",
    "CREATE INDEX events_by_user ON events (user_id, occurred_at)",
    f"CREATE INDEX events_by_model ON events ({MODEL}, occurred_at)",
    "CREATE INDEX events_by_status ON events (status, occurred_at)",
    """
    CREATE TABLE daily_costs (
        day TEXT NOT NULL,
        dimension TEXT NOT NULL,
        known INTEGER NOT NULL,
        value TEXT NOT NULL,
        label TEXT,
        calls INTEGER NOT NULL,
        cost_nanos INTEGER NOT NULL,
        unpriced INTEGER NOT NULL,
        errors INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        PRIMARY KEY (dimension, day, known, value)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE heartbeat (id INTEGER PRIMARY KEY, beats INTEGER NOT NULL)",
    "INSERT INTO heartbeat VALUES (1, 0)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def create_schema(connection: sqlite3.Connection) -> int:
    """Make the tables in an empty file, inside the caller's transaction; return the file's schema version."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version:
        return version
    for statement in _SCHEMA:
        connection.execute(statement)
    return SCHEMA_VERSION


def iso_utc(moment: datetime) -> str:
    """Return a fixed-width UTC text that sorts as the moments do.

    A naive moment is taken as UTC, one outside of the years 1 to 9999 in UTC as the nearest inside.

    >>> iso_utc(datetime(2026, 1, 2, 3, 4, 5))
    '2026-01-02T03:04:05.000000+00:00'
    """
    try:
        aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        aware = _FIRST if moment.year == 1 else _LAST
    return aware.isoformat(timespec="microseconds")


def clean_text(text: str) -> str:
    r"""Return the text with each lone surrogate as its escape, which is how it is stored.

    >>> clean_text("a\ud800")
    'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _json_text(value: Any) -> str:
    try:
        return _JSON.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        return json.dumps(value, default=repr, skipkeys=True)


def row_from_event(event: UsageEvent) -> list[Any]:
    """Return the values of `COLUMNS`. The three that are summed are None past 2^53, as a reader of usage has them."""
    row: list[Any] = list(msgspec.structs.astuple(event))
    user: User | None = event.user
    row[_USER_AT : _USER_AT + 1] = _NOBODY if user is None else msgspec.structs.astuple(user)
    row[_OCCURRED_AT] = iso_utc(event.occurred_at)
    row[_FINISH_REASONS] = _json_text(event.finish_reasons) if event.finish_reasons else "[]"
    row[_METADATA] = _json_text(event.metadata) if event.metadata else "{}"
    for place in _SUMMED:
        if (value := row[place]) is not None and not -_LARGEST_SUMMED <= value <= _LARGEST_SUMMED:
            row[place] = None
    return row


def storable(row: Sequence[Any]) -> list[Any]:
    """Return the row with what SQLite refuses made storable: see the module's own words."""
    return [_storable(value) for value in row]


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and not -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER:
        return None
    return value


def event_from_row(row: Sequence[Any]) -> UsageEvent:
    """Return the event of a row of `COLUMNS`; NULL is the field's default."""
    values = {name: value for name, value in zip(COLUMNS, row, strict=True) if value is not None}
    user = {name.removeprefix("user_"): values.pop(name) for name in _USER_TYPES if name in values}
    if "id" in user:
        values["user"] = User(**user)
    values["occurred_at"] = datetime.fromisoformat(values["occurred_at"])
    values["finish_reasons"] = tuple(json.loads(values["finish_reasons"]))
    values["metadata"] = json.loads(values["metadata"])
    values["stream"] = bool(values["stream"])
    return UsageEvent(**values)


_VALUES_AT: Final = tuple(_AT[name] for name in ("feature", "user_id", "provider_name", "route", "status"))
_RESPONSE_MODEL, _REQUEST_MODEL = _AT["response_model"], _AT["request_model"]
_USER_NAME, _USER_EMAIL = _AT["user_name"], _AT["user_email"]


def daily_costs(rows: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return the parameters of `UPSERT_DAILY_COSTS` that add up these rows of `COLUMNS`, each counted once."""
    totals: dict[tuple[Any, ...], list[int]] = {}
    labels: dict[tuple[str, str], str] = {}
    for row in rows:
        day = row[_OCCURRED_AT][:10]
        feature, user, provider, route, status = (row[place] for place in _VALUES_AT)
        cost, input_tokens, output_tokens = (row[place] for place in _SUMMED)
        if label := row[_USER_NAME] or row[_USER_EMAIL]:
            labels[day, user] = label
        model = row[_RESPONSE_MODEL] or row[_REQUEST_MODEL]
        _add(
            totals,
            (day, feature, user, model, provider, route, status),
            (1, cost or 0, cost is None, status in ERROR_STATUSES, input_tokens or 0, output_tokens or 0),
        )
    marginals: dict[tuple[Any, ...], list[int]] = {}
    for (day, *values), sums in totals.items():
        for dimension, value in zip(DIMENSIONS, values, strict=True):
            _add(marginals, (day, dimension, value), sums)
    return [
        (
            day,
            dimension,
            value is not None,
            "" if value is None else value,
            labels.get((day, value)) if dimension == "user" else None,
            *sums,
        )
        for (day, dimension, value), sums in marginals.items()
    ]


def _add(totals: dict[tuple[Any, ...], list[int]], key: tuple[Any, ...], sums: Sequence[int]) -> None:
    if (total := totals.get(key)) is None:
        totals[key] = list(sums)
        return
    for place, value in enumerate(sums):
        total[place] += value
