"""Real servers: gunicorn with each of its workers, uvicorn, and gevent's own, under requests that overlap."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.layers import ROOT
from tests.servers import free_port

GUNICORN = ("-m", "gunicorn", "--no-control-socket", "--log-level", "error")
GEVENT = (
    "-c",
    (
        "from gevent import monkey; monkey.patch_all(); import sys; from gevent.pywsgi import WSGIServer;"
        "from tests.served_app import bare_wsgi, flask_app;"
        "WSGIServer(('127.0.0.1', int(sys.argv[2])), {'bare': bare_wsgi, 'flask': flask_app}[sys.argv[1]], log=None)"
        ".serve_forever()"
    ),
)


@contextmanager
def running(*command: str) -> Iterator[int]:
    """Run a server on a free port until the block ends."""
    port = free_port()
    arguments = [part.replace("PORT", str(port)) for part in command]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise AssertionError(process.communicate()[1]) from None
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def ask_server(port: int, number: int) -> tuple[str | None, list[list[str | None]]]:
    """Return who sent one of several requests on a kept connection, and what its context said at each step."""
    user = None if number % 3 == 0 else f"user-{number}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/items/{number}", headers={} if user is None else {"X-User": user})
    said = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    connection.close()
    return user, said


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("command", "route"),
    [
        pytest.param(
            (*GUNICORN, "-k", "sync", "-b", "127.0.0.1:PORT", "tests.served_app:flask_app"),
            "GET /items/<int:key>",
            marks=pytest.mark.survival("Flask", "under gunicorn: sync, gthread, gevent"),
        ),
        pytest.param(
            (*GUNICORN, "-k", "gthread", "--threads", "8", "-b", "127.0.0.1:PORT", "tests.served_app:flask_app"),
            "GET /items/<int:key>",
            marks=pytest.mark.survival("Flask", "under gunicorn: sync, gthread, gevent"),
        ),
        pytest.param(
            (*GUNICORN, "-k", "gevent", "-b", "127.0.0.1:PORT", "tests.served_app:flask_app"),
            "GET /items/<int:key>",
            marks=pytest.mark.survival("Flask", "under gunicorn: sync, gthread, gevent"),
        ),
        pytest.param(
            (*GUNICORN, "-k", "gthread", "--threads", "8", "-b", "127.0.0.1:PORT", "tests.served_app:bare_wsgi"),
            None,
            marks=pytest.mark.survival("bare WSGI", "under gunicorn: sync, gthread, gevent"),
        ),
        pytest.param(
            (*GEVENT, "bare", "PORT"), None, marks=pytest.mark.survival("bare WSGI", "greenlets (gevent.pywsgi)")
        ),
        pytest.param(
            (*GEVENT, "flask", "PORT"),
            "GET /items/<int:key>",
            marks=pytest.mark.survival("Flask", "greenlets (gevent.pywsgi)"),
        ),
        pytest.param(
            ("-m", "uvicorn", "--log-level", "error", "--port", "PORT", "tests.served_app:fastapi_app"),
            "GET /items/{key}",
            marks=pytest.mark.survival("FastAPI", "under uvicorn, and gunicorn with its workers"),
        ),
        pytest.param(
            (*GUNICORN, "-k", "uvicorn.workers.UvicornWorker", "-b", "127.0.0.1:PORT", "tests.served_app:fastapi_app"),
            "GET /items/{key}",
            marks=pytest.mark.survival("FastAPI", "under uvicorn, and gunicorn with its workers"),
        ),
        pytest.param(
            (*GUNICORN, "-k", "asgi", "-b", "127.0.0.1:PORT", "tests.served_app:fastapi_app"),
            "GET /items/{key}",
            marks=pytest.mark.survival("FastAPI", "under uvicorn, and gunicorn with its workers"),
        ),
    ],
)
def test_overlapping_requests_of_a_real_server_keep_their_own_user_and_route(
    command: tuple[str, ...], route: str | None
) -> None:
    """At every step of a streamed body; an anonymous one is nobody."""
    with running(*command) as port, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: ask_server(port, number), range(1, 61)))
    for user, said in answers:
        assert [line[:2] for line in said] == [[user, route]] * 3
        assert len({line[2] for line in said}) == 1
    assert len({said[0][2] for _user, said in answers}) == 60
