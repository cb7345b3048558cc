"""The way to the stream: packs go through a circuit breaker, and what the spool kept meanwhile is moved back.

Knows that a stream and a spool are buffers, and nothing of the queue or of the loop that empties it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.breaker import CircuitBreaker
from fluxgate_mw.buffer.pack import count
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendError, BackendUnavailable, BufferFull, ClosedError
from fluxgate_mw.types import Buffer

__all__ = ["StreamSender"]

_log = logging.getLogger(__name__)
_LOOK_AGAIN_S: Final = 5.0
"""Pause before the spool is looked into again where nothing was moved."""
_RETURN_ENTRIES: Final = 16
_CLOSE_S: Final = 0.5


class StreamSender:
    """Send packs to the stream while it takes any, and move to it what the spool kept while it did not.

    Args:
        make: Makes the stream's buffer inside the running event loop; None = there is no stream.
        spool: What is moved to the stream, by whatever process it was spooled.

    Attributes:
        returned: How many events were moved.

    Concurrency: one event loop; anybody may look at `returned` and `breaker.state`.
    """

    def __init__(self, make: Callable[[], Buffer] | None, spool: Spool) -> None:
        self._make, self._spool = make, spool
        self._stream: Buffer | None = None
        self._probe: asyncio.Task[None] | None = None
        self._return_at = 0.0
        self.breaker = CircuitBreaker()
        self.returned = 0

    def open(self) -> None:
        """Make the stream's buffer, where there is to be one and it is not made yet."""
        if self._stream is None and self._make is not None:
            self._stream = self._make()

    @property
    def is_usable(self) -> bool:
        """Whether there is a stream that is worth trying now."""
        return self._stream is not None and self.breaker.state != "open"

    async def send(self, payload: bytes, events: int) -> bool:
        """Return whether the stream took a pack of so many events."""
        stream = self._stream
        if stream is None:
            return False
        try:
            await stream.append(payload, events)
        except (BackendError, BufferFull, ClosedError) as error:
            if self.breaker.state == "closed":
                diagnostics.note("stream_unavailable", f"usage events go to the spool for now: {error}")
            self.breaker.failed()
            return False
        if self.breaker.state != "closed":
            diagnostics.note("stream_available", f"usage events go to {stream.name} again", level=logging.INFO)
            self.return_soon()
        self.breaker.succeeded()
        return True

    async def return_spooled(self) -> None:
        """Move entries from the spool to a stream that takes any; few at a time, for the live events' sake."""
        if self._stream is None:
            return
        if self.breaker.state == "open":
            self._ask_in_background(self._stream)
        elif self.may_return(time.monotonic()):
            try:
                moved = await self._move_some()
            except BackendUnavailable:
                moved = 0
            self._return_at = 0.0 if moved else time.monotonic() + _LOOK_AGAIN_S

    def return_soon(self) -> None:
        """Look into the spool at the next chance: something may be there."""
        self._return_at = 0.0

    def may_return(self, now: float) -> bool:
        """Return whether it is time to look for something to move; `now` is in monotonic seconds."""
        return self.is_usable and now >= self._return_at

    async def _move_some(self) -> int:
        entries = self._spool.read_nowait(_RETURN_ENTRIES)
        moved = []
        for entry in entries:
            events = count(entry.payload)
            if not await self.send(entry.payload, events):
                break
            moved.append(entry)
            self.returned += events
        self._spool.ack_nowait(moved)
        if len(moved) < len(entries) or not entries:
            self._spool.stop_reading()
        return len(moved)

    def _ask_in_background(self, stream: Buffer) -> None:
        """Ask the stream whether it answers at all, so that no live event waits for one that is frozen."""
        if self.breaker.due_in_s() == 0 and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self._ask(stream))

    async def _ask(self, stream: Buffer) -> None:
        self.breaker.failed()
        try:
            await stream.backlog()
        except BackendError:
            return
        self.breaker.half_open()
        self.return_soon()

    async def aclose(self) -> None:
        """Let go of the stream and let others read the spool; `open` begins anew."""
        if self._probe is not None:
            self._probe.cancel()
        stream, self._stream = self._stream, None
        with contextlib.suppress(BackendUnavailable):
            self._spool.stop_reading()
        if stream is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await stream.aclose()
        except (BackendError, TimeoutError):
            _log.debug("the stream's client did not close in time", exc_info=True)
