"""The emitter's own behaviour: bounds, flushes, statistics, idleness, restarts."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import shutil
import signal
import threading
import time
import weakref

import pytest

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.memory import MemoryBuffer, MemoryStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable, BufferFull
from fluxgate_mw.event import encode_event
from tests.buffers import assert_conserved, emitter_threads, numbered, numbers_in, spooled_numbers, until, wait_until


class Flaky(MemoryBuffer):
    """A stream that a test can take away, and that says how often it was asked."""

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream)
        self.down: Exception | None = None
        self.asked = 0

    async def append(self, payload, events, /) -> None:
        """Append, unless down."""
        self.asked += 1
        if self.down:
            raise self.down
        await super().append(payload, events)

    async def backlog(self):
        """Answer, unless down."""
        if self.down:
            raise self.down
        return await super().backlog()


class Stuck(Spool):
    """A spool whose writes fail while `failing` is set."""

    failing = False

    def append_nowait(self, payload) -> None:
        """Write, unless failing."""
        if self.failing:
            raise BackendUnavailable("spool", "No space left on device")
        super().append_nowait(payload)


@pytest.fixture
def folder(tmp_path):
    """The spool's folder."""
    return tmp_path / "spool"


@pytest.fixture
def make(folder):
    """Make emitters that are stopped at the end."""
    made = []

    def make_emitter(**options) -> Emitter:
        options.setdefault("spool", lambda: Spool(folder))
        made.append(Emitter(**options))
        return made[-1]

    yield make_emitter
    for emitter in made:
        emitter.stop(2)


def streamed(stream: MemoryStream) -> list[int]:
    """Return the numbers in a memory stream."""
    return [number for payload in stream.waiting.values() for number in numbers_in(payload)]


def test_nothing_happens_before_the_first_event(make, folder):
    """Making an emitter, and flushing or stopping it unused, starts no thread and touches no disk."""
    before = threading.active_count()
    emitter = make()
    assert emitter.flush(1)
    assert emitter.stop()
    assert threading.active_count() == before
    assert not folder.exists()


def test_the_queue_is_bounded_by_events(make, folder):
    """Past `max_events` new events are dropped and counted, and the others arrive.

    open-telemetry/opentelemetry-python#3152.
    """
    spool = Stuck(folder)
    spool.failing = True
    emitter = make(spool=lambda: spool, max_events=100)
    for number in range(150):
        emitter.emit(numbered(number))
    assert emitter.statistics().dropped == {"queue_full": 50}
    assert_conserved(emitter.statistics(), 150)
    spool.failing = False
    assert emitter.flush(5)
    assert spooled_numbers(folder) == list(range(100))


def test_a_spool_that_cannot_be_written_is_said_with_what_to_do(make, folder, caplog):
    """The line names no folder, so it names the command that does."""
    folder.write_bytes(b"")
    emitter = make()
    emitter.emit(numbered(1))
    emitter.flush(0.1)
    assert "usage events wait in memory: spool: " in caplog.text
    assert "; `fluxgate doctor` says what to do" in caplog.text


def test_the_queue_is_bounded_by_bytes(make, folder):
    """Past `max_bytes` new events are dropped and counted; room that was freed is used again.

    BerriAI/litellm#21514: a list in memory without any bound.

    traceloop/openllmetry#2790.
    """
    spool = Stuck(folder)
    spool.failing = True
    size = len(encode_event(numbered(1)))
    emitter = make(spool=lambda: spool, max_bytes=10 * size + 5)
    for number in range(12):
        emitter.emit(numbered(number))
    assert emitter.statistics().dropped == {"queue_full": 2}
    assert emitter.statistics().queued_bytes == 10 * size
    spool.failing = False
    assert emitter.flush(5)
    assert emitter.statistics().queued_bytes == 0
    emitter.emit(numbered(5))
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 13)


