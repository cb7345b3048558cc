"""A flusher inside the web process: one thread with an event loop of its own, started late, again after a fork."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from importlib import import_module

import anyio
import anyio.to_thread

from fluxgate_mw.buffer.lifecycle import start_thread
from fluxgate_mw.buffer.wakeup import LOOP_FACTORY
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.flusher import Flusher, FlusherStatistics

__all__ = ["BackgroundFlusher"]

_log = logging.getLogger(__name__)


class BackgroundFlusher:
    """Run one flusher beside the application; several processes agree among themselves by the buffers' own locks.

    Args:
        opened: Gives the flusher, and closes what belongs to it; entered inside the thread's event loop.

    Concurrency: any thread.
    """

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Flusher]]) -> None:
        import_module("anyio._backends._asyncio")  # here and now: a fork while the thread imports hangs the child
        self._opened = opened
        self._run: _Run | None = None

    def start(self) -> None:
        """Start it, unless it runs in this process already.

        Raises:
            RuntimeError: The process can start no thread any more; the next call tries again.
        """
        run = self._run
        if run is not None and run.pid == os.getpid():
            return
        made = _Run(self._opened)
        if self._run is run:
            self._run = made
            try:
                start_thread(made.thread)
            except RuntimeError:
                self._run = run
                raise

    def stop(self, timeout_s: float) -> None:
        """End it once the batch in hand is stored; what is left stays in the buffers."""
        run, self._run = self._run, None
        if run is not None and run.pid == os.getpid():
            run.stop(timeout_s)

    async def astop(self, timeout_s: float) -> None:
        """Do what `stop` does without blocking the event loop."""
        await anyio.to_thread.run_sync(self.stop, timeout_s)

    def statistics(self) -> FlusherStatistics | None:
        """Return the flusher's figures; None where none runs in this process."""
        run = self._run
        flusher = None if run is None or run.pid != os.getpid() else run.flusher
        return None if flusher is None else flusher.statistics()


class _Run:
    """One life of the thread, in one process."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Flusher]]) -> None:
        self.pid = os.getpid()
        self.flusher: Flusher | None = None
        self._opened = opened
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: contextvars.Context | None = None
        self._stopped = False
        self._ended = threading.Event()

    def thread(self) -> None:
        """Flush until stopped; a configuration that cannot work is logged once."""
        try:
            anyio.run(self._flush, backend_options={"loop_factory": LOOP_FACTORY})
        except FluxGateError as error:
            _log.error("the background flusher cannot start: %s", error)
        finally:
            self._ended.set()

    def stop(self, timeout_s: float) -> None:
        """Wait for the end, `timeout_s` seconds at most."""
        self._stopped = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop_flusher, timeout_s, context=self._context)
        self._ended.wait(timeout_s)

    def _stop_flusher(self, timeout_s: float) -> None:
        if self.flusher is not None:
            self.flusher.stop(timeout_s)

    async def _flush(self) -> None:
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        async with self._opened() as self.flusher:
            if not self._stopped:
                await self.flusher.run()
