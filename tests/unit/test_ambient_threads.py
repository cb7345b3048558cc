"""The opt-in for threads: what it carries, what it must not, and that it goes as it came."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fluxgate_mw import FluxGateWSGIMiddleware, ambient, context, current
from fluxgate_mw.ambient import Ambient, Current
from fluxgate_mw.integrations.threads import carry_context
from fluxgate_mw.request import RequestContext
from fluxgate_mw.testing import capture_events
from tests.asking import ask


def name() -> str | None:
    return current().feature


def test_a_worker_thread_that_begins_inside_a_context_does_not_keep_it() -> None:
    """A worker started lazily would be stuck on its first user, and bill everything to it."""
    undo = carry_context()
    try:
        with ThreadPoolExecutor(1) as pool:
            with context(feature="first"):
                assert pool.submit(name).result() == "first"
            assert pool.submit(name).result() is None
            with context(feature="second"):
                assert list(pool.map(lambda _: name(), range(2))) == ["second", "second"]
            assert pool.submit(ambient.get).result() is ambient.NOTHING
    finally:
        undo()


def test_a_thread_whose_start_failed_is_carried_when_it_is_tried_again(monkeypatch) -> None:
    """A process that can start no thread for a moment is no reason to lose what the thread does."""
    seen: list[str | None] = []
    launch = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"

    def cannot(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    undo = carry_context()
    try:
        thread = threading.Thread(target=lambda: seen.append(name()))
        with context(feature="f"):
            with monkeypatch.context() as patched:
                patched.setattr(threading, launch, cannot)
                with pytest.raises(RuntimeError, match="can't start"):
                    thread.start()
            thread.start()
            thread.join()
    finally:
        undo()
    assert seen == ["f"]


def test_a_thread_is_carried_and_keeps_nothing_when_it_has_run() -> None:
    """Subclasses that override `run` too; no cycle is left."""
    seen: list[str | None] = []

    class Own(threading.Thread):
        def run(self) -> None:
            seen.append(name())

    undo = carry_context()
    try:
        with context(feature="f"):
            thread = Own()
            thread.start()
            thread.join()
        gone = weakref.ref(thread)
        gc.disable()
        del thread
        assert gone() is None
    finally:
        gc.enable()
        undo()
    assert seen == ["f"]


def test_undo_in_any_order_restores_the_very_functions_found() -> None:
    """The last undo does; each undo only once."""
    submit, start = ThreadPoolExecutor.submit, threading.Thread.start
    first, second = carry_context(), carry_context()
    first()
    first()
    assert ThreadPoolExecutor.submit is not submit
    second()
    assert (ThreadPoolExecutor.submit, threading.Thread.start) == (submit, start)
    alone = carry_context(threads=False)
    assert threading.Thread.start is start
    alone()
    assert ThreadPoolExecutor.submit is submit


def test_current_outside_a_request_is_what_encloses_the_caller() -> None:
    """And zero calls; never an error."""
    now = current()
    assert (now.user, now.feature, now.route, now.request_id, now.calls, now.cost) == (None, None, None, None, 0, 0)
    with context(user="ada", feature="f", session_id="s"):
        now = current()
        assert (now.user and now.user.id, now.feature, now.session_id, now.calls) == ("ada", "f", "s", 0)


def test_a_frame_is_compared_by_identity() -> None:
    """Frameworks compare the values of contexts that they copy."""
    request = RequestContext({}, None)  # type: ignore[arg-type]
    assert Ambient(request=request) != Ambient(request=request)
    assert RequestContext({}, None) != RequestContext({}, None)  # type: ignore[arg-type]


def test_the_figures_of_a_request_add_up_from_threads_that_interrupt_each_other() -> None:
    """Nothing is lost, at a switch interval at which threads take turns all the time."""
    seen: list[Current] = []

    def asks() -> None:
        for _ in range(300):
            ask()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with ThreadPoolExecutor(8) as pool:
            for asking in [pool.submit(contextvars.copy_context().run, asks) for _ in range(8)]:
                asking.result()
        seen.append(current())
        return []

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with capture_events() as events:
            FluxGateWSGIMiddleware(app)({"REQUEST_METHOD": "GET"}, None)  # type: ignore[arg-type]
    finally:
        sys.setswitchinterval(interval)
    assert (seen[0].calls, seen[0].cost_nanos) == (2_400, sum(event.cost_nanos or 0 for event in events))
    assert {event.request_id for event in events} == {seen[0].request_id}
    assert seen[0].cost_nanos > 0
