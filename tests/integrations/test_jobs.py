"""Jobs: what was asked for in a request is known to belong to it when a worker does it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.contrib.testing.worker import start_worker
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fluxgate_mw import FluxGateMiddleware, ambient, context, current, feature
from fluxgate_mw.integrations.celery import _running, carry_context
from fluxgate_mw.integrations.jobs import Job, envelope
from fluxgate_mw.testing import capture_events
from tests.asking import SignIn, ask, who
from tests.layers import ROOT, layer, run_on

ROUTE = "GET /items/{id}"


@pytest.fixture
def tasks() -> Iterator[celery.Celery]:
    """A Celery application with a real worker, over a broker in this process; ours is carried.

    The worker sets the process's log level, which is put back.
    """
    level = logging.root.level
    app = celery.Celery("jobs", broker="memory://", backend="cache+memory://")
    app.conf.update(worker_hijack_root_logger=False, task_always_eager=False)

    @app.task(name="summarize")
    def summarize(fails: bool = False) -> None:  # noqa: FBT001, FBT002
        ask()
        if fails:
            raise ValueError("x")

    @app.task(name="chain")
    def chain() -> None:
        summarize.delay()

    undo = carry_context()
    with start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=20):
        yield app
    undo()
    logging.root.setLevel(level)
    logging.captureWarnings(capture=False)
    assert _running == {}


def served(task: Any, **arguments: Any) -> TestClient:
    """Return a client of an application whose only endpoint makes a call and enqueues `task`."""

    async def endpoint(request: Request) -> Response:
        ask()
        task.delay(**arguments)
        return PlainTextResponse()

    return TestClient(
        Starlette(
            routes=[Route("/items/{id}", endpoint)], middleware=[Middleware(FluxGateMiddleware), Middleware(SignIn)]
        )
    )


@pytest.mark.survival("Celery", "job enqueued inside a request")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_celery_task_shows_user_feature_and_request_of_where_it_was_sent(tasks: celery.Celery) -> None:
    """With its own name as `step`; a task sent by it shows the same; the next one, sent by nobody, shows nobody."""
    with capture_events() as events:
        served(tasks.tasks["summarize"]).get("/items/7", headers={"x-user": "ada"})
        wait_for(events, 2)
        served(tasks.tasks["chain"]).get("/items/7", headers={"x-user": "bob"})
        wait_for(events, 4)
        served(tasks.tasks["summarize"], fails=True).get("/items/7", headers={"x-user": "eve"})
        wait_for(events, 6)
        tasks.tasks["summarize"].delay()
        wait_for(events, 7)
    assert [who(event) for event in events[:6]] == [
        (user, ROUTE) for user in ("ada", "ada", "bob", "bob", "eve", "eve")
    ]
    assert [event.step for event in events[:2]] == [None, "summarize"]
    assert events[0].request_id == events[1].request_id != events[2].request_id
    assert (events[1].route, events[1].user_source, events[1].feature_source) == (ROUTE, "scope", "route")
    assert (who(events[6]), events[6].step) == ((None, None), "summarize")


def wait_for(events: list[Any], number: int) -> None:
    """Wait until that many events are there."""
    deadline = time.monotonic() + 10
    while len(events) < number:
        assert time.monotonic() < deadline, f"{len(events)} of {number}"
        time.sleep(0.005)


def test_an_eager_celery_task_keeps_what_it_runs_under() -> None:
    """`task_always_eager`, as in users' tests: the caller's frame is back afterwards."""
    app = celery.Celery("eager")
    app.conf.task_always_eager = True

    @app.task(name="eager")
    def eager() -> None:
        ask()

    undo = carry_context()
    try:
        with capture_events() as events, context(user="ada", feature="f"):
            eager.delay()
            assert current().feature == "f"
        assert who(events[0]) == ("ada", "f")
        assert events[0].step == "eager"
    finally:
        undo()


@pytest.mark.timeout(300)
@pytest.mark.survival("arq", "job enqueued inside a request")
def test_an_arq_job_shows_user_feature_and_request_of_where_it_was_enqueued(
    redis_url: str, pytestconfig: pytest.Config
) -> None:
    """On a real server and worker, with the redis package that arq wants; the next job, of nobody, shows nobody."""
    layered = layer(Path(pytestconfig.cache.mkdir("layers")), "arq==0.28.0", "redis[hiredis]==5.3.1", "PyJWT==2.10.1")  # type: ignore[union-attr]
    shown = json.loads(run_on(layered, str(ROOT / "tests" / "arq_job.py"), redis_url).splitlines()[-1])
    (asked, job, alone) = shown["events"]
    assert asked == ["ada", ROUTE, None, asked[3], ROUTE]
    assert job == ["ada", ROUTE, "summarize", asked[3], ROUTE]
    assert alone[:3] == [None, None, "summarize"]
    assert alone[3] != asked[3]
    assert shown["left"] is False


@pytest.mark.parametrize("sent", [None, "text", {"user": 5}, {"feature": ["a"]}, {"unknown": 1}, 7])
def test_an_envelope_that_cannot_be_read_gives_the_job_a_context_of_its_own(sent: object) -> None:
    """Nobody is guessed, nothing is raised, nothing is left."""
    with Job(sent, "task"):
        now = current()
        assert (now.user, now.feature) == (None, None)
        assert now.request_id
    assert ambient.get() is ambient.NOTHING


def test_an_envelope_is_plain_json_and_comes_back_as_it_went() -> None:
    """Outside of everything there is none."""
    assert envelope() is None
    with context(user={"id": 5, "email": "a@example.org"}, session_id="s"), feature("f"):
        sent = json.loads(json.dumps(envelope()))
    with Job(sent, "task"):
        now = current()
        assert (now.user and now.user.id, now.user and now.user.email, now.feature, now.session_id) == (
            "5",
            "a@example.org",
            "f",
            "s",
        )
