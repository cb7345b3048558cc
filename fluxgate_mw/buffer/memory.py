"""A buffer that lives in this process: for tests, and the plainest statement of what the Protocol means.

Several instances on one `MemoryStream` are several readers of one group.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio

from fluxgate_mw.buffer.dead_letters import DeadLetter
from fluxgate_mw.errors import BufferFull, ClosedError
from fluxgate_mw.types import Entry

__all__ = ["MemoryBuffer", "MemoryStream"]

_POLL_S: Final = 0.005


@dataclass
class MemoryStream:
    """What the instances of one buffer share. Concurrency: one event loop."""

    max_entries: int = 1_000_000
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    waiting: dict[str, bytes] = field(default_factory=dict)
    pending: dict[str, tuple[Entry, float]] = field(default_factory=dict)
    dead: dict[str, DeadLetter] = field(default_factory=dict)


class MemoryBuffer:
    """One reader of a `MemoryStream`; with none given, of one of its own. Nothing here outlives the process."""

    name = "memory"

    def __init__(self, stream: MemoryStream | None = None) -> None:
        self._stream = MemoryStream() if stream is None else stream
        self._closed = False

    async def append(self, payload: bytes, events: int, /) -> None:  # noqa: ARG002  (the Protocol's)
        """See `Buffer`."""
        self._check_open()
        stream = self._stream
        if len(stream.waiting) + len(stream.pending) >= stream.max_entries:
            raise BufferFull(f"memory: {stream.max_entries} entries")
        stream.waiting[str(next(stream.ids))] = payload

    async def read(self, *, max_entries: int, wait_s: float) -> Sequence[Entry]:
        """See `Buffer`."""
        self._check_open()
        deadline = time.monotonic() + wait_s
        while not self._stream.waiting and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110  (other readers wait too)
            await anyio.sleep(min(_POLL_S, left))
        taken = list(itertools.islice(self._stream.waiting.items(), max_entries))
        for entry_id, _ in taken:
            del self._stream.waiting[entry_id]
        return [self._hand_out(Entry(entry_id, payload)) for entry_id, payload in taken]

    async def reclaim(self, *, min_idle_s: float, max_entries: int) -> Sequence[Entry]:
        """See `Buffer`."""
        self._check_open()
        before = time.monotonic() - min_idle_s
        idle = [entry for entry, since in self._stream.pending.values() if since <= before][:max_entries]
        return [self._hand_out(Entry(old.entry_id, old.payload, old.delivery_count + 1)) for old in idle]

    def _hand_out(self, entry: Entry) -> Entry:
        self._stream.pending[entry.entry_id] = (entry, time.monotonic())
        return entry

    async def ack(self, entries: Sequence[Entry], /) -> None:
        """See `Buffer`."""
        self._check_open()
        for entry in entries:
            self._stream.pending.pop(entry.entry_id, None)

    async def dead_letter(self, entry: Entry, payload: bytes, reason: str, /) -> None:
        """See `Buffer`."""
        self._check_open()
        letter_id = str(next(self._stream.ids))
        self._stream.dead[letter_id] = DeadLetter.of(letter_id, entry, payload, reason)

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """See `DeadLetters`."""
        return list(itertools.islice(self._stream.dead.values(), limit))

    async def replay(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`."""
        wanted = self._known(letter_ids)
        for letter_id in wanted:
            await self.append(self._stream.dead[letter_id].payload, 0)
            del self._stream.dead[letter_id]
        return len(wanted)

    async def drop(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`."""
        wanted = self._known(letter_ids)
        for letter_id in wanted:
            del self._stream.dead[letter_id]
        return len(wanted)

    def _known(self, letter_ids: Collection[str] | None) -> list[str]:
        return [key for key in self._stream.dead if letter_ids is None or key in letter_ids]

    async def oldest(self) -> Entry | None:
        """See `Buffer`."""
        given = (entry for entry, _ in self._stream.pending.values())
        waiting = (Entry(entry_id, payload) for entry_id, payload in self._stream.waiting.items())
        return next(itertools.chain(given, waiting), None)

    async def backlog(self) -> Mapping[str, int]:
        """See `Buffer`."""
        stream = self._stream
        return {
            "entries": len(stream.waiting) + len(stream.pending),
            "pending": len(stream.pending),
            "dead_letters": len(stream.dead),
        }

    async def aclose(self) -> None:
        """See `Buffer`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the memory buffer is closed")
