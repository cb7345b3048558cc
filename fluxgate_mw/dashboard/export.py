"""The JSON twins of the pages: the same query string, every field, money in integer nano-USD."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from starlette.responses import Response

from fluxgate_mw.dashboard.filters import View
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.query import CostReport, EventPage

__all__ = ["costs", "error", "requests"]


def requests(page: EventPage, view: View) -> Response:
    """Return one page of calls, newest first; `older` and `newer` are query strings, null at the end."""
    return _reply(
        {
            "events": [_event(event) for event in page.events],
            "older": view.link(after=page.older) if page.older else None,
            "newer": view.link(before=page.newer) if page.newer else None,
        },
    )


def costs(report: CostReport, since: datetime | None, until: datetime | None) -> Response:
    """Return spend by a dimension over `[since, until)` (null = open), per value and per UTC day."""
    return _reply(
        {"since": since, "until": until, **{name: getattr(report, name) for name in report.__struct_fields__}}
    )


def error(status: int, message: str) -> Response:
    """Return an error as `{"error": message}`."""
    return _reply({"error": message}, status)


def _event(event: UsageEvent) -> dict[str, Any]:
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    user = event.user
    return fields | {"user": user and {name: getattr(user, name) for name in user.__struct_fields__}}


def _reply(value: Any, status: int = 200) -> Response:
    text = msgspec.json.encode(_encodable(msgspec.to_builtins(value, enc_hook=repr)))
    return Response(text, status_code=status, media_type="application/json")


def _encodable(value: Any) -> Any:
    """Return the value with question marks for what has no UTF-8 form, and long integers as text."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case bool() | None | float():
            return value
        case int():
            return value if abs(value) < 2**63 else str(value)
        case dict():
            return {_encodable(str(key)): _encodable(item) for key, item in value.items()}
        case _:
            return [_encodable(item) for item in value]
