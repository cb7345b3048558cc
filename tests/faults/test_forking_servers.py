"""Real servers that fork, and what they do at their ends: every event arrives once.

The applications record events where they are imported, which a preloading master does before it forks, and in their
workers. The interval is half a minute: what the workers recorded is delivered by their ends and by nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import celery
import pytest

from tests.buffers import BEFORE_THE_FORK, wait_until
from tests.faults.test_emitter_faults import ROOT, arrived
from tests.flushing import stored_numbers
from tests.forking_gunicorn import READY
from tests.servers import free_port

pytestmark = [pytest.mark.faults, pytest.mark.redis, pytest.mark.timeout(120)]

LATE_S = "30"
FIRST, REQUESTS = 100, 40
APP = "tests.forking_app:app"
GUNICORN = [sys.executable, "-m", "gunicorn", APP, "--preload", "--workers", "2", "--bind", "127.0.0.1:{port}"]
GUNICORN += ["--config", "python:tests.forking_gunicorn"]
UWSGI = [f"{Path(sys.executable).parent}/uwsgi", "--module", APP, "--http-socket", "127.0.0.1:{port}"]
UWSGI += ["--need-app", "--hook-accepting", f"print:{READY}"]
MASTER = ["--master", "--processes", "2", "--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]
MASTER += ["--hook-master-start", f"print:{READY}"]
"""Gracefully: with `--die-on-term` uWSGI may end a worker in the middle of a request, without its exit hooks."""
GOOD_ENDS = (0, 30)
"""uWSGI ends with 30 where it has no master."""

SERVERS = {
    "gunicorn-sync": [*GUNICORN, "--worker-class", "sync"],
    "gunicorn-gthread": [*GUNICORN, "--worker-class", "gthread", "--threads", "2"],
    "uwsgi-without-threads": [*UWSGI, *MASTER],
    "uwsgi-with-threads": [*UWSGI, *MASTER, "--enable-threads"],
    "uwsgi-that-tells-python": [*UWSGI, *MASTER, "--enable-threads", "--py-call-osafterfork"],
    "uwsgi-of-one-process": [*UWSGI, "--enable-threads", "--die-on-term"],
    "uwsgi-with-its-decorators": [*UWSGI, *MASTER, "--enable-threads", "--import", "uwsgidecorators"],
}


def ready(process, command, log):
    """Return whether each process of the server heeds signals, or it ended: both servers lose one that comes before."""
    processes = 2 if "gunicorn" in command else 3 if "--master" in command else 1
    return process.poll() is not None or log.read_text().count(f"{READY}\n") >= processes


@pytest.fixture(params=["spool", "stream"])
def place(request, tmp_path, redis_url, stream_key):
    """Spool folder, server and key: without a server, and with one."""
    return tmp_path / "spool", redis_url if request.param == "stream" else "-", stream_key


@pytest.fixture
def run(tmp_path):
    """Start a program with the delivery configured by its environment; it is killed if it is still there."""
    started = []

    def begin(command, place, **variables):
        folder, url, stream_key = place
        delivery = {
            "FLUXGATE_SPOOL_DIR": str(folder),
            "FLUXGATE_REDIS_URL": "" if url == "-" else url,
            "FLUXGATE_STREAM_KEY": stream_key,
            "FLUXGATE_EMIT_INTERVAL_S": LATE_S,
        }
        environ = os.environ | delivery | variables
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def answer(port, number):
    """Make the request that records this number; return which process answered, None where none does yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}", timeout=10) as response:
            return int(response.read())
    except OSError:
        return None


def end(process, tmp_path):
    """Ask it to end, and see that it does so in good order."""
    process.terminate()
    status = process.wait(30)
    assert status in GOOD_ENDS, (tmp_path / "log").read_text()[-3000:]


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_loads_before_it_forks_loses_and_doubles_nothing(run, place, tmp_path, server):
    """What waited in the master at the fork arrives once, and so does what each worker had at SIGTERM.

    PostHog/posthog-python#290, getsentry/raven-python#590, open-telemetry/opentelemetry-python#1497: a queue that is
    copied into the workers without its thread. uWSGI forks without Python's hooks.

    langfuse/langfuse#7414.
    """
    port = free_port()
    durable = "1" if "--die-on-term" in SERVERS[server] else ""
    process = run([part.format(port=port) for part in SERVERS[server]], place, FLUXGATE_DURABLE=durable)
    wait_until(lambda: ready(process, SERVERS[server], tmp_path / "log"), 30)
    workers = {answer(port, number) for number in range(FIRST, FIRST + REQUESTS)}
    assert None not in workers
    end(process, tmp_path)
    there = arrived(*place)
    if durable:  # dead while it moves an entry from its spool to the stream, which is in both then and stored once
        there = set(there)
    assert sorted(there) == [*range(BEFORE_THE_FORK), *range(FIRST, FIRST + REQUESTS)]
    warned = "uWSGI runs without --enable-threads" in (tmp_path / "log").read_text()
    assert warned == (server == "uwsgi-without-threads")


@pytest.mark.parametrize(
    "server", ["gunicorn-sync", "uwsgi-without-threads", "uwsgi-with-threads", "uwsgi-of-one-process"]
)
def test_a_background_flusher_of_a_master_stays_out_of_its_workers_way(run, tmp_path, redis_url, stream_key, server):
    """With `flusher=background` the workers flush, all is stored once, and each process ends when it is told to."""
    port, place = free_port(), (tmp_path / "spool", redis_url, stream_key)
    variables = {"FLUXGATE_FLUSHER": "background", "FLUXGATE_DATA_DIR": str(tmp_path), "FLUXGATE_DURABLE": "1"}
    process = run([part.format(port=port) for part in SERVERS[server]], place, **variables)
    wait_until(lambda: ready(process, SERVERS[server], tmp_path / "log"), 30)
    assert None not in {answer(port, number) for number in range(FIRST, FIRST + REQUESTS)}
    end(process, tmp_path)
    command = [sys.executable, "-m", "fluxgate_mw.cli", "flush", "--once"]
    assert run(command, place, **variables, FLUXGATE_CLAIM_MIN_IDLE_S="0.1").wait(30) == 0
    assert stored_numbers(tmp_path / "fluxgate.sqlite3") == [
        *range(BEFORE_THE_FORK),
        *range(FIRST, FIRST + REQUESTS),
    ]


def test_a_celery_worker_that_forks_loses_and_doubles_nothing(run, place, tmp_path, redis_server):
    """A real prefork worker, whose processes end by `os._exit`: each task's event arrives, and the master's own.

    langfuse/langfuse#1307.
    """
    broker = f"redis://127.0.0.1:{redis_server.port}/3"
    command = [sys.executable, "-m", "celery", "-A", "tests.forking_tasks", "worker", "--pool", "prefork"]
    process = run([*command, "--concurrency", "2", "--loglevel", "warning"], place, FORKING_BROKER=broker)
    with closing(celery.Celery("asking", broker=broker, backend=broker)) as app:
        asked = [app.send_task("work", [number]) for number in range(FIRST, FIRST + REQUESTS)]
        processes = {result.get(timeout=40) for result in asked}
    assert process.pid not in processes
    end(process, tmp_path)
    assert sorted(arrived(*place)) == [*range(BEFORE_THE_FORK), *range(FIRST, FIRST + REQUESTS)]
