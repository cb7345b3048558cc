"""The sink that user code meets: take an event away from its caller in microseconds, and have it delivered."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import Final

import anyio
import msgspec

from fluxgate_mw.buffer.breaker import BreakerState
from fluxgate_mw.buffer.cut import TRUNCATED, encode_within
from fluxgate_mw.buffer.delivery import Delivery, Flush, Limits
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.recorder import guarded
from fluxgate_mw.types import Buffer, Pending

__all__ = ["Emitter", "EmitterStatistics"]

_POLL_S: Final = 0.002
_MAX_EVENT_BYTES: Final = 262_144


class EmitterStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of one emitter in this process (a forked child counts from 0).

    Guarantees: at rest, `emitted == sent + spooled + sum(dropped.values()) + queued`.

    Args:
        emitted: Calls of `emit`.
        sent: Accepted by the stream straight from the queue.
        spooled: Written to the spool.
        returned: Moved from the spool to the stream later, by whatever process they were spooled; not in the sum.
        dropped: Lost, by reason: `queue_full`, `spool_full`.
        queued: Waiting in memory, the ones on their way included.
        queued_bytes: Their encoded size, or of what they are still to be made from.
        oldest_age_s: How long the oldest of them has waited; None when nothing is queued.
        breaker: State of the circuit breaker before the stream.
    """

    emitted: int
    sent: int
    spooled: int
    returned: int
    dropped: Mapping[str, int]
    queued: int
    queued_bytes: int
    oldest_age_s: float | None
    breaker: BreakerState


