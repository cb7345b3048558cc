"""The whole way under faults: an emitter, a real server, the real `fluxgate flush`, the store; then the accounts.

The law in every test: emitted == stored + dropped + dead-lettered + what a server that forgot had in it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import anyio
import pytest
import redis

from fluxgate_mw import FluxGate
from fluxgate_mw.buffer.memory import MemoryBuffer, MemoryStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.buffers import assert_conserved, numbered, numbers_in, wait_until
from tests.faults.test_emitter_faults import NOT_FELT_NS, CuttingProxy
from tests.faults.test_emitter_faults import start as start_program
from tests.flushing import append_numbered, make_flusher, stored_numbers
from tests.servers import SERVICE, RedisServer, start_sentinel, valkey_binary

pytestmark = [pytest.mark.faults, pytest.mark.redis, pytest.mark.timeout(120)]

STREAM = "fluxgate:events"
KEEPS_ITS_DATA = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
FORGETS = ("--save", "")
FROZEN_S = 30


class Delivery:
    """One folder, one server, and the commands that work on them."""

    def __init__(self, folder):
        self.folder, self.store = folder, folder / "fluxgate.sqlite3"
        self.started = []

    def server(self, *options, name="server"):
        """Start a server."""
        server = RedisServer(valkey_binary(), self.folder / name, *map(str, options))
        server.start()
        self.started.append(server)
        return server

    def emitting(self, url, **settings):
        """Return a `FluxGate` of this process."""
        return FluxGate(redis_url=url, data_dir=self.folder, instrument=False, **settings)

    def start(self, url, *command):
        """Start the real command."""
        environ = os.environ | {"FLUXGATE_DATA_DIR": str(self.folder), "FLUXGATE_REDIS_URL": url}
        environ["FLUXGATE_CLAIM_MIN_IDLE_S"] = "1"
        arguments = [sys.executable, "-m", "fluxgate_mw.cli", *command]
        process = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started.append(process)
        return process

    def flush_all(self, url):
        """Flush until everything is empty."""
        process = self.start(url, "flush", "--once")
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said

    def stored(self):
        """The numbers in the store, at rest."""
        return stored_numbers(self.store)

    def has(self, numbers):
        """Whether these numbers are in the store by now."""
        try:
            with closing(sqlite3.connect(self.store)) as connection:
                rows = connection.execute("SELECT json_extract(metadata, '$.number') FROM events").fetchall()
        except sqlite3.OperationalError:
            return False
        return set(numbers) <= {number for (number,) in rows}

    def lock_store(self):
        """Hold the store's lock until the connection is closed."""
        connection = sqlite3.connect(self.store, timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def end(self):
        """Kill what was started."""
        for one in self.started:
            process = one.process if isinstance(one, RedisServer) else one
            if process is not None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.communicate()


@pytest.fixture
def delivery(tmp_path):
    delivery = Delivery(tmp_path)
    yield delivery
    delivery.end()


def emit(fg, numbers):
    for number in numbers:
        fg.record(numbered(number))


def in_server(server):
    """The numbers of the events in the stream now."""
    with closing(redis.Redis.from_url(server.url, protocol=2)) as client:
        return [number for _, fields in client.xrange(STREAM) for number in numbers_in(fields[b"payload"])]


def say(server, *command):
    with closing(redis.Redis.from_url(server.url, protocol=2)) as client:
        return client.execute_command(*command)


def is_primary(server):
    """Whether it says so; while it changes its role it turns clients away."""
    try:
        return say(server, "INFO", "replication")["role"] == "master"
    except redis.ConnectionError:
        return False


def is_closed(fg):
    return fg.statistics().breaker == "closed"


def killed_without_aof(delivery):
    """Kill the server and start it again with nothing in it."""
    server = delivery.server(*FORGETS)

    def forget():
        server.kill()
        server.start()

    return server.url, server, forget


def flushed(delivery):
    """Somebody empties the server."""
    server = delivery.server(*KEEPS_ITS_DATA)
    return server.url, server, lambda: say(server, "FLUSHALL")


def failed_over_to_an_empty_replica(delivery):
    """Sentinels promote a replica that has nothing."""
    primary = delivery.server(*FORGETS, name="primary")
    replica = delivery.server(*FORGETS, "--replicaof", "127.0.0.1", primary.port, "--replica-read-only", "no", name="r")
    sentinel = start_sentinel(primary, delivery.folder)
    delivery.started.append(sentinel)

    def forget():
        wait_until(lambda: say(sentinel, "INFO", "sentinel")["master0"]["slaves"] == 1, 30)
        say(replica, "FLUSHALL")
        primary.kill()
        wait_until(lambda: is_primary(replica), 30)

    return f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}", primary, forget


