"""The SQLite store's own promises: the file, its errors, its write-ahead log, several processes."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args, get_origin

import anyio
import msgspec
import pytest

from fluxgate_mw.errors import BackendRejected, BackendUnavailable, ConfigurationError
from fluxgate_mw.event import UsageEvent, User
from fluxgate_mw.query import EventCursor, EventFilter, EventQuery
from fluxgate_mw.stores import open_store, sqlite, sqlite_connections
from fluxgate_mw.stores.sqlite import SQLiteStore
from fluxgate_mw.stores.sqlite_queries import select_page


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "folder" / "store.sqlite3"


@pytest.fixture
async def store(path, anyio_backend):
    fresh = SQLiteStore(path)
    yield fresh
    await fresh.aclose()


def test_addresses(tmp_path, monkeypatch):
    """Three slashes are relative to the working folder, four are absolute."""
    absolute = open_store(f"sqlite:///{tmp_path}/a.sqlite3")
    relative = open_store("sqlite:///folder/a b.sqlite3")
    assert isinstance(absolute, SQLiteStore)
    assert isinstance(relative, SQLiteStore)
    assert absolute.path == tmp_path / "a.sqlite3"
    assert relative.path == Path("folder/a b.sqlite3")
    assert not absolute.path.exists(), "nothing is opened before its first use"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://ann:secret@db/x", "not supported by this version yet"),
        ("clickhouse://db", "not supported by this version yet"),
        ("mysql://ann:secret@db/x", "names no store"),
        ("nonsense", "names no store"),
        ("sqlite://host/file", "expected sqlite:///"),
        ("sqlite:///", "expected sqlite:///"),
        ("sqlite:///:memory:", "expected sqlite:///"),
    ],
)
def test_an_address_of_no_store_is_one_clear_line(url, words):
    """The message says what is allowed and holds no password."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.anyio
async def test_the_file_is_for_its_owner_alone(store, path):
    """File and write-ahead log are 0600, and the folder that was made for them 0700."""
    await store.insert([UsageEvent()])
    modes = {part.name: stat.S_IMODE(part.stat().st_mode) for part in (path, Path(f"{path}-wal"), path.parent)}
    assert modes == {"store.sqlite3": 0o600, "store.sqlite3-wal": 0o600, "folder": 0o700}


@pytest.mark.anyio
async def test_any_sqlite_tool_can_read_the_events(store, path):
    """Columns are named as the event's fields, the user's flattened; times sort as text; lists are JSON."""
    event = UsageEvent(
        occurred_at=datetime(2026, 3, 2, 1, tzinfo=UTC),
        user=User(id="u1", email="a@example.com", monthly_revenue=2.5),
        finish_reasons=("stop",),
        metadata={"a": 1},
        stream=True,
    )
    await store.insert([event])
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    row = connection.execute("SELECT * FROM events").fetchone()
    connection.close()
    fields = [field for field in UsageEvent.__struct_fields__ if field != "user"]
    assert set(row.keys()) == {*fields, *(f"user_{field}" for field in User.__struct_fields__)}
    assert row["occurred_at"] == "2026-03-02T01:00:00.000000+00:00"
    assert (row["user_id"], row["user_email"], row["user_monthly_revenue"]) == ("u1", "a@example.com", 2.5)
    assert (row["user_name"], row["cost_nanos"], row["stream"]) == (None, None, 1)
    assert (json.loads(row["finish_reasons"]), json.loads(row["metadata"])) == (["stop"], {"a": 1})


@pytest.mark.anyio
async def test_what_was_stored_is_there_when_opened_again(store, path):
    """A commit outlives the process; it is synced, not left to the operating system."""
    await store.insert([UsageEvent(feature="kept")])
    await store.aclose()
    again = SQLiteStore(path)
    assert (await again.costs("feature", EventFilter())).rows[0].key == "kept"
    await again.aclose()
    connection = sqlite_connections.open_connection(path)
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    connection.close()


@pytest.mark.anyio
async def test_a_file_of_a_newer_version_waits_for_the_upgrade(store, path):
    """Nothing is rejected, the message says what to do, and the file is left as it was."""
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BackendUnavailable, match=r"schema 99.*upgrade fluxgate-mw"):
        await store.insert([UsageEvent()])


@pytest.mark.anyio
async def test_a_field_that_the_event_gained_becomes_a_column(store, path):
    """A file of before is opened, given the column, and its rows show the field's default there."""
    old = UsageEvent(service_tier="flex", retries=3)
    await store.insert([old])
    await store.aclose()
    connection = sqlite3.connect(path)
    for column in ("service_tier", "retries"):
        connection.execute(f"ALTER TABLE events DROP COLUMN {column}")
    connection.close()
    store = SQLiteStore(path)
    new = UsageEvent(service_tier="priority", retries=4)
    await store.insert([new])
    assert await store.event(new.event_id) == new
    assert await store.event(old.event_id) == msgspec.structs.replace(old, service_tier=None, retries=0)
    await store.aclose()


def test_every_kind_of_field_has_a_column_type():
    """A field of a kind that the store cannot keep fails here, not as dead letters in production."""
    kept = {str, int, float, bool, datetime, type(None)}
    fields = [*msgspec.structs.fields(UsageEvent), *msgspec.structs.fields(User)]
    strange = [
        field.name
        for field in fields
        if field.name != "user"
        and get_origin(field.type) not in {dict, tuple, Literal}
        and not set(get_args(field.type) or (field.type,)) <= kept
    ]
    assert strange == []


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_unavailable(store, path):
    """A damaged file is no reason to give events up."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(BackendUnavailable):
        await store.insert([UsageEvent()])
    with pytest.raises(BackendUnavailable):
        await store.count()


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    """The error is ours, with the operating system's words."""
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match="sqlite: "):
        await SQLiteStore(tmp_path / "file" / "store.sqlite3").insert([UsageEvent()])


