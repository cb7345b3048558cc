"""The stream behind Sentinels, on a cluster, over TLS and as a user of few rights: real servers, real failovers."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest
import trustme
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from fluxgate_mw import FluxGate, UsageEvent
from fluxgate_mw.buffer.redis_clients import stream_keys
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.errors import BackendUnavailable, ConfigurationError
from fluxgate_mw.runtime import make_buffers, make_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.buffers import drained_numbers, until
from tests.redis.test_redis_stream import one
from tests.servers import SERVICE, RedisServer, free_port, start_sentinel, valkey_binary

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.timeout(120)]


async def call(server, *command):
    """Send one command to a server and return its raw reply."""
    client = Redis.from_url(server.url, protocol=2)
    client.response_callbacks.clear()
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def until_it_says(words, server, *command):
    """Wait until a reply of a server has these words in it."""
    deadline = time.monotonic() + 30
    while words not in await call(server, *command):
        assert time.monotonic() < deadline, f"{command} never said {words}"


async def until_it_has_all(replica, primary):
    """Wait until the replica has what the primary has; `WAIT` answers for its own connection's writes alone."""

    async def offset(server, name):
        said = (await call(server, "INFO", "replication")).decode().split()
        return next(line.partition(":")[2] for line in said if line.startswith(f"{name}:"))

    deadline = time.monotonic() + 30
    while await offset(replica, "slave_repl_offset") != await offset(primary, "master_repl_offset"):
        assert time.monotonic() < deadline, "the replica never had all"


@pytest.fixture
def servers(tmp_path):
    """Start servers of the test's own; all are killed at its end."""
    started = []

    def start(*options):
        server = RedisServer(valkey_binary(), tmp_path / f"server-{len(started)}", "--save", "", *map(str, options))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


async def append_again(stream, number, timeout_s=30):
    """Append until it is accepted, as a producer without a spool would."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await stream.append(one(number), 1)
        except BackendUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_a_failover_is_followed(servers, tmp_path, stream_key):
    """Sentinels promote the replica of a killed primary: producer and consumer go there, and nothing is lost."""
    primary = servers()
    replica = servers("--replicaof", "127.0.0.1", primary.port)
    sentinel = start_sentinel(primary, tmp_path)
    dead_seed = free_port()
    url = f"redis+sentinel://127.0.0.1:{dead_seed},127.0.0.1:{sentinel.port}/{SERVICE}/0"
    producer, consumer = (RedisStream(url, stream_key=stream_key, consumer_group="g") for _ in range(2))
    try:
        for number in range(5):
            await append_again(producer, number)
        first = await consumer.read(max_entries=2, wait_s=1)
        await until_it_says(b"state=online", primary, "INFO", "replication")
        await until_it_says(b"slaves=1", sentinel, "INFO", "sentinel")
        await until_it_has_all(replica, primary)
        primary.kill()
        await append_again(producer, 5)
        assert b"role:master" in await call(replica, "INFO", "replication")
        assert await answers(consumer)
        await consumer.ack(first)
        assert await drained_numbers(consumer) == [2, 3, 4, 5]
    finally:
        await producer.aclose()
        await consumer.aclose()
        sentinel.kill()


async def answers(stream):
    """Wait until the stream answers after its server has changed."""
    deadline = time.monotonic() + 20
    while True:
        try:
            await stream.backlog()
        except BackendUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        else:
            return True


async def test_a_service_that_no_sentinel_knows_is_unavailable(servers, tmp_path, stream_key):
    """It is an error that can be tried again, and says nothing of passwords."""
    sentinel = start_sentinel(servers(), tmp_path)
    url = f"redis+sentinel://ann:hunter2@127.0.0.1:{sentinel.port}/other"
    stream = RedisStream(url, stream_key=stream_key, consumer_group="g")
    with pytest.raises(BackendUnavailable) as caught:
        await stream.append(one(0), 1)
    assert "hunter2" not in str(caught.value)
    await stream.aclose()
    sentinel.kill()


async def test_sentinels_and_servers_that_ask_for_logins_of_their_own(servers, tmp_path, stream_key):
    """Each is given its own password; a Sentinel that is given none, or the server's, is unavailable."""
    primary = servers("--requirepass", "servers-own")
    lines = (f"sentinel auth-pass {SERVICE} servers-own", "user default off", "user guard on >sentinels-own +@all")
    sentinel = start_sentinel(primary, tmp_path, *lines)
    service = f"127.0.0.1:{sentinel.port}/{SERVICE}"
    known = f"redis+sentinel://:servers-own@{service}?sentinel_username=guard&sentinel_password=sentinels-own"
    stream = RedisStream(known, stream_key=stream_key, consumer_group="g")
    await append_again(stream, 1)
    assert await drained_numbers(stream) == [1]
    await stream.aclose()
    for wrong in (f"redis+sentinel://:servers-own@{service}", known.replace("=sentinels-own", "=servers-own")):
        refused = RedisStream(wrong, stream_key=stream_key, consumer_group="g")
        with pytest.raises(BackendUnavailable) as caught:
            await refused.append(one(0), 1)
        assert "-own" not in str(caught.value)
        await refused.aclose()
    sentinel.kill()


