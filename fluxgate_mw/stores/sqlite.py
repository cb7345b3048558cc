"""The embedded store: one SQLite file, written by the flusher and read by the dashboard at the same time.

Every statement runs in a worker thread, never on the event loop: one at a time writes, a few read. Write-ahead
logging lets other processes read and write the same file; a writer waits for another's transaction.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from fluxgate_mw.errors import BackendRejected, BackendUnavailable, ConfigurationError
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.query import CostReport, Dimension, EventFilter, EventPage, EventQuery
from fluxgate_mw.stores.sqlite_connections import Connections, open_connection, truncate_wal
from fluxgate_mw.stores.sqlite_queries import add_functions, select_costs, select_count, select_event, select_page
from fluxgate_mw.stores.sqlite_schema import UPSERT_DAILY_COSTS, daily_costs, insertion, row_from_event, storable

__all__ = ["SQLiteStore"]

WAL_LIMIT_BYTES: Final = 64 * 2**20
WAL_WARNING_BYTES: Final = 4 * WAL_LIMIT_BYTES
WARNING_INTERVAL_S: Final = 60.0
READERS: Final = 4

_BACKEND: Final = "sqlite"
_PREFIX: Final = "sqlite:///"
_THE_DATAS_FAULT: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ArithmeticError,
    AttributeError,
    TypeError,
    ValueError,
    RecursionError,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class SQLiteStore:
    """A `Store` in one SQLite file, made with its folder at first use, readable by its owner alone.

    Guarantees: a commit is synced to the disk before `insert` returns (`synchronous=FULL`), so what it stored
    outlives a crash of the process and, as far as the disk keeps its word, a loss of power. Only what the data
    itself is to blame for is `BackendRejected`; a file that is locked, full, damaged or of a newer version is
    `BackendUnavailable`.

    Concurrency: one event loop; calls may overlap; any number of processes on one file. Not across a fork.

    Example:
        >>> async def main(path):
        ...     store = SQLiteStore(path)
        ...     try:
        ...         return await store.insert([UsageEvent(), UsageEvent()])
        ...     finally:
        ...         await store.aclose()
    """

    name = _BACKEND

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._wal = Path(f"{path}-wal")
        self._writer = Connections(partial(open_connection, self.path), limit=1)
        self._readers = Connections(self._open_reader, limit=READERS)
        self._warned_at = float("-inf")

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """Return the store of `sqlite:///relative` or `sqlite:////absolute`.

        Raises:
            ConfigurationError: The address has a host, or names no file.
        """
        path = url.removeprefix(_PREFIX)
        if path == url or not path or path.startswith(":memory:"):
            raise ConfigurationError("store_url: expected sqlite:///relative.sqlite3 or sqlite:////absolute.sqlite3")
        return cls(path)

    async def insert(self, events: Sequence[UsageEvent], /) -> int:
        """Store each event once; see `Store.insert`."""
        return await self._writer.run(partial(self._insert, events))

    async def event(self, event_id: str, /) -> UsageEvent | None:
        """Return the event of that id, or None."""
        return await self._ask(partial(select_event, event_id=event_id))

    async def events(self, query: EventQuery, /) -> EventPage:
        """Return one page of events; a `limit` outside of 1 to 1,000 is brought inside.

        Raises:
            ValueError: Both cursors are given.
        """
        if query.after is not None and query.before is not None:
            raise ValueError("at most one of after and before")
        return await self._ask(partial(select_page, query=query))

    async def costs(self, dimension: Dimension, where: EventFilter, /) -> CostReport:
        """Return spend by a dimension, exact for the given range."""
        return await self._ask(partial(select_costs, dimension=dimension, where=where))

    async def count(self) -> int:
        """Return the number of distinct events stored."""
        return await self._ask(select_count)

    async def aclose(self) -> None:
        """Close every connection, those in use as soon as their call ends. Idempotent."""
        await self._readers.aclose()
        await self._writer.aclose()

    def _open_reader(self) -> sqlite3.Connection:
        connection = open_connection(self.path)
        add_functions(connection)
        connection.execute("PRAGMA query_only = ON")
        return connection

    async def _ask(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._readers.run(partial(self._answer, question))

    def _answer(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        with _unavailable(self.path), self._readers.borrowed() as connection, _transaction(connection, "DEFERRED"):
            return question(connection)

    def _insert(self, events: Sequence[UsageEvent]) -> int:
        with _unavailable(self.path), self._writer.borrowed() as connection:
            with _rejected():
                rows = [row_from_event(event) for event in events]
                new = _write(connection, rows)
            self._bound_wal(connection)
            return new

    def _bound_wal(self, connection: sqlite3.Connection) -> None:
        """Give the write-ahead log's room back once overlapping readers let it grow."""
        size = self._wal_bytes()
        if size <= WAL_LIMIT_BYTES or truncate_wal(connection) or size <= WAL_WARNING_BYTES:
            return
        if (now := time.monotonic()) - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            _log.warning("the write-ahead log of the SQLite store has %d bytes: a reader holds it open", size)

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


def _write(connection: sqlite3.Connection, rows: list[list[Any]]) -> int:
    with _transaction(connection, "IMMEDIATE"):
        if not rows:
            connection.execute("UPDATE heartbeat SET beats = beats + 1")
        cursor = connection.cursor()
        new = [row for row in rows if _write_row(cursor, row)]
        cursor.executemany(UPSERT_DAILY_COSTS, daily_costs(new))
    return len(new)


def _write_row(cursor: sqlite3.Cursor, row: list[Any]) -> bool:
    """Insert one row and say whether it was new; a row that SQLite refuses is made storable in place."""
    try:
        cursor.execute(*insertion(row))
    except (OverflowError, UnicodeEncodeError):
        row[:] = storable(row)
        cursor.execute(*insertion(row))
    return cursor.rowcount == 1


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    """Commit on success; on an error whoever lent the connection rolls back."""
    connection.execute(f"BEGIN {kind}")
    yield
    connection.execute("COMMIT")


@contextmanager
def _unavailable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise BackendUnavailable(_BACKEND, f"{path}: {said or error}") from error


@contextmanager
def _rejected() -> Iterator[None]:
    try:
        yield
    except _THE_DATAS_FAULT as error:
        raise BackendRejected(_BACKEND, f"{type(error).__name__}: {error}") from error
