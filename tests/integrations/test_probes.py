"""`/healthz`, `/readyz` and `/metrics` of the real commands, while parts fail and come back."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from fluxgate_mw import FluxGate, UsageEvent
from tests.buffers import wait_until
from tests.servers import RedisServer, valkey_binary

pytestmark = pytest.mark.redis


@pytest.fixture
def server(tmp_path):
    server = RedisServer(valkey_binary(), tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    if server.process is not None:
        server.process.send_signal(signal.SIGCONT)
    server.kill()


@pytest.fixture
def start():
    """Start the command and return its process and the address in its line that begins so."""
    started = []

    def begin(begins, *arguments, **variables):
        command = [sys.executable, "-m", "fluxgate_mw.cli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=os.environ | variables, **pipes))
        lines = iter(started[-1].stdout.readline, "")
        address = next(line for line in lines if line.startswith(begins)).split()[1]
        return started[-1], "/".join(address.split("/")[:3])

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ask(address, path):
    """Return status and text of a reply."""
    try:
        with urllib.request.urlopen(address + path, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figure(address, name):
    """Return one sample of the metrics, None where it is not there."""
    lines = dict(line.rsplit(" ", 1) for line in ask(address, "/metrics")[1].splitlines() if line[:1] != "#")
    return float(lines[name]) if name in lines else None


@pytest.mark.parametrize(("begins", "command"), [("Dashboard", "serve"), ("Health", "flush")])
def test_a_redis_that_dies_and_returns_is_seen(start, server, begins, command):
    """Alive all the time; ready, not ready with the reason, ready again; what was stored is counted.

    BerriAI/litellm#19163: a buffer that was configured, unavailable, and silently off.
    """
    process, address = start(begins, command, "--port", "0", "--redis-url", server.url)
    with FluxGate(redis_url=server.url, instrument=False) as fg:
        for _ in range(7):
            fg.record(UsageEvent())
        assert fg.flush(5)
    wait_until(lambda: figure(address, "fluxgate_flusher_stored_total") == 7)
    assert ask(address, "/readyz") == (200, '{"status":"ready","reasons":[]}')
    server.kill()
    wait_until(lambda: ask(address, "/readyz")[0] == 503)
    assert json.loads(ask(address, "/readyz")[1])["reasons"] == ["the buffer redis does not answer"]
    assert figure(address, 'fluxgate_buffer_up{buffer="redis"}') == 0
    assert ask(address, "/healthz") == (200, '{"status":"ok"}')
    server.start()
    wait_until(lambda: ask(address, "/readyz")[0] == 200, 20)
    process.terminate()
    assert process.wait(timeout=8) == 0


def test_lag_grows_while_nothing_flushes(start, server):
    """Without a flusher the first event of the stream ages, and past the bound the delivery is not ready."""
    _, address = start("Dashboard", "serve", "--port", "0", "--no-flusher", "--redis-url", server.url)
    with FluxGate(redis_url=server.url, instrument=False) as fg:
        fg.record(UsageEvent())
        assert fg.flush(5)
    wait_until(lambda: (figure(address, 'fluxgate_buffer_oldest_age_seconds{buffer="redis"}') or 0) > 1)
    assert figure(address, 'fluxgate_buffer_entries{buffer="redis"}') == 1
    status, text = ask(address, "/readyz?max_lag_s=0.5")
    assert (status, "an event waits for" in text) == (503, True)
    assert ask(address, "/readyz")[0] == 200


def test_what_waits_is_measured_where_it_waits(start, server, tmp_path):
    """With the store locked and then Redis gone: pending entries, the stream's length, the spool's bytes, the lag.

    redis/redis#13957: the server's own `lag` is wrong after trimming, so none of these is it.
    """
    _, address = start("Dashboard", "serve", "--port", "0", "--redis-url", server.url)
    folder = Path(os.environ["FLUXGATE_DATA_DIR"])
    with (
        closing(sqlite3.connect(folder / "fluxgate.sqlite3", timeout=10, isolation_level=None)) as lock,
        FluxGate(redis_url=server.url, instrument=False) as fg,
    ):
        lock.execute("BEGIN IMMEDIATE")
        fg.record(UsageEvent())
        assert fg.flush(5)
        wait_until(lambda: figure(address, 'fluxgate_buffer_pending_entries{buffer="redis"}') == 1)
        assert figure(address, 'fluxgate_buffer_entries{buffer="redis"}') == 1
        server.kill()
        for _ in range(5):
            fg.record(UsageEvent())
        assert fg.flush(5)
        segments = [path.stat().st_size for path in (folder / "spool").glob("*.seg")]
        wait_until(lambda: figure(address, 'fluxgate_buffer_bytes{buffer="spool"}') == sum(segments) > 0)
        assert figure(address, 'fluxgate_spool_segments{buffer="spool"}') == len(segments)
        wait_until(lambda: figure(address, "fluxgate_oldest_unstored_age_seconds") > 1)
        lock.rollback()
        wait_until(lambda: figure(address, "fluxgate_flusher_stored_total") == 6, 30)
        wait_until(lambda: figure(address, "fluxgate_oldest_unstored_age_seconds") == 0, 30)


def test_no_metric_names_a_person_or_a_host(start, server):
    """Neither users nor features nor addresses are in the replies, whatever went through."""
    _, address = start("Dashboard", "serve", "--port", "0", "--redis-url", server.url)
    with FluxGate(redis_url=server.url, instrument=False) as fg:
        fg.record(UsageEvent(feature="secret-feature", metadata={"who": "ann@example.com"}))
        assert fg.flush(5)
    wait_until(lambda: figure(address, "fluxgate_flusher_stored_total") == 1)
    said = ask(address, "/metrics")[1] + ask(address, "/readyz")[1] + ask(address, "/healthz")[1]
    for name in ("secret-feature", "ann", "example", "127.0.0.1", str(server.port), "sqlite", "fluxgate:events"):
        assert name not in said


def test_a_port_of_the_probes_in_use_is_one_clear_line(start, server):
    """`flush --port` fails at its start, before it reads anything."""
    _, address = start("Health", "flush", "--port", "0")
    command = [sys.executable, "-m", "fluxgate_mw.cli", "flush", "--port", address.rpartition(":")[2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "choose another --port" in done.stderr
