"""A flusher inside the web process: one thread with an event loop of its own, started late, again after a fork."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import anyio
import anyio.to_thread

from fluxgate_mw.buffer.lifecycle import start_thread
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.flusher import Flusher, FlusherStatistics

__all__ = ["BackgroundFlusher"]

_log = logging.getLogger(__name__)


class BackgroundFlusher:
    """Run one flusher beside the application; several processes agree among themselves by the buffers' own locks.

    Args:
        make: Makes the flusher, inside its thread.

    Concurrency: any thread.
    """

    def __init__(self, make: Callable[[], Flusher]) -> None:
        self._make = make
        self._pid: int | None = None
        self._flusher: Flusher | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start it, unless it runs in this process already. Never raises."""
        pid = os.getpid()
        if self._pid == pid:
            return
        self._pid, self._flusher, self._ended = pid, None, threading.Event()
        start_thread(self._run)

    def stop(self, timeout_s: float) -> None:
        """End it once the batch in hand is stored; what is left stays in the buffers."""
        if self._pid != os.getpid():
            return
        flusher, self._pid = self._flusher, None
        if flusher is not None:
            flusher.stop(timeout_s)
            self._ended.wait(timeout_s)

    async def astop(self, timeout_s: float) -> None:
        """Do what `stop` does without blocking the event loop."""
        await anyio.to_thread.run_sync(self.stop, timeout_s)

    def statistics(self) -> FlusherStatistics | None:
        """Return the flusher's figures; None where none runs in this process."""
        flusher = self._flusher
        return None if flusher is None or self._pid != os.getpid() else flusher.statistics()

    def _run(self) -> None:
        ended = self._ended
        try:
            anyio.run(self._flush)
        except FluxGateError as error:
            _log.error("the background flusher cannot start: %s", error)
        finally:
            ended.set()

    async def _flush(self) -> None:
        flusher = self._flusher = self._make()
        await flusher.run()
