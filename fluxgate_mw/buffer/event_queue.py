"""Encoded events that wait in memory: bounded, appended to from anywhere without a lock, emptied by one loop."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from fluxgate_mw.buffer.pack import pack

__all__ = ["EventQueue"]

_PACK_EVENTS: Final = 250
_PACK_BYTES: Final = 131_072


class EventQueue:
    """A queue whose head can be taken as one batch, which is then settled or put back.

    Args:
        max_events: Most events that wait.
        max_bytes: Most bytes that wait, the batch on its way included.

    Concurrency: `offer` from any thread, signal handler or finalizer: each of its steps is one that CPython's lock
    makes whole, and a race between two can pass the bounds by one event a thread. The rest belongs to one loop;
    anybody may look.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._batch: list[tuple[float, bytes]] = []
        self._bytes_in = self._bytes_out = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._batch)

    @property
    def size_bytes(self) -> int:
        """Encoded size of what waits."""
        return self._bytes_in - self._bytes_out

    @property
    def oldest_at(self) -> float | None:
        """When the oldest event was queued, in monotonic seconds; None where there is none."""
        try:
            return (self._batch or self._waiting)[0][0]
        except IndexError:
            return None

    def offer(self, data: bytes) -> None:
        """Queue one event, or count it as refused where the queue is full."""
        size = len(data)
        if len(self._waiting) >= self._max_events or self._bytes_in - self._bytes_out + size > self._max_bytes:
            self.refused += 1
        else:
            self._bytes_in += size
            self._waiting.append((time.monotonic(), data))

    def take(self) -> int:
        """Make the oldest events the batch, by number and by bytes as many as one pack may hold; return how many."""
        batch, size, popleft = self._batch, 0, self._waiting.popleft
        try:
            while len(batch) < _PACK_EVENTS and size < _PACK_BYTES:
                item = popleft()
                batch.append(item)
                size += len(item[1])
        except IndexError:
            pass
        return len(batch)

    def packed(self) -> bytes:
        """Return the batch as one payload."""
        return pack([data for _, data in self._batch])

    def settle(self) -> int:
        """Forget the batch, whose fate is decided; return how many events it was."""
        settled, self._batch = self._batch, []
        self._bytes_out += sum(len(data) for _, data in settled)
        return len(settled)

    def put_back(self) -> None:
        """Put the batch back in front, in its order."""
        self._waiting.extendleft(reversed(self._batch))
        self._batch = []
