"""What is the Redis stream's own: groups lost and made again, trimming, memory, cancellation, no credentials shown."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid

import pytest
from redis.asyncio import Redis

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.errors import BackendUnavailable, BufferFull
from fluxgate_mw.event import encode_event
from tests.buffers import drained_numbers, numbered
from tests.newest_redis import BINARY as NEWEST
from tests.servers import SERVERS, RedisServer, free_port, valkey_binary

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def one(number: int) -> bytes:
    """Return a pack of one numbered event."""
    return pack([encode_event(numbered(number))])


@pytest.fixture(params=SERVERS)
def redis_url(request, redis_url, redis_servers):
    """Of every server that there is."""
    return redis_url if request.param == "valkey" else redis_servers[request.param].url


@pytest.fixture
async def make(redis_url, stream_key):
    """Make clients of one stream."""
    made = []

    def make_stream(**options) -> RedisStream:
        url = options.pop("url", redis_url)
        made.append(RedisStream(url, stream_key=stream_key, consumer_group="flushers", **options))
        return made[-1]

    yield make_stream
    for stream in made:
        await stream.aclose()


@pytest.fixture
async def server(redis_url):
    """A client of the test's own, to look at the server and to harm the stream."""
    client = Redis.from_url(redis_url, protocol=2)
    yield client
    await client.aclose()


async def append_until_full(stream: RedisStream, taken: list[int]) -> None:
    """Append until refused, having the stream look at its length each time."""
    while True:
        stream._looked_at = float("-inf")
        await stream.append(one(len(taken)), 1)
        taken.append(len(taken))


async def test_entries_from_before_the_group_are_delivered(make):
    """The group is made at the stream's beginning: what was added first is read.

    ag2ai/faststream#2694: a group made at the end skips what came before it.
    """
    producer = make()
    await producer.append(one(0), 1)
    await producer.append(one(1), 1)
    assert await drained_numbers(make()) == [0, 1]


async def test_after_a_drain_the_stream_is_empty(make, server, stream_key):
    """An acknowledged entry is deleted, not only acknowledged: the stream's length is 0.

    taskiq-python/taskiq-redis#114, redis/redis#6941: a stream of acknowledged entries that grew until memory was
    full.
    """
    stream = make()
    for number in range(50):
        await stream.append(one(number), 1)
    assert len(await drained_numbers(stream)) == 50
    assert await server.xlen(stream_key) == 0
    assert (await server.xpending(stream_key, "flushers"))["pending"] == 0


async def test_an_empty_stream_can_be_removed_and_one_that_is_not_cannot(make, server, stream_key):
    """Its key goes with the group, unless something is in it or comes at that very moment; reading goes on after."""
    stream, other = make(), make()
    await stream.append(one(0), 1)
    [entry] = await stream.read(max_entries=1, wait_s=0)
    assert not await stream.remove_if_empty()
    await stream.ack([entry])
    assert await stream.remove_if_empty()
    assert not await server.exists(stream_key)
    for number in range(1, 60):
        await asyncio.gather(stream.remove_if_empty(), other.append(one(number), 1))
        assert await drained_numbers(stream) or await drained_numbers(stream) == [number]
        assert await drained_numbers(stream) == []


async def test_holes_give_their_memory_back(make, server, stream_key):
    """Entries acknowledged out of order leave nothing behind once all are, time after time.

    valkey-io/valkey#4299: a node of the stream keeps its memory while one of its entries lives.
    """
    stream, sizes = make(), []
    for _ in range(3):
        for number in range(500):
            await stream.append(one(number) * 8, 1)
        entries = await stream.read(max_entries=500, wait_s=1)
        await stream.ack(entries[::2])
        await stream.ack(entries[1::2])
        sizes.append(await server.memory_usage(stream_key))
    assert await server.xlen(stream_key) == 0
    assert max(sizes) < 10_000
    assert sizes[-1] <= sizes[0] + 500


@pytest.mark.parametrize(("events", "most"), [(25, 1.6), (250, 1.3)])
async def test_packs_cost_little_more_memory_than_their_bytes(make, server, stream_key, events, most):
    """Packed, an event takes little more of the server's memory than its own bytes (redis/redis#11885)."""
    stream = make()
    payload = pack([encode_event(numbered(number)) for number in range(events)])
    for _ in range(400):
        await stream.append(payload, events)
    used = await server.memory_usage(stream_key, samples=0)
    assert used / (400 * len(payload)) < most


