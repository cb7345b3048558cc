"""The demo's end of the delivery: the buffers that the apps fill, the flusher, and the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from fluxgate_mw.buffer.pack import pack, unpack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event
from fluxgate_mw.flusher import Flusher, FlusherStatistics
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store
from fluxgate_mw.types import Buffer

__all__ = ["Delivery"]

_LOOK_S: Final = 0.05


def _buffers(settings: Settings) -> Sequence[Buffer]:
    spool = Spool(settings.spool_path, max_bytes=settings.spool_max_bytes)
    if settings.redis_url is None:
        return [spool]
    stream = RedisStream(
        settings.redis_url,
        stream_key=settings.stream_key,
        consumer_group=settings.consumer_group,
    )
    return [stream, spool]


class Delivery:
    """A flusher between the buffers and the store that the settings name, and a second look at the buffers.

    Concurrency: one event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = open_store(settings.effective_store_url)
        self._buffers = _buffers(settings)
        self._watched = _buffers(settings)
        self._flusher = Flusher(
            buffers=self._buffers,
            store=self.store,
            unpack=unpack,
            pack=pack,
            decode=decode_event,
            claim_min_idle_s=settings.claim_min_idle_s,
        )

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
        """Close the buffers and the store."""
        for buffer in (*self._buffers, *self._watched):
            await buffer.aclose()
        await self.store.aclose()
