"""Which commands claim and acknowledge on which server, what follows a refusal, and servers that are replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.buffers import drained_numbers, numbers_in, until
from tests.flushing import append_numbered, make_flusher, stored_numbers
from tests.newest_redis import BINARY as NEWEST
from tests.redis.test_redis_stream import one
from tests.servers import DEBIAN_REDIS, SERVERS, RedisServer, valkey_binary

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

ON_THE_NEWEST = pytest.mark.parametrize(
    "server", [pytest.param("newest redis", marks=pytest.mark.newest_redis)], indirect=True
)
OLDER = [
    pytest.param(valkey_binary(), id="valkey"),
    *([pytest.param(DEBIAN_REDIS, id="redis")] if DEBIAN_REDIS.exists() else []),
]


@pytest.fixture(params=SERVERS)
def server(request, redis_servers):
    """Every server that there is."""
    return redis_servers[request.param]


@pytest.fixture
async def client(server):
    """A client of the test's own, on a server whose figures begin at nothing."""
    client = Redis.from_url(server.url, protocol=2)
    client.response_callbacks.clear()
    await client.execute_command("CONFIG", "RESETSTAT")
    yield client
    await client.aclose()


@pytest.fixture
async def make(server, stream_key):
    """Make clients of one stream."""
    made = []

    def make_stream(url=server.url, **options) -> RedisStream:
        made.append(RedisStream(url, stream_key=stream_key, consumer_group="g", **options))
        return made[-1]

    yield make_stream
    for stream in made:
        await stream.aclose()


async def calls(client) -> Mapping[str, int]:
    """How often the server has run each command, and not refused it."""
    lines = (await client.execute_command("INFO", "commandstats")).decode().split()
    found = [line.removeprefix("cmdstat_").partition(":calls=") for line in lines if line.startswith("cmdstat_")]
    return {name: int(figures.partition(",")[0]) for name, _, figures in found}


async def refused(client, command) -> int:
    """How often the server has refused a command that it knows."""
    lines = (await client.execute_command("INFO", "commandstats")).decode().split()
    figures = next((line for line in lines if line.startswith(f"cmdstat_{command}:")), "rejected_calls=0")
    return int(figures.partition("rejected_calls=")[2].partition(",")[0])


async def in_hand(stream, count):
    """Append so many entries and have them handed out to the same stream."""
    for number in range(count):
        await stream.append(one(number), 1)
    return await stream.read(max_entries=count, wait_s=1)


async def test_one_command_acknowledges_where_the_server_has_it(client, make, server):
    """`XACKDEL` on the newest server; on every other one it is refused once, and the transaction is taken instead."""
    stream = make()
    entries = await in_hand(stream, 6)
    for start in (0, 2, 4):
        await stream.ack(entries[start : start + 2])
    counted = await calls(client)
    newest = server.binary == str(NEWEST)
    assert counted.get("xackdel", 0) == (3 if newest else 0)
    assert [counted.get(name, 0) for name in ("xack", "xdel", "exec")] == ([0, 0, 0] if newest else [3, 3, 3])
    assert (await stream.backlog())["entries"] == (await stream.backlog())["pending"] == 0


async def test_an_acknowledged_entry_is_deleted_though_its_group_was_lost(client, make, stream_key):
    """A group that is made again hands out from the beginning, but not what was stored and acknowledged since."""
    stream = make()
    entries = await in_hand(stream, 3)
    await client.execute_command("XGROUP", "DESTROY", stream_key, "g")
    await client.execute_command("XGROUP", "CREATE", stream_key, "g", "0")
    await stream.ack(entries[:2])
    assert await drained_numbers(stream) == [2]


async def test_another_groups_list_is_left_alone(client, make, stream_key):
    """What a foreign group has pending stays in its list, as it does when an entry is deleted."""
    stream = make()
    await client.execute_command("XGROUP", "CREATE", stream_key, "other", "0", "MKSTREAM")
    entries = await in_hand(stream, 2)
    await client.execute_command("XREADGROUP", "GROUP", "other", "c", "STREAMS", stream_key, ">")
    await stream.ack(entries)
    assert (await client.execute_command("XPENDING", stream_key, "other"))[0] == 2
    assert await client.execute_command("XLEN", stream_key) == 0