async def test_the_live_stream_is_never_trimmed(make):
    """Past its length the stream refuses; not one unread entry is removed.

    redis/redis#14656, fazer-ai/chatwoot#572: trimming that deleted nothing, or what nobody had read.
    """
    taken: list[int] = []
    with pytest.raises(BufferFull, match="entries"):
        await append_until_full(make(max_entries=5), taken)
    assert await drained_numbers(make()) == taken == list(range(5))


async def test_a_stream_of_too_many_bytes_refuses(make):
    """The stream's size in memory is bounded as its length is."""
    taken: list[int] = []
    with pytest.raises(BufferFull, match="bytes"):
        await append_until_full(make(max_bytes=10_000), taken)
    assert await drained_numbers(make()) == taken


async def test_a_group_that_is_lost_is_made_again(make, server, stream_key):
    """After the key is deleted or the group destroyed, reading goes on, and nothing that was added is skipped."""
    stream = make()
    assert list(await stream.read(max_entries=1, wait_s=0)) == []
    await server.delete(stream_key)
    assert list(await stream.read(max_entries=1, wait_s=0.01)) == []
    await stream.append(one(0), 1)
    await server.xgroup_destroy(stream_key, "flushers")
    deadline = time.monotonic() + 5
    while not (entries := await stream.read(max_entries=1, wait_s=0.2)):
        assert time.monotonic() < deadline
    assert len(entries) == 1
    await server.xgroup_destroy(stream_key, "flushers")
    assert list(await stream.reclaim(min_idle_s=0, max_entries=1)) == []


async def test_a_group_that_is_lost_all_the_time_makes_no_hot_loop(make, server, stream_key):
    """Each read that finds its group gone again waits longer than the one before."""
    stream = make()
    began, turns = time.monotonic(), 0
    while time.monotonic() - began < 0.6:
        await stream.read(max_entries=1, wait_s=0.01)
        await server.delete(stream_key)
        await stream.read(max_entries=1, wait_s=5)
        turns += 1
    assert turns <= 5


async def test_a_waiting_reader_survives_the_loss_of_its_key(make, server, stream_key):
    """A reader that blocks while the key is deleted returns, and reads what comes after."""
    stream = make()
    await stream.read(max_entries=1, wait_s=0)
    reading = asyncio.create_task(stream.read(max_entries=1, wait_s=3))
    await asyncio.sleep(0.05)
    await server.delete(stream_key)
    await asyncio.wait_for(reading, 5)
    await stream.append(one(0), 1)
    assert await drained_numbers(stream) == [0]


async def test_pending_entries_of_a_dead_reader_are_taken_over(make):
    """What a reader that was never closed left pending is claimed, with the server's own delivery count.

    taskiq-redis#130: a broker that never looked at the pending list.
    """
    dead, living = make(), make()
    for number in range(3):
        await dead.append(one(number), 1)
    read = await dead.read(max_entries=10, wait_s=0)
    first = await living.reclaim(min_idle_s=0, max_entries=2)
    rest = await living.reclaim(min_idle_s=0, max_entries=10)
    assert [entry.delivery_count for entry in first] == [2, 2]
    assert {entry.entry_id for entry in [*first, *rest]} == {entry.entry_id for entry in read}


async def test_two_readers_claim_an_entry_once(make):
    """Of two that claim at the same time one gets an entry; for the other it is not idle."""
    dead, first, second = make(), make(), make()
    for number in range(20):
        await dead.append(one(number), 1)
    await dead.read(max_entries=20, wait_s=0)
    ids: list[str] = []
    deadline = time.monotonic() + 5
    while len(ids) < 20 and time.monotonic() < deadline:
        both = await asyncio.gather(*(some.reclaim(min_idle_s=0.25, max_entries=20) for some in (first, second)))
        ids += [entry.entry_id for entries in both for entry in entries]
    assert len(ids) == len(set(ids)) == 20


async def test_pending_entries_that_somebody_trimmed_are_counted(make, server, stream_key):
    """Entries deleted by somebody else while pending have no data left: they are counted, and claimed no more.

    fazer-ai/chatwoot#572: entries cut off without a trace.
    """
    stream = make()
    for number in range(3):
        await stream.append(one(number), 1)
    await stream.read(max_entries=10, wait_s=0)
    await server.xtrim(stream_key, maxlen=1, approximate=False)
    assert len(await stream.reclaim(min_idle_s=0, max_entries=10)) == 1
    backlog = await stream.backlog()
    assert (backlog["trimmed"], backlog["pending"]) == (2, 1)


