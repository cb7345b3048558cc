"""Events that wait in memory, encoded or still to be made: bounded, offered without a lock, emptied by one loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.types import Pending

__all__ = ["EventQueue"]

_PACK_EVENTS: Final = 250
_PACK_BYTES: Final = 131_072
_MADE_AT_ONCE: Final = 10
"""Events that are made in one go: the interpreter's lock is the application's again in between."""


_Waiting = tuple[float, int, bytes | Pending]
"""When it was queued, in monotonic seconds, its size in bytes, and the event."""
_Made = tuple[float, int, bytes]


class EventQueue:
    """A queue whose head can be taken as one batch, which is then settled or put back.

    Args:
        max_events: Most events that wait.
        max_bytes: Most bytes that wait, the batch on its way included.
        encode: Makes and encodes an event that waits unmade; never raises.

    Concurrency: `offer` and `put` from any thread, signal handler or finalizer: each of their steps is one that
    CPython's lock makes whole, and a race between two can pass the bounds by one event a thread. The rest belongs to
    one loop; anybody may look.
    """

    def __init__(self, max_events: int, max_bytes: int, encode: Callable[[Pending], bytes]) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._encode = encode
        self._waiting: deque[_Waiting] = deque()
        self._batch: list[_Made] = []
        self._bytes_in = self._bytes_out = self._packed_bytes = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._batch)

    @property
    def size_bytes(self) -> int:
        """Size of what waits: of its encoded form, or of what it is still to be made from."""
        return self._bytes_in - self._bytes_out

    @property
    def oldest_at(self) -> float | None:
        """When the oldest event was queued, in monotonic seconds; None where there is none."""
        try:
            return (self._batch or self._waiting)[0][0]
        except IndexError:
            return None

    def offer(self, event: bytes | Pending, size: int) -> None:
        """Queue one event, or count it as refused where the queue is full."""
        if self.has_room(size):
            self.put(event, size)
        else:
            self.refused += 1

    def put(self, event: bytes | Pending, size: int) -> None:
        """Queue one event for which there is room."""
        self._bytes_in += size
        self._waiting.append((time.monotonic(), size, event))

    def has_room(self, size: int) -> bool:
        """Return whether an event of that many bytes would be taken now."""
        return len(self._waiting) < self._max_events and self._bytes_in - self._bytes_out + size <= self._max_bytes

    def take(self) -> bool:
        """Move the oldest events to the batch; return whether it is what one pack may hold, or all there is.

        False where only so many events were made: let others run, and go on.
        """
        left, batch, waiting = _MADE_AT_ONCE, self._batch, self._waiting
        while waiting and len(batch) < _PACK_EVENTS and self._packed_bytes < _PACK_BYTES:
            if not left:
                return False
            queued_at, size, event = waiting[0]  # where it stays if the process is interrupted over making it
            if not isinstance(event, bytes):
                left -= 1
                event = self._encode(event)
                self._bytes_out += size - len(event)
                size = len(event)
            waiting.popleft()
            batch.append((queued_at, size, event))
            self._packed_bytes += size
        return True

    @property
    def taken(self) -> int:
        """How many events the batch holds."""
        return len(self._batch)

    def packed(self) -> bytes:
        """Return the batch as one payload."""
        return pack([event for _, _, event in self._batch])

    def settle(self) -> int:
        """Forget the batch, whose fate is decided; return how many events it was."""
        self._bytes_out += self._packed_bytes
        settled, self._batch, self._packed_bytes = self._batch, [], 0
        return len(settled)

    def put_back(self) -> None:
        """Put the batch back in front, in its order."""
        self._waiting.extendleft(reversed(self._batch))
        self._batch, self._packed_bytes = [], 0
