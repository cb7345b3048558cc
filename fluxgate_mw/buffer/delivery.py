"""The other side of `emit`: the loop that empties the queue into the stream or the spool.

Knows that a stream and a spool are buffers, and nothing of Redis or of who emits.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.event_queue import EventQueue
from fluxgate_mw.buffer.lifecycle import forks_unseen, register, start_thread
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.buffer.stream_sender import StreamSender
from fluxgate_mw.buffer.wakeup import Wakeup, run
from fluxgate_mw.errors import BackendUnavailable, BufferFull
from fluxgate_mw.recorder import guarded
from fluxgate_mw.types import Buffer, Pending

__all__ = ["Delivery", "Flush", "Limits"]

_log = logging.getLogger(__name__)
_ERROR: Final = logging.ERROR
_KEEP_POLLING_S: Final = 0.1
"""How long after the last event the queue is looked at every interval."""
_LONGEST_SLEEP_S: Final = 5.0
_HELD_BACK_S: Final = 0.25
"""Pause where neither stream nor spool takes anything."""
_REPORT_EVERY_S: Final = 60.0
_SPOOLING_TAKES_S: Final = 1.0
"""What of a shutdown's time is kept for the spool."""


class Limits(msgspec.Struct, frozen=True):
    """The bounds of one emitter: events and bytes in memory, seconds between drains and for a shutdown."""

    max_events: int
    max_bytes: int
    interval_s: float
    shutdown_timeout_s: float


class Flush(msgspec.Struct, eq=False):
    """One request to deliver what is queued.

    Args:
        dropped_before: How many events had been dropped when it was made.
        done: What was queued then has been dealt with.
        accepted: None of it was dropped; valid once `done`.
    """

    dropped_before: int
    done: bool = False
    accepted: bool = False


