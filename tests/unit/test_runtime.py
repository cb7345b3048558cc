"""The composition root: defaults, several at once, start and stop, statistics."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing

import openai
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fluxgate_mw import FluxGate, UsageEvent, User, diagnostics, track
from fluxgate_mw.errors import ConfigurationError, MissingExtraError
from fluxgate_mw.extras import load
from fluxgate_mw.testing import capture_events


def original():
    return openai.OpenAI.__mro__[1].__dict__["request"]


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def stored(tmp_path):
    path = tmp_path / "data" / "fluxgate.sqlite3"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone() is None:
            return []
        return connection.execute("SELECT feature, user_id FROM events ORDER BY event_id").fetchall()


def test_the_default_is_the_last_one_made():
    """Making one makes it the default; with none, the environment makes one."""
    made = FluxGate.default()
    assert FluxGate.default() is made
    later = FluxGate(service="later")
    assert FluxGate.default() is later
    made.stop()


def test_each_undoes_only_its_own_instrumentation():
    """The last to stop restores the very method found."""
    found = original()
    first, second = FluxGate(), FluxGate()
    patched = original()
    assert patched is not found
    first.stop()
    assert original() is patched
    first.stop()
    second.stop()
    assert original() is found
    second.start()
    assert original() is not found
    second.stop()
    assert original() is found


@pytest.mark.parametrize("switch", [{"enabled": False}, {"instrument": False}])
def test_switched_off_patches_nothing(switch):
    """Nothing of the client is touched, and recording goes nowhere when off."""
    found = original()
    fg = FluxGate(**switch)
    assert original() is found
    fg.record(UsageEvent())
    assert fg.statistics().emitted == (1 if fg.settings.enabled else 0)


def test_a_wrong_setting_fails_at_the_start():
    """In one line, before anything is patched."""
    found = original()
    with pytest.raises(ConfigurationError, match=r"redis_url \(from the argument\)"):
        FluxGate(redis_url="cache")
    assert original() is found


def test_a_wrong_environment_never_reaches_a_call(monkeypatch, caplog):
    """Where the default cannot be made, the call goes on and the mistake is logged once."""
    allowed = "expected one of 1, true, yes, on, 0, false, no, off"
    monkeypatch.setenv("FLUXGATE_DURABLE", "maybe")
    for _ in range(3):
        with track() as call:
            call.usage(provider="anthropic", model="claude", input_tokens=1)
    assert [record.message for record in caplog.records if "FLUXGATE_DURABLE" in record.message] == [
        f"nothing is recorded: FLUXGATE_DURABLE (from the environment): {allowed}"
    ]


def test_no_settings_at_all(tmp_path, caplog):
    """The spool takes the events, and the log says once where they go."""
    with caplog.at_level(logging.INFO, logger="fluxgate_mw.runtime"), FluxGate() as fg:
        for number in range(3):
            fg.record(UsageEvent(feature=f"f-{number}"))
        assert fg.flush(5)
        assert fg.statistics().spooled == 3
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"events go to the spool at {tmp_path}/data/spool"
    ]


def test_an_unwritable_folder_is_counted_and_said(tmp_path, caplog):
    """Events that cannot be kept are drops with a reason, never an exception."""
    (tmp_path / "file").write_text("in the way")
    fg = FluxGate(data_dir=tmp_path / "file" / "below", shutdown_timeout_s=0.2)
    fg.record(UsageEvent())
    fg.stop()
    statistics = fg.statistics()
    assert statistics.emitted == statistics.queued + sum(statistics.dropped.values()) == 1


def test_background_flusher_stores(tmp_path):
    """One process records, flushes and stores; the law holds."""
    with FluxGate(flusher="background") as fg:
        fg.record(UsageEvent(feature="f", user=User("u")))
        wait_for(lambda: fg.statistics().flusher is not None and fg.statistics().flusher.stored == 1)
    assert stored(tmp_path) == [("f", "u")]


IMPORTING = """
import sys, threading
from fluxgate_mw import FluxGate, UsageEvent

class Seen:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            seen.append(name)