async def test_a_consumer_is_deleted_only_when_nothing_is_pending(make, server, stream_key):
    """Closing removes the consumer's name from the group, unless that would throw pending entries away.

    ThreeDotsLabs/watermill-redisstream#24, redis/redis#11567: a deleted consumer takes its pending entries along.
    """
    idle, holding = make(consumer_name="idle"), make(consumer_name="holding")
    await idle.append(one(0), 1)
    await holding.read(max_entries=1, wait_s=0)
    await idle.read(max_entries=1, wait_s=0)
    await idle.aclose()
    await holding.aclose()
    consumers = await server.xinfo_consumers(stream_key, "flushers")
    assert [(consumer["name"], consumer["pending"]) for consumer in consumers] == [(b"holding", 1)]


async def test_cancelled_commands_give_no_reply_to_the_next(make):
    """A storm of cancelled commands leaves no reply behind for the next caller, and no connection too many.

    redis/redis-py#2624, Koed00/django-q#722: a reply that was left behind went to the next caller.
    """
    stream = make()
    for number in range(200):
        task = asyncio.create_task(stream.append(one(number), 1))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert 0 <= (await stream.backlog())["entries"] <= number + 1
    numbers = await drained_numbers(stream)
    assert len(set(numbers)) == len(numbers)
    assert len(stream._client.connection_pool._available_connections) <= 3


