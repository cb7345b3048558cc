"""Serve an ASGI app on a loopback port from inside a running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn

__all__ = ["HOST", "bound_socket", "serving"]

HOST = "127.0.0.1"
_LOOK_S = 0.01


class _Server(uvicorn.Server):
    """A server that leaves the process's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(port: int = 0, host: str = HOST) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        OSError: The port is in use or not allowed.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def serving(app: Any, listener: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve an ASGI app while inside; yields its address, `http://HOST:PORT`.

    Args:
        app: The ASGI app.
        listener: A listening socket, which is closed at the end; None takes a free port.

    Raises:
        RuntimeError: The app's own start-up failed.

    Guarantees: what is raised inside leaves as it is, after the server has ended in order.

    Concurrency: event loop only; installs no signal handler.
    """
    listener = listener or bound_socket()
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            if task.done():
                raise RuntimeError("the app did not start")
            await anyio.sleep(_LOOK_S)
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await task
        listener.close()
