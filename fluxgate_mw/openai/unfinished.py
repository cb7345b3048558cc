"""Background creates of this process whose answer is not there yet, by the id that will be asked for.

Each is one call that is still open; it ends when its answer is retrieved, when it is pushed out by newer ones, when
the patch that began it is taken back, or with the process, whichever comes first. A forked child leaves them to its
parent.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from fluxgate_mw.recorder import at_process_end, opened

__all__ = ["any_open", "end_all", "hold", "release"]

MOST_OPEN: Final = 1000
"""Past so many the oldest ends, with its usage not known."""


class Open(Protocol):
    """A call that waits for its answer; `tracked` says that an explicit tracker made it, whom no patch concerns."""

    tracked: bool

    def give_up(self, response_id: str) -> None:
        """End with what is known: nothing but the id of the answer."""
        ...


_open: dict[str, Open] = {}


def any_open() -> bool:
    """Say whether any call waits. Concurrency: any thread."""
    return bool(_open)


def hold(response_id: str, call: Open) -> None:
    """Keep the call open until its answer is retrieved."""
    opened()
    displaced_id = response_id
    if response_id not in _open and len(_open) >= MOST_OPEN:
        displaced_id = next(iter(_open), response_id)
    displaced = _open.pop(displaced_id, None)
    _open[response_id] = call
    if displaced is not None:
        displaced.give_up(displaced_id)


def release(response_id: str | None) -> Open | None:
    """Return the call that waits for this answer, which no longer waits; None where there is none."""
    return None if response_id is None else _open.pop(response_id, None)


def end_all(*, tracked: bool = True) -> None:
    """End every call that waits, with its usage not known.

    Args:
        tracked: Those of explicit trackers too.
    """
    for response_id, call in list(_open.items()):
        if (tracked or not call.tracked) and _open.pop(response_id, None) is call:
            call.give_up(response_id)


at_process_end.append(end_all)
os.register_at_fork(after_in_child=_open.clear)