async def test_cancelled_pipelines_leak_no_connection(make, server, stream_key):
    """What sends several commands at once can be cancelled at each of its awaits: the connections stay few.

    redis/redis-py#4121, #4122: a pipeline that was cancelled while it was reset kept its connection for ever.
    """
    stream = make()
    for number in range(20):
        await stream.append(one(number), 1)
    entries = await stream.read(max_entries=5, wait_s=0)
    works = (
        stream.backlog,
        lambda: stream.ack(entries),
        lambda: stream.reclaim(min_idle_s=0, max_entries=3),
        lambda: stream.replay(()),
    )
    for number in range(240):
        task = asyncio.create_task(works[number % 4]())
        for _ in range(number // 4 % 24):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert (await stream.backlog())["dead_letters"] == 0
    assert len(stream._client.connection_pool._in_use_connections) == 0
    assert len(stream._client.connection_pool._available_connections) <= 3
    assert await server.xlen(stream_key) in (15, 20)


async def test_a_read_may_wait_for_longer_than_a_reply(make):
    """A blocking read has its own connection and time: waiting is no error. redis/redis-py#3138, #2807."""
    stream = make(timeout_s=0.2)
    assert await stream.read(max_entries=1, wait_s=0.7) == []
    await stream.append(one(0), 1)
    assert len(await stream.read(max_entries=1, wait_s=0.7)) == 1


async def test_time_outs_that_are_too_short_are_errors_of_ours_and_nothing_worse(make):
    """A stream that mostly gives up says so each time, and takes what it took once. redis/redis-py#3748."""
    hasty, calm = make(timeout_s=0.0006), make()
    accepted = set()
    for number in range(300):
        try:
            await hasty.append(one(number), 1)
        except BackendUnavailable:
            continue
        accepted.add(number)
    numbers = await drained_numbers(calm)
    assert accepted <= set(numbers)
    assert len(set(numbers)) == len(numbers)


BOTH = ("valkey", "newest redis")
WORKS = {
    "append": lambda stream, entry: stream.append(one(9), 1),
    "read": lambda stream, entry: stream.read(max_entries=1, wait_s=0.5),
    "reclaim": lambda stream, entry: stream.reclaim(min_idle_s=0, max_entries=9),
    "ack": lambda stream, entry: stream.ack([entry]),
    "dead_letter": lambda stream, entry: stream.dead_letter(entry, entry.payload, "why"),
    "replay": lambda stream, entry: stream.replay(),
    "backlog": lambda stream, entry: stream.backlog(),
    "oldest": lambda stream, entry: stream.oldest(),
}


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("binary", [valkey_binary(), pytest.param(NEWEST, marks=pytest.mark.newest_redis)], ids=BOTH)
async def test_every_call_outlives_a_server_that_dies_under_it(tmp_path, binary, name):
    """Killed between a command and its reply: an error that can be tried again, and then the call works.

    python-arq/arq#435, keephq/keep#4155: workers that died or hung when Redis was restarted.
    """
    server = RedisServer(str(binary), tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    stream = RedisStream(server.url, stream_key="k", consumer_group="g")
    try:
        await stream.append(one(0), 1)
        [entry] = await stream.read(max_entries=1, wait_s=0)
        server.process.send_signal(signal.SIGSTOP)
        task = asyncio.create_task(WORKS[name](stream, entry))
        for _ in range(50):
            await asyncio.sleep(0)
        server.kill()
        with pytest.raises(BackendUnavailable):
            await task
        server.start()
        await append_when_ready(stream)
        await WORKS[name](stream, entry)
    finally:
        await stream.aclose()
        server.kill()


async def test_a_server_that_may_lose_events_is_warned_of(tmp_path, caplog):
    """Eviction and missing persistence are named, by `risks` and once in the log by the first append.

    jaseci-labs/jac#7696: an eviction policy that took whole streams.
    """
    diagnostics.reset()
    options = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru", "--save", ""]
    server = RedisServer(valkey_binary(), tmp_path / "server", *options)
    server.start()
    stream = RedisStream(server.url, stream_key="k", consumer_group="g")
    try:
        await stream.append(one(0), 1)
        assert [risk.split()[0] for risk in await stream.risks()] == ["maxmemory-policy", "AOF"]
    finally:
        await stream.aclose()
        server.kill()
    assert ["allkeys-lru" in caplog.text, "AOF is off" in caplog.text] == [True, True]


@pytest.mark.parametrize("policy", ["volatile-lru", "noeviction"])
async def test_a_policy_that_spares_keys_without_an_expiry_is_no_risk(tmp_path, policy):
    """Our keys never expire: such a server, when it is full, refuses what is written, and the spool takes it."""
    options = ["--maxmemory", "50mb", "--maxmemory-policy", policy, "--save", "", "--appendonly", "yes"]
    server = RedisServer(valkey_binary(), tmp_path / "server", *options)
    server.start()
    stream = RedisStream(server.url, stream_key="k", consumer_group="g")
    try:
        await stream.append(one(0), 1)
        [entry] = await stream.read(max_entries=1, wait_s=1)
        await stream.dead_letter(entry, entry.payload, "why")
        assert await stream.risks() == []
        assert [await stream._client.execute_command("TTL", key) for key in ("k", "k:dead")] == [-1, -1]
    finally:
        await stream.aclose()
        server.kill()


@pytest.mark.parametrize("option", ["decode_responses=True", "protocol=3", "encoding=utf-16", "socket_keepalive=yes"])
async def test_an_option_that_says_how_replies_are_read_changes_nothing(redis_url, stream_key, option):
    """An address that an application shares with its own client works: every command is answered and understood."""
    stream = RedisStream(f"{redis_url}?{option}", stream_key=stream_key, consumer_group="g")
    try:
        payload = one(7)
        await stream.append(payload, 1)
        [entry] = await stream.read(max_entries=1, wait_s=1)
        [again] = await stream.reclaim(min_idle_s=0, max_entries=1)
        assert (entry.payload, again.delivery_count) == (payload, 2)
        await stream.risks()
        await stream.ack([again])
        assert (await stream.backlog())["entries"] == 0
    finally:
        await stream.aclose()


async def test_a_foreign_consumer_group_is_named(make, server, stream_key):
    """Another group on our stream is somebody's mistake: what ours acknowledged is deleted under it.

    PrefectHQ/prefect#18606: a group that nobody reads any more pinned the whole stream.
    """
    stream = make()
    await stream.read(max_entries=1, wait_s=0)
    assert not [risk for risk in await stream.risks() if "group" in risk]
    await server.xgroup_create(stream_key, "reports")
    expected = "consumer group reports is not ours: entries are deleted without it"
    assert expected in await stream.risks()


async def test_a_frozen_server_is_given_up_in_time(tmp_path):
    """An append to a server that does not reply fails within the time-out, once, without retries."""
    server = RedisServer(valkey_binary(), tmp_path / "server", "--save", "")
    server.start()
    stream = RedisStream(server.url, stream_key="k", consumer_group="g")
    try:
        await stream.append(one(0), 1)
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await stream.append(one(1), 1)
        assert 0.3 < time.monotonic() - began < 1.5
    finally:
        server.process.send_signal(signal.SIGCONT)
        await stream.aclose()
        server.kill()


async def test_a_read_survives_a_restart_of_the_server(tmp_path):
    """Killing the server while a reader waits is an error of ours; after its restart the next read works."""
    server = RedisServer(valkey_binary(), tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    stream = RedisStream(server.url, stream_key="k", consumer_group="g")
    try:
        await stream.append(one(0), 1)
        await stream.read(max_entries=1, wait_s=0)
        reading = asyncio.create_task(stream.read(max_entries=1, wait_s=3))
        await asyncio.sleep(0.05)
        server.kill()
        with pytest.raises(BackendUnavailable):
            await reading
        server.start()
        await append_when_ready(stream)
        assert len(await stream.read(max_entries=10, wait_s=1)) == 1
        assert len(await stream.reclaim(min_idle_s=0, max_entries=10)) == 2
    finally:
        await stream.aclose()
        server.kill()


async def append_when_ready(stream: RedisStream) -> None:
    """Append one entry as soon as the server has loaded its data."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return await stream.append(one(1), 1)
        except BackendUnavailable:
            assert time.monotonic() < deadline


async def test_nothing_is_said_of_passwords():
    """Neither the message nor the cause of an error shows the credentials of the address."""
    secret = uuid.uuid4().hex
    stream = RedisStream(f"redis://ann:{secret}@127.0.0.1:{free_port()}/0", stream_key="k", consumer_group="g")
    with pytest.raises(BackendUnavailable) as caught:
        await stream.append(one(0), 1)
    assert secret not in f"{caught.value} {caught.value.__cause__} {caught.value!r}"
    assert "127.0.0.1" in str(caught.value)
    await stream.aclose()


async def test_a_user_with_the_least_rights_can_produce(make, server, stream_key):
    """Two commands on our own keys are enough to produce; figures that the user may not see are left out."""
    await server.execute_command(
        "ACL", "SETUSER", "producer", "reset", "on", ">pw", f"~{stream_key}*", "+xadd", "+xlen"
    )
    host = server.connection_pool.connection_kwargs
    await make(url=f"redis://producer:pw@{host['host']}:{host['port']}/0").append(one(0), 1)
    assert await drained_numbers(make()) == [0]


async def test_a_wrong_password_is_unavailable(make, server):
    """A refused login is an error that can be retried when the setting is mended."""
    host = server.connection_pool.connection_kwargs
    with pytest.raises(BackendUnavailable, match="Auth"):
        await make(url=f"redis://nobody:pw@{host['host']}:{host['port']}/0").append(one(0), 1)


async def test_a_key_of_another_kind_is_unavailable(make, server, stream_key):
    """Where the key holds something else nothing is overwritten, and the error says so."""
    await server.set(stream_key, "mine")
    with pytest.raises(BackendUnavailable, match="WRONGTYPE"):
        await make().append(one(0), 1)
    assert await server.get(stream_key) == b"mine"


async def test_a_foreign_entry_is_handed_out_empty(make, server, stream_key):
    """An entry that somebody else added without a payload comes with an empty one, for the dead letters."""
    stream = make()
    await stream.read(max_entries=1, wait_s=0)
    await server.xadd(stream_key, {"hello": "world"})
    [entry] = await stream.read(max_entries=1, wait_s=1)
    assert entry.payload == b""


async def test_only_own_keys_are_used(make, server, stream_key):
    """Nothing but the stream's key and its dead letters' is written."""
    before = set(await server.keys("*"))
    stream = make()
    await stream.append(one(0), 1)
    [entry] = await stream.read(max_entries=1, wait_s=1)
    await stream.dead_letter(entry, entry.payload, "why")
    assert set(await server.keys("*")) - before == {stream_key.encode(), f"{stream_key}:dead".encode()}


async def test_nothing_of_ours_expires(make, server, stream_key):
    """What is counted is in the store, and no key runs out before it is there (BerriAI/litellm#34238)."""
    stream = make()
    await stream.append(one(0), 1)
    [entry] = await stream.read(max_entries=1, wait_s=1)
    await stream.dead_letter(entry, entry.payload, "why")
    assert [await server.ttl(key) for key in (stream_key, f"{stream_key}:dead")] == [-1, -1]
