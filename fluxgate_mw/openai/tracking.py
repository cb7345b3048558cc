"""What the caller may ask of an answer: a side table with weak references, and one read-only attribute.

Nothing is set on an answer itself, so `model_dump()`, `==`, `repr`, `copy` and `pickle` of it are what they are
without us.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from fluxgate_mw.call import Call
from fluxgate_mw.event import Tracking

__all__ = ["FLUXGATE", "call_of", "register", "tracking"]


class _Known(weakref.ref[Any]):
    """A reference to an answer, which its entry goes with."""

    __slots__ = ("call", "key")
    call: Call
    key: int


_calls: dict[int, _Known] = {}


def _freed(known: Any) -> None:
    _calls.pop(known.key, None)


def register(answer: object, call: Call) -> None:
    """Remember which call an answer belongs to, for as long as the answer lives.

    An answer that cannot be referred to weakly (a plain `str`, a `dict`) is not remembered.
    """
    try:
        known = _Known(answer, _freed)
    except TypeError:
        return
    known.call, known.key = call, id(answer)
    _calls[known.key] = known


def call_of(answer: object) -> Call | None:
    """Return the call that an answer belongs to; a stream helper's is that of its stream."""
    call = _known_call(answer)
    if call is None:
        with suppress(Exception):  # an attribute of somebody's object
            call = _known_call(getattr(answer, "_raw_stream", None))
    return call


def _known_call(answer: object) -> Call | None:
    known = _calls.get(id(answer))
    return known.call if known is not None and known() is answer else None


def tracking(answer: object) -> Tracking | None:
    """Return what is known of a tracked call.

    Args:
        answer: A completion or any other answer, a stream, a stream helper or what it made in the end, a raw response
            or what that was parsed into, as the client returned it. Under an explicit tracker alone, without the
            global patch, a raw response and a stream stand for what is made of them.

    Returns:
        Status, cost and the id of the event; None where the call is not tracked, or a stream that has not ended.

    Concurrency: any thread.
    """
    call = call_of(answer)
    return None if call is None else call.tracking


class _Attribute:
    """Read-only `.fluxgate` of the client's own classes."""

    def __get__(self, answer: object, owner: type | None = None) -> Any:
        return self if answer is None else tracking(answer)

    def __set__(self, answer: object, value: object) -> None:
        raise AttributeError("fluxgate is read-only: it tells what is known of the tracked call")


FLUXGATE = _Attribute()
