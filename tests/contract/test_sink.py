"""The Protocol `Sink`, held by the emitter over each way that it delivers."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time

import pytest

from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import UsageEvent
from tests.buffers import assert_conserved, drained_numbers, emitter_threads, numbered, spooled_numbers, wait_until


class Way:
    """One configured emitter, and where its events can be found afterwards."""

    def __init__(self, kind, folder, url, stream_key) -> None:
        self.kind, self.folder, self.url, self.stream_key = kind, folder, url, stream_key
        self.emitter = self.make()

    def stream(self) -> RedisStream:
        """Return a client of the stream."""
        return RedisStream(self.url, stream_key=self.stream_key, consumer_group="flushers")

    def make(self, **options) -> Emitter:
        """Return an emitter."""
        stream = self.stream if self.kind.startswith("stream") else None
        durable = self.kind.endswith("durable")
        return Emitter(spool=lambda: Spool(self.folder), stream=stream, durable=durable, **options)

    def arrived(self) -> list[int]:
        """Return the numbers of all events that were accepted, in order."""
        streamed = asyncio.run(self._from_stream()) if self.kind.startswith("stream") else []
        return streamed + spooled_numbers(self.folder)

    async def _from_stream(self) -> list[int]:
        stream = self.stream()
        try:
            return await drained_numbers(stream)
        finally:
            await stream.aclose()


@pytest.fixture(params=["spool", "stream", "spool durable", "stream durable"])
def way(request, tmp_path, redis_url, stream_key):
    """An emitter over each kind of delivery."""
    way = Way(request.param, tmp_path / "spool", redis_url, stream_key)
    yield way
    way.emitter.stop()


def test_what_was_emitted_arrives_once_and_in_order(way):
    """After a flush that says yes, every event is accepted, and `statistics` accounts for each."""
    for number in range(1000):
        way.emitter.emit(numbered(number))
    assert way.emitter.flush(10)
    assert_conserved(way.emitter.statistics(), 1000)
    assert way.emitter.statistics().queued == 0
    assert way.emitter.stop()
    assert way.arrived() == list(range(1000))


def test_emit_is_safe_from_many_threads(way):
    """Events of several threads all arrive, each thread's in its order."""

    def emit_some(first: int) -> None:
        for number in range(first, first + 500):
            way.emitter.emit(numbered(number))

    threads = [threading.Thread(target=emit_some, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert way.emitter.stop()
    assert_conserved(way.emitter.statistics(), 2000)
    arrived = way.arrived()
    for first in (0, 1000, 2000, 3000):
        mine = [number for number in arrived if first <= number < first + 500]
        assert sorted(mine) == list(range(first, first + 500))
        if "durable" not in way.kind:
            assert mine == sorted(mine)


def test_emit_is_safe_in_a_finalizer(way):
    """An event emitted by `__del__`, even during a collection, arrives."""

    class Dying:
        def __init__(self, number) -> None:
            self.me, self.number = self, number

        def __del__(self) -> None:
            way.emitter.emit(numbered(self.number))

    for number in range(50):
        Dying(number)
    gc.collect()
    assert way.emitter.stop()
    assert sorted(way.arrived()) == list(range(50))


def test_emit_is_safe_in_a_signal_handler(way):
    """Events of a handler that interrupts `emit` all the time arrive, beside the interrupted ones."""
    handled, emitting = [], True

    def handler(*_) -> None:
        handled.append(10_000 + len(handled))
        way.emitter.emit(numbered(handled[-1]))
        if emitting:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        for number in range(3000):
            way.emitter.emit(numbered(number))
    finally:
        emitting = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled
    assert way.emitter.stop()
    assert_conserved(way.emitter.statistics(), 3000 + len(handled))
    assert sorted(way.arrived()) == [*range(3000), *handled]


def test_an_event_without_a_wire_form_is_cut_down_not_lost(way):
    """Values that cannot be written, a `__repr__` that raises and an oversized event: marked, and delivered."""

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    way.emitter.emit(UsageEvent(metadata={"number": 1, "odd": Odd()}))
    way.emitter.emit(UsageEvent(metadata={"number": 2, "big": "x" * 1_000_000}))
    way.emitter.emit(UsageEvent(input_tokens=2**80, metadata={1: "a", "b": 2}))
    assert way.emitter.flush(10)
    assert_conserved(way.emitter.statistics(), 3)
    assert not way.emitter.statistics().dropped


def test_an_event_after_stop_is_delivered_too(way):
    """`stop` is idempotent, and the next event starts the delivery again."""
    way.emitter.emit(numbered(0))
    assert way.emitter.stop()
    assert way.emitter.stop()
    way.emitter.emit(numbered(1))
    assert way.emitter.stop()
    assert way.arrived() == [0, 1]
    assert_conserved(way.emitter.statistics(), 2)


def test_emit_does_not_wait_for_anybody(way):
    """Ten thousand events in one burst are taken in no more than 100 microseconds each on average."""
    count = 1000 if "durable" in way.kind else 10_000
    began = time.perf_counter()
    for number in range(count):
        way.emitter.emit(numbered(number))
    took_s = time.perf_counter() - began
    assert way.emitter.stop()
    assert len(way.arrived()) == count
    assert took_s / count < (0.002 if "durable" in way.kind else 0.0001)


def test_the_thread_ends_with_stop(way):
    """No thread of ours is left after `stop`."""
    others = emitter_threads()
    way.emitter.emit(numbered(0))
    assert way.emitter.stop()
    wait_until(lambda: emitter_threads() <= others)