seen, fg = [], FluxGate(flusher=sys.argv[2], data_dir=sys.argv[1])
sys.meta_path.insert(0, Seen())
fg.record(UsageEvent())
print(seen)
fg.stop()
"""


@pytest.mark.parametrize("flusher", ["none", "background"])
def test_the_first_event_imports_nothing(tmp_path, flusher):
    """It may be made in the middle of an import: by a stream that is freed there, or by many threads at once."""
    command = [sys.executable, "-c", IMPORTING, tmp_path, flusher]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout == "[]\n"


def test_a_background_flusher_that_cannot_start_costs_no_event(monkeypatch):
    """The process may have no thread left."""

    def refused(run):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("fluxgate_mw.background.start_thread", refused)
    fg = FluxGate(flusher="background")
    fg.recorder.record(UsageEvent())
    assert fg.flush(5)
    assert fg.statistics().spooled == 1
    assert diagnostics.counts()["bug_delivery"] == 1
    fg.recorder.record(UsageEvent())
    assert diagnostics.counts()["bug_delivery"] == 2, "the next event tries again"


def test_mounting_the_dashboard_flushes_in_the_background(tmp_path):
    """The mounted pages show what this very process recorded."""
    fg = FluxGate()
    app = Starlette(lifespan=fg.lifespan)
    app.mount("/costs", fg.dashboard(public=True))
    with TestClient(app) as client:
        fg.record(UsageEvent(feature="mounted-feature"))
        wait_for(lambda: stored(tmp_path) == [("mounted-feature", None)])
        assert "mounted-feature" in client.get("/costs/requests").text


def test_a_mounted_dashboard_has_the_figures_of_its_process(tmp_path):
    """What this process emitted is below the mount, for loopback peers and no others, whatever Host they name."""
    fg = FluxGate(instrument=False)
    app = Starlette(lifespan=fg.lifespan)
    app.mount("/costs", fg.dashboard(public=True))
    with TestClient(app, client=("127.0.0.1", 1)) as client:
        fg.record(UsageEvent())
        assert fg.flush(5)
        lines = client.get("/costs/metrics").text.splitlines()
        assert {"fluxgate_emitter_emitted_total 1", "fluxgate_emitter_spooled_total 1"} <= set(lines)
        assert client.get("/costs/readyz").json() == {"status": "ready", "reasons": []}
        assert client.get("/metrics").status_code == 404
        assert client.get("/costs/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 401
        assert client.get("/costs/requests").status_code == 200
    far = TestClient(app, client=("203.0.113.9", 1), base_url="http://localhost")
    assert [far.get(f"/costs/{path}").status_code for path in ("metrics", "readyz", "healthz")] == [401, 401, 200]


def test_the_dashboard_needs_to_know_who_may_look():
    """Names and e-mails are shown to nobody by default; the settings' token lets its holder in."""
    with pytest.raises(ConfigurationError):
        FluxGate().dashboard()
    client = TestClient(FluxGate(dashboard_token="secret").dashboard())
    assert client.get("/").status_code == 401
    assert client.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_lifespan_with_a_users_own():
    """Theirs runs inside ours and keeps its state; ours delivers at the end."""
    seen = []

    @asynccontextmanager
    async def theirs(app):
        seen.append("up")
        yield {"answer": 42}
        seen.append("down")

    fg = FluxGate()
    with TestClient(Starlette(lifespan=fg.lifespan_with(theirs))) as client:
        assert client.app_state == {"answer": 42}
        fg.record(UsageEvent())
    assert seen == ["up", "down"]
    assert fg.statistics().queued == 0


@pytest.mark.anyio
async def test_aflush_in_an_event_loop():
    """True when everything queued was accepted in time."""
    async with FluxGate() as fg:
        fg.record(UsageEvent())
        assert await fg.aflush(5)
        assert fg.statistics().spooled == 1


def test_captures_are_process_wide_and_nested():
    """Every capture gets every event, whichever FluxGate records it, and nothing is delivered meanwhile."""
    one, other = FluxGate(), FluxGate()
    with capture_events() as outer:
        one.record(UsageEvent(feature="a"))
        with capture_events() as inner:
            other.record(UsageEvent(feature="b"))
    one.record(UsageEvent(feature="c"))
    assert [event.feature for event in outer] == ["a", "b"]
    assert [event.feature for event in inner] == ["b"]
    assert (one.statistics().emitted, other.statistics().emitted) == (1, 0)
    one.stop()


def test_recording_something_else_is_counted():
    """What is no event is noted once and nothing is emitted."""
    fg = FluxGate(instrument=False)
    fg.record("summarizer")
    assert fg.statistics().emitted == 0
    assert fg.statistics().notes == {"record_no_event": 1}


def test_no_signal_handler_is_installed(tmp_path):
    """Whatever runs, every signal of the process does what it did: only our own commands handle any."""
    numbers = sorted(signal.valid_signals())
    before = [signal.getsignal(number) for number in numbers]
    with FluxGate(data_dir=tmp_path, flusher="background") as fg:
        fg.record(UsageEvent())
        assert fg.flush(5)
        assert [signal.getsignal(number) for number in numbers] == before
        fg.dashboard(public=True)
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_option_of_redis_that_nobody_knows_fails_at_start_up():
    """Not in the delivery's thread, where every event would wait for ever."""
    with pytest.raises(ConfigurationError, match="redis-py knows no option 'colour'"):
        FluxGate(redis_url="redis://cache:6379?colour=red")
    assert FluxGate._default == []


def test_one_that_cannot_be_made_leaves_nothing_behind(monkeypatch):
    """Neither a patch nor a default: the next `FluxGate` is the first."""

    def without_flusher(target, *, extra, needed_for):
        if "background" in target:
            raise MissingExtraError(extra, needed_for)
        return load(target, extra=extra, needed_for=needed_for)

    monkeypatch.setattr("fluxgate_mw.runtime.load", without_flusher)
    found = openai.OpenAI.request
    with pytest.raises(MissingExtraError):
        FluxGate(flusher="background")
    assert FluxGate._default == []
    assert openai.OpenAI.request is found
