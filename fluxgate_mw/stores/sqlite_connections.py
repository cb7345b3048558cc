"""Connections to one SQLite file: how one is opened, and a small pool whose users run in worker threads."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from fluxgate_mw.errors import BackendUnavailable, ClosedError
from fluxgate_mw.stores.sqlite_schema import SCHEMA_VERSION, create_schema, missing_columns

__all__ = ["Connections", "open_connection", "truncate_wal"]

BUSY_TIMEOUT_S: Final = 5.0
CHECKPOINT_PAGES: Final = 4_000
JOURNAL_LIMIT_BYTES: Final = 64 * 2**20
CACHE_KIB: Final = 16 * 1024

_RETRY_S: Final = 0.02
_making: Final = threading.Lock()
_T = TypeVar("_T")


class Connections:
    """At most `limit` connections, each used by one worker thread at a time and kept for the next.

    Concurrency: `run` and `aclose` on one event loop; `borrowed` inside what `run` runs.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, limit: int) -> None:
        self._connect = connect
        self._limit = limit
        self._limiter: CapacityLimiter | None = None
        self._idle: list[sqlite3.Connection] = []
        weakref.finalize(self, _close_all, self._idle)
        self._lock = threading.Lock()
        self._closed = False

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run `work` in a worker thread when one of the connections is free.

        Guarantees: a cancelled caller waits until the work has ended, so nothing goes on behind its back.

        Raises:
            ClosedError: After `aclose`.
        """
        if self._closed:
            raise ClosedError("the store is closed")
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._limit)
        return await run_sync(work, limiter=self._limiter)

    @contextmanager
    def borrowed(self) -> Iterator[sqlite3.Connection]:
        """Give a connection; its transaction is rolled back and it is closed when the block fails.

        Closing alone would not do: a cursor that the error's traceback keeps alive keeps the transaction open too.
        """
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        except BaseException:
            _roll_back(connection)
            connection.close()
            raise
        self._give_back(connection)

    async def aclose(self) -> None:
        """Close the idle connections now and the borrowed ones when they are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle = self._idle.copy()
            self._idle.clear()
        for connection in idle:
            await run_sync(connection.close)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _close_all(connections: list[sqlite3.Connection]) -> None:
    """Close what nobody closed: a store that a mounted dashboard reads from lives as long as its application."""
    while connections:
        connections.pop().close()


def open_connection(path: Path) -> sqlite3.Connection:
    """Open the file, making it with its folder and tables where it is not there, for its owner alone.

    Raises:
        BackendUnavailable: The file was written by a newer version of this package.
        sqlite3.Error: It is no SQLite file, or cannot be used now.
        OSError: It cannot be made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_private(path)
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        _configure(connection)
        _check_schema(connection)
    except BaseException:
        _roll_back(connection)
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Make the file for its owner alone, where it is not there.

    A file that is there is never opened but by SQLite: closing any descriptor of it would drop every lock that this
    process has on it, and another process would then delete the write-ahead log under our hands.

    Source: https://www.sqlite.org/howtocorrupt.html section 2.2 (read 2026-11).
    """
    with _making, suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def truncate_wal(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the file and empty it; False where a reader or writer is in the way.

    Source: https://www.sqlite.org/pragma.html#pragma_wal_checkpoint (read 2026-11).
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    return not busy


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _configure(connection: sqlite3.Connection) -> None:
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn write-ahead logging on; two processes that do so at once ignore the busy timeout, so try again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _check_schema(connection: sqlite3.Connection) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        message = f"the file has schema {version}, this version knows up to {SCHEMA_VERSION}: upgrade fluxgate-mw"
        raise BackendUnavailable("sqlite", message)
    if version == 0 or missing_columns(connection):
        connection.execute("BEGIN IMMEDIATE")
        create_schema(connection)
        connection.execute("COMMIT")
