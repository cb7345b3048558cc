"""The questions that the SQLite store answers, as plain functions of a connection.

Costs come from `daily_costs` for whole UTC days and from `events` for the rest: the parts of a first and a last day
that the range cuts, and everything when a filter names another dimension than the one asked for, or a text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import date
from types import MappingProxyType
from typing import Any, Final

import msgspec

from fluxgate_mw.query import (
    ERROR_STATUSES,
    CostReport,
    CostRow,
    DayCost,
    Dimension,
    EventCursor,
    EventFilter,
    EventPage,
    EventQuery,
)
from fluxgate_mw.stores.sqlite_schema import COLUMNS, MODEL, UNUSUAL, clean_text, event_from_row, iso_utc

__all__ = ["MAX_PAGE", "add_functions", "select_costs", "select_count", "select_event", "select_page"]

MAX_PAGE: Final = 1000

_LONGEST_PATTERN: Final = 1000
_MOST_BRANCHES: Final = 40
_MIDNIGHT: Final = "T00:00:00.000000+00:00"
_AFTER_ANY_TIME: Final = "U"
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM events"  # noqa: S608
_TEXTS: Final = f"feature, user_id, user_email, user_name, {MODEL}"
_EXPRESSIONS: Final = MappingProxyType(
    {
        "feature": "feature",
        "user": "user_id",
        "model": MODEL,
        "provider": "provider_name",
        "route": "route",
        "status": "status",
    },
)
_USER_LABEL: Final = "MAX(COALESCE(NULLIF(user_name, ''), user_email))"
_ERRORS: Final = ", ".join(f"'{status}'" for status in sorted(ERROR_STATUSES))

_Part = tuple[str, list[Any]]


def add_functions(connection: sqlite3.Connection) -> None:
    """Add the SQL functions that the questions use."""
    connection.create_function("contains_lower", -1, _contains_lower, deterministic=True)


def select_event(connection: sqlite3.Connection, event_id: str) -> Any:
    """Return the event of that id, or None."""
    row = connection.execute(f"{_SELECT} WHERE event_id = ?", (clean_text(event_id),)).fetchone()
    return None if row is None else event_from_row(row)


def select_count(connection: sqlite3.Connection) -> int:
    """Return the number of events, from the roll-ups: counting ten million rows takes seconds."""
    sql = "SELECT COALESCE(SUM(calls), 0) FROM daily_costs WHERE dimension = 'status'"
    return int(connection.execute(sql).fetchone()[0])


def select_page(connection: sqlite3.Connection, query: EventQuery) -> EventPage:
    """Return one page, newest first; one row more than asked for tells whether the list goes on."""
    limit = min(max(query.limit, 1), MAX_PAGE)
    backwards = query.before is not None
    rows = connection.execute(*_page_statement(query, limit + 1)).fetchall()
    more, rows = len(rows) > limit, rows[:limit]
    if backwards:
        rows.reverse()
    events = tuple(event_from_row(row) for row in rows)
    if not events:
        return EventPage(events=(), older=None, newer=None)
    newest, oldest = (EventCursor(e.occurred_at, e.event_id) for e in (events[0], events[-1]))
    return EventPage(
        events=events,
        older=oldest if more or backwards else None,
        newer=newest if (more if backwards else query.after) else None,
    )


def _page_statement(query: EventQuery, limit: int) -> _Part:
    way = "ASC" if query.before is not None else "DESC"
    tail = f" ORDER BY occurred_at {way}, event_id {way} LIMIT ?"
    branches, parameters = [], []
    for where in _single_valued(query.where):
        conditions, values = _event_conditions(where)
        if cursor := query.before or query.after:
            conditions.append(f"(occurred_at, event_id) {'<' if query.before is None else '>'} (?, ?)")
            values += [iso_utc(cursor.occurred_at), clean_text(cursor.event_id)]
        branches.append(f"SELECT * FROM ({_SELECT}{_where(conditions)}{tail})")  # noqa: S608
        parameters += [*values, limit]
    return " UNION ALL ".join(branches) + tail, [*parameters, limit]


def _single_valued(where: EventFilter) -> list[EventFilter]:
    """Return filters that together select the same and overlap nowhere, each with one value for the first of several.

    An index gives the newest of one value in order; for several values at once SQLite sorts all that they have
    (measured at 600,000 events: 324 ms for a page of two features).
    """
    for field in ("users", "features", "models", "statuses"):
        values = dict.fromkeys(getattr(where, field))
        if 1 < len(values) <= _MOST_BRANCHES:
            return [msgspec.structs.replace(where, **{field: (value,)}) for value in values]
    return [where]


def select_costs(connection: sqlite3.Connection, dimension: Dimension, where: EventFilter) -> CostReport:
    """Return spend by the dimension. The caller holds a read transaction, so that the parts agree."""
    rows: dict[str | None, list[int]] = {}
    days: dict[tuple[str, str | None], list[int]] = {}
    labels: dict[str | None, str] = {}
    for sql, parameters in _cost_parts(dimension, where):
        for day, key, label, *sums in connection.execute(sql, parameters):
            _add(rows, key, sums)
            _add(days, (day, key), sums[:2])
            if label:
                labels[key] = label
    cost_rows = [_cost_row(key, labels.get(key), sums) for key, sums in rows.items()]
    cost_rows.sort(key=lambda row: (-row.cost_nanos, -row.calls, row.key or ""))
    total = [sum(column) for column in zip(*rows.values(), strict=True)] or [0] * 6
    return CostReport(
        dimension=dimension,
        rows=tuple(cost_rows),
        days=tuple(
            DayCost(day=date.fromisoformat(day), key=key, calls=calls, cost_nanos=cost_nanos)
            for (day, key), (calls, cost_nanos) in sorted(days.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        ),
        total=_cost_row(None, None, total),
    )


def _cost_row(key: str | None, label: str | None, sums: Sequence[int]) -> CostRow:
    calls, cost_nanos, unpriced, errors, input_tokens, output_tokens = sums
    return CostRow(
        key=key,
        label=label,
        calls=calls,
        cost_nanos=cost_nanos,
        unpriced=unpriced,
        errors=errors,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def _add(totals: dict[Any, list[int]], key: Any, sums: list[int]) -> None:
    total = totals.get(key)
    totals[key] = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]


def _cost_parts(dimension: Dimension, where: EventFilter) -> list[_Part]:
    """Return the queries whose rows add up to the answer, oldest first."""
    since = None if where.since is None else iso_utc(where.since)
    until = None if where.until is None else iso_utc(where.until)
    first, last = (None if bound is None else bound[:10] for bound in (since, until))
    no_whole_day = first is not None and last is not None and first >= last
    if no_whole_day or not _answered_by_roll_ups(dimension, where):
        return [_event_costs(dimension, where, since, until)]
    from_midnight = since is None or since.endswith(_MIDNIGHT)
    parts = [_daily_costs(dimension, where, (first, ">=" if from_midnight else ">"), last)]
    if first is not None and not from_midnight:
        parts.insert(0, _event_costs(dimension, where, since, first + _AFTER_ANY_TIME))
    if until is not None and not until.endswith(_MIDNIGHT):
        parts.append(_event_costs(dimension, where, last, until))
    return parts


def _answered_by_roll_ups(dimension: Dimension, where: EventFilter) -> bool:
    filtered = {name for name, values in _value_filters(where) if values}
    return where.text is None and filtered <= {dimension}


def _event_costs(dimension: Dimension, where: EventFilter, since: str | None, until: str | None) -> _Part:
    conditions, parameters = _value_conditions(where)
    _add_range(conditions, parameters, "occurred_at", (since, ">="), until)
    sql = f"""
        SELECT substr(occurred_at, 1, 10), {_EXPRESSIONS[dimension]}, {_USER_LABEL if dimension == "user" else "NULL"},
               COUNT(*), COALESCE(SUM(cost_nanos), 0), SUM(cost_nanos IS NULL), SUM(status IN ({_ERRORS})),
               COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0)
        FROM events {_where(conditions)} GROUP BY 1, 2 ORDER BY 1
    """  # noqa: S608
    return sql, parameters


def _daily_costs(dimension: Dimension, where: EventFilter, since: tuple[str | None, str], until: str | None) -> _Part:
    conditions, parameters = ["dimension = ?"], [dimension]
    for _, values in _value_filters(where):
        if values:
            conditions.append(_one_of("CASE WHEN known THEN value END", values, parameters))
    _add_range(conditions, parameters, "day", since, until)
    sql = f"""
        SELECT day, CASE WHEN known THEN value END, label,
               calls, cost_nanos, unpriced, errors, input_tokens, output_tokens
        FROM daily_costs {_where(conditions)} ORDER BY day
    """  # noqa: S608
    return sql, parameters


def _add_range(
    conditions: list[str], parameters: list[Any], column: str, since: tuple[str | None, str], until: str | None
) -> None:
    if since[0] is not None:
        conditions.append(f"{column} {since[1]} ?")
        parameters.append(since[0])
    if until is not None:
        conditions.append(f"{column} < ?")
        parameters.append(until)


def _event_conditions(where: EventFilter) -> tuple[list[str], list[Any]]:
    conditions, parameters = _value_conditions(where)
    since = None if where.since is None else iso_utc(where.since)
    _add_range(
        conditions, parameters, "occurred_at", (since, ">="), None if where.until is None else iso_utc(where.until)
    )
    return conditions, parameters


def _value_filters(where: EventFilter) -> tuple[tuple[Dimension, Sequence[str | None]], ...]:
    return (("feature", where.features), ("user", where.users), ("model", where.models), ("status", where.statuses))


def _value_conditions(where: EventFilter) -> tuple[list[str], list[Any]]:
    parameters: list[Any] = []
    conditions = [
        _one_of(_EXPRESSIONS[dimension], values, parameters) for dimension, values in _value_filters(where) if values
    ]
    if where.statuses and "SUCCESS" not in where.statuses:
        conditions.append(UNUSUAL)
    if where.text:
        conditions.append(_contains(where.text, parameters))
    return conditions, parameters


def _one_of(expression: str, values: Sequence[str | None], parameters: list[Any]) -> str:
    known = [clean_text(value) for value in values if value is not None]
    parameters += known
    alternatives = [f"{expression} IN ({', '.join('?' * len(known))})"] if known else []
    if None in values:
        alternatives.append(f"{expression} IS NULL")
    return f"({' OR '.join(alternatives)})"


def _contains(text: str, parameters: list[Any]) -> str:
    """Return the condition of a text: LIKE lowers ASCII alone, so Python compares other texts."""
    needle = clean_text(text)
    if not needle.isascii() or "\0" in needle or len(needle) > _LONGEST_PATTERN:
        parameters.append(needle.lower())
        return f"contains_lower(?, {_TEXTS})"
    escaped = needle.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    columns = _TEXTS.replace(MODEL, "MODEL").split(", ")
    parameters += [f"%{escaped}%"] * len(columns)
    return "(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'".replace("MODEL", MODEL) for column in columns) + ")"


def _contains_lower(needle: str, *texts: str | None) -> bool:
    return any(needle in text.lower() for text in texts if text is not None)


def _where(conditions: list[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
