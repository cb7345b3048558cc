"""The Protocol `Buffer`, held by every implementation, and `DeadLetters` beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from fluxgate_mw.buffer.dead_letters import DeadLetters
from fluxgate_mw.buffer.memory import MemoryBuffer, MemoryStream
from fluxgate_mw.buffer.pack import pack, unpack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable, BufferFull, ClosedError
from fluxgate_mw.event import encode_event
from fluxgate_mw.types import Buffer
from tests.buffers import drained_numbers, numbered, numbers_in
from tests.servers import SERVERS

pytestmark = pytest.mark.anyio

MakeBuffer = Callable[[], Buffer]


@pytest.fixture(params=["memory", "spool", *SERVERS])
async def make_buffer(request, tmp_path, stream_key, redis_servers) -> AsyncIterator[Callable[..., Buffer]]:
    """Return a maker of instances of one and the same buffer."""
    made: list[Buffer] = []
    memory = MemoryStream()

    def make(*, small: bool = False) -> Buffer:
        if request.param == "memory":
            memory.max_entries = 3 if small else 1000
            buffer: Buffer = MemoryBuffer(memory)
        elif request.param == "spool":
            buffer = Spool(tmp_path / "spool", max_bytes=3000 if small else 1 << 20)
        else:
            url = redis_servers[request.param].url
            entries = 3 if small else 1000
            buffer = RedisStream(url, stream_key=stream_key, consumer_group="flushers", max_entries=entries)
        made.append(buffer)
        return buffer

    yield make
    for buffer in made:
        await buffer.aclose()


@pytest.fixture
def buffer(make_buffer) -> Buffer:
    """Return one instance."""
    return make_buffer()


def one(number: int) -> bytes:
    """Return a pack of one numbered event."""
    return pack([encode_event(numbered(number))])


async def append_until_full(buffer: Buffer, appended: list[int]) -> None:
    """Append numbered entries, noting each that was accepted."""
    for number in range(10_000):
        await buffer.append(one(number), 1)
        appended.append(number)


async def test_it_satisfies_the_protocols(buffer):
    """Every implementation has every method of `Buffer` and of `DeadLetters`."""
    assert isinstance(buffer, Buffer)
    assert isinstance(buffer, DeadLetters)


async def test_entries_come_in_the_order_they_were_appended(buffer):
    """A reader is given what one appender appended, whole and in order."""
    for number in range(20):
        await buffer.append(one(number), 1)
    assert await drained_numbers(buffer) == list(range(20))


async def test_reading_takes_no_more_than_asked(buffer):
    """`max_entries` bounds what one read returns, and the rest comes with the next."""
    for number in range(5):
        await buffer.append(one(number), 1)
    first = await buffer.read(max_entries=2, wait_s=0)
    second = await buffer.read(max_entries=10, wait_s=0)
    assert [numbers_in(entry.payload) for entry in [*first, *second]] == [[0], [1], [2], [3], [4]]


async def test_the_first_delivery_is_counted_as_one(buffer):
    """An entry that no reader was given before has a delivery count of 1."""
    await buffer.append(one(0), 1)
    [entry] = await buffer.read(max_entries=10, wait_s=1)
    assert entry.delivery_count == 1


async def test_an_empty_buffer_is_read_as_empty(buffer):
    """A read without anything to read returns nothing, with and without waiting."""
    assert list(await buffer.read(max_entries=10, wait_s=0)) == []
    assert list(await buffer.read(max_entries=10, wait_s=0.05)) == []


async def test_an_entry_is_given_to_one_reader_only(make_buffer):
    """Two readers of one buffer are never given the same new entry."""
    first, second = make_buffer(), make_buffer()
    for number in range(10):
        await first.append(one(number), 1)
    taken = [*await first.read(max_entries=4, wait_s=0), *await second.read(max_entries=10, wait_s=0)]
    taken += await first.read(max_entries=10, wait_s=0)
    assert sorted(number for entry in taken for number in numbers_in(entry.payload)) == list(range(10))


async def test_what_was_not_acknowledged_comes_again_with_its_count_raised(buffer):
    """`reclaim` hands out unacknowledged entries again, and only those."""
    for number in range(3):
        await buffer.append(one(number), 1)
    entries = await buffer.read(max_entries=10, wait_s=1)
    await buffer.ack(entries[:1])
    again = await buffer.reclaim(min_idle_s=0, max_entries=10)
    assert [numbers_in(entry.payload) for entry in again] == [[1], [2]]
    assert [entry.delivery_count for entry in again] == [2, 2]


async def test_what_is_not_idle_for_long_enough_is_left_alone(buffer):
    """`reclaim` takes nothing that was handed out less than `min_idle_s` ago."""
    await buffer.append(one(0), 1)
    await buffer.read(max_entries=10, wait_s=1)
    assert list(await buffer.reclaim(min_idle_s=60, max_entries=10)) == []


async def test_what_a_closed_reader_left_is_had_by_the_next(make_buffer):
    """Entries that a reader was given and did not acknowledge before it closed are claimable."""
    first, second = make_buffer(), make_buffer()
    for number in range(3):
        await first.append(one(number), 1)
    await first.read(max_entries=2, wait_s=1)
    await first.aclose()
    entries = [*await second.reclaim(min_idle_s=0, max_entries=10), *await second.read(max_entries=10, wait_s=1)]
    assert sorted(number for entry in entries for number in numbers_in(entry.payload)) == [0, 1, 2]


async def test_acknowledged_entries_are_gone_and_their_room_is_free(make_buffer):
    """After an acknowledgement nothing is left of an entry, for any reader."""
    first, second = make_buffer(), make_buffer()
    for number in range(3):
        await first.append(one(number), 1)
    assert await drained_numbers(first) == [0, 1, 2]
    backlog = await first.backlog()
    assert (backlog["entries"], backlog["pending"]) == (0, 0)
    await first.aclose()
    assert list(await second.reclaim(min_idle_s=0, max_entries=10)) == []
    assert list(await second.read(max_entries=10, wait_s=0)) == []


async def test_what_was_acknowledged_before_a_close_does_not_come_again(make_buffer):
    """A reader that acknowledged some and closed leaves exactly the others to the next."""
    first, second = make_buffer(), make_buffer()
    for number in range(5):
        await first.append(one(number), 1)
    entries = await first.read(max_entries=4, wait_s=1)
    await first.ack(entries[:2])
    await first.aclose()
    rest = [*await second.reclaim(min_idle_s=0, max_entries=10), *await second.read(max_entries=10, wait_s=1)]
    assert sorted(number for entry in rest for number in numbers_in(entry.payload)) == [2, 3, 4]


async def test_acknowledging_twice_or_nothing_is_harmless(buffer):
    """`ack` of nothing, and of what was acknowledged before, changes nothing."""
    await buffer.append(one(0), 1)
    entries = await buffer.read(max_entries=10, wait_s=1)
    await buffer.ack([])
    await buffer.ack(entries)
    await buffer.ack(entries)
    assert (await buffer.backlog())["entries"] == 0


async def test_the_backlog_says_what_is_inside(buffer):
    """`backlog` counts entries, those given out among them, and dead letters."""
    for number in range(3):
        await buffer.append(one(number), 1)
    [entry] = await buffer.read(max_entries=1, wait_s=1)
    await buffer.dead_letter(entry, entry.payload, "rejected")
    backlog = await buffer.backlog()
    assert (backlog["entries"], backlog["pending"], backlog["dead_letters"]) == (3, 1, 1)


async def test_the_oldest_entry_is_shown_and_left_where_it_is(make_buffer):
    """The first that is not acknowledged, given out or not, to whoever asks; None when all are."""
    first, second = make_buffer(), make_buffer()
    assert await first.oldest() is None
    for number in range(2):
        await first.append(one(number), 1)
    entries = await first.read(max_entries=1, wait_s=1)
    assert [numbers_in((await buffer.oldest()).payload) for buffer in (first, second)] == [[0], [0]]
    await first.ack(entries)
    assert numbers_in((await first.oldest()).payload) == [1]
    assert await drained_numbers(first) == [1]
    assert [await buffer.oldest() for buffer in (first, second)] == [None, None]


async def test_a_full_buffer_refuses_and_takes_again_when_drained(make_buffer):
    """At its cap a buffer says that it is full; nothing that it accepted is lost for it."""
    full = make_buffer(small=True)
    appended: list[int] = []
    with pytest.raises(BufferFull):
        await append_until_full(full, appended)
    reader = make_buffer()
    assert await drained_numbers(reader) == appended
    await reader.aclose()
    other = make_buffer(small=True)
    await other.append(one(77), 1)


async def test_a_dead_letter_keeps_bytes_reason_and_count(buffer):
    """A dead letter shows the original bytes, why, which entry it was and how often it was handed out."""
    await buffer.append(one(0), 1)
    [entry] = await buffer.read(max_entries=1, wait_s=1)
    await buffer.dead_letter(entry, b"\x00 not an event", "undecodable")
    await buffer.ack([entry])
    [letter] = await buffer.dead_letters(10)
    assert (letter.payload, letter.reason) == (b"\x00 not an event", "undecodable")
    assert (letter.entry_id, letter.delivery_count) == (entry.entry_id, 1)
    assert letter.at_ms > 1_600_000_000_000


async def test_dead_letters_are_replayed_by_id_or_all(buffer):
    """`replay` puts the chosen dead letters, or all of them, back into the live stream once."""
    for number in range(3):
        await buffer.append(one(number), 1)
    entries = await buffer.read(max_entries=10, wait_s=1)
    for entry in entries:
        await buffer.dead_letter(entry, entry.payload, "rejected")
    await buffer.ack(entries)
    letters = await buffer.dead_letters(10)
    assert await buffer.replay([letters[1].letter_id, "0-0"]) == 1
    assert await drained_numbers(buffer) == [1]
    assert await buffer.replay() == 2
    assert await drained_numbers(buffer) == [0, 2]
    assert await buffer.replay() == 0
    assert list(await buffer.dead_letters(10)) == []


async def test_dead_letters_are_dropped_by_id_or_all(buffer):
    """`drop` deletes the chosen dead letters, or all of them, and says how many."""
    await buffer.append(one(0), 1)
    [entry] = await buffer.read(max_entries=1, wait_s=1)
    for reason in ("a", "b", "c"):
        await buffer.dead_letter(entry, entry.payload, reason)
    letters = await buffer.dead_letters(2)
    assert [letter.reason for letter in letters] == ["a", "b"]
    assert await buffer.drop([letters[0].letter_id]) == 1
    assert [letter.reason for letter in await buffer.dead_letters(10)] == ["b", "c"]
    assert await buffer.drop() == 2
    assert await buffer.drop() == 0


async def test_payloads_come_back_byte_for_byte(buffer):
    """A payload is opaque: a large one, an empty pack and odd bytes come back as they were."""
    payloads = [pack([]), bytes(range(256)) * 2000, b"\xf5FG1" * 10]
    for payload in payloads:
        await buffer.append(payload, 1)
    entries = await buffer.read(max_entries=10, wait_s=1)
    assert [entry.payload for entry in entries] == payloads
    assert unpack(entries[0].payload) == []


async def test_closing_twice_is_harmless_and_use_after_it_is_an_error(buffer):
    """`aclose` is idempotent, and a closed buffer takes nothing."""
    await buffer.aclose()
    await buffer.aclose()
    with pytest.raises((ClosedError, BackendUnavailable)):
        await buffer.append(one(0), 1)
