"""The processes that the chaos run starts and kills: web workers that emit numbered events, and a doomed flusher.

Run as `python -m tests.faults.chaos_parts worker FOLDER NAME RATE SEED` or `... doomed FOLDER ACKS`; the delivery is
configured by the environment, as in any deployment.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec

from fluxgate_mw import FluxGate, UsageEvent
from fluxgate_mw.runtime import make_buffers, make_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store
from tests.flusher_process import killer
from tests.flushing import Faulty

RECORD = struct.Struct("<Qd")
TICK_S = 0.01
BURST = 400


def journal(folder: Path, name: str) -> Iterator[tuple[int, float]]:
    """The number and time of every event that a worker was about to emit, in order; a torn last record is left out."""
    data = (folder / f"{name}.journal").read_bytes()
    yield from RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])


def worker(folder: str, name: str, rate: str, seed: str) -> None:
    """Emit about `rate` events a second until SIGTERM, each written to the journal first; then say what became of them.

    A journal's write is the operating system's before the event exists, so that it outlives a kill -9.
    """
    chance, stopped, number = random.Random(seed), [], 0
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    path = Path(folder) / f"{name}.journal"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fg = FluxGate(instrument=False)
    while not stopped:
        burst = BURST if chance.random() < 0.005 else 0
        for _ in range(int(float(rate) * TICK_S) + burst):
            os.write(descriptor, RECORD.pack(number, time.time()))
            fg.record(UsageEvent(service=name, metadata={"n": number}))
            number += 1
        time.sleep(TICK_S)
    fg.stop()
    (Path(folder) / f"{name}.json").write_bytes(msgspec.json.encode(fg.statistics()))


async def doomed(acks: str) -> None:
    """Flush, and die between the commit of a batch and its acknowledgement, the n-th time that it comes there."""
    settings = Settings.load()
    buffers = [Faulty(buffer, killer("before", f"before:ack:{acks}")) for buffer in make_buffers(settings)]
    await make_flusher(settings, open_store(settings.effective_store_url), buffers).run()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(*sys.argv[2:6])
    else:
        anyio.run(doomed, sys.argv[2])
