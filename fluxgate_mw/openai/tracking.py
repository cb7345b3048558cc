"""What the caller may ask of an answer: a side table with weak references, and one read-only attribute.

Nothing is set on an answer itself, so `model_dump()`, `==`, `repr`, `copy` and `pickle` of it are what they are
without us.
"""

from __future__ import annotations

import weakref
from typing import Any

from fluxgate_mw.event import Tracking
from fluxgate_mw.recorder import Call

__all__ = ["FLUXGATE", "register", "tracking"]

_calls: dict[int, tuple[weakref.ref[Any], Call | Tracking]] = {}


def register(answer: object, call: Call) -> None:
    """Remember which call an answer belongs to, for as long as the answer lives.

    An answer that cannot be referred to weakly (a plain `str`, a `dict`) is not remembered.
    """
    key = id(answer)

    def freed(_: object) -> None:
        _calls.pop(key, None)

    try:
        reference = weakref.ref(answer, freed)
    except TypeError:
        return
    _calls[key] = (reference, call.tracking or call)


def tracking(answer: object) -> Tracking | None:
    """Return what is known of a tracked call.

    Args:
        answer: A completion or any other answer, a stream, a stream helper, or a raw response, as the client
            returned it.

    Returns:
        Status, cost and the id of the event; None where the call is not tracked, or a stream that has not ended.

    Concurrency: any thread.
    """
    known = _calls.get(id(answer))
    if known is None or known[0]() is not answer:
        inner = getattr(answer, "_raw_stream", None)
        return None if inner is None else tracking(inner)
    found = known[1]
    return found.tracking if isinstance(found, Call) else found


class _Attribute:
    """Read-only `.fluxgate` of the client's own classes."""

    def __get__(self, answer: object, owner: type | None = None) -> Any:
        return self if answer is None else tracking(answer)

    def __set__(self, answer: object, value: object) -> None:
        raise AttributeError("fluxgate is read-only: it tells what is known of the tracked call")


FLUXGATE = _Attribute()
