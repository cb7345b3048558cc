"""Background creates of this process whose answer is not there yet, by the id that will be asked for.

Each is one call that is still open; it ends when its answer is retrieved, when it is pushed out by newer ones, when
the patch is taken back, or with the process, whichever comes first. A forked child leaves them to its parent.
"""

from __future__ import annotations

import atexit
import os
from typing import Final, Protocol

__all__ = ["any_open", "end_all", "hold", "release"]

MOST_OPEN: Final = 1000
"""Past so many the oldest ends, with its usage not known."""


class Open(Protocol):
    """A call that waits for its answer."""

    def give_up(self) -> None:
        """End with what is known."""
        ...


_open: dict[str, Open] = {}
_registered_in: set[int] = set()


def any_open() -> bool:
    """Say whether any call waits. Concurrency: any thread."""
    return bool(_open)


def hold(response_id: str, call: Open) -> None:
    """Keep the call open until its answer is retrieved."""
    _end_with_process()
    displaced = _open.pop(response_id, None)
    if displaced is None and len(_open) >= MOST_OPEN:
        displaced = _open.pop(next(iter(_open)), None)
    _open[response_id] = call
    if displaced is not None:
        displaced.give_up()


def _end_with_process() -> None:
    """Have `atexit` end what is open, once in a process: it never gives back the place of a hook that is taken out.

    Registered at the first call that waits, so that it runs before the delivery's own hook. A forked child has its
    parent's hooks, unless `multiprocessing` took them from it.
    """
    pid = os.getpid()
    if pid not in _registered_in:
        _registered_in.add(pid)
        atexit.unregister(end_all)
        atexit.register(end_all)


def release(response_id: str | None) -> Open | None:
    """Return the call that waits for this answer, which no longer waits; None where there is none."""
    return None if response_id is None else _open.pop(response_id, None)


def end_all() -> None:
    """End every call that waits, with its usage not known."""
    while _open:
        _open.popitem()[1].give_up()


os.register_at_fork(after_in_child=_open.clear)