def test_a_full_spool_drops_and_says_so_once(make, folder, caplog):
    """Events that the spool's cap refuses are counted with their reason, and the first are logged at once.

    otel-contrib#48635: nobody had said which end is dropped; here it is the newest, and it is counted.
    """
    emitter = make(spool=lambda: Spool(folder, max_bytes=1))
    with caplog.at_level(logging.ERROR, logger="fluxgate_mw"):
        for _ in range(3):
            emitter.emit(numbered(0))
            assert not emitter.flush(5)
    assert emitter.statistics().dropped == {"spool_full": 3}
    assert_conserved(emitter.statistics(), 3)
    [record] = caplog.records
    assert "spool_full" in record.getMessage()


def test_a_spool_that_cannot_write_holds_events_in_memory(make, folder):
    """With the disk full events wait, `flush` says no in time, and all arrive once there is room.

    BerriAI/litellm#35531: a batch that was taken out of memory and not put back.
    """
    spool = Stuck(folder)
    spool.failing = True
    emitter = make(spool=lambda: spool)
    for number in range(10):
        emitter.emit(numbered(number))
    began = time.monotonic()
    assert not emitter.flush(0.1)
    assert time.monotonic() - began < 1
    statistics = emitter.statistics()
    assert statistics.queued == 10
    assert statistics.oldest_age_s > 0.09
    assert not emitter.stop(0.3)
    assert_conserved(emitter.statistics(), 10)
    spool.failing = False
    emitter.emit(numbered(10))
    assert emitter.flush(5)
    assert spooled_numbers(folder) == list(range(11))


def test_without_the_stream_events_go_to_the_spool_and_back(make, folder):
    """The breaker opens at the first failure, the spool takes over, and is emptied into the stream afterwards.

    BerriAI/litellm#19163, PR#23019.
    """
    stream = MemoryStream()
    flaky = Flaky(stream)
    emitter = make(stream=lambda: flaky)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    flaky.down = BackendUnavailable("memory", "gone")
    for number in range(1, 50):
        emitter.emit(numbered(number))
        assert emitter.flush(5)
    assert flaky.asked == 2
    assert emitter.statistics().breaker == "open"
    assert (emitter.statistics().sent, emitter.statistics().spooled) == (1, 49)
    flaky.down = None
    wait_until(lambda: emitter.statistics().returned == 49)
    assert emitter.statistics().breaker == "closed"
    assert_conserved(emitter.statistics(), 50)
    assert streamed(stream) == list(range(50))
    wait_until(lambda: not list(folder.glob("*.seg")))


def test_a_full_stream_is_not_trimmed_but_left_alone(make, folder):
    """A stream that says it is full sends the events to the spool."""
    flaky = Flaky(MemoryStream())
    flaky.down = BufferFull("full")
    emitter = make(stream=lambda: flaky)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    assert emitter.statistics().spooled == 1
    emitter.stop()
    assert spooled_numbers(folder) == [0]


def test_a_frozen_stream_holds_back_one_pack_only(make):
    """While a stream that just froze is given up, events wait; from then on they do not."""

    class Frozen(Flaky):
        async def append(self, payload, events, /) -> None:
            self.asked += 1
            await asyncio.sleep(0.3)
            raise BackendUnavailable("memory", "timeout")

        async def backlog(self):
            await asyncio.sleep(60)

    frozen = Frozen(MemoryStream())
    emitter = make(stream=lambda: frozen)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    began = time.monotonic()
    for number in range(1, 20):
        emitter.emit(numbered(number))
        assert emitter.flush(5)
    assert time.monotonic() - began < 2
    assert frozen.asked == 1
    assert emitter.statistics().spooled == 20


def test_a_fault_of_the_stream_loses_nothing(make, caplog):
    """An error that no buffer should raise is logged, and the events go to the spool instead."""
    flaky = Flaky(MemoryStream())
    flaky.down = ZeroDivisionError("a fault")
    emitter = make(stream=lambda: flaky)
    with caplog.at_level(logging.CRITICAL, logger="fluxgate_mw"):
        for number in range(10):
            emitter.emit(numbered(number))
        assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 10)
    assert emitter.statistics().spooled == 10


