"""What the delivery says of itself: to probes, to Prometheus, and on the dashboard."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette

from fluxgate_mw import UsageEvent, diagnostics
from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.memory import MemoryBuffer, MemoryStream
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.errors import BackendUnavailable
from fluxgate_mw.event import encode_event
from fluxgate_mw.health import Health
from fluxgate_mw.metrics import render
from fluxgate_mw.probes import Probes
from fluxgate_mw.stores.sqlite import SQLiteStore
from tests.buffers import numbered
from tests.flushing import Faulty, append_numbered, make_flusher

pytestmark = pytest.mark.anyio


@pytest.fixture
def stream():
    return MemoryStream()


@pytest.fixture
async def store(tmp_path):
    store = SQLiteStore(tmp_path / "store.sqlite3")
    yield store
    await store.aclose()


@pytest.fixture
def health(store, stream):
    """The health of one real store and one buffer, looked at anew by each test."""
    return Health(store=store, buffers=lambda: [MemoryBuffer(stream)])


def pack_of_age(seconds, latency_ms=None):
    occurred_at = datetime.now(UTC) - timedelta(seconds=seconds)
    return pack([encode_event(UsageEvent(occurred_at=occurred_at, latency_ms=latency_ms))])


def down(name):
    """Fail whatever is asked but to close."""
    if name != "aclose":
        raise BackendUnavailable("sqlite", "at db.internal: out of order")


def values(text):
    """The samples of an exposition, by name and labels; fails where a line is none of the format."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+(?:\{[a-z_]+="[^"\\\n]*"\})?) (\S+)', line)
            found[match[1]] = float(match[2])
        else:
            assert re.fullmatch(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (gauge|counter))", line)
    return found


