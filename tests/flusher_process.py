"""A real flusher process that kills itself, as `kill -9` would, at a place that the test names.

Run as `python -m tests.flusher_process BUFFER STORE KILL_AT MAX_DELIVERIES`. The buffer is a Redis address with the
stream key after `#`, or a spool folder; the store is the SQLite file; the place is `before:ack:2` (the second
acknowledgement), `decode:poison`, or `never`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio

from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.stores.sqlite import SQLiteStore
from fluxgate_mw.types import Buffer
from tests.flushing import Faulty, make_flusher

POISON = b"kills whoever decodes it"


def open_buffer(address: str) -> Buffer:
    """The buffer of an address of this program."""
    url, _, stream_key = address.partition("#")
    if stream_key:
        return RedisStream(url, stream_key=stream_key, consumer_group="flushers")
    return Spool(Path(address))


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killer(when: str, kill_at: str) -> Callable[[str], None]:
    """Die at the n-th call, before or after it as the place says; `any` counts every call."""
    calls: Counter[str] = Counter()
    place, _, number = kill_at.rpartition(":")

    def act(name: str) -> None:
        for counted in (name, "any"):
            calls[counted] += 1
            if place == f"{when}:{counted}" and calls[counted] == int(number):
                die()

    return act


def deadly_unpack(payload: bytes) -> list[bytes]:
    """Unpack, unless the payload is the poison."""
    if POISON in payload:
        die()
    return unpack(payload)


async def main(address: str, store_path: str, kill_at: str, max_deliveries: str) -> None:
    """Flush until everything is empty, or die on the way."""
    buffer, store = open_buffer(address), SQLiteStore(store_path)
    before, after = killer("before", kill_at), killer("after", kill_at)
    flush = make_flusher(
        [Faulty(buffer, before, after)],
        Faulty(store, before, after),
        claim_min_idle_s=0.05,
        max_deliveries=int(max_deliveries),
        batch_entries=4,
    )
    if kill_at == "decode:poison":
        flush._unpack = deadly_unpack
    await flush.run_once(wait=True)
    await buffer.aclose()
    await store.aclose()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