@pytest.mark.parametrize("forgetful", [killed_without_aof, flushed, failed_over_to_an_empty_replica])
def test_a_server_that_forgets_costs_what_was_in_it_and_nothing_else(delivery, forgetful):
    """The group is made again at the beginning by the very flusher that had it; all that came after is stored.

    ag2ai/faststream#2611, flightctl/flightctl#2227: readers that failed for ever once their group was gone.
    """
    url, server, forget = forgetful(delivery)
    with delivery.emitting(url) as fg:
        emit(fg, range(100))
        assert fg.flush(10)
        flusher = delivery.start(url, "flush")
        wait_until(lambda: delivery.has(range(100)) and not in_server(server), 20)
        flusher.send_signal(signal.SIGSTOP)
        emit(fg, range(100, 200))
        assert fg.flush(10)
        held = set(in_server(server))
        forget()
        emit(fg, range(200, 300))
        assert fg.flush(10)
        wait_until(lambda: is_closed(fg), 30)
        emit(fg, range(300, 400))
        assert fg.flush(10)
        flusher.send_signal(signal.SIGCONT)
        wait_until(lambda: delivery.has(range(200, 400)), 40)
        assert_conserved(fg.statistics(), 400)
    lost = set(range(400)) - set(delivery.stored())
    assert lost <= held
    assert held == set(range(100, 200))
    flusher.terminate()
    assert flusher.wait(30) == 0