@pytest.mark.anyio
async def test_a_locked_file_is_unavailable_and_then_works(store, path, monkeypatch):
    """Another's long transaction makes an insert fail whole; readers go on; afterwards it succeeds."""
    monkeypatch.setattr(sqlite_connections, "BUSY_TIMEOUT_S", 0.01)
    await store.insert([UsageEvent()])
    await store.aclose()
    store = SQLiteStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match="locked"):
        await store.insert([UsageEvent()])
    assert await store.count() == 1
    other.execute("ROLLBACK")
    other.close()
    assert await store.insert([UsageEvent()]) == 1
    await store.aclose()


@pytest.mark.anyio
async def test_a_full_disk_is_unavailable_and_stores_nothing_of_the_batch(store):
    """On an error none of the batch is there, neither event nor sum."""
    await store.insert([UsageEvent()])
    with store._writer.borrowed() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(BackendUnavailable, match="full"):
        await store.insert([UsageEvent(feature="x" * 1000) for _ in range(100)])
    assert (await store.costs("feature", EventFilter())).total.calls == 1
    assert len((await store.events(EventQuery())).events) == 1
    assert await store.insert([UsageEvent()]) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("culprit", [UsageEvent(event_id=None), UsageEvent(feature=object()), UsageEvent(user="ann")])
async def test_data_that_no_row_can_hold_is_rejected_whole(store, culprit):
    """The flusher looks for the culprit; the rest of the batch is not half stored meanwhile."""
    with pytest.raises(BackendRejected):
        await store.insert([UsageEvent(), culprit])
    assert await store.count() == 0
    assert await store.insert([UsageEvent()]) == 1


@pytest.mark.anyio
async def test_the_write_ahead_log_is_bounded_after_a_long_reader(store, path, monkeypatch, caplog):
    """BYK/loreai#1221 and others: a reader held open lets the log grow; once it ends, the room is given back."""
    monkeypatch.setattr(sqlite, "WAL_LIMIT_BYTES", 50_000)
    monkeypatch.setattr(sqlite, "WAL_WARNING_BYTES", 100_000)
    await store.insert([UsageEvent()])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM events").fetchone()
    for _ in range(3):
        await store.insert([UsageEvent(feature="x" * 200) for _ in range(200)])
    assert store._wal_bytes() > 100_000
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    reader.execute("COMMIT")
    await store.insert([UsageEvent()])
    assert store._wal_bytes() == 0
    reader.close()


INSERTER = """
import sys, anyio
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.stores import open_store

async def main(url, worker):
    store = open_store(url)
    print(sum([await store.insert([UsageEvent(event_id=f"{worker}-{n}-{i}", cost_nanos=1) for i in range(20)]
               + [UsageEvent(event_id=f"shared-{n}", cost_nanos=1)]) for n in range(20)]))
    await store.aclose()

anyio.run(main, *sys.argv[1:])
"""


def test_processes_write_one_new_file_at_once(path):
    """Three processes that make and fill the same file store every event once, and the sums agree."""
    workers = [
        subprocess.Popen([sys.executable, "-c", INSERTER, f"sqlite:///{path}", str(n)], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    new = [int(worker.communicate(timeout=50)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    connection = sqlite3.connect(path)
    events = connection.execute("SELECT COUNT(*), SUM(cost_nanos) FROM events").fetchone()
    days = connection.execute("SELECT SUM(calls), SUM(cost_nanos) FROM daily_costs WHERE dimension = 'user'").fetchone()
    connection.close()
    assert sum(new) == 3 * 400 + 20
    assert events == days == (3 * 400 + 20, 3 * 400 + 20)


READER = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT COUNT(*) FROM events').fetchall()"


@pytest.mark.anyio
async def test_another_process_that_comes_and_goes_takes_no_commit_with_it(store, path):
    """While reading and writing connections are open here, nobody else is the file's last user.

    The last user deletes the write-ahead log; a commit to a deleted log is lost.
    """
    for number in range(3):
        assert await store.insert([UsageEvent()]) == 1
        assert await store.count() == number + 1
        await anyio.run_process([sys.executable, "-c", READER, str(path)])
        assert path.with_name(f"{path.name}-wal") in set(path.parent.iterdir())
    await store.insert([UsageEvent()])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM events").fetchone() == (4,)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("where", "index"),
    [
        (EventFilter(), "events_by_time"),
        (EventFilter(features=("a",)), "events_by_feature"),
        (EventFilter(features=("a", None, "a")), "events_by_feature"),
        (EventFilter(users=(None,)), "events_by_user"),
        (EventFilter(models=("a",)), "events_by_model"),
        (EventFilter(statuses=("ERROR",)), "events_by_status"),
    ],
)
async def test_a_page_is_found_by_an_index(store, where, index):
    """The list of events does not sort the table, with a filter or without."""
    await store.insert([UsageEvent(feature="a")])
    query = EventQuery(where=where, after=EventCursor(datetime.now(UTC), "x"))
    statements = []
    with store._readers.borrowed() as connection:
        connection.set_trace_callback(statements.append)
        select_page(connection, query)
        connection.set_trace_callback(None)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statements[0]}")]
    looks = [place for place, step in enumerate(plan) if " events" in step]
    assert looks
    assert all(f"USING INDEX {index}" in plan[place] for place in looks)
    assert all(plan[place + 1] != "USE TEMP B-TREE FOR ORDER BY" for place in looks)
