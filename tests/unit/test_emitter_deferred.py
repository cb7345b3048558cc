"""Events that are made when they are delivered: in whose thread, in what order, and what becomes of a failure."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.cut import TRUNCATED
from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.event import UsageEvent, decode_event
from tests.buffers import assert_conserved, numbered, spooled_numbers, until, wait_until


class Later:
    """An event that is made later, and knows in which thread."""

    def __init__(self, number: int, size_bytes: int = 100) -> None:
        self.number, self.size_bytes = number, size_bytes
        self.thread: int | None = None

    def made(self) -> UsageEvent:
        """Make it."""
        self.thread = threading.get_ident()
        return numbered(self.number)


class Broken(Later):
    """One that cannot be made."""

    def made(self) -> UsageEvent:
        """Fail."""
        raise ValueError("a prompt")


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


def test_it_is_made_in_the_deliverys_thread_and_in_its_order(make, folder):
    """Made and unmade events arrive in the order in which they were given."""
    emitter = make()
    pending = [Later(number) for number in range(0, 600, 2)]
    for later in pending:
        emitter.defer(later)
        emitter.emit(numbered(later.number + 1))
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 600)
    assert spooled_numbers(folder) == list(range(600))
    assert {later.thread for later in pending}.isdisjoint({threading.get_ident(), None})


def test_what_it_holds_on_to_counts_while_it_waits(make):
    """The bound by bytes holds for events that are not made yet; what has no room is made, for that may have."""
    emitter = make(max_bytes=1000, interval_s=5)
    emitter._delivery.asleep = False
    pending = [Later(number, size_bytes=400) for number in range(3)]
    for later in pending:
        emitter.defer(later)
    assert [later.thread for later in pending] == [None, None, threading.get_ident()]
    emitter.defer(Later(3, size_bytes=400))
    assert (emitter.statistics().queued, emitter.statistics().dropped) == (3, {"queue_full": 1})
    assert 800 < emitter.statistics().queued_bytes <= 1000
    assert_conserved(emitter.statistics(), 4)
    assert emitter.flush(5)
    assert emitter.statistics().queued_bytes == 0


def test_one_that_cannot_be_made_is_marked_not_lost(make, folder):
    """A bug of ours costs what the event would have said, and no other event."""
    emitter = make()
    emitter.defer(Broken(0))
    emitter.defer(Later(1))
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 2)
    [entry] = Spool(folder).read_nowait(10)
    marked, whole = (decode_event(data).metadata for data in unpack(entry.payload))
    assert (marked, whole) == ({TRUNCATED: True}, {"number": 1})
    assert diagnostics.counts() == {"bug_event": 1}


def test_a_durable_emitter_makes_and_writes_it_at_once(make, folder):
    """`defer` returns when the spool has it."""
    emitter = make(durable=True)
    later = Later(0)
    emitter.defer(later)
    assert later.thread == threading.get_ident()
    assert emitter.statistics().spooled == 1


@pytest.mark.anyio
async def test_the_hosts_loop_makes_none(make, folder):
    """Where the delivery runs in the caller's loop, it is the call that makes its event, not all of them at once."""
    emitter = make()
    task = asyncio.create_task(emitter.run())
    await asyncio.sleep(0)
    later = Later(0)
    emitter.defer(later)
    assert later.thread == threading.get_ident()
    assert await emitter.aflush(5)
    task.cancel()
    await until(task.done)
    assert spooled_numbers(folder) == [0]


def test_what_waits_at_the_exit_is_made_then(make, folder):
    """The last events of a process are made by whoever writes them to the spool."""
    emitter = make(interval_s=5)
    emitter._delivery.asleep = False
    for number in range(30):
        emitter.defer(Later(number))
    emitter._delivery.at_exit()
    assert_conserved(emitter.statistics(), 30)
    assert spooled_numbers(folder) == list(range(30))


def test_what_is_made_and_waits_on_counts_as_what_it_is_now(make, folder):
    """An event that was made from much and cannot be delivered yet leaves room for others."""

    class Full(Spool):
        full = True

        def append_nowait(self, payload) -> None:
            if self.full:
                raise BackendUnavailable("spool", "No space left on device")
            super().append_nowait(payload)

    spool = Full(folder)
    emitter = make(spool=lambda: spool, max_bytes=10_000)
    emitter.defer(Later(0, size_bytes=9_000))
    wait_until(lambda: emitter.statistics().queued_bytes < 9_000)
    emitter.defer(Later(1, size_bytes=9_000))
    assert emitter.statistics().dropped == {}
    spool.full = False
    assert emitter.flush(5)
    assert spooled_numbers(folder) == [0, 1]
    assert emitter.statistics().queued_bytes == 0


def test_an_interruption_over_making_one_loses_none(make, folder):
    """Ctrl-C in the middle of the last delivery leaves the event where it waited."""

    class Interrupted(Later):
        def made(self) -> UsageEvent:
            """Be interrupted the first time."""
            if self.thread is None:
                self.thread = threading.get_ident()
                raise KeyboardInterrupt
            return super().made()

    emitter = make(interval_s=5)
    emitter._delivery.asleep = False
    for pending in (Later(0), Interrupted(1), Later(2)):
        emitter.defer(pending)
    with pytest.raises(KeyboardInterrupt):
        emitter._delivery.spill()
    assert_conserved(emitter.statistics(), 3)
    emitter._delivery.spill()
    assert_conserved(emitter.statistics(), 3)
    assert spooled_numbers(folder) == [0, 1, 2]