@pytest.fixture
async def cluster(servers):
    """Three nodes that share the slots."""
    ports = [free_port() for _ in range(3)]
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", 1000, "--cluster-port")
    nodes = [servers(*options, port) for port in ports]
    for number, node in enumerate(nodes):
        first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
        await call(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
        await call(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        await call(node, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port, ports[0])
    for node in nodes:
        await until_it_says(b"cluster_state:ok", node, "CLUSTER", "INFO")
    return nodes


def cluster_url(nodes):
    """The address of a cluster, with a dead node first."""
    return f"redis+cluster://127.0.0.1:{free_port()}," + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def test_the_streams_of_a_cluster_are_spread():
    """Eight keys, each with its dead letters in one slot, on every third of the slots."""
    keys = stream_keys("redis+cluster://a:1", "fluxgate:events")
    slots = [key_slot(key.encode()) for key in keys]
    assert [key_slot(f"{key}:dead".encode()) for key in keys] == slots
    assert {slot * 3 // 16384 for slot in slots} == {0, 1, 2}
    assert stream_keys("redis://a:1", "k") == ("k",)


async def test_every_stream_of_a_cluster_is_used_and_read(cluster, tmp_path):
    """What many processes spread over the streams is stored once, by one flusher that reads each where it is."""
    settings = Settings.load({"redis_url": cluster_url(cluster), "data_dir": tmp_path})
    buffers, store = make_buffers(settings), SQLiteStore(tmp_path / "s.sqlite3")
    assert [buffer.name for buffer in buffers] == ["redis"] * 8 + ["spool"]
    for number, stream in enumerate(buffers[:8]):
        await stream.append(one(number), 1)
    flusher = make_flusher(settings, store, buffers)
    await flusher.run_once(wait=True)
    assert (flusher.statistics().stored, await store.count()) == (8, 8)
    letter = await buffers[0].oldest()
    assert letter is None
    for buffer in buffers:
        await buffer.aclose()
    await store.aclose()


async def test_events_reach_a_cluster_through_the_public_api(cluster, tmp_path):
    """The emitter takes one of the streams, and the background flusher finds it."""
    settings = {"redis_url": cluster_url(cluster), "data_dir": tmp_path, "instrument": False}
    async with FluxGate(**settings, flusher="background") as fg:
        for _ in range(20):
            fg.record(UsageEvent())
        assert await fg.aflush(5)
        assert fg.statistics().sent == 20
        await until(lambda: fg.statistics().flusher is not None and fg.statistics().flusher.stored == 20)


async def test_a_slot_that_moves_is_followed(cluster):
    """A stream that was moved to another node with its group is found there; nothing is lost or doubled."""
    stream_key = stream_keys("redis+cluster://", "events")[0]
    stream = RedisStream(cluster_url(cluster), stream_key=stream_key, consumer_group="g")
    try:
        for number in range(3):
            await stream.append(one(number), 1)
        await stream.ack(await stream.read(max_entries=1, wait_s=1))
        await move(cluster, stream_key)
        assert await answers(stream)
        await stream.append(one(3), 1)
        assert await drained_numbers(stream) == [1, 2, 3]
    finally:
        await stream.aclose()


async def test_a_slot_on_its_way_delays_and_loses_nothing(cluster, tmp_path):
    """While a stream has moved and its slot has not (`ASK`), events are spooled; afterwards all are stored once."""
    url = cluster_url(cluster)
    settings = Settings.load({"redis_url": url, "data_dir": tmp_path})
    async with FluxGate(redis_url=url, data_dir=tmp_path, instrument=False) as fg:
        fg.record(UsageEvent())
        assert await fg.aflush(5)
        [stream_key] = [key for key in stream_keys(url, settings.stream_key) if await holds(cluster, key)]
        end = await begin_move(cluster, stream_key)
        stream = RedisStream(url, stream_key=stream_key, consumer_group="g")
        with pytest.raises(BackendUnavailable, match="AskError"):
            await stream.append(one(0), 1)
        await stream.aclose()
        for _ in range(9):
            fg.record(UsageEvent())
        assert await fg.aflush(5)
        assert fg.statistics().spooled == 9
        await end()
        await until(lambda: fg.statistics().returned == 9, 30)
    buffers, store = make_buffers(settings), SQLiteStore(tmp_path / "s.sqlite3")
    await make_flusher(settings, store, buffers).run_once(wait=True)
    assert await store.count() == 10
    for part in (*buffers, store):
        await part.aclose()


async def holds(nodes, key):
    """Whether one of the nodes has the key."""
    for node in nodes:
        try:
            if await call(node, "EXISTS", key):
                return True
        except RedisError:
            continue
    return False


async def move(nodes, key):
    """Move the slot of a key to another node, as a resharding does."""
    end = await begin_move(nodes, key)
    await end()


async def begin_move(nodes, key):
    """Move a key to another node, and return what moves its slot after it."""
    slot = key_slot(key.encode())
    owner = nodes[slot * 3 // 16384]
    target = next(node for node in nodes if node is not owner)
    ids = {node: await call(node, "CLUSTER", "MYID") for node in nodes}
    await call(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
    await call(owner, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    await call(owner, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    async def end():
        for node in (target, owner, *nodes):
            await call(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    return end


class TLSProxy:
    """Ends TLS before a server whose build has none."""

    def __init__(self, target, certificate):
        self.target, self.port = target, 0
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._context)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))

    @staticmethod
    async def _pump(source, sink):
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            sink.close()


async def test_tls_with_a_verified_certificate(redis_server, tmp_path, stream_key):
    """`rediss://` delivers to a server whose certificate the named authority signed, and to no other."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with TLSProxy(redis_server.port, authority.issue_cert("127.0.0.1")) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        trusting = RedisStream(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}", stream_key=stream_key, consumer_group="g")
        wary = RedisStream(url, stream_key=stream_key, consumer_group="g")
        await trusting.append(one(0), 1)
        with pytest.raises(BackendUnavailable):
            await wary.append(one(1), 1)
        assert await drained_numbers(trusting) == [0]
        await trusting.aclose()
        await wary.aclose()


async def test_a_user_of_few_rights_can_flush(redis_server, stream_key):
    """These commands on our own keys are all that a flusher needs."""
    rights = "+xreadgroup +xgroup +xack +xdel +xautoclaim +xpending +xadd +xlen +xrange +multi +exec +memory|usage"
    user = f"u{stream_key.rpartition(':')[2]}"
    await call(redis_server, "ACL", "SETUSER", user, "reset", "on", ">pw", f"~{stream_key}*", *rights.split())
    url = f"redis://{user}:pw@127.0.0.1:{redis_server.port}/0"
    stream = RedisStream(url, stream_key=stream_key, consumer_group="g")
    for number in range(3):
        await stream.append(one(number), 1)
    [entry] = await stream.read(max_entries=1, wait_s=0.1)
    await stream.dead_letter(entry, entry.payload, "why")
    [again] = await stream.reclaim(min_idle_s=0, max_entries=1)
    await stream.ack([again])
    assert await stream.replay() == 1
    assert await drained_numbers(stream) == [1, 2, 0]
    assert (await stream.backlog())["entries"] == 0
    await stream.aclose()


@pytest.mark.parametrize(
    "url", ["redis+sentinel://a:26379", "redis+sentinel://a:26379/", "redis+cluster://a:x,b:7000", "redis+ring://a:1"]
)
def test_addresses_that_cannot_be_meant_are_refused(url):
    """At the start, with what is allowed."""
    with pytest.raises(ConfigurationError, match="redis_url"):
        Settings.load({"redis_url": url})