async def test_claiming_asks_once_for_all_delivery_counts(client, make, stream_key):
    """A hundred entries are claimed, each with its own count, by two commands in one transaction."""
    dead, living = make(), make()
    entries = await in_hand(dead, 100)
    often = [entry.entry_id for entry in entries[::3]]
    await client.execute_command("XCLAIM", stream_key, "g", "c", 0, *often, "RETRYCOUNT", 7, "JUSTID")
    await client.execute_command("CONFIG", "RESETSTAT")
    claimed = await living.reclaim(min_idle_s=0, max_entries=100)
    assert [entry.delivery_count for entry in claimed] == [8 if number % 3 == 0 else 2 for number in range(100)]
    assert [number for entry in claimed for number in numbers_in(entry.payload)] == list(range(100))
    counted = await calls(client)
    assert [counted.get(name, 0) for name in ("xpending", "xautoclaim", "exec")] == [1, 1, 1]


async def test_counts_are_right_far_down_the_list(client, make, stream_key):
    """What can be claimed lies behind more pending entries than one command scans, some of them deleted."""
    dead, living = make(), make()
    entries = await in_hand(dead, 60)
    await client.execute_command("XDEL", stream_key, *(entry.entry_id for entry in entries[5:9]))
    old = [entries[number].entry_id for number in (3, 44, 59)]
    await client.execute_command("XCLAIM", stream_key, "g", "c", 0, *old, "IDLE", 9_000_000, "RETRYCOUNT", 4, "JUSTID")
    found = []
    while some := await living.reclaim(min_idle_s=3600, max_entries=1):
        found += [(entry.entry_id, entry.delivery_count) for entry in some]
    assert sorted(found) == [(entry_id, 5) for entry_id in old]
    assert (await living.backlog())["trimmed"] == 4


@ON_THE_NEWEST
async def test_claim_would_hand_out_what_nobody_was_given_yet(client, make, stream_key):
    """Why `XREADGROUP ... CLAIM` is not what reclaims: past what is idle it fills its count up with new entries."""
    stream = make()
    await in_hand(stream, 1)
    await stream.append(one(1), 1)
    command = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "CLAIM", 0, "STREAMS", stream_key, ">")
    [[_, found]] = await client.execute_command(*command)
    assert [deliveries for _, _, _, deliveries in found] == [1, 0]


@ON_THE_NEWEST
async def test_claim_would_leave_deleted_entries_pending(client, make, stream_key):
    """Why `XREADGROUP ... CLAIM` is not what reclaims: it neither names nor removes what somebody else deleted."""
    stream = make()
    [entry] = await in_hand(stream, 1)
    await client.execute_command("XDEL", stream_key, entry.entry_id)
    command = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "CLAIM", 0, "STREAMS", stream_key, ">")
    assert await client.execute_command(*command) is None
    assert (await stream.backlog())["pending"] == 1
    assert await stream.reclaim(min_idle_s=0, max_entries=2) == []
    backlog = await stream.backlog()
    assert (backlog["pending"], backlog["trimmed"]) == (0, 1)


@ON_THE_NEWEST
async def test_a_user_who_may_not_send_it_is_refused_once(client, make, server, stream_key):
    """The transaction is taken instead, and the refusal is remembered."""
    rights = "+xreadgroup +xgroup +xack +xdel +xautoclaim +xpending +xadd +xlen +multi +exec"
    await client.execute_command("ACL", "SETUSER", "few", "reset", "on", ">pw", f"~{stream_key}", *rights.split())
    stream = make(f"redis://few:pw@127.0.0.1:{server.port}/0")
    for entry in await in_hand(stream, 3):
        await stream.ack([entry])
    counted = await calls(client)
    assert (counted["xack"], await refused(client, "xackdel")) == (3, 1)
    assert await client.execute_command("XLEN", stream_key) == 0


async def test_an_error_that_is_no_refusal_is_no_reason_to_try_otherwise(client, make, stream_key):
    """Where the key holds something else, acknowledging fails; nothing is concluded about the command."""
    stream = make()
    entries = await in_hand(stream, 1)
    await client.execute_command("SET", stream_key, "mine")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="WRONGTYPE"):
            await stream.ack(entries)
    assert await client.execute_command("GET", stream_key) == b"mine"


class RewritingProxy:
    """Stands before a server, and has other words for some of what is said."""

    def __init__(self, port, requests, replies):
        self._target, self._requests, self._replies = port, requests, replies
        self.seen = b""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(
            self._pump(reader, inner_writer, *self._requests), self._pump(inner_reader, writer, *self._replies)
        )

    async def _pump(self, source, sink, said, instead):
        try:
            while data := await source.read(1 << 20):
                self.seen += data
                sink.write(data.replace(said, instead))
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


