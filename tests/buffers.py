"""Numbered events, buffers of every kind, and waiting for a condition: for the tests of the way to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from fluxgate_mw.buffer.emitter import EmitterStatistics
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import UsageEvent, decode_event
from fluxgate_mw.types import Buffer

BEFORE_THE_FORK = 20
"""How many events `forking_app` records where it is imported, which no test may do itself."""


def numbered(number: int) -> UsageEvent:
    """Return an event that carries a number, so that a test can say which events arrived."""
    return UsageEvent(provider_name="openai", request_model="gpt-4o-mini", metadata={"number": number})


def numbers_in(payload: bytes) -> list[int]:
    """Return the numbers of the events in one pack."""
    return [decode_event(data).metadata["number"] for data in unpack(payload)]


def spooled_numbers(folder: Path) -> list[int]:
    """Read a spool to its end, acknowledge everything, and return the numbers in the order they came."""
    spool = Spool(folder)
    numbers: list[int] = []
    while entries := spool.read_nowait(100):
        numbers += [number for entry in entries for number in numbers_in(entry.payload)]
        spool.ack_nowait(entries)
    spool.stop_reading()
    return numbers


async def drained_numbers(buffer: Buffer) -> list[int]:
    """Read a buffer to its end, acknowledge everything, and return the numbers in the order they came."""
    numbers: list[int] = []
    while entries := await buffer.read(max_entries=100, wait_s=0):
        numbers += [number for entry in entries for number in numbers_in(entry.payload)]
        await buffer.ack(entries)
    return numbers


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for a condition in this thread; fail when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        time.sleep(0.005)


def emitter_threads() -> set[threading.Thread]:
    """Return the threads in which emitters deliver now."""
    return {thread for thread in threading.enumerate() if thread.name == "fluxgate-emitter"}


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for a condition in an event loop; fail when it does not come true in time."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110  (the condition is set in threads and processes)
            await anyio.sleep(0.005)


def assert_conserved(statistics: EmitterStatistics, emitted: int) -> None:
    """Assert that every emitted event is in exactly one place."""
    assert statistics.emitted == emitted
    settled = statistics.sent + statistics.spooled + sum(statistics.dropped.values())
    assert settled + statistics.queued == emitted, statistics
