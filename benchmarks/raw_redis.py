"""What the server itself can take, and what one command an event costs: without our code in the way."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Final

import redis
import redis.asyncio
from redis_server import HOST

__all__ = ["has_redis_benchmark", "one_by_one", "one_by_one_async", "pipelined", "redis_benchmark"]

PIPELINE: Final = 16
"""Commands on their way at once, as `redis-benchmark -P` counts them."""

_KEY: Final = "bench:raw"
_BINARY: Final = "redis-benchmark"


def pipelined(port: int, payload: bytes, entries: int) -> float:
    """Return the entries a second that a bare socket adds, `PIPELINE` commands at a time.

    Raises:
        RuntimeError: The server did not accept one.
    """
    burst = _command(b"XADD", _KEY.encode(), b"*", b"payload", payload) * PIPELINE
    bursts = max(1, entries // PIPELINE)
    with socket.create_connection((HOST, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        for _ in range(bursts):
            connection.sendall(burst)
            _read_ids(connection, PIPELINE)
        taken_s = time.perf_counter() - start
        connection.sendall(_command(b"DEL", _KEY.encode()))
        connection.recv(64)
    return bursts * PIPELINE / taken_s


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _read_ids(connection: socket.socket, count: int) -> None:
    """Read that many replies, each an id: a length and a text, a line each."""
    replies = b""
    while replies.count(b"\r\n") < 2 * count:
        received = connection.recv(65_536)
        replies += received
        if not received or replies.startswith(b"-"):
            raise RuntimeError(f"the server did not add an entry: {replies[:80]!r}")


def has_redis_benchmark() -> bool:
    """Return whether the server's own benchmark is installed."""
    return shutil.which(_BINARY) is not None


def redis_benchmark(port: int, payload_bytes: int, entries: int) -> float:
    """Return the entries a second that the server's own benchmark adds over one connection.

    It takes no zero bytes, so the payload is text of that length.
    """
    options = ["-h", HOST, "-p", str(port), "-c", "1", "-P", str(PIPELINE), "-n", str(entries), "--csv", "-x"]
    command = [_BINARY, *options, "XADD", _KEY, "*", "payload"]
    done = subprocess.run(command, input=b"x" * payload_bytes, capture_output=True, check=True)
    with redis.Redis(host=HOST, port=port) as client:
        client.delete(_KEY)
    return float(done.stdout.splitlines()[-1].rsplit(b'","', 7)[1].strip(b'"'))


def one_by_one(port: int, encoded: Sequence[bytes]) -> float:
    """Return the events a second of redis-py, one XADD each."""
    with redis.Redis(host=HOST, port=port) as client:
        client.ping()
        start = time.perf_counter()
        for event in encoded:
            client.xadd(_KEY, {"event": event})
        taken_s = time.perf_counter() - start
        client.delete(_KEY)
    return len(encoded) / taken_s


def one_by_one_async(port: int, encoded: Sequence[bytes]) -> float:
    """Return the events a second of redis-py's asyncio client, one XADD each."""

    async def add_all() -> float:
        async with redis.asyncio.Redis(host=HOST, port=port) as client:
            await client.ping()
            start = time.perf_counter()
            for event in encoded:
                await client.xadd(_KEY, {"event": event})
            taken_s = time.perf_counter() - start
            await client.delete(_KEY)
        return taken_s

    return len(encoded) / asyncio.run(add_all())
