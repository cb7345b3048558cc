"""The emitter against real faults: kills, forks, frozen and restarted servers, full disks, cut connections."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event
from tests.buffers import assert_conserved, drained_numbers, numbered, spooled_numbers, wait_until
from tests.servers import RedisServer, free_port, valkey_binary

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
LOST_AT_MOST_S = 0.3
"""Bound of what a kill may cost here: an interval of 0.02 s, and a busy machine's scheduling."""


@pytest.fixture
def folder(tmp_path):
    """The spool's folder."""
    return tmp_path / "spool"


@pytest.fixture
def own_server(tmp_path):
    """A server that the test may freeze, kill and restart; it keeps its data (AOF)."""
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    server = RedisServer(valkey_binary(), tmp_path / "server", *options)
    server.start()
    yield server
    if server.process is not None:
        server.process.send_signal(signal.SIGCONT)
    server.kill()


@pytest.fixture(params=["spool", "stream"])
def place(request, folder, redis_url, stream_key):
    """Spool folder, server and key that a program is given: without a server, and with one."""
    return folder, redis_url if request.param == "stream" else "-", stream_key


def start(program: str, folder: Path, url: str, stream_key: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start one of the programs of `emitting`, with these words before its command."""
    command = [*before, sys.executable, "-m", "tests.faults.emitting", program, str(folder), url, stream_key]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout_s: float = 30) -> str:
    """Wait for a program's good end and return what it said."""
    said, complained = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, complained
    return said


async def _from_stream(url: str, stream_key: str) -> list[int]:
    stream = RedisStream(url, stream_key=stream_key, consumer_group="flushers")
    try:
        return await drained_numbers(stream)
    finally:
        await stream.aclose()


def arrived(folder: Path, url: str, stream_key: str) -> list[int]:
    """Return the numbers in the spool and in the stream."""
    return spooled_numbers(folder) + ([] if url == "-" else asyncio.run(_from_stream(url, stream_key)))


def stream_emitter(server: RedisServer, folder: Path, stream_key: str, **options) -> Emitter:
    """Return an emitter over a server of the test's own."""
    url = options.pop("url", server.url)
    return Emitter(
        spool=lambda: Spool(folder),
        stream=lambda: RedisStream(url, stream_key=stream_key, consumer_group="flushers"),
        **options,
    )


def test_a_killed_process_loses_at_most_the_last_interval(folder):
    """Kill -9 under load: what arrived is gapless from the first event to the last interval before the kill.

    otel-collector#6020: nothing else is volatile before the durable point.
    """
    process = start("until_killed", folder, "-", "-")
    assert process.stdout.readline() == "running\n"
    wait_until(lambda: len(list(folder.glob("*.seg"))) > 2)
    process.kill()
    killed_at = time.time()
    process.communicate()
    spool = Spool(folder)
    entries = spool.read_nowait(1_000_000)
    events = [decode_event(data) for entry in entries for data in unpack(entry.payload)]
    spool.stop_reading()
    assert [event.metadata["number"] for event in events] == list(range(len(events)))
    assert events[-1].metadata["at"] > killed_at - LOST_AT_MOST_S


def test_a_killed_process_loses_no_durable_event(folder):
    """Kill -9 with `durable`: every event whose `emit` returned is in the spool.

    open-telemetry/opentelemetry-collector-contrib#50102: a backlog that a restart lost.
    """
    process = start("durably_until_killed", folder, "-", "-")
    said = [process.stdout.readline() for _ in range(300)]
    process.kill()
    said += process.stdout.readlines()  # where the lines before came from, with what of them it has read ahead
    process.communicate()
    returned = [int(line) for line in said if line.endswith("\n")]
    assert len(returned) >= 300
    assert set(spooled_numbers(folder)) >= set(returned)


def test_the_end_of_a_process_delivers_what_is_queued(place):
    """A process that ends without stopping anything loses nothing."""
    finish(start("to_the_end", *place))
    assert sorted(arrived(*place)) == list(range(1000))


def test_a_terminated_server_delivers_what_is_queued(place):
    """A handler of SIGTERM that exits, as a server has, loses nothing."""
    process = start("terminated", *place)
    assert process.stdout.readline() == "running\n"
    process.terminate()
    finish(process)
    assert sorted(arrived(*place)) == list(range(1000))


def test_the_end_of_a_process_does_not_wait_for_a_frozen_server(folder, own_server, stream_key):
    """With the server frozen the process ends in time, and everything is in the spool.

    langfuse/langfuse#6515, #4018.
    """
    own_server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    finish(start("to_the_end", folder, own_server.url, stream_key), timeout_s=15)
    assert time.monotonic() - began < 10
    assert sorted(spooled_numbers(folder)) == list(range(1000))


@pytest.mark.parametrize("program", ["fork", "multiprocess", "spawn", "forkserver", "orphans"])
def test_a_fork_with_events_queued_delivers_each_once(place, program):
    """The parent delivers what was queued, the child what it emitted itself, and nothing comes twice.

    By `os.fork`, by each method of `multiprocessing`, and where the parent leaves by `os._exit`.

    langfuse/langfuse-python PR#1658.
    """
    finish(start(program, *place))
    expected = {
        "fork": [*range(21), *range(100, 111)],
        "orphans": [*range(20), *range(100, 110)],
    }
    by_multiprocessing = [0, *range(100, 110), *range(200, 210), *range(300, 310)]
    assert sorted(arrived(*place)) == expected.get(program, by_multiprocessing)


def test_forks_under_load_lose_and_double_nothing(place):
    """Ten forks in the middle of bursts: every event of parent and children arrives once."""
    finish(start("fork_while_emitting", *place))
    assert sorted(arrived(*place)) == [*range(2000), *range(10_000, 10_010)]


def test_greenlets_of_a_patched_process_are_served(place):
    """Under gevent's patches the delivery has a real thread of its own, and the end of the process loses nothing."""
    finish(start("greenlets", *place))
    assert sorted(arrived(*place)) == list(range(40))


def test_the_delivery_imports_nothing(place):
    """The thread imports no module: a fork meanwhile would leave its import lock held in the child for ever."""
    folder, url, stream_key = place
    assert finish(start("import_nothing", folder, url.replace("127.0.0.1", "localhost"), stream_key)) == "[]\n"


def small_disk(disk: Path) -> list[str]:
    """The words that run a program with a real disk of 2 MB at this folder; none where that is refused."""
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=2m,mode=700 small {disk} && exec "$@"'
    words = ["unshare", "-m", *(["-r"] if os.geteuid() else []), "sh", "-c", mount, "sh"]
    return words if subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0 else []


def test_a_full_disk_delays_what_it_holds(tmp_path):
    """A real disk with no room left for the spool or the store: events wait, and are stored once when there is room.

    Where this user may mount nothing at all, the same is asked of a limit on the size of files.
    """
    words = small_disk(tmp_path / "disk")
    if words:
        assert finish(start("full_disk", tmp_path / "disk" / "spool", "-", "-", words), 60) == "True\n"
    else:
        finish(start("starved", tmp_path / "spool", "-", "-"))
        assert sorted(spooled_numbers(tmp_path / "spool")) == list(range(500))


def test_files_that_may_not_grow_hold_events_until_they_may(folder):
    """While no file may grow, events wait in memory; nothing is torn, lost or doubled when they may."""
    finish(start("starved", folder, "-", "-"))
    assert sorted(spooled_numbers(folder)) == list(range(500))
    assert not list(folder.glob("*.bad"))


NOT_FELT_NS = 50_000_000
"""A tenth of the stream's time-out: what waits for a frozen server is past it, whatever the machine is busy with.

That 99 of 100 calls take less than a millisecond is measured by `benchmarks/bench_delivery.py`, not asserted here.
"""


def test_a_frozen_server_is_not_felt_by_emit(folder, own_server, stream_key):
    """With the server stopped by SIGSTOP, calls of `emit` do not wait for it.

    open-telemetry/opentelemetry-python#2024: an application that hung while its collector was down.

    BerriAI/litellm#1511, PR#1519.
    """
    emitter = stream_emitter(own_server, folder, stream_key)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    own_server.process.send_signal(signal.SIGSTOP)
    took_ns = []
    for number in range(1, 3001):
        began = time.perf_counter_ns()
        emitter.emit(numbered(number))
        took_ns.append(time.perf_counter_ns() - began)
        if number % 10 == 0:
            time.sleep(0.001)
    took_ns.sort()
    assert took_ns[len(took_ns) * 99 // 100] < NOT_FELT_NS
    assert emitter.flush(5)
    assert emitter.statistics().breaker != "closed"
    own_server.process.send_signal(signal.SIGCONT)
    wait_until(lambda: emitter.statistics().breaker == "closed", 20)
    wait_until(lambda: not list(folder.glob("*.seg")), 20)
    assert emitter.stop()
    assert_conserved(emitter.statistics(), 3001)
    assert set(asyncio.run(_from_stream(own_server.url, stream_key))) == set(range(3001))


def test_a_killed_and_restarted_server_loses_nothing(folder, own_server, stream_key):
    """Events emitted before, during and after an outage are all there in the end."""
    emitter = stream_emitter(own_server, folder, stream_key)
    number = 0
    for _ in range(3):
        for _ in range(500):
            emitter.emit(numbered(number))
            number += 1
        own_server.kill()
        for _ in range(500):
            emitter.emit(numbered(number))
            number += 1
        assert emitter.flush(5)
        own_server.start()
        wait_until(lambda: emitter.statistics().breaker == "closed", 20)
    wait_until(lambda: not list(folder.glob("*.seg")), 20)
    assert emitter.stop()
    assert_conserved(emitter.statistics(), 3000)
    assert set(asyncio.run(_from_stream(own_server.url, stream_key))) == set(range(3000))


def test_a_server_out_of_memory_sends_events_to_the_spool(folder, tmp_path, stream_key):
    """Where the server refuses to grow, the spool takes over, and nothing is trimmed.

    PostHog/posthog#1811: a full Redis that ended all ingestion.
    """
    server = RedisServer(valkey_binary(), tmp_path / "small", "--save", "", "--maxmemory", "3mb")
    server.start()
    try:
        emitter = stream_emitter(server, folder, stream_key)
        for number in range(20_000):
            emitter.emit(numbered(number))
        assert emitter.stop()
        statistics = emitter.statistics()
        assert_conserved(statistics, 20_000)
        assert statistics.sent > 0
        assert statistics.spooled > 0
        assert set(arrived(folder, server.url, stream_key)) == set(range(20_000))
    finally:
        server.kill()


class CuttingProxy:
    """A proxy before a server that can swallow replies and then cut the connection."""

    def __init__(self, port: int) -> None:
        self.port, self._target = free_port(), port
        self.swallow = False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(client, server), kwargs={"replies": False}, daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client), kwargs={"replies": True}, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, *, replies: bool) -> None:
        try:
            while data := source.recv(65536):
                if replies and self.swallow:
                    self.cuts += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        source.close()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