def client_of(app, peer="127.0.0.1", host="127.0.0.1"):
    transport = httpx.ASGITransport(app, client=(peer, 50_000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


async def test_an_idle_delivery_is_ready(health):
    """Nothing waits, everything answers, and there is no reason against it."""
    snapshot = await health.snapshot()
    assert (snapshot.store_writable, snapshot.oldest_age_s, snapshot.reasons(0)) == (True, 0.0, [])
    assert await health.trust() == {"waiting_packs": 0, "lag, s": 0.0, "dead_letters": 0}


@pytest.mark.parametrize(("latency_ms", "age_s"), [(None, 90), (60_000, 30)])
async def test_lag_is_the_age_of_the_first_event_that_is_not_stored(health, stream, latency_ms, age_s):
    """It counts from the end of the call, whether or not a flusher has the event in hand."""
    buffer = MemoryBuffer(stream)
    await buffer.append(pack_of_age(90, latency_ms), 1)
    await buffer.append(pack_of_age(0), 1)
    await buffer.read(max_entries=1, wait_s=0)
    snapshot = await health.snapshot()
    assert age_s <= snapshot.oldest_age_s < age_s + 5
    assert snapshot.reasons(300) == []
    assert snapshot.reasons(20) == [f"an event waits for {age_s} s, 20 s are allowed"]


async def test_a_spool_shows_its_oldest_event_whoever_holds_it(tmp_path):
    """One being written, one sealed, one given to a reader: the first that is not acknowledged counts."""
    writer, looker = Spool(tmp_path), Spool(tmp_path)
    writer.append_nowait(b"first")
    assert (await looker.oldest()).payload == b"first"
    writer.seal()
    writer.append_nowait(b"second")
    writer.seal()
    entries = writer.read_nowait(2)
    assert [(await spool.oldest()).payload for spool in (writer, looker)] == [b"first", b"first"]
    writer.ack_nowait(entries[:1])
    assert [(await spool.oldest()).payload for spool in (writer, looker)] == [b"second", b"second"]
    writer.ack_nowait(entries[1:])
    assert writer.read_nowait(1) == []
    assert [await spool.oldest() for spool in (writer, looker)] == [None, None]
    await writer.aclose()


async def test_what_does_not_answer_is_a_reason_without_names(stream, store):
    """Each silent part is named by its kind alone, and its figures are unknown, not zero."""
    health = Health(store=Faulty(store, down), buffers=lambda: [MemoryBuffer(stream), Faulty(MemoryBuffer(), down)])
    snapshot = await health.snapshot()
    assert snapshot.reasons(300) == ["the store cannot be written", "the buffer memory2 does not answer"]
    found = values(render(snapshot))
    assert (found["fluxgate_store_up"], found['fluxgate_buffer_up{buffer="memory2"}']) == (0, 0)
    assert 'fluxgate_buffer_entries{buffer="memory2"}' not in found
    assert (await health.trust())["lost touch with"] == "memory2"


async def test_it_looks_at_most_once_a_second(store, stream):
    """However often it is asked, the parts are asked once; the clients that it opened are closed."""
    buffer = Faulty(MemoryBuffer(stream))
    health = Health(store=store, buffers=lambda: [buffer])
    first = await health.snapshot()
    assert await health.snapshot() is first
    assert (buffer.calls["backlog"], buffer.calls["oldest"], buffer.calls["aclose"]) == (1, 1, 1)


async def test_a_page_does_not_wait_for_the_stores_lock(stream, store):
    """The trust strip tries no insert: another process may hold the lock for seconds."""
    watched = Faulty(store)
    health = Health(store=watched, buffers=lambda: [MemoryBuffer(stream)])
    assert (await health.trust())["waiting_packs"] == 0
    assert not watched.calls
    assert "fluxgate_store_up" not in values(render(await health.snapshot(ask_store=False)))
    assert values(render(await health.snapshot()))["fluxgate_store_up"] == 1


async def test_a_store_that_has_just_stored_is_not_tried(stream, store):
    """A busy flusher's commits are the proof; another insert would wait behind them."""
    await append_numbered(MemoryBuffer(stream), range(5))
    flusher = make_flusher([MemoryBuffer(stream)], store)
    await flusher.run_once(wait=False)
    idle = make_flusher([MemoryBuffer(stream)], store)
    for figures, writable in ((flusher.statistics, True), (idle.statistics, False)):
        health = Health(store=Faulty(store, down), buffers=lambda: [MemoryBuffer(stream)], flusher=figures)
        assert (await health.snapshot()).store_writable is writable


async def test_metrics_are_the_figures_of_every_stage(tmp_path, store, stream):
    """What was stored, what came twice, what was set aside, what waits and what was dropped."""
    diagnostics.reset()
    buffer = MemoryBuffer(stream)
    await append_numbered(buffer, range(20), per_entry=10)
    await buffer.append(pack([encode_event(numbered(1)), b"\xc1"]), 2)
    flusher = make_flusher([buffer], store)
    await flusher.run_once(wait=False)
    await append_numbered(buffer, range(5))
    emitter = Emitter(spool=lambda: Spool(tmp_path / "spool", max_bytes=1), max_events=2)
    emitter._delivery._running.acquire()
    for number in range(5):
        emitter.emit(numbered(number))
    for _ in range(2):
        diagnostics.note("not_covered_websocket", "a websocket")
    health = Health(
        store=store,
        buffers=lambda: [MemoryBuffer(stream), Spool(tmp_path / "spool")],
        flusher=flusher.statistics,
        emitter=emitter.statistics,
    )
    found = values(render(await health.snapshot()))
    expected = {
        "fluxgate_flusher_stored_total": 20,
        "fluxgate_flusher_dead_lettered_entries_total": 1,
        "fluxgate_flusher_store_errors_total": 0,
        "fluxgate_flusher_buffer_errors_total": 0,
        'fluxgate_buffer_entries{buffer="memory"}': 1,
        'fluxgate_buffer_pending_entries{buffer="memory"}': 0,
        'fluxgate_dead_letters{buffer="memory"}': 1,
        'fluxgate_buffer_bytes{buffer="spool"}': 0,
        'fluxgate_spool_segments{buffer="spool"}': 0,
        "fluxgate_emitter_emitted_total": 5,
        "fluxgate_emitter_sent_total": 0,
        "fluxgate_emitter_spooled_total": 0,
        'fluxgate_emitter_dropped_total{reason="queue_full"}': 3,
        "fluxgate_emitter_queued": 2,
        "fluxgate_store_up": 1,
        'fluxgate_notes_total{kind="dead_letter"}': 1,
        'fluxgate_notes_total{kind="not_covered_websocket"}': 2,
    }
    assert {name: found.get(name) for name in expected} == expected
    trust = (await health.snapshot()).trust()
    assert trust["dropped"] == {"queue_full": 3}
    assert trust["not covered"] == {"websocket": 2}
    assert (trust["queued"], trust["waiting_packs"], trust["dead_letters"]) == (2, 1, 1)
    assert 0 < found["fluxgate_oldest_unstored_age_seconds"] < 60


def test_labels_are_escaped():
    """A label's value cannot end its line."""
    names = ("store_writable", "oldest_age_s", "flusher", "emitter")
    snapshot = SimpleNamespace(**dict.fromkeys(names), buffers=(), notes={'a"b\\c\nd': 1})
    snapshot.store_writable, snapshot.oldest_age_s = True, 0.0
    assert 'fluxgate_notes_total{kind="a\\"b\\\\c\\nd"} 1' in render(snapshot).splitlines()


async def test_probes_answer_and_pass_the_rest_on(health, stream):
    """Alive, ready with reasons, figures; every other path is the app's behind it."""
    async with client_of(Probes(Starlette(), health)) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready", "reasons": []}
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert values(metrics.text)["fluxgate_store_up"] == 1
        assert (await client.get("/readyz?max_lag_s=-1")).status_code == 400
        assert (await client.get("/readyz?max_lag_s=x")).status_code == 400
        assert (await client.post("/readyz")).status_code == 405
        assert (await client.get("/nothing")).status_code == 404


async def test_probes_alone_say_what_there_is(health):
    """Behind `fluxgate flush --port` there is no other app, and a path that is none is answered nevertheless."""
    async with client_of(Probes(None, health)) as client:
        answer = await client.get("/nothing")
    assert (answer.status_code, answer.json()) == (404, {"error": "there are /healthz, /readyz and /metrics"})


async def test_a_delivery_that_is_not_ready_is_a_503_with_reasons(store):
    """The lag and the store are judged; that the process lives is another question."""
    health = Health(store=Faulty(store, down), buffers=lambda: [MemoryBuffer()])
    async with client_of(Probes(None, health)) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"status": "not ready", "reasons": ["the store cannot be written"]}
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("peer", "host", "headers", "token", "status"),
    [
        ("127.0.0.1", "127.0.0.1", {}, None, 200),
        ("127.0.0.1", "localhost", {}, None, 200),
        ("127.0.0.1", "evil.example", {}, None, 400),
        ("127.0.0.1", "anything.example", {}, "secret", 200),
        ("::1", "127.0.0.1", {}, "secret", 200),
        ("127.0.0.1", "127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, "secret", 401),
        ("203.0.113.9", "127.0.0.1", {}, "secret", 401),
        ("203.0.113.9", "127.0.0.1", {"Authorization": "Bearer wrong"}, "secret", 401),
        ("203.0.113.9", "127.0.0.1", {"Authorization": "Bearer secret"}, "secret", 200),
    ],
)
async def test_who_may_ask(health, peer, host, headers, token, status):
    """Without a token, loopback names; with one, loopback peers that no proxy stands for, and whoever sends it."""
    async with client_of(Probes(None, health, token=token), peer, host) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == status
        assert (await client.get("/readyz", headers=headers)).status_code == status
        assert (await client.get("/healthz", headers=headers)).status_code == 200
