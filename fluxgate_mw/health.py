"""Whether the delivery works, and its figures: for probes, for Prometheus, and for the dashboard's trust strip.

One examination serves all three, and is made at most once a second. It knows the Protocols `Buffer` and `Store` and
what emitter and flusher say of themselves; it knows neither Redis nor disk nor pages, and its replies name neither
hosts nor keys nor users.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import anyio
import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.emitter import EmitterStatistics
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.errors import BackendError, ClosedError, EventDecodeError
from fluxgate_mw.event import decode_event
from fluxgate_mw.flusher import FlusherStatistics, emitted_at
from fluxgate_mw.types import Buffer, Entry, Store

__all__ = ["BufferHealth", "Health", "Snapshot"]

MAX_LAG_S: Final = 300.0
"""How old the oldest event that is not stored may be for the delivery to count as ready, where nothing is asked."""

_UNCOVERED: Final = "not_covered_"
_KEPT_S: Final = 1.0
_TIMEOUT_S: Final = 2.0
_STORE_TIMEOUT_S: Final = 5.0
_T = TypeVar("_T")


class BufferHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One buffer as it was found.

    Args:
        name: Its kind: `redis`, `spool`; with a number from the second of a kind on.
        answers: Whether it could be asked; the rest is empty where not.
        figures: Its `backlog()`.
        oldest_age_s: Age in seconds of the first event that is not acknowledged, 0 where there is none; None where
            that cannot be known.
    """

    name: str
    answers: bool
    figures: Mapping[str, int]
    oldest_age_s: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole delivery as it was found.

    Args:
        store_writable: Whether the store committed an empty insert; None where it was not asked.
        buffers: Every buffer that a flusher reads.
        flusher: Figures of this process's flusher; None where it runs none.
        emitter: Figures of this process's emitter; None where it emits nothing.
        notes: How often something was noted in this process, by kind.
    """

    store_writable: bool | None
    buffers: Sequence[BufferHealth]
    flusher: FlusherStatistics | None
    emitter: EmitterStatistics | None
    notes: Mapping[str, int]

    @property
    def oldest_age_s(self) -> float:
        """Age in seconds of the oldest event known not to be stored; 0 where none is.

        The first event of every buffer is looked at, what the flusher has in hand and what is queued here. An event
        that came back from the spool to a stream stands behind younger ones there until it is its turn.
        """
        ages = [buffer.oldest_age_s for buffer in self.buffers]
        ages.append(self.flusher.lag_s if self.flusher else None)
        ages.append(self.emitter.oldest_age_s if self.emitter else None)
        return max((age for age in ages if age is not None), default=0.0)

    def reasons(self, max_lag_s: float) -> list[str]:
        """Return why the delivery is not ready, in words that name no host; empty where it is."""
        found = ["the store cannot be written"] if self.store_writable is False else []
        found += [f"the buffer {buffer.name} does not answer" for buffer in self.buffers if not buffer.answers]
        if self.oldest_age_s > max_lag_s:
            found.append(f"an event waits for {self.oldest_age_s:.0f} s, {max_lag_s:.0f} s are allowed")
        return found

    def trust(self) -> Mapping[str, object]:
        """Return what a reader of the dashboard should know of events that its figures do not hold.

        What this process dropped, by reason, and what it saw that is billed and not recorded, by kind. Other processes
        know their own alone: theirs is in their `statistics()` and `/metrics`.
        """
        figures: dict[str, object] = {
            "waiting_packs": self._total("entries"),
            "lag, s": round(self.oldest_age_s, 1),
            "dead_letters": self._total("dead_letters"),
        }
        if silent := [buffer.name for buffer in self.buffers if not buffer.answers]:
            figures["lost touch with"] = ", ".join(silent)
        if quarantined := self._total("quarantined"):
            figures["quarantined_files"] = quarantined
        if self.emitter is not None:
            figures |= {"queued": self.emitter.queued, "dropped": self.emitter.dropped or 0}
        uncovered = {kind.removeprefix(_UNCOVERED): times for kind, times in self.notes.items() if _UNCOVERED in kind}
        return figures | ({"not covered": uncovered} if uncovered else {})

    def _total(self, figure: str) -> int:
        return sum(buffer.figures.get(figure, 0) for buffer in self.buffers)


class Health:
    """Look at the delivery, at most once a second however often it is asked.

    Args:
        store: Asked for an empty insert, which commits nothing of anybody's.
        buffers: Makes clients of the buffers for one examination; they read nothing and are closed after it.
        flusher: Figures of this process's flusher, None where it runs none.
        emitter: Figures of this process's emitter, None where it emits nothing.

    Concurrency: any event loop; every call made meanwhile may look for itself.
    """

    def __init__(
        self,
        *,
        store: Store,
        buffers: Callable[[], Sequence[Buffer]],
        flusher: Callable[[], FlusherStatistics | None] = lambda: None,
        emitter: Callable[[], EmitterStatistics | None] = lambda: None,
    ) -> None:
        self._store, self._open_buffers = store, buffers
        self._flusher, self._emitter = flusher, emitter
        self._last: dict[bool, tuple[float, Snapshot]] = {}

    async def snapshot(self, *, ask_store: bool = True) -> Snapshot:
        """Return how the delivery was found, at most a second ago. What cannot be asked in time counts as silent.

        Args:
            ask_store: Whether the store is tried too, which waits where another process holds its lock.
        """
        looked_at, last = self._last.get(ask_store, (-math.inf, None))
        if last is None or time.monotonic() - looked_at >= _KEPT_S:
            last = await self._look(ask_store=ask_store)
            self._last[ask_store] = (time.monotonic(), last)
        return last

    async def trust(self) -> Mapping[str, object]:
        """Return the figures of the dashboard's trust strip, without trying the store: the page shows whether it is."""
        return (await self.snapshot(ask_store=False)).trust()

    async def _look(self, *, ask_store: bool) -> Snapshot:
        buffers = self._open_buffers()
        found: list[BufferHealth | None] = [None] * len(buffers)
        writable: list[bool] = []

        async def look_at_store() -> None:
            writable.append(self._stored_lately() or await self._store_takes())

        async def look_at(place: int, name: str) -> None:
            found[place] = await _buffer_health(name, buffers[place])

        async with anyio.create_task_group() as group:
            if ask_store:
                group.start_soon(look_at_store)
            for place, name in enumerate(_names(buffers)):
                group.start_soon(look_at, place, name)
        return Snapshot(
            store_writable=writable[0] if ask_store else None,
            buffers=[buffer for buffer in found if buffer is not None],
            flusher=self._flusher(),
            emitter=self._emitter(),
            notes=diagnostics.counts(),
        )

    def _stored_lately(self) -> bool:
        """Return whether this process's flusher has just proved it, and may be at it: an insert would wait its turn."""
        figures = self._flusher()
        last = figures.last_stored_at if figures else None
        return last is not None and (datetime.now(UTC) - last).total_seconds() < _STORE_TIMEOUT_S

    async def _store_takes(self) -> bool:
        return await _in_time(lambda: self._store.insert(()), _STORE_TIMEOUT_S) is not None