def test_flush_says_when_something_was_dropped(make, folder):
    """`flush` is True only where everything queued was accepted."""
    emitter = make(spool=lambda: Spool(folder, max_bytes=1))
    emitter.emit(numbered(0))
    assert not emitter.flush(5)
    assert emitter.flush(5)


@pytest.mark.anyio
async def test_aflush_does_not_block_the_loop(make, folder):
    """While `aflush` waits, other tasks of the loop run."""
    spool = Stuck(folder)
    spool.failing = True
    emitter = make(spool=lambda: spool)
    emitter.emit(numbered(0))
    task = asyncio.create_task(emitter.aflush(5))
    await asyncio.sleep(0)
    ticks = []
    for _ in range(10):
        await asyncio.sleep(0.005)
        ticks.append(task.done())
    assert ticks == [False] * 10
    spool.failing = False
    assert await task


@pytest.mark.anyio
async def test_a_cancelled_aflush_takes_nothing_back(make, folder):
    """Cancelling `aflush` leaves the delivery as it was."""
    spool = Stuck(folder)
    spool.failing = True
    emitter = make(spool=lambda: spool)
    emitter.emit(numbered(0))
    task = asyncio.create_task(emitter.aflush(5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    spool.failing = False
    assert await emitter.aflush(5)
    assert await emitter.astop()
    assert spooled_numbers(folder) == [0]


@pytest.mark.anyio
async def test_it_can_run_in_the_hosts_loop(make, folder):
    """`run` delivers in the caller's loop; what is left when it is cancelled is delivered by a thread."""
    emitter = make()
    task = asyncio.create_task(emitter.run())
    await asyncio.sleep(0)
    before = threading.active_count()
    for number in range(10):
        emitter.emit(numbered(number))
    assert await emitter.aflush(5)
    assert threading.active_count() == before
    emitter.emit(numbered(10))
    task.cancel()
    await until(task.done)
    assert await emitter.aflush(5)
    assert await emitter.astop()
    assert spooled_numbers(folder) == list(range(11))


def test_it_outlives_event_loops(make, folder):
    """Emitting from one `asyncio.run` after another works: the delivery stands on no loop of the host.

    The-PR-Agent/pr-agent PR#2551.
    """
    emitter = make()

    async def emit(number: int) -> None:
        emitter.emit(numbered(number))
        assert await emitter.aflush(5)

    asyncio.run(emit(0))
    asyncio.run(emit(1))
    emitter.stop()
    assert spooled_numbers(folder) == [0, 1]


def test_the_thread_sees_no_context_of_the_first_caller(make, folder):
    """The delivery runs in an empty context, whoever emitted first."""
    variable = contextvars.ContextVar("variable", default="empty")
    seen = []

    class Looking(Spool):
        def append_nowait(self, payload) -> None:
            seen.append(variable.get())
            super().append_nowait(payload)

    variable.set("a request's")
    emitter = make(spool=lambda: Looking(folder))
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    assert seen == ["empty"]


def test_the_thread_takes_no_signal_of_the_hosts(make, folder):
    """A handler of the host's never runs in our thread, where one written in C would end the process."""
    blocked = []

    def look():
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return MemoryBuffer()

    emitter = make(stream=look)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM} <= blocked[0]
    assert signal.SIGSEGV not in blocked[0]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_idle_emitter_sleeps_and_is_woken_by_the_next_event(make, folder, monkeypatch):
    """After an event the loop polls no more, and the next one is delivered at once all the same."""
    emitter = make()
    emitter.emit(numbered(0))
    wait_until(lambda: emitter.statistics().spooled == 1 and emitter._delivery.asleep)
    cycles = []
    monkeypatch.setattr(emitter._delivery, "_report_drops", lambda: cycles.append(1))
    assert not cycles
    began = time.monotonic()
    emitter.emit(numbered(1))
    wait_until(lambda: emitter.statistics().spooled == 2)
    assert time.monotonic() - began < 1


def test_an_emitting_thread_that_is_held_up_leaves_the_loop_awake(make, folder, monkeypatch):
    """The loop may deliver, and sleep again, before the thread that woke it goes on: the next event wakes it too."""
    emitter = make(stream=MemoryBuffer)
    delivery = emitter._delivery
    wake = delivery.wake

    def is_quiet(sent):
        return emitter.statistics().sent == sent and delivery.asleep

    emitter.emit(numbered(0))
    wait_until(lambda: is_quiet(1))
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "wake", lambda: (wake(), wait_until(lambda: is_quiet(2))))
        emitter.emit(numbered(1))
    emitter.emit(numbered(2))
    wait_until(lambda: is_quiet(3), 2)


