"""The flusher on a memory buffer and a real SQLite file: the law, poison, outages, stopping, cancellation."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw import diagnostics, flusher
from fluxgate_mw.buffer.memory import MemoryBuffer, MemoryStream
from fluxgate_mw.buffer.pack import pack, unpack
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.event import UsageEvent, encode_event
from fluxgate_mw.flusher import _delays
from fluxgate_mw.stores.sqlite import SQLiteStore
from fluxgate_mw.types import Entry
from tests.buffers import numbered, numbers_in, until
from tests.flushing import (
    Faulty,
    PickyStore,
    append_numbered,
    failing,
    make_flusher,
    redelivered,
    stored_numbers,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Waits between attempts are short; what is said once a minute is said in each test."""
    monkeypatch.setattr(flusher, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(flusher, "LONGEST_DELAY_S", 0.01)
    monkeypatch.setattr(flusher, "READ_WAIT_S", 0.02)
    diagnostics.reset()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite3"


@pytest.fixture
async def store(path, anyio_backend):
    fresh = SQLiteStore(path)
    yield fresh
    await fresh.aclose()


@pytest.fixture
def stream():
    return MemoryStream()


@pytest.fixture
def buffer(stream):
    return MemoryBuffer(stream)


async def dead_numbers(buffer):
    """The numbers of the events in the dead letters that are packs."""
    return sorted(number for letter in await buffer.dead_letters(1000) for number in numbers_in(letter.payload))


async def test_what_was_appended_is_stored_and_the_buffer_is_empty(buffer, store, path):
    """Every event is stored once, every entry is acknowledged, and the figures say so."""
    await append_numbered(buffer, range(95))
    flush = make_flusher([buffer], store, batch_entries=3)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == list(range(95))
    assert await buffer.backlog() == {"entries": 0, "pending": 0, "dead_letters": 0}
    figures = flush.statistics()
    assert (figures.stored, figures.duplicates, figures.batches, figures.lag_s) == (95, 0, 4, 0.0)
    assert datetime.now(UTC) - figures.last_stored_at < timedelta(minutes=1)


async def test_it_follows_several_buffers_until_stopped(store, path):
    """Events that come while it runs are stored from every buffer, and `stop` ends it."""
    buffers = [MemoryBuffer(), MemoryBuffer()]
    flush = make_flusher(buffers, store)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(flush.run)
            await append_numbered(buffers[0], range(20))
            await until(lambda: flush.statistics().stored == 20)
            await append_numbered(buffers[1], range(20, 30))
            await until(lambda: flush.statistics().stored == 30)
            flush.stop()
    assert stored_numbers(path) == list(range(30))


async def test_an_empty_buffer_ends_run_once(buffer, store):
    """With nothing to do there is nothing to wait for, waiting or not."""
    await make_flusher([buffer], store).run_once(wait=False)
    await make_flusher([buffer], store).run_once(wait=True)


async def test_run_once_waits_for_others_entries_only_when_asked(buffer, stream, store, path):
    """What another reader holds is left alone without `wait`, and taken over when it may be with it."""
    await append_numbered(buffer, range(10))
    await MemoryBuffer(stream).read(max_entries=10, wait_s=0)
    await make_flusher([buffer], store).run_once(wait=False)
    assert (await buffer.backlog())["pending"] == 1
    flush = make_flusher([buffer], store, claim_min_idle_s=0.1)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == list(range(10))
    assert (await buffer.backlog())["entries"] == 0


@pytest.mark.parametrize("times", [1, 7])
async def test_a_failing_store_dead_letters_nothing(buffer, store, path, times):
    """Past any number of failures everything is stored and nothing is set aside.

    langfuse/langfuse#16017, #13468, #6380; BerriAI/litellm#33872: lost or dead-lettered when the store failed.
    """
    await append_numbered(buffer, range(20))
    seen = []
    faulty = Faulty(store, before=failing("insert", times))
    watched = Faulty(buffer, before=lambda name: seen.append((name, flush.statistics().stored)))
    flush = make_flusher([watched], faulty, max_deliveries=1)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == list(range(20))
    assert flush.statistics().store_errors == times
    assert (await buffer.backlog())["dead_letters"] == 0
    assert [stored for name, stored in seen if name == "ack"] == [20]


async def test_nothing_is_read_while_the_store_is_down(buffer, store):
    """An outage does not count deliveries up: entries stay in the buffer until an empty insert succeeded."""
    await append_numbered(buffer, range(10))
    faulty = Faulty(store, before=failing("insert", 10**9))
    watched = Faulty(buffer)
    flush = make_flusher([watched], faulty)
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        await until(lambda: flush.statistics().store_errors >= 3)
        flush.stop()
    assert set(watched.calls) == set()
    assert await buffer.backlog() == {"entries": 1, "pending": 0, "dead_letters": 0}


async def test_lag_is_the_age_of_what_waits_for_the_store(buffer, store):
    """While a batch cannot be stored, the lag grows with the age of its first event."""
    old = UsageEvent(occurred_at=datetime.now(UTC) - timedelta(hours=1))
    await buffer.append(pack([encode_event(old)]), 1)
    down = []

    def fail(name):
        if down:
            raise BackendUnavailable("sqlite", "down")
        down.append(name)

    flush = make_flusher([buffer], Faulty(store, before=fail))
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        await until(lambda: flush.statistics().store_errors >= 2)
        assert 3600 <= flush.statistics().lag_s < 3700
        flush.stop(timeout_s=0)
    assert flush.statistics().lag_s == 0
    assert (await buffer.backlog())["pending"] == 1


async def test_a_failing_buffer_does_not_hold_up_the_others(store, path):
    """One buffer down, the other is served; when it comes back, it is served too."""
    broken, sound = MemoryBuffer(), MemoryBuffer()
    await append_numbered(broken, range(5))
    await append_numbered(sound, range(5, 10))
    down = [True]

    def fail(name):
        if down:
            raise BackendUnavailable("memory", "down")

    flush = make_flusher([Faulty(broken, before=fail), sound], store)
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        await until(lambda: flush.statistics().stored == 5 and flush.statistics().buffer_errors >= 2)
        down.clear()
        await until(lambda: flush.statistics().stored == 10)
        flush.stop()
    assert stored_numbers(path) == list(range(10))


@pytest.mark.parametrize("operation", ["read", "reclaim", "ack", "backlog"])
async def test_an_unavailable_buffer_is_asked_again(buffer, store, path, operation):
    """Whichever call fails, and however often, the events are stored once and the buffer ends empty."""
    await append_numbered(buffer, range(20))
    flush = make_flusher([Faulty(buffer, before=failing(operation, 4, "memory"))], store)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == list(range(20))
    assert flush.statistics().buffer_errors == 4
    assert (await buffer.backlog())["entries"] == 0


async def test_an_undecodable_event_is_set_aside_alone(buffer, store, path):
    """The rest of its pack is stored; the letter holds the original bytes, as a pack, with the reason."""
    poison = b"\x81\xa6status\xa4NOPE"
    encoded = [encode_event(numbered(number)) for number in range(3)]
    await buffer.append(pack([encoded[0], poison, *encoded[1:]]), 4)
    flush = make_flusher([buffer], store)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == [0, 1, 2]
    (letter,) = await buffer.dead_letters(10)
    assert unpack(letter.payload) == [poison]
    assert letter.reason.startswith("undecodable: ")
    assert (flush.statistics().dead_lettered, flush.statistics().dead_lettered_entries) == (1, 0)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x80", b"\x91" * 5000, b"x" * 100])
async def test_an_entry_that_is_no_pack_is_set_aside_whole(buffer, store, path, payload):
    """Its bytes are kept as they are, and its neighbours are stored."""
    await buffer.append(payload, 1)
    await append_numbered(buffer, range(5))
    flush = make_flusher([buffer], store)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == list(range(5))
    (letter,) = await buffer.dead_letters(10)
    assert letter.payload == payload
    assert flush.statistics().dead_lettered_entries == 1


@pytest.mark.parametrize("rejected", [{0}, {24}, {3, 4, 17}, set(range(25))])
async def test_what_the_store_rejects_is_found_and_set_aside(buffer, path, rejected):
    """The batch is halved until each culprit is alone; all others are stored."""
    store = PickyStore(path, rejected)
    await append_numbered(buffer, range(25))
    flush = make_flusher([buffer], store)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == [number for number in range(25) if number not in rejected]
    assert await dead_numbers(buffer) == sorted(rejected)
    assert flush.statistics().dead_lettered == len(rejected)
    assert {letter.reason.partition(":")[0] for letter in await buffer.dead_letters(99)} == {"rejected"}
    await store.aclose()


async def test_a_replayed_letter_is_stored_once_its_cause_is_gone(buffer, path):
    """A dead letter is a pack like any other."""
    store = PickyStore(path, {1})
    await append_numbered(buffer, range(3))
    await make_flusher([buffer], store).run_once(wait=True)
    store.rejected.clear()
    assert await buffer.replay() == 1
    await make_flusher([buffer], store).run_once(wait=True)
    assert stored_numbers(path) == [0, 1, 2]
    await store.aclose()


async def test_an_entry_that_was_handed_out_too_often_is_never_decoded(buffer, stream, store, path):
    """pipeshub-ai/pipeshub-ai#2992, MemTensor/MemOS#2403: what kills its reader is set aside, not tried 800 times."""
    deadly = redelivered(stream, pack([encode_event(numbered(666))]), 5)
    redelivered(stream, pack([encode_event(numbered(1))]), 4)
    decoded = []
    flush = make_flusher([buffer], store, max_deliveries=5, claim_min_idle_s=0.01)
    flush._unpack = lambda payload: decoded.append(payload) or unpack(payload)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == [1]
    (letter,) = await buffer.dead_letters(10)
    assert (letter.payload, letter.delivery_count) == (deadly.payload, 6)
    assert deadly.payload not in decoded


async def test_neighbours_of_one_that_kills_are_not_counted_up(stream, store, path):
    """After a batch killed its reader, entries are taken over one by one: only the culprit goes on being counted."""
    await append_numbered(MemoryBuffer(stream), range(8), per_entry=1)
    await MemoryBuffer(stream).read(max_entries=8, wait_s=0)

    class Killed(Exception):
        """Stands for the death of the process: nothing of ours runs after it."""

    def deadly(encoded):
        if b"number\x03" in encoded:
            raise Killed
        return flusher_decode(encoded)

    for _ in range(10):
        buffer = MemoryBuffer(stream)
        flush = make_flusher([buffer], store, max_deliveries=3, claim_min_idle_s=0)
        flusher_decode, flush._decode = flush._decode, deadly
        try:
            await flush.run_once(wait=True)
        except Killed:
            continue
        break
    assert stored_numbers(path) == [0, 1, 2, 4, 5, 6, 7]
    assert await dead_numbers(buffer) == [3]


async def test_entries_that_come_again_by_reading_are_handled_alone_from_both_ends(buffer, store):
    """A buffer that hands a dead reader's entries out again in one batch: each is a batch of its own."""
    order = []
    flush = make_flusher([buffer], store)

    async def handled(_, entries):
        order.append([entry.entry_id for entry in entries])

    flush._handle = handled
    entries = [Entry(name, b"\x90", count) for name, count in (("new", 1), ("a", 2), ("b", 2))]
    await flush._handle_all(buffer, entries)
    entries = [Entry(name, b"\x90", 3) for name in "ab"]
    await flush._handle_all(buffer, entries)
    assert order == [["new"], ["b"], ["a"], ["a"], ["b"]]


async def test_an_unacknowledged_dead_letter_is_kept_before_the_entry_is_acknowledged(buffer, store):
    """What cannot be kept aside yet is not acknowledged: the flusher tries again."""
    await buffer.append(b"\xc1", 1)
    names = []
    fail = failing("dead_letter", 3, "memory")

    def before(name):
        names.append(name)
        fail(name)

    await make_flusher([Faulty(buffer, before=before)], store).run_once(wait=True)
    assert [name for name in names if name in {"dead_letter", "ack"}] == ["dead_letter"] * 4 + ["ack"]


async def test_duplicates_are_counted_and_change_nothing(buffer, store, path):
    """redis/redis#14615: an entry whose reply was lost is appended twice; it is stored once."""
    payload = pack([encode_event(numbered(number)) for number in range(4)])
    await buffer.append(payload, 4)
    await buffer.append(payload, 4)
    flush = make_flusher([buffer], store)
    await flush.run_once(wait=True)
    assert stored_numbers(path) == [0, 1, 2, 3]
    assert (flush.statistics().stored, flush.statistics().duplicates) == (4, 4)


async def test_a_bug_of_ours_ends_neither_the_loop_nor_the_event(buffer, store, path, caplog):
    """The error is logged, the entry stays claimable, and is stored when it comes again."""
    failed = []

    def bug(name):
        if name == "insert" and not failed and flush.statistics().lag_s:
            failed.append(name)
            raise RuntimeError("a bug")

    await append_numbered(buffer, range(5))
    flush = make_flusher([buffer], Faulty(store, before=bug), claim_min_idle_s=0.02)
    async with anyio.create_task_group() as group:
        group.start_soon(flush.run)
        await until(lambda: flush.statistics().stored == 5)
        flush.stop()
    assert stored_numbers(path) == list(range(5))
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_stop_finishes_the_batch_in_hand(buffer, store, path):
    """A batch whose commit is under way when stop is asked for is stored and acknowledged; no other is begun."""
    await append_numbered(buffer, range(40))
    flush = make_flusher(
        [buffer],
        Faulty(store, before=lambda name: flush.statistics().lag_s and flush.stop()),
        batch_entries=1,
    )
    await flush.run()
    assert stored_numbers(path) == list(range(10))
    assert await buffer.backlog() == {"entries": 3, "pending": 0, "dead_letters": 0}


async def test_a_stopped_flusher_does_not_run_again(buffer, store):
    """Stopping is final, before or after a run, and twice is harmless."""
    await append_numbered(buffer, range(10))
    flush = make_flusher([buffer], store)
    flush.stop()
    flush.stop()
    with anyio.fail_after(5):
        await flush.run()
        await flush.run_once(wait=True)
    assert (await buffer.backlog())["entries"] == 1


async def test_a_closed_store_ends_the_run(buffer, store):
    """Whoever closes the store under it gets a flusher that ended, not an error in a task."""
    await store.aclose()
    with anyio.fail_after(5):
        await make_flusher([buffer], store).run()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_every_await_nothing_is_lost(tmp_path, when):
    """Wherever it is cancelled, the next flusher stores every event once and what is no event is kept aside."""
    for place in itertools.count():
        path = tmp_path / f"{place}.sqlite3"
        store, stream = SQLiteStore(path), MemoryStream()
        await append_numbered(MemoryBuffer(stream), range(25))
        await MemoryBuffer(stream).append(b"\xc1", 1)
        scope, steps = anyio.CancelScope(), itertools.count()

        def act(name, scope=scope, steps=steps, place=place):
            if next(steps) == place:
                scope.cancel()

        with scope:
            parts = Faulty(MemoryBuffer(stream), **{when: act}), Faulty(store, **{when: act})
            await make_flusher(parts[:1], parts[1], batch_entries=2).run_once(wait=True)
        await make_flusher([MemoryBuffer(stream)], store, claim_min_idle_s=0).run_once(wait=True)
        assert stored_numbers(path) == list(range(25))
        assert {letter.payload for letter in stream.dead.values()} == {b"\xc1"}
        assert not stream.pending
        await store.aclose()
        if not scope.cancel_called:
            break
    assert place > 8


async def test_two_flushers_on_one_stream_store_everything_once(stream, path):
    """A second one takes its share and harms nothing, even where both claim from each other at once.

    taskiq-python/taskiq-redis#101: entries reclaimed from a slow reader that lives were done twice.
    """
    await append_numbered(MemoryBuffer(stream), range(500), per_entry=5)
    stores = [SQLiteStore(path), SQLiteStore(path)]
    flushers = [
        make_flusher([MemoryBuffer(stream)], store, batch_entries=3, claim_min_idle_s=0.001, max_deliveries=10**6)
        for store in stores
    ]
    async with anyio.create_task_group() as group:
        for flush in flushers:
            group.start_soon(lambda flush=flush: flush.run_once(wait=True))
    assert stored_numbers(path) == list(range(500))
    assert sum(flush.statistics().stored for flush in flushers) == 500
    assert not stream.dead
    for store in stores:
        await store.aclose()


@given(st.integers(1, 40))
def test_waits_grow_to_a_cap_and_are_spread(attempts):
    """Each wait lies within its half-open doubling step, never past the cap."""
    for attempt, delay in enumerate(itertools.islice(_delays(), attempts)):
        longest = min(0.001 * 2**attempt, 0.01)
        assert longest / 2 <= delay <= longest