async def test_a_proxy_that_does_not_know_it_is_asked_once(client, make, server, stream_key):
    """Whatever words an intermediary refuses the command with, the transaction is taken from then on."""
    async with RewritingProxy(
        server.port, (b"XACKDEL", b"XWHAT75"), (b"-ERR unknown command", b"-unsupported command")
    ) as proxy:
        stream = make(proxy.url)
        for entry in await in_hand(stream, 3):
            await stream.ack([entry])
        assert proxy.seen.count(b"XACKDEL") == 1
        assert (await calls(client))["xack"] == 3
        assert await client.execute_command("XLEN", stream_key) == 0
        await stream.aclose()


@pytest.fixture
def replace(tmp_path):
    """Start a server of some program in the place of the one before, with nothing of what that had."""
    started = []

    def start(binary):
        server = RedisServer(str(binary), tmp_path / f"server-{len(started)}", "--save", "")
        if started:
            started[-1].kill()
            server.port, server.url = started[-1].port, started[-1].url
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


async def insisted(operation, *arguments, **keywords):
    """Repeat until the server answers, as the flusher does."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return await operation(*arguments, **keywords)
        except BackendUnavailable:
            assert time.monotonic() < deadline


async def is_empty(stream):
    """Wait until everything is acknowledged."""
    deadline = time.monotonic() + 10
    while (backlog := await insisted(stream.backlog))["entries"] or backlog["pending"]:
        assert time.monotonic() < deadline, backlog
    return True


@pytest.mark.newest_redis
@pytest.mark.parametrize("older", OLDER)
async def test_a_running_flusher_outlives_servers_of_other_versions(replace, tmp_path, stream_key, older):
    """The newest is replaced by an older one and that by the newest, under one address: all is stored and acknowledged.

    The newest one's command is taken again after the connection was lost.
    """
    url = replace(NEWEST).url
    producer, consumer = (RedisStream(url, stream_key=stream_key, consumer_group="g") for _ in range(2))
    store = SQLiteStore(tmp_path / "s.sqlite3")
    flusher = make_flusher([consumer], store)
    running = asyncio.create_task(flusher.run())
    acknowledged_with = []
    for turn, binary in enumerate((NEWEST, older, NEWEST)):
        if turn:
            replace(binary)
        numbers = range(turn * 50, turn * 50 + 50)
        await insisted(producer.backlog)
        await append_numbered(producer, numbers)
        await until(lambda last=numbers[-1]: flusher.statistics().stored == last + 1)
        assert await is_empty(producer)
        client = Redis.from_url(url, protocol=2)
        client.response_callbacks.clear()
        counted = await calls(client)
        acknowledged_with.append([name for name in ("xackdel", "xack") if counted.get(name)])
        await client.aclose()
    flusher.stop()
    await running
    for part in (producer, consumer, store):
        await part.aclose()
    assert acknowledged_with == [["xackdel"], ["xack"], ["xackdel"]]
    assert stored_numbers(tmp_path / "s.sqlite3") == list(range(150))
    assert flusher.statistics().duplicates == 0


@pytest.mark.newest_redis
@pytest.mark.parametrize("older", OLDER)
@pytest.mark.parametrize("becomes_older", [True, False])
async def test_what_is_in_hand_is_acknowledged_by_the_servers_successor(replace, stream_key, older, becomes_older):
    """Handed out by one version and acknowledged to another with the same data: it is gone, and nothing else is."""
    first, second = (NEWEST, older) if becomes_older else (older, NEWEST)
    url = replace(first).url
    stream = RedisStream(url, stream_key=stream_key, consumer_group="g", consumer_name="c")
    entries = await in_hand(stream, 5)
    await stream.ack(entries[:1])
    replace(second)
    client = Redis.from_url(url, protocol=2)
    for entry in entries[1:]:
        await client.xadd(stream_key, {"payload": entry.payload}, id=entry.entry_id)
    await client.xgroup_create(stream_key, "g", "0")
    await client.xreadgroup("g", "c", {stream_key: ">"})
    await client.aclose()
    await insisted(stream.ack, entries[1:3])
    assert [entry.entry_id for entry in await insisted(stream.reclaim, min_idle_s=0, max_entries=9)] == [
        entry.entry_id for entry in entries[3:]
    ]
    backlog = await stream.backlog()
    assert (backlog["entries"], backlog["pending"]) == (2, 2)
    await stream.aclose()