class Delivery:
    """The queue of one emitter and the loop that drains it, in a thread that the first event starts.

    Attributes:
        emitted: How many events came, whatever became of them.
        spooled_at_once: How many of them were written to the spool without being queued.
        asleep: The loop does not look at the queue by itself; whoever queues an event sees to it that it does.
        leaving: The process ends or is about to be forked unseen: events go to the spool at once.
        hosted: The loop runs in the application's event loop.

    Concurrency: `wake`, `request_flush`, `request_stop` and what `emit` and `defer` look at and count, from anywhere;
    the rest belongs to the loop.
    """

    def __init__(
        self,
        limits: Limits,
        encode: Callable[[Pending], bytes],
        spool: Callable[[], Spool],
        stream: Callable[[], Buffer] | None,
    ) -> None:
        self._limits = limits
        self._encode = encode
        self._make_spool, self._make_stream = spool, stream
        self._inherited: list[object] = []
        self._begin()
        register(self)

    def _begin(self) -> None:
        self.queue = EventQueue(self._limits.max_events, self._limits.max_bytes, self._encode)
        self.emitted = self.spooled_at_once = 0
        self.asleep = True
        self.leaving = forks_unseen()
        self.hosted = False
        self._pid = os.getpid()
        self.sent = self.spooled = self._spool_full = 0
        self.spool = self._make_spool()
        self.sender = StreamSender(self._make_stream, self.spool)
        self._flushes: deque[Flush] = deque()
        self._running = _thread.allocate_lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = Wakeup()
        self._stop_at: float | None = None
        self._stream_until = 0.0
        self._busy_at = 0.0
        self._seen = 0
        self._held_back = False
        self._reported, self._reported_at = 0, float("-inf")

    @property
    def dropped(self) -> dict[str, int]:
        """How many events were lost so far, by reason; without those for which none was."""
        dropped = {"spool_full": self._spool_full, "queue_full": self.queue.refused}
        return {reason: events for reason, events in dropped.items() if events}

    @property
    def total_dropped(self) -> int:
        """How many events were lost so far, for whatever reason."""
        return self.queue.refused + self._spool_full

    @property
    def running(self) -> bool:
        """Whether the loop runs or is about to."""
        return self._running.locked()

    def wake(self) -> None:
        """See to it that the loop looks at the queue now; start its thread where there is none. Never blocks."""
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._woken.set)
            elif not self.leaving and self._running.acquire(blocking=False):
                start_thread(self._run_thread)
        except RuntimeError:
            if loop is None:
                self._running.release()
                self.asleep = True

    def request_flush(self) -> Flush:
        """Ask that all that is queued now be delivered now."""
        flush = Flush(self.total_dropped)
        self._flushes.append(flush)
        self.wake()
        return flush

    def request_stop(self, timeout_s: float | None = None) -> float:
        """Ask the loop to deliver what is queued and end, with what the stream does not take in time in the spool.

        Args:
            timeout_s: Seconds that it has; None = the shutdown's.

        Returns:
            Those seconds.
        """
        if timeout_s is None:
            timeout_s = self._limits.shutdown_timeout_s
        if self.running:
            self._stop_at = time.monotonic() + timeout_s
            self._stream_until = self._stop_at - min(_SPOOLING_TAKES_S, timeout_s / 2)
            self.wake()
        return timeout_s

    def at_exit(self) -> None:
        """Deliver what is queued, wait no longer than the shutdown's time-out, count and log what is lost."""
        self.leaving = True
        deadline = time.monotonic() + self.request_stop()
        while self.running and time.monotonic() < deadline:
            time.sleep(0.002)
        if not self.running:
            self.spill()
        if lost := len(self.queue):
            _log.error("%d usage events could not be delivered before the process ended", lost)

    def spill(self) -> None:
        """Write what is queued to the spool from the calling thread, where the loop cannot run any more."""
        while self._batched() and self._to_spool():
            continue
        self.queue.put_back()
        self._seal()

    def _batched(self) -> int:
        while not self.queue.take():
            continue
        return self.queue.taken

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's: its queue, its counters, its connections, its locks.

        The parent's loop and client are kept and never touched: their destructors would act on file descriptors that
        both processes share.
        """
        self._inherited.append((self._loop, self.sender, self._woken, self.spool))
        self.spool.abandon()
        self._begin()

    def after_unseen_fork(self) -> None:
        """Start anew in a child that was forked without Python's hooks; in the parent, only go on."""
        if self._pid != os.getpid():
            self.after_fork_in_child()
        self.leaving, self.asleep = False, True

    def _run_thread(self) -> None:
        try:
            run(self._run())
        except OSError as error:
            self._held_back = True
            diagnostics.note("delivery_not_started", f"usage events wait: {error.strerror}", level=_ERROR)
        finally:
            self._ended()

    def _ended(self) -> None:
        self._loop, self._stop_at, self.asleep = None, None, True
        self._running.release()
        if self.queue and not self._held_back and not self.leaving:
            self.wake()

    async def run(self) -> None:
        """Deliver in the caller's event loop until stopped or cancelled. A no-op where it already runs elsewhere."""
        if self._running.acquire(blocking=False):
            self.hosted = True
            try:
                await self._run()
            finally:
                self.hosted = False
                self._ended()

    async def _run(self) -> None:
        self._woken = Wakeup()
        self._loop = asyncio.get_running_loop()
        self.sender.return_soon()
        try:
            while self._stop_at is None:
                await self._guarded_cycle()
                await self._pause()
            await self._guarded_cycle()
        finally:
            self.queue.put_back()
            self._seal()
            await self.sender.aclose()

    async def _guarded_cycle(self) -> None:
        try:
            self.sender.open()
            await self._cycle()
        except Exception as error:  # noqa: BLE001  (our fault must neither end the delivery nor lose the batch)
            self.queue.put_back()
            self._held_back = True
            self.sender.breaker.failed()
            diagnostics.note("delivery_fault", "a fault of fluxgate-mw: usage events wait", level=_ERROR, error=error)

    async def _cycle(self) -> None:
        flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
        try:
            self._held_back = not await self._drain()
            if self._stop_at is None:
                await self.sender.return_spooled()
        except BaseException:
            self._flushes.extend(flushes)
            raise
        self._answer(flushes)
        self._report_drops()

    def _answer(self, flushes: list[Flush]) -> None:
        if self._held_back:
            self._flushes.extend(flushes)
            return
        if flushes:
            self._seal()
        for flush in flushes:
            flush.accepted = self.total_dropped == flush.dropped_before
            flush.done = True

    async def _drain(self) -> bool:
        left = len(self.queue)
        while left > 0 and (taken := await self._taken()):
            left -= taken
            if not await self._to_stream() and not self._to_spool():
                self.queue.put_back()
                return False
        return True

    async def _taken(self) -> int:
        while not self.queue.take():  # noqa: ASYNC110  (it is this loop that makes them)
            await asyncio.sleep(0)
        return self.queue.taken

    async def _to_stream(self) -> bool:
        if not self.sender.is_usable or self._too_late():
            return False
        if not await self.sender.send(self.queue.packed(), self.queue.taken):
            return False
        self.sent += self.queue.settle()
        return True

    def _too_late(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stream_until

    def _to_spool(self) -> bool:
        """Return whether the batch is settled, one way or the other."""
        try:
            self.spool.append_nowait(self.queue.packed())
        except BufferFull:
            self._spool_full += self.queue.settle()
        except BackendUnavailable as error:
            cure = "`fluxgate doctor` says what to do"
            diagnostics.note("spool_unavailable", f"usage events wait in memory: {error}; {cure}")
            return False
        else:
            self.spooled += self.queue.settle()
        return True

    async def _pause(self) -> None:
        """Look at the queue every interval while events come, and sleep until one wakes us when none do."""
        if self._flushes and not self._held_back:
            return
        now, seal_in_s = time.monotonic(), self._seal_due()
        if seal_in_s is not None:
            self.sender.return_soon()
        if self._seen != self.emitted:
            self._seen, self._busy_at = self.emitted, now
        if self._held_back:
            await self._wait(_HELD_BACK_S)
        elif self.queue or self.sender.may_return(now):
            await self._wait(self._limits.interval_s)
        elif now < self._busy_at + _KEEP_POLLING_S:
            until = min(self._busy_at + _KEEP_POLLING_S, now + (seal_in_s or _KEEP_POLLING_S))
            await self._wait(self._limits.interval_s, lambda: self._is_worth_a_cycle(until))
        else:
            self.asleep = True
            if not self.queue and not self._flushes and self._seen == self.emitted:
                await self._wait(min(_LONGEST_SLEEP_S, self.sender.breaker.due_in_s(), seal_in_s or _LONGEST_SLEEP_S))
            self.asleep = False

    def _is_worth_a_cycle(self, until: float) -> bool:
        """Return whether a whole cycle is due; what needs no more than a write to the spool is written here and now.

        Each turn of the event loop lends the interpreter's lock to the application, and waits to have it back.
        """
        if self.queue and self._make_stream is None:
            guarded("delivery", self._write_a_pack)
        return bool(self.queue) or time.monotonic() >= until

    def _write_a_pack(self) -> bool:
        return self.queue.take() and self._to_spool()

    async def _wait(self, seconds: float, worth_it: Callable[[], bool] | None = None) -> None:
        if self._stop_at is None:
            await self._woken.wait(seconds, worth_it)

    def _seal_due(self) -> float | None:
        try:
            return self.spool.seal_due()
        except BackendUnavailable as error:
            _note_unsealed(error)
            return _HELD_BACK_S

    def _seal(self) -> None:
        try:
            self.spool.seal()
        except BackendUnavailable as error:
            _note_unsealed(error)

    def _report_drops(self) -> None:
        total, now = self.total_dropped, time.monotonic()
        if total > self._reported and now - self._reported_at >= _REPORT_EVERY_S:
            since = total - self._reported
            _log.error("usage events dropped: %d since the last report; in all %s", since, self.dropped)
            self._reported, self._reported_at = total, now


def _note_unsealed(error: BackendUnavailable) -> None:
    diagnostics.note("spool_not_sealed", f"a segment of the spool waits, and is read later: {error}")
