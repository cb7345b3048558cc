"""Move events from the buffers to the store: read, commit, and only then acknowledge.

One flusher serves any number of buffers, any number of flushers serve one buffer. It knows the Protocols `Buffer` and
`Store` and is given the pack format; it knows neither Redis nor disk nor SQL.

The law, at every await and every crash: an entry is acknowledged after the commit of its events, or after what cannot
be stored was kept as a dead letter with its reason. Whatever comes twice is stored once, by its event id.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.errors import BackendRejected, BackendUnavailable, ClosedError
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.types import Buffer, Entry, Store

__all__ = ["Flusher", "FlusherStatistics", "emitted_at"]

READ_WAIT_S: Final = 0.5
FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 10.0
EMPTY_POLL_S: Final = 0.05

_THE_DATAS_FAULT: Final = (ValueError, TypeError, ArithmeticError, LookupError, RecursionError)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class FlusherStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a flusher did since it was made.

    Args:
        stored: Events that were new to the store.
        duplicates: Events that the store had already.
        dead_lettered: Events set aside one by one, undecodable or rejected by the store.
        dead_lettered_entries: Whole entries set aside: no pack, or delivered too often. How many events they hold is
            not known.
        batches: Commits.
        store_errors: Times that the store was unavailable.
        buffer_errors: Times that a buffer was unavailable.
        last_stored_at: When a commit last succeeded, aware UTC; None before the first.
        lag_s: Age in seconds of the first event that is in hand and not stored yet; 0 when none is.
    """

    stored: int
    duplicates: int
    dead_lettered: int
    dead_lettered_entries: int
    batches: int
    store_errors: int
    buffer_errors: int
    last_stored_at: datetime | None
    lag_s: float


class _Item(NamedTuple):
    entry: Entry
    encoded: bytes
    event: UsageEvent


class _Letter(NamedTuple):
    entry: Entry
    payload: bytes
    reason: str
    whole: bool


@dataclass
class _Counters:
    stored: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    dead_lettered_entries: int = 0
    batches: int = 0
    store_errors: int = 0
    buffer_errors: int = 0
    last_stored_at: datetime | None = None