def test_a_lost_reply_is_counted_once_and_comes_twice_at_most(folder, own_server, stream_key):
    """A connection cut between `XADD` and its reply: the pack is in the stream and in the spool, and counted once."""
    proxy = CuttingProxy(own_server.port)
    emitter = stream_emitter(own_server, folder, stream_key, url=f"redis://127.0.0.1:{proxy.port}/0")
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    proxy.swallow = True
    emitter.emit(numbered(1))
    assert emitter.flush(5)
    assert proxy.cuts > 0
    assert emitter.stop()
    proxy.close()
    assert_conserved(emitter.statistics(), 2)
    assert emitter.statistics().spooled == 1
    numbers = arrived(folder, own_server.url, stream_key)
    assert set(numbers) == {0, 1}
    assert numbers.count(0) == 1


def test_ten_thousand_events_in_one_burst_all_arrive(place):
    """A burst is taken whole and arrives whole.

    BerriAI/litellm#1714: logs that failed under high traffic.
    """
    folder, url, stream_key = place
    stream = None if url == "-" else lambda: RedisStream(url, stream_key=stream_key, consumer_group="flushers")
    emitter = Emitter(spool=lambda: Spool(folder), stream=stream)
    for number in range(10_000):
        emitter.emit(numbered(number))
    assert emitter.stop()
    assert_conserved(emitter.statistics(), 10_000)
    assert arrived(*place) == list(range(10_000))
