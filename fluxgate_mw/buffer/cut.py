"""The wire form of an event that has none, or too long a one: cut down, marked, and never lost whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from fluxgate_mw.event import UsageEvent, User, encode_event, new_event_id, spelled_out

__all__ = ["TRUNCATED", "cut_down", "encode_within"]

TRUNCATED: Final = "fluxgate_truncated"
"""Key in the metadata of an event that was cut down."""

_LONGEST_TEXT: Final = 512
_MOST_WORDS: Final = 16
_INT_RANGE: Final = 2**63


def encode_within(event: UsageEvent, max_bytes: int) -> bytes:
    """Return the event's wire form; cut down and marked where it has none or is longer than `max_bytes`.

    Half pairs of surrogates, as a text has that was cut in the middle of a character, are replaced.

    Guarantees: never raises an `Exception`, whatever the values of the event do when they are looked at.

    Concurrency: any thread.
    """
    try:
        encoded = _encoded(event)
    except Exception:  # noqa: BLE001  (a metadata value's own __repr__ can raise anything)
        return encode_event(cut_down(event))
    return encoded if len(encoded) <= max_bytes else encode_event(cut_down(event))


def _encoded(event: UsageEvent) -> bytes:
    event = _with_text_keys(event) if event.metadata else event
    try:
        return encode_event(event)
    except UnicodeEncodeError:
        return encode_event(_spelled_out(event))


def _spelled_out(value: Any) -> Any:
    """Return a value with each text inside of it as UTF-8 can have it."""
    if isinstance(value, str):
        return spelled_out(value)
    if isinstance(value, dict):
        return {_spelled_out(key): _spelled_out(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_spelled_out, value)]
    if isinstance(value, UsageEvent | User):
        return type(value)(**{name: _spelled_out(inner) for name, inner in msgspec.structs.asdict(value).items()})
    return value


def _with_text_keys(event: UsageEvent) -> UsageEvent:
    """Return the event with the keys of its metadata as text: others could be written and never read again."""
    for key in event.metadata:
        if type(key) is not str:
            metadata = {str(key): value for key, value in event.metadata.items()}
            return msgspec.structs.replace(event, metadata=metadata)
    return event


def cut_down(event: UsageEvent) -> UsageEvent:
    """Return the event without its metadata, with texts of at most 512 characters, and with the mark.

    Values of a kind that the wire has no form for are left out.
    """
    kept: dict[str, Any] = {}
    for name in event.__struct_fields__:
        value = _cut(getattr(event, name))
        if value is not None:
            kept[name] = value
    kept["metadata"] = {TRUNCATED: True}
    kept.setdefault("event_id", new_event_id())
    kept.setdefault("occurred_at", datetime.now(UTC))
    return UsageEvent(**kept)


def _cut(value: object) -> Any:
    kind = type(value)
    if kind is str:
        return str(value)[:_LONGEST_TEXT].encode("utf-8", "replace").decode()
    if kind is bool or kind is float or kind is datetime:
        return value
    if isinstance(value, int):
        return value if -_INT_RANGE <= value < _INT_RANGE else None
    if isinstance(value, User):
        return _cut_user(value)
    if kind is tuple and isinstance(value, tuple):
        return tuple(word for word in map(_cut, value[:_MOST_WORDS]) if type(word) is str)
    return None


def _cut_user(user: User) -> User | None:
    kept = {name: _cut(value) for name, value in msgspec.structs.asdict(user).items()}
    return User(**kept) if type(kept["id"]) is str else None