def test_events_that_follow_each_other_wait_for_one_look(make, folder, monkeypatch):
    """What comes within an interval of the last look is delivered together, at the interval's end."""
    emitter = make(interval_s=0.3)
    batches = []
    append = emitter._delivery.spool.append_nowait
    monkeypatch.setattr(emitter._delivery.spool, "append_nowait", lambda data: (batches.append(1), append(data)))
    emitter.emit(numbered(0))
    wait_until(lambda: emitter.statistics().spooled == 1)
    for number in range(1, 100):
        emitter.emit(numbered(number))
    wait_until(lambda: emitter.statistics().spooled == 100)
    assert len(batches) == 2


def polling(emitter):
    """Have the emitter's loop poll, as it does after an event."""
    emitter.emit(numbered(0))
    wait_until(lambda: emitter.statistics().spooled == 1)


def test_a_spool_that_fails_while_the_loop_polls_loses_nothing(make, folder):
    """What comes right after another event waits while it cannot be written, and arrives once it can."""
    spool = Stuck(folder)
    emitter = make(spool=lambda: spool)
    polling(emitter)
    spool.failing = True
    emitter.emit(numbered(1))
    wait_until(lambda: emitter._delivery._held_back)
    emitter.emit(numbered(2))
    assert emitter.statistics().queued == 2
    spool.failing = False
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 3)
    emitter.stop()
    assert spooled_numbers(folder) == [0, 1, 2]


def test_a_fault_while_the_loop_polls_loses_nothing(make, folder, monkeypatch):
    """An error that no spool should raise is counted, and the loop goes on."""
    emitter = make()
    polling(emitter)
    append, faults = emitter._delivery.spool.append_nowait, [ZeroDivisionError("a fault")]

    def faulty(payload):
        if faults:
            raise faults.pop()
        append(payload)

    monkeypatch.setattr(emitter._delivery.spool, "append_nowait", faulty)
    before = diagnostics.counts().get("bug_delivery", 0)
    emitter.emit(numbered(1))
    wait_until(lambda: emitter.statistics().spooled == 2)
    assert diagnostics.counts()["bug_delivery"] == before + 1
    emitter.stop()
    assert spooled_numbers(folder) == [0, 1]


def test_a_segment_that_cannot_be_sealed_is_sealed_once_it_can(make, folder):
    """Somebody put a file where the spool's folder was: that is noted, and what was written is there in the end."""
    emitter = make(spool=lambda: Spool(folder, seal_after_s=1))
    polling(emitter)
    before = diagnostics.counts().get("spool_not_sealed", 0)
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    wait_until(lambda: diagnostics.counts().get("spool_not_sealed", 0) > before)
    folder.unlink()
    wait_until(lambda: list(folder.glob("*.seg")))
    assert spooled_numbers(folder) == [0]


