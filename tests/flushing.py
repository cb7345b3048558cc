"""A flusher on real parts, and parts that fail when they are told to: for the flusher's tests."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fluxgate_mw.buffer.memory import MemoryStream
from fluxgate_mw.buffer.pack import pack, unpack
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.event import UsageEvent, decode_event, encode_event
from fluxgate_mw.flusher import Flusher
from fluxgate_mw.stores.sqlite import SQLiteStore
from fluxgate_mw.types import Buffer, Entry, Store
from tests.buffers import numbered


def make_flusher(buffers: Sequence[Buffer], store: Store, **options: Any) -> Flusher:
    """A flusher with the real wire format."""
    return Flusher(buffers=buffers, store=store, pack=pack, unpack=unpack, decode=decode_event, **options)


async def append_numbered(buffer: Buffer, numbers: Sequence[int], per_entry: int = 10) -> None:
    """Append events with these numbers, several to an entry."""
    for start in range(0, len(numbers), per_entry):
        part = numbers[start : start + per_entry]
        await buffer.append(pack([encode_event(numbered(number)) for number in part]), len(part))


def stored_numbers(path: Path) -> list[int]:
    """The numbers of the events in a SQLite store, read as any tool would, each as often as it is there."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT json_extract(metadata, '$.number') FROM events ORDER BY 1").fetchall()
        calls = connection.execute("SELECT SUM(calls) FROM daily_costs WHERE dimension = 'feature'").fetchone()[0]
    assert (calls or 0) == len(rows), "the sums do not agree with the events"
    return [number for (number,) in rows]


class Faulty:
    """Every call of a store or buffer passes here and may be failed, counted, or used as a place to act.

    Args:
        inner: The real part.
        before: Called with the method's name before each call; what it raises, the call raises.
        after: The same after each call that succeeded.
    """

    def __init__(
        self,
        inner: Any,
        before: Callable[[str], object] = lambda name: None,
        after: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.inner, self.before, self.after = inner, before, after
        self.name = inner.name
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        async def call(*args: Any, **keywords: Any) -> Any:
            self.calls[name] += 1
            self.before(name)
            answer = await method(*args, **keywords)
            self.after(name)
            return answer

        return call


def failing(name: str, times: int, backend: str = "sqlite") -> Callable[[str], None]:
    """Raise `BackendUnavailable` the first so many times that a method is called."""
    left = [times]

    def fail(called: str) -> None:
        if called == name and left[0] > 0:
            left[0] -= 1
            raise BackendUnavailable(backend, "out of order")

    return fail


class PickyStore(SQLiteStore):
    """A real store that takes no event whose number it was told to reject."""

    def __init__(self, path: Path, rejected: set[int]) -> None:
        super().__init__(path)
        self.rejected = rejected

    async def insert(self, events: Sequence[UsageEvent], /) -> int:
        """Insert, with a foreign object in the place of each rejected event's feature."""
        spoiled = [
            UsageEvent(event_id=event.event_id, feature=object())  # type: ignore[arg-type]
            if event.metadata.get("number") in self.rejected
            else event
            for event in events
        ]
        return await super().insert(spoiled)


def redelivered(stream: MemoryStream, payload: bytes, delivery_count: int) -> Entry:
    """Put an entry into the pending list as if dead readers had been given it so often."""
    entry = Entry(str(next(stream.ids)), payload, delivery_count)
    stream.pending[entry.entry_id] = (entry, float("-inf"))
    return entry