def _names(buffers: Sequence[Buffer]) -> list[str]:
    kinds = [buffer.name for buffer in buffers]
    return [kind if (earlier := kinds[:n].count(kind)) == 0 else f"{kind}{earlier + 1}" for n, kind in enumerate(kinds)]


async def _buffer_health(name: str, buffer: Buffer) -> BufferHealth:
    try:
        figures = await _in_time(buffer.backlog)
        oldest = await _in_time(lambda: _oldest_age_s(buffer)) if figures is not None else None
    finally:
        await _in_time(buffer.aclose)
    return BufferHealth(name=name, answers=figures is not None, figures=figures or {}, oldest_age_s=oldest)


async def _oldest_age_s(buffer: Buffer) -> float | None:
    entry = await buffer.oldest()
    return 0.0 if entry is None else _age_s(entry)


def _age_s(entry: Entry) -> float | None:
    """Return the age of the entry's first event; None where it is no pack of events."""
    try:
        emitted = emitted_at(decode_event(unpack(entry.payload)[0]))
    except (EventDecodeError, IndexError):
        return None
    return max((datetime.now(UTC) - emitted).total_seconds(), 0.0)


async def _in_time(ask: Callable[[], Awaitable[_T]], timeout_s: float = _TIMEOUT_S) -> _T | None:
    try:
        with anyio.fail_after(timeout_s):
            return await ask()
    except (BackendError, ClosedError, TimeoutError):
        return None