def test_one_event_and_then_silence_can_be_read(make, folder):
    """A single event's segment is sealed by time alone: no second event is needed.

    vector#22946: a single event that stayed until the next one came.
    """
    emitter = make()
    emitter.emit(numbered(0))
    wait_until(lambda: list(folder.glob("*.seg")), 2)
    assert spooled_numbers(folder) == [0]


def test_a_forgotten_emitter_delivers_ends_and_is_collected(folder):
    """Nothing keeps an emitter alive that its user let go of; what it had queued is delivered, its thread ends.

    langfuse/langfuse#2974.
    """
    others = emitter_threads()
    emitter = Emitter(spool=lambda: Spool(folder))
    for number in range(10):
        emitter.emit(numbered(number))
    gone = weakref.ref(emitter)
    del emitter
    gc.collect()
    assert gone() is None
    wait_until(lambda: folder.exists() and emitter_threads() <= others)  # its thread is named after its start
    assert spooled_numbers(folder) == list(range(10))


def test_durable_events_are_on_disk_when_emit_returns(make, folder):
    """With `durable` an event is in the spool before `emit` returns."""
    emitter = make(durable=True)
    for number in range(5):
        emitter.emit(numbered(number))
        assert emitter.statistics().spooled == number + 1
    assert emitter.stop()
    assert spooled_numbers(folder) == list(range(5))


def test_durable_events_are_queued_where_the_disk_refuses(make, folder):
    """A durable emitter that cannot write keeps the event in memory like any other."""
    spool = Stuck(folder)
    spool.failing = True
    emitter = make(spool=lambda: spool, durable=True)
    emitter.emit(numbered(0))
    assert emitter.statistics().queued == 1
    spool.failing = False
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 1)


def test_emit_during_a_flush_is_sent_within_the_interval(make, folder):
    """An event captured while a flush runs does not wait for the next flush.

    PostHog/posthog-js#2144: it waited for the next flush.
    """
    emitter = make()
    stop = threading.Event()

    def flush_all_the_time() -> None:
        while not stop.is_set():
            emitter.flush(1)

    thread = threading.Thread(target=flush_all_the_time)
    thread.start()
    for number in range(200):
        emitter.emit(numbered(number))
    stop.set()
    thread.join()
    wait_until(lambda: emitter.statistics().spooled == 200)


def test_a_stop_without_time_spools_what_the_stream_would_take_long_for(make, folder):
    """With no time left nothing more is tried with the stream: the spool has it all."""

    class Slow(Flaky):
        async def append(self, payload, events, /) -> None:
            await asyncio.sleep(0.2)
            await super().append(payload, events)

    stream = MemoryStream()
    emitter = make(stream=lambda: Slow(stream), shutdown_timeout_s=0.5)
    for number in range(5000):
        emitter.emit(numbered(number))
    assert emitter.stop(1)
    assert_conserved(emitter.statistics(), 5000)
    assert streamed(stream) + spooled_numbers(folder) == list(range(5000))
    assert emitter.statistics().spooled > 0


@pytest.mark.anyio
@pytest.mark.parametrize("with_stream", [False, True])
async def test_cancellation_at_any_await_loses_nothing(make, folder, with_stream):
    """Cancel the delivery after each possible number of its steps: every event is in one place, and none is lost."""
    stream = MemoryStream()

    class Yielding(MemoryBuffer):
        async def append(self, payload, events, /) -> None:
            await asyncio.sleep(0)
            await super().append(payload, events)
            await asyncio.sleep(0)

    emitter = make(stream=(lambda: Yielding(stream)) if with_stream else None, interval_s=0.001)
    emitted = 0
    for steps in range(40):
        for _ in range(300):
            emitter.emit(numbered(emitted))
            emitted += 1
        task = asyncio.create_task(emitter.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await emitter.astop()
    assert_conserved(emitter.statistics(), emitted)
    assert set(streamed(stream) + spooled_numbers(folder)) == set(range(emitted))