class Emitter:
    """A `Sink` that queues in memory and delivers from a thread of its own, which the first event starts.

    Args:
        spool: Makes the spool; called once here and once in each forked child.
        stream: Makes the stream's buffer inside the delivery's event loop, again after a fork or a restart. None:
            the spool is the buffer.
        max_events: Most events that wait in memory.
        max_bytes: Most bytes that wait in memory.
        interval_s: Seconds between two drains.
        shutdown_timeout_s: Seconds that `stop` and the process's exit wait.
        durable: Write each event to the spool before `emit` returns, so that a kill -9 loses nothing. `emit` then
            blocks for one write to the disk.

    Guarantees: `emit` never raises, and blocks only where `durable`. An event is accepted when the stream replied or
    the spool's write returned. A kill -9 loses at most what was queued since the last drain: `interval_s`, and up to
    half a second more while a stream that just froze is given up; also for as long as CPython gives the delivery's
    thread no turn, which a thread that computes on and lets go of the lock for microseconds every few milliseconds can
    put off (0.9 s measured, of a thread that only sleeps). An event whose reply from the stream was lost goes to the
    spool too and is counted once. After a fork the parent delivers what was queued; the child starts empty.

    Concurrency: any thread, any event loop, `__del__`, signal handlers.
    """

    def __init__(
        self,
        *,
        spool: Callable[[], Spool],
        stream: Callable[[], Buffer] | None = None,
        max_events: int = 100_000,
        max_bytes: int = 67_108_864,
        interval_s: float = 0.02,
        shutdown_timeout_s: float = 5.0,
        durable: bool = False,
    ) -> None:
        limits = Limits(max_events, max_bytes, interval_s, shutdown_timeout_s)
        self._durable, self._shutdown_timeout_s = durable, shutdown_timeout_s
        self._delivery = Delivery(limits, _encoded, spool, stream)
        weakref.finalize(self, self._delivery.request_stop).atexit = False

    def emit(self, event: UsageEvent, /) -> None:
        """See `Sink`. An event that is too long or has no wire form is cut down and marked, not lost."""
        delivery = self._delivery
        data = encode_within(event, _MAX_EVENT_BYTES)
        delivery.emitted += 1
        if not ((self._durable or delivery.leaving) and self._spool_now(data)):
            delivery.queue.offer(data, len(data))
        if delivery.asleep:
            delivery.asleep = False
            delivery.wake()

    def defer(self, pending: Pending, /) -> None:
        """See `Sink`. It is made in the delivery's own thread.

        Here and now where there is none, where `durable`, and where what it holds on to has no room in the queue: the
        event itself may have.
        """
        delivery = self._delivery
        if self._durable or delivery.leaving or delivery.hosted or not delivery.queue.has_room(pending.size_bytes):
            self.emit(_made(pending))
            return
        delivery.emitted += 1
        delivery.queue.put(pending, pending.size_bytes)
        if delivery.asleep:
            delivery.asleep = False
            delivery.wake()

    def _spool_now(self, data: bytes) -> bool:
        delivery = self._delivery
        try:
            delivery.spool.append_nowait(pack((data,)))
            if delivery.leaving:
                delivery.spool.seal()
        except FluxGateError:
            return False
        delivery.spooled_at_once += 1
        return True

    def start(self) -> None:
        """Start the delivery now instead of with the first event. Idempotent."""
        self._delivery.wake()

    async def run(self) -> None:
        """Deliver in the caller's event loop instead of in a thread, until stopped or cancelled.

        Returns at once where the delivery already runs. What is still queued when it ends is delivered by a thread.
        """
        await self._delivery.run()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return whether everything queued at the call was accepted within `timeout_s` seconds.

        Blocks the calling thread; in an event loop use `aflush`. None = `shutdown_timeout_s`.
        """
        flush = self._request_flush()
        _wait(lambda: flush.done, self._shutdown_timeout_s if timeout_s is None else timeout_s)
        return flush.accepted

    async def aflush(self, timeout_s: float | None = None) -> bool:
        """Do as `flush` without blocking the event loop; None = `shutdown_timeout_s`. Cancelling takes nothing back."""
        flush = self._request_flush()
        await _await(lambda: flush.done, self._shutdown_timeout_s if timeout_s is None else timeout_s)
        return flush.accepted

    def _request_flush(self) -> Flush:
        """Ask for a flush; where nothing is queued and nothing runs, it is done already."""
        delivery = self._delivery
        if delivery.running or delivery.queue:
            return delivery.request_flush()
        return Flush(delivery.total_dropped, done=True, accepted=True)

    def stop(self, timeout_s: float | None = None) -> bool:
        """Deliver what is queued and end the thread; return whether that was done in time. Idempotent.

        What the stream does not take goes to the spool; what the spool does not take either stays queued. A later
        event starts the delivery again.

        Args:
            timeout_s: Seconds to wait; None = `shutdown_timeout_s`.
        """
        within_s = self._delivery.request_stop(timeout_s)
        _wait(lambda: not self._delivery.running, within_s)
        return self._stopped()

    async def astop(self, timeout_s: float | None = None) -> bool:
        """Do as `stop` without blocking the event loop."""
        within_s = self._delivery.request_stop(timeout_s)
        await _await(lambda: not self._delivery.running, within_s)
        return self._stopped()

    def _stopped(self) -> bool:
        return not self._delivery.running and not self._delivery.queue

    def statistics(self) -> EmitterStatistics:
        """Return a snapshot of the counters of this process."""
        delivery = self._delivery
        queue, oldest_at = delivery.queue, delivery.queue.oldest_at
        return EmitterStatistics(
            emitted=delivery.emitted,
            sent=delivery.sent,
            spooled=delivery.spooled + delivery.spooled_at_once,
            returned=delivery.sender.returned,
            dropped=delivery.dropped,
            queued=len(queue),
            queued_bytes=queue.size_bytes,
            oldest_age_s=None if oldest_at is None else time.monotonic() - oldest_at,
            breaker=delivery.sender.breaker.state,
        )


def _made(pending: Pending) -> UsageEvent:
    """Return its event; where ours fails over it, one that says no more than that there was a call."""
    return guarded("event", pending.made) or UsageEvent(metadata={TRUNCATED: True})


def _encoded(pending: Pending) -> bytes:
    return encode_within(_made(pending), _MAX_EVENT_BYTES)


def _wait(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


async def _await(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  (set in another thread)
        await anyio.sleep(_POLL_S)