def test_a_server_frozen_for_half_a_minute_delays_and_loses_nothing(delivery):
    """`emit` does not wait for it, the flusher does, and everything is stored once after the thaw."""
    server = delivery.server(*KEEPS_ITS_DATA)
    with delivery.emitting(server.url) as fg:
        flusher = delivery.start(server.url, "flush")
        emit(fg, range(100))
        assert fg.flush(10)
        server.process.send_signal(signal.SIGSTOP)
        thaw_at, number, took_ns = time.monotonic() + FROZEN_S, 100, []
        while time.monotonic() < thaw_at:
            began = time.perf_counter_ns()
            fg.record(numbered(number))
            took_ns.append(time.perf_counter_ns() - began)
            number += 1
            time.sleep(0.002)
        server.process.send_signal(signal.SIGCONT)
        assert sorted(took_ns)[len(took_ns) * 99 // 100] < NOT_FELT_NS
        assert fg.flush(20)
        assert_conserved(fg.statistics(), number)
        wait_until(lambda: delivery.has(range(number)), 40)
    flusher.terminate()
    assert flusher.wait(30) == 0


def test_a_server_out_of_memory_is_drained_while_the_spool_takes_over(delivery):
    """The flusher empties a full server, the spooled events follow, and each is stored once."""
    server = delivery.server(*FORGETS, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with delivery.emitting(server.url) as fg:
        emit(fg, range(20_000))
        assert fg.flush(20)
        statistics = fg.statistics()
        assert statistics.sent > 0
        assert statistics.spooled > 0
        assert_conserved(statistics, 20_000)
    delivery.flush_all(server.url)
    assert delivery.stored() == list(range(20_000))


def test_an_entry_whose_reply_was_cut_off_is_stored_once(delivery):
    """The stream has the pack and the spool has it too: two deliveries, one row each.

    redis/redis#14615: a retried XADD doubles; here the event's id makes it one.
    """
    server = delivery.server(*KEEPS_ITS_DATA)
    proxy = CuttingProxy(server.port)
    with delivery.emitting(f"redis://127.0.0.1:{proxy.port}/0") as fg:
        emit(fg, range(10))
        assert fg.flush(10)
        proxy.swallow = True
        emit(fg, range(10, 20))
        assert fg.flush(10)
        assert proxy.cuts > 0
        assert_conserved(fg.statistics(), 20)
    proxy.close()
    assert set(range(10, 20)) <= set(in_server(server))
    delivery.flush_all(server.url)
    assert delivery.stored() == list(range(20))


def test_a_store_down_for_longer_than_its_own_patience_gets_everything(delivery):
    """Locked past SQLite's five seconds, then free: nothing is set aside, and the backlog drains by itself.

    langfuse/langfuse#13468, #6380: rows that were dropped after the last attempt, or never replayed.
    """
    server = delivery.server(*KEEPS_ITS_DATA)
    with delivery.emitting(server.url) as fg:
        flusher = delivery.start(server.url, "flush", "--port", "0")
        emit(fg, range(100))
        assert fg.flush(10)
        wait_until(lambda: delivery.has(range(100)), 20)
        lock = delivery.lock_store()
        unlock_at = time.monotonic() + 7
        for number in range(100, 1100):
            fg.record(numbered(number))
        assert fg.flush(10)
        wait_until(lambda: time.monotonic() > unlock_at, 10)
        assert len(delivery.stored()) == 100
        lock.close()
        wait_until(lambda: delivery.has(range(1100)), 40)
    assert delivery.stored() == list(range(1100))
    assert say(server, "XLEN", f"{STREAM}:dead") == 0
    flusher.terminate()
    assert flusher.wait(30) == 0


@pytest.mark.parametrize("command", [("flush",), ("serve", "--port", "0")])
@pytest.mark.parametrize("server_is", ["frozen", "killed"])
def test_terminated_with_server_and_store_down_our_commands_end_and_lose_nothing(delivery, command, server_is):
    """SIGTERM is obeyed in time whatever is down, and what was in hand is had by the next."""
    server = delivery.server(*KEEPS_ITS_DATA)
    with delivery.emitting(server.url) as fg:
        process = delivery.start(server.url, *command)
        emit(fg, range(50))
        assert fg.flush(10)
        wait_until(lambda: delivery.has(range(50)), 20)
        lock = delivery.lock_store()
        emit(fg, range(50, 100))
        assert fg.flush(10)
        wait_until(lambda: say(server, "XPENDING", STREAM, "fluxgate")["pending"] > 0)
        server.process.send_signal(signal.SIGSTOP) if server_is == "frozen" else server.kill()
        process.terminate()
        assert process.wait(10) == 0
        emit(fg, range(100, 150))
        assert fg.flush(10)
    lock.close()
    server.process.send_signal(signal.SIGCONT) if server_is == "frozen" else server.start()
    delivery.flush_all(server.url)
    assert delivery.stored() == list(range(150))


def test_terminated_with_the_server_down_a_web_process_leaves_all_in_the_spool(delivery):
    """getsentry/relay#2661: what was not sent at the end of a process is on the disk."""
    server = delivery.server(*KEEPS_ITS_DATA)
    server.process.send_signal(signal.SIGSTOP)
    with delivery.emitting(server.url, shutdown_timeout_s=3) as fg:
        emit(fg, range(5000))
    assert_conserved(fg.statistics(), 5000)
    assert fg.statistics().queued == 0
    server.process.send_signal(signal.SIGCONT)
    delivery.flush_all(server.url)
    assert delivery.stored() == list(range(5000))


@pytest.fixture
def machines(tmp_path):
    """Two machines that share nothing but a server: the app's, and the flusher's."""
    both = Delivery(tmp_path / "app"), Delivery(tmp_path / "flusher")
    for machine in both:
        machine.folder.mkdir()
    yield both
    for machine in both:
        machine.end()


def test_between_machines_the_apps_spool_comes_through_the_server(machines):
    """What an outage put on the app's disk is brought by the app itself; the flusher's machine never sees that disk."""
    app, far = machines
    server = far.server(*KEEPS_ITS_DATA)
    flusher = far.start(server.url, "flush")
    with app.emitting(server.url) as fg:
        emit(fg, range(100))
        assert fg.flush(10)
        server.kill()
        emit(fg, range(100, 200))
        assert fg.flush(10)
        assert fg.statistics().spooled >= 100
        server.start()
        wait_until(lambda: far.has(range(200)), 40)
        assert_conserved(fg.statistics(), 200)
    assert far.stored() == list(range(200))
    assert not app.store.exists()
    flusher.terminate()
    assert flusher.wait(30) == 0


def test_what_a_dead_app_left_on_its_disk_is_brought_by_the_next(machines):
    """A process killed during the outage left its spool: the next on that machine brings it before any event."""
    app, far = machines
    server = far.server(*KEEPS_ITS_DATA)
    flusher = far.start(server.url, "flush")
    wait_until(far.store.exists)
    server.kill()
    process = start_program("until_killed", app.folder / "spool", server.url, STREAM)
    assert process.stdout.readline() == "running\n"
    wait_until(lambda: len(list((app.folder / "spool").glob("*.seg"))) > 3)
    process.kill()
    process.communicate()
    server.start()
    with app.emitting(server.url):
        wait_until(lambda: not list((app.folder / "spool").glob("*.[so][ep]*")), 30)
    wait_until(lambda: far.has(range(400)), 30)
    flusher.terminate()
    assert flusher.wait(30) == 0
    stored = far.stored()
    assert stored == list(range(len(stored)))


class SlowStore(SQLiteStore):
    """A real store that takes its time before each commit."""

    async def insert(self, events, /):
        """Wait, then insert."""
        await anyio.sleep(0.15 if events else 0)
        return await super().insert(events)


@pytest.mark.anyio
async def test_two_flushers_that_claim_from_each_other_under_a_slow_store_store_everything_once(tmp_path):
    """Claimed while its reader still lives (the time-out is wrong on purpose): committed twice, there once.

    taskiq-python/taskiq-redis#101, redis/redis#13956, celery/celery#5935.
    """
    for turn in range(10):
        if await _claimed_from_each_other(tmp_path / f"{turn}.sqlite3"):
            return
    raise AssertionError("no entry was ever committed twice")


async def _claimed_from_each_other(path) -> bool:
    """Let two flushers do so; return whether an entry was committed by both, which is a matter of chance."""
    stream = MemoryStream()
    await append_numbered(MemoryBuffer(stream), range(120), per_entry=5)
    stores = [SlowStore(path), SlowStore(path)]
    options = {"claim_min_idle_s": 0.02, "max_deliveries": 1000, "batch_entries": 6}
    flushers = [make_flusher([MemoryBuffer(stream)], store, **options) for store in stores]
    async with anyio.create_task_group() as group:
        for flusher in flushers:
            group.start_soon(flusher.run)
        with anyio.fail_after(60):
            while stream.waiting or stream.pending:  # noqa: ASYNC110  (others change it)
                await anyio.sleep(0.01)
        for flusher in flushers:
            flusher.stop()
    figures = [flusher.statistics() for flusher in flushers]
    assert stored_numbers(path) == list(range(120))
    assert sum(figure.stored for figure in figures) == 120
    assert not stream.dead
    for store in stores:
        await store.aclose()
    return any(figure.duplicates for figure in figures)


@pytest.mark.anyio
async def test_a_slow_store_holds_the_backlog_in_the_buffer(tmp_path):
    """While commits are slow no more than one batch is out of the buffer: the backlog does not move into memory."""
    stream, store = MemoryStream(), SlowStore(tmp_path / "store.sqlite3")
    await append_numbered(MemoryBuffer(stream), range(300), per_entry=5)
    flusher = make_flusher([MemoryBuffer(stream)], store, batch_entries=8)
    most = 0
    async with anyio.create_task_group() as group:
        group.start_soon(flusher.run)
        with anyio.fail_after(30):
            while stream.waiting or stream.pending:
                most = max(most, len(stream.pending))
                await anyio.sleep(0.005)
        flusher.stop()
    assert most == 8
    assert stored_numbers(tmp_path / "store.sqlite3") == list(range(300))
    await store.aclose()


@pytest.mark.anyio
async def test_a_clock_that_is_set_back_loses_nothing(tmp_path, monkeypatch):
    """An hour back between two events: order in the spool holds, everything is stored, no age is negative.

    The clock is `time.time_ns` of this process, replaced; the machine's own is not touched.
    """
    fg = FluxGate(data_dir=tmp_path, instrument=False)
    emit(fg, range(50))
    assert fg.flush(5)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    emit(fg, range(50, 100))
    assert fg.stop()
    assert_conserved(fg.statistics(), 100)
    spool, store = Spool(tmp_path / "spool"), SQLiteStore(tmp_path / "store.sqlite3")
    entries = spool.read_nowait(1000)
    assert [number for entry in entries for number in numbers_in(entry.payload)] == list(range(100))
    spool.stop_reading()
    flusher = make_flusher([spool], store)
    await flusher.run_once(wait=True)
    assert flusher.statistics().lag_s == 0
    assert stored_numbers(tmp_path / "store.sqlite3") == list(range(100))
    await spool.aclose()
    await store.aclose()
