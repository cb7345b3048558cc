"""Real web servers in processes of their own, and requests that overlap, each of which must be its own."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gunicorn.config import KNOWN_SETTINGS
from websockets.sync.client import connect

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
BIND = ("-b", "127.0.0.1:PORT")
_NO_SOCKET = "--no-control-socket"  # of a newer gunicorn, which puts one into the user's folder
GUNICORN = ("-m", "gunicorn", "--log-level", "error", *BIND) + (
    (_NO_SOCKET,) if any(_NO_SOCKET in (setting.cli or ()) for setting in KNOWN_SETTINGS) else ()
)
UVICORN = ("-m", "uvicorn", "--log-level", "error", "--port", "PORT")
Asking = Callable[[int, int], tuple[str | None, list[list[str | None]]]]


@contextmanager
def running(*command: str) -> Iterator[int]:
    """Run a server on a free port, which replaces `PORT` in its command, until the block ends."""
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
    """Return who sent the request, and what its context said at each step of the answer; every third is nobody."""
    user = None if number % 3 == 0 else f"user-{number}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/items/{number}", headers={} if user is None else {"X-User": user})
    said = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    connection.close()
    return user, said


def ask_socket(port: int, number: int) -> tuple[str | None, list[list[str | None]]]:
    """Do the same over a websocket."""
    user = None if number % 3 == 0 else f"user-{number}"
    with connect(
        f"ws://127.0.0.1:{port}/sockets/{number}", additional_headers={} if user is None else {"X-User": user}
    ) as socket:
        return user, [json.loads(line) for line in socket]


def keeps_apart(command: tuple[str, ...], route: str | None, ask: Asking = ask_server) -> None:
    """Fail unless 60 requests of which 8 are served at once keep their own user, route and id at every step."""
    with running(*command) as port, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: ask(port, number), range(1, 61)))
    for user, said in answers:
        assert [line[:2] for line in said] == [[user, route]] * 3
        assert len({line[2] for line in said}) == 1
    assert len({said[0][2] for _user, said in answers}) == 60
