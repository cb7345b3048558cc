"""Greenlets inside a request: gevent's and raw ones, by the documented line and by the opt-in."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flask
import gevent
import gevent.pool
import greenlet
import pytest
from werkzeug.test import Client

from fluxgate_mw import FluxGateWSGIMiddleware, UsageEvent, ambient, context, current, identify
from fluxgate_mw.integrations.flask import FluxGateFlask
from fluxgate_mw.integrations.gevent import carry_context
from fluxgate_mw.testing import capture_events
from tests.asking import ask, who

LINE = "gevent.spawn and raw greenlets, with copy_context().run"
OPT_IN = "gevent.spawn and its pools, with carry_context()"


def spawn_with_the_line() -> None:
    gevent.spawn(contextvars.copy_context().run, ask).get()


def switch_with_the_line() -> None:
    greenlet.greenlet(contextvars.copy_context().run).switch(ask)


def spawn() -> None:
    gevent.spawn(ask).get()


def spawn_later() -> None:
    gevent.spawn_later(0, ask).get()


def spawn_in_a_pool() -> None:
    gevent.pool.Pool(2).spawn(ask).get()


def apply_in_a_pool() -> None:
    gevent.pool.Pool(2).apply(ask)


def bare(spawning: Callable[[], None]) -> Any:
    """Return an application that signs in and spawns."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        identify("ada")
        with context(feature="f"):
            spawning()
        start_response("200 OK", [])
        return [b""]

    return FluxGateWSGIMiddleware(app)


def flask_app(spawning: Callable[[], None]) -> Any:
    """Return the same as a Flask application."""
    app = flask.Flask("shop")
    FluxGateFlask(app)

    @app.get("/")
    def view() -> str:
        identify("ada")
        with context(feature="f"):
            spawning()
        return ""

    return app


def events_of(app: Any) -> list[UsageEvent]:
    """Return what one request recorded."""
    with capture_events() as events:
        Client(app).get("/").close()
    return events


@contextmanager
def carried() -> Iterator[None]:
    """Switch the opt-in on for a block."""
    undo = carry_context()
    try:
        yield
    finally:
        undo()


MADE = [
    pytest.param(bare, marks=[pytest.mark.survival("bare WSGI", LINE)]),
    pytest.param(flask_app, marks=[pytest.mark.survival("Flask", LINE)]),
]
MADE_CARRIED = [
    pytest.param(bare, marks=[pytest.mark.survival("bare WSGI", OPT_IN)]),
    pytest.param(flask_app, marks=[pytest.mark.survival("Flask", OPT_IN)]),
]


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("spawning", [spawn_with_the_line, switch_with_the_line])
def test_a_greenlet_that_is_given_a_copy_of_the_context_knows_its_request(make: Any, spawning: Any) -> None:
    """The documented line, for gevent's greenlets and for raw ones."""
    assert [who(event) for event in events_of(make(spawning))] == [("ada", "f")]


@pytest.mark.parametrize("make", MADE_CARRIED)
@pytest.mark.parametrize("spawning", [spawn, spawn_later, spawn_in_a_pool, apply_in_a_pool])
def test_with_the_opt_in_a_spawned_greenlet_knows_its_request_and_without_it_nothing(make: Any, spawning: Any) -> None:
    """A greenlet begins with an empty context."""
    with carried():
        assert [who(event) for event in events_of(make(spawning))] == [("ada", "f")]
    assert [who(event) for event in events_of(make(spawning))] == [(None, None)]


def test_carried_greenlets_that_overlap_keep_their_own_contexts() -> None:
    """One `Context` entered by two greenlets would raise; what one enters, the other never sees."""
    seen: list[tuple[str | None, str | None]] = []

    def work(step: str) -> None:
        with context(step=step):
            gevent.sleep(0)
            now = ambient.get()
            seen.append((now.feature, now.step))

    with carried():
        running = []
        for feature in ("first", "second"):
            with context(feature=feature):
                running += [gevent.spawn(work, feature), gevent.spawn(work, feature)]
        running.append(gevent.spawn(work, "outside"))
        gevent.joinall(running, raise_error=True)
    assert sorted(seen, key=str) == sorted([("first",) * 2, ("second",) * 2] * 2 + [(None, "outside")], key=str)


def test_arguments_and_errors_pass_through_the_opt_in() -> None:
    """As without it: keyword arguments, what is raised, and a call that gevent itself refuses."""
    with carried(), context(feature="f"):
        made = gevent.spawn(lambda *args, **kwargs: (args, kwargs, current().feature), 1, key=2)
        assert made.get() == ((1,), {"key": 2}, "f")
        failing = gevent.pool.Group().spawn(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            failing.get()
        with pytest.raises(TypeError):
            gevent.spawn_later()


def test_the_last_undo_restores_the_very_functions_found() -> None:
    """In any order, each only once; what somebody else put over ours stays and does nothing."""
    found = gevent.spawn, gevent.spawn_later, gevent.pool.Group.spawn
    first, second = carry_context(), carry_context()
    first()
    first()
    assert gevent.spawn is not found[0]
    second()
    assert (gevent.spawn, gevent.spawn_later, gevent.pool.Group.spawn) == found