class Flusher:
    """The loop between the buffers and the store.

    Args:
        buffers: Each is followed by a task of its own: one that fails does not hold up the others.
        store: Where events are committed. It is never the reason for a dead letter while it is merely unavailable:
            nothing is read or claimed until an empty insert succeeded, so an outage does not count deliveries up.
        unpack: The encoded events of a payload; raises `EventDecodeError`.
        pack: The payload of encoded events, for a dead letter that can be replayed.
        decode: One event of its encoded form; raises `EventDecodeError`.
        claim_min_idle_s: After how long another's unacknowledged entry is taken over; above the longest flush.
        max_deliveries: An entry handed out more often than this is set aside without being decoded: it kills.
        batch_entries: Most entries of one commit: what bounds the memory in use.

    Concurrency: one event loop; one of `run` and `run_once` at a time. Any number of flushers.
    """

    def __init__(
        self,
        *,
        buffers: Sequence[Buffer],
        store: Store,
        unpack: Callable[[bytes], Sequence[bytes]],
        pack: Callable[[Sequence[bytes]], bytes],
        decode: Callable[[bytes], UsageEvent],
        claim_min_idle_s: float = 30.0,
        max_deliveries: int = 5,
        batch_entries: int = 64,
    ) -> None:
        self._buffers = tuple(buffers)
        self._store = store
        self._unpack, self._pack, self._decode = unpack, pack, decode
        self._claim_min_idle_s = claim_min_idle_s
        self._max_deliveries = max_deliveries
        self._batch_entries = batch_entries
        self._counters = _Counters()
        self._in_hand: dict[int, datetime] = {}
        self._store_works = False
        self._stop_requested = False
        self._stopping: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None

    def statistics(self) -> FlusherStatistics:
        """Return a snapshot of the figures. Concurrency: any thread."""
        oldest = min(tuple(self._in_hand.values()), default=None)
        lag_s = 0.0 if oldest is None else max((datetime.now(UTC) - oldest).total_seconds(), 0.0)
        return FlusherStatistics(**vars(self._counters), lag_s=lag_s)

    async def run(self) -> None:
        """Flush until `stop` or cancellation.

        Guarantees: returns normally after `stop`, or when the store or every buffer was closed; what is in hand when
        it ends any other way stays claimable.
        """
        with self._running():
            async with anyio.create_task_group() as group:
                for buffer in self._buffers:
                    group.start_soon(self._follow, buffer)

    async def run_once(self, *, wait: bool) -> None:
        """Flush what is there, then return.

        Args:
            wait: Go on until every buffer's stream and pending list are empty, which can mean to wait until other
                readers' entries may be claimed; otherwise end when there is nothing left that may be taken now.

        Raises:
            ClosedError: The store or a buffer was closed meanwhile.
        """
        with self._running():
            delays = _delays()
            while not self._stop_requested:
                try:
                    handled = [await self._drain(buffer) for buffer in self._buffers]
                    if await self._all_empty() if wait else not any(handled):
                        return
                except BackendUnavailable as error:
                    self._note_buffer_error(error)
                    await self._pause(next(delays))
                else:
                    delays = _delays()
                    await self._pause(EMPTY_POLL_S)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let `run` return once the batch in hand is stored, or leave it claimable after `timeout_s` seconds.

        A flusher that was stopped does not run again. Idempotent.
        """
        self._stop_requested = True
        if self._stopping is not None and self._scope is not None:
            self._stopping.set()
            self._scope.deadline = anyio.current_time() + timeout_s

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._stopping = anyio.Event()
        with anyio.CancelScope() as self._scope:
            yield

    async def _follow(self, buffer: Buffer) -> None:
        """Serve one buffer for ever. A bug of ours is logged and tried again: the entries stay claimable."""
        delays = _delays()
        reclaim_at = time.monotonic()
        while not self._stop_requested:
            try:
                if time.monotonic() >= reclaim_at:
                    await self._take_over(buffer)
                    reclaim_at = time.monotonic() + self._claim_min_idle_s / 2
                await self._take_new(buffer, READ_WAIT_S)
                delays = _delays()
            except ClosedError as error:
                diagnostics.note("flusher_closed", f"the flusher of {buffer.name} ends: {error}")
                return
            except BackendUnavailable as error:
                self._note_buffer_error(error)
                await self._pause(next(delays))
            except Exception:  # noqa: BLE001  (one of the loops that must outlive our own bugs)
                _log.exception("the flusher of %s failed; what it had comes again", buffer.name)
                await self._pause(next(delays))

    async def _drain(self, buffer: Buffer) -> int:
        handled = 0
        while not self._stop_requested and (new := await self._take_new(buffer, 0)):
            handled += new
        return handled + await self._take_over(buffer)

    async def _all_empty(self) -> bool:
        for buffer in self._buffers:
            backlog = await buffer.backlog()
            if backlog.get("entries", 0) or backlog.get("pending", 0):
                return False
        return True

    async def _take_new(self, buffer: Buffer, wait_s: float) -> int:
        if not self._store_works and not await self._store_answers():
            return 0
        entries = await buffer.read(max_entries=self._batch_entries, wait_s=wait_s)
        await self._handle_all(buffer, entries)
        return len(entries)

    async def _take_over(self, buffer: Buffer) -> int:
        """Claim what others left, one entry at a time: one that kills must not have its neighbours counted up."""
        if not await self._store_answers():
            return 0
        handled = 0
        while handled < self._batch_entries and not self._stop_requested:
            entries = await buffer.reclaim(min_idle_s=self._claim_min_idle_s, max_entries=1)
            if not entries:
                break
            await self._handle_all(buffer, entries)
            handled += len(entries)
        return handled

    async def _handle_all(self, buffer: Buffer, entries: Sequence[Entry]) -> None:
        """Store new entries together, and each that came before alone, for it may be what ended its last reader.

        Those come forwards and backwards in turn, so that both sides of one that kills are stored in two attempts.
        """
        first_time = [entry for entry in entries if entry.delivery_count <= 1]
        again = [entry for entry in entries if entry.delivery_count > 1]
        if first_time:
            await self._handle(buffer, first_time)
        if again and again[0].delivery_count % 2 == 0:
            again.reverse()
        for entry in again:
            await self._handle(buffer, [entry])

    async def _handle(self, buffer: Buffer, entries: Sequence[Entry]) -> None:
        items, letters = await self._decoded(entries)
        if items:
            self._in_hand[id(buffer)] = emitted_at(items[0].event)
        try:
            letters += await self._stored(items)
        finally:
            self._in_hand.pop(id(buffer), None)
        for letter in letters:
            await self._send(buffer, letter)
        await self._insist(partial(buffer.ack, entries), self._note_buffer_error)

    async def _decoded(self, entries: Sequence[Entry]) -> tuple[list[_Item], list[_Letter]]:
        items: list[_Item] = []
        letters: list[_Letter] = []
        for entry in entries:
            await anyio.lowlevel.checkpoint()
            if entry.delivery_count > self._max_deliveries:
                reason = f"handed out {entry.delivery_count} times and never acknowledged"
                letters.append(_Letter(entry, entry.payload, reason, whole=True))
            else:
                self._decode_into(items, letters, entry)
        return items, letters

    def _decode_into(self, items: list[_Item], letters: list[_Letter], entry: Entry) -> None:
        try:
            pack = self._unpack(entry.payload)
        except _THE_DATAS_FAULT as error:
            letters.append(_Letter(entry, entry.payload, f"no pack: {error}", whole=True))
            return
        for encoded in pack:
            try:
                items.append(_Item(entry, encoded, self._decode(encoded)))
            except _THE_DATAS_FAULT as error:
                letters.append(_Letter(entry, self._pack([encoded]), f"undecodable: {error}", whole=False))

    async def _stored(self, items: Sequence[_Item]) -> list[_Letter]:
        """Commit the events, halving what the store rejects until the culprits are alone; return those."""
        if not items:
            return []
        try:
            new = await self._insist(
                partial(self._store.insert, [item.event for item in items]), self._note_store_error
            )
        except BackendRejected as error:
            if len(items) == 1:
                return [_Letter(items[0].entry, self._pack([items[0].encoded]), f"rejected: {error}", whole=False)]
            half = len(items) // 2
            return await self._stored(items[:half]) + await self._stored(items[half:])
        self._store_works = True
        self._counters.stored += new
        self._counters.duplicates += len(items) - new
        self._counters.batches += 1
        self._counters.last_stored_at = datetime.now(UTC)
        return []

    async def _send(self, buffer: Buffer, letter: _Letter) -> None:
        await self._insist(
            partial(buffer.dead_letter, letter.entry, letter.payload, letter.reason), self._note_buffer_error
        )
        if letter.whole:
            self._counters.dead_lettered_entries += 1
        else:
            self._counters.dead_lettered += 1
        diagnostics.note("dead_letter", f"set aside as a dead letter of {buffer.name}: {letter.reason}")

    async def _store_answers(self) -> bool:
        """Wait until the store commits an empty insert; False where a stop came first."""
        delays = _delays()
        while not self._stop_requested:
            try:
                await self._store.insert(())
            except BackendUnavailable as error:
                self._note_store_error(error)
                await self._pause(next(delays))
            else:
                self._store_works = True
                return True
        return False

    async def _insist(self, operation: Callable[[], Awaitable[_T]], note: Callable[[BackendUnavailable], None]) -> _T:
        """Repeat the operation while its backend is unavailable: what is in hand is not let go."""
        delays = _delays()
        while True:
            try:
                return await operation()
            except BackendUnavailable as error:
                note(error)
            await anyio.sleep(next(delays))

    async def _pause(self, delay_s: float) -> None:
        """Wait, but no longer than until a stop is asked for."""
        with anyio.move_on_after(delay_s):
            if self._stopping is not None:
                await self._stopping.wait()

    def _note_store_error(self, error: BackendUnavailable) -> None:
        self._store_works = False
        self._counters.store_errors += 1
        diagnostics.note("store_unavailable", f"the store is unavailable, events wait in the buffer: {error}")

    def _note_buffer_error(self, error: BackendUnavailable) -> None:
        self._counters.buffer_errors += 1
        diagnostics.note("buffer_unavailable", f"a buffer is unavailable, the flusher tries again: {error}")


def _delays() -> Iterator[float]:
    """Yield the seconds to wait before each further attempt: doubling to a cap, the upper half of each by chance."""
    delay = FIRST_DELAY_S
    while True:
        yield random.uniform(delay / 2, delay)  # noqa: S311  (spreads retries, guards nothing)
        delay = min(delay * 2, LONGEST_DELAY_S)


def emitted_at(event: UsageEvent) -> datetime:
    """Return when the event was emitted, aware UTC: at the end of its call, as far as its own times are right."""
    began = event.occurred_at.replace(tzinfo=UTC) if event.occurred_at.tzinfo is None else event.occurred_at
    try:
        return began + timedelta(milliseconds=event.latency_ms or 0.0)
    except (OverflowError, ValueError):
        return began
