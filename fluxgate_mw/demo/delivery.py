"""The demo's end of the delivery: the buffers that the apps fill, the flusher, and the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import anyio

from fluxgate_mw.demo.plan import OWN_KEYS
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.flusher import FlusherStatistics
from fluxgate_mw.runtime import make_buffers, make_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store

__all__ = ["Delivery"]

_LOOK_S: Final = 0.05


class Delivery:
    """A flusher between the buffers and the store that the settings name, and a second look at the buffers.

    Concurrency: one event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = open_store(settings.effective_store_url)
        self._buffers = make_buffers(settings)
        self._watched = make_buffers(settings)
        self._flusher = make_flusher(settings, self.store, self._buffers)
        self._own_stream = settings.redis_url is not None and settings.stream_key.startswith(OWN_KEYS)

    async def check(self) -> None:
        """Return when every buffer answers.

        Raises:
            BackendUnavailable: One does not.
        """
        await self.entries_left()

    async def run(self) -> None:
        """Flush until `stop`."""
        await self._flusher.run()

    def stop(self) -> None:
        """Let `run` return."""
        self._flusher.stop(timeout_s=0.5)

    def statistics(self) -> FlusherStatistics:
        """Return the flusher's figures."""
        return self._flusher.statistics()

    def figures(self) -> Mapping[str, object]:
        """Return the figures of the dashboard's trust strip."""
        statistics = self.statistics()
        return {"dead-lettered": statistics.dead_lettered, "lag, s": round(statistics.lag_s, 1)}

    async def entries_left(self) -> int:
        """Return how many entries the buffers hold, those being stored included.

        Raises:
            BackendUnavailable: A buffer cannot be asked now.
        """
        backlogs = [await buffer.backlog() for buffer in self._watched]
        return sum(backlog["entries"] for backlog in backlogs)

    async def drained(self, timeout_s: float) -> int:
        """Wait until the buffers are empty, `timeout_s` seconds at most; return how many entries are left.

        Raises:
            BackendUnavailable: A buffer cannot be asked now.
        """
        deadline = anyio.current_time() + timeout_s
        while True:
            left = await self.entries_left()
            if not left or anyio.current_time() > deadline:
                return left
            await anyio.sleep(_LOOK_S)

    async def aclose(self) -> None:
        """Close the buffers and the store; an empty stream of the demo's own is removed."""
        for buffer in self._buffers:
            await buffer.aclose()
        if self._own_stream:
            await self._remove_stream()
        for buffer in self._watched:
            await buffer.aclose()
        await self.store.aclose()

    async def _remove_stream(self) -> None:
        for buffer in self._watched:
            if buffer.name == "redis":
                with suppress(BackendUnavailable):
                    await buffer.remove_if_empty()  # type: ignore[attr-defined]
