"""Django: one middleware class under WSGI and ASGI, for sync and async views, its users loaded late and only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import httpx
import pytest

import tests.django_project  # noqa: F401  # isort: skip  (it configures Django, which the next lines need)
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from werkzeug.test import Client as WSGIClient

from fluxgate_mw import FluxGate, FluxGateMiddleware, FluxGateWSGIMiddleware, UsageEvent, instrument_openai
from fluxgate_mw.integrations.django import FluxGateMiddleware as DjangoMiddleware
from fluxgate_mw.testing import capture_events
from tests.asking import who


def survival(framework: str, place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival(framework, place)


@pytest.fixture(scope="module")
def cookie() -> Any:
    """The session cookie of a user who is signed in."""
    call_command("migrate", verbosity=0)
    ada, _made = User.objects.get_or_create(id=5, username="ada", email="ada@example.org")
    client = Client()
    client.force_login(ada)
    yield f"sessionid={client.cookies['sessionid'].value}"
    connections.close_all()


def over_wsgi(path: str, cookie: str | None, wrap: Callable[[Any], Any] = lambda app: app) -> list[UsageEvent]:
    """Return what one request recorded, its body read and closed as a server does."""
    with capture_events() as events:
        response = WSGIClient(wrap(get_wsgi_application()), use_cookies=False).get(
            path, headers={} if cookie is None else {"cookie": cookie}, buffered=False
        )
        response.get_data()
        response.close()
    return events


async def over_asgi(path: str, cookie: str | None, wrap: Callable[[Any], Any] = lambda app: app) -> list[UsageEvent]:
    """Return what one request recorded."""
    transport = httpx.ASGITransport(wrap(get_asgi_application()))
    with capture_events() as events:
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await client.get(path, headers={} if cookie is None else {"cookie": cookie})
    return events


CASES = [
    pytest.param("/sync/7/", "GET /sync/<int:key>/", 1, marks=survival("Django", "sync handler")),
    pytest.param("/async/7/", "GET /async/<int:key>/", 1, marks=survival("Django", "async handler")),
    pytest.param("/class/7/", "class", 1, marks=survival("Django", "class-based views")),
    pytest.param(
        "/api/acme/deep/7/",
        r"GET /api/<slug:tenant>/deep/(?P<key>\d+)/$",
        1,
        marks=survival("Django", "included routers, prefix kept"),
    ),
    pytest.param("/failing/7/", "GET /failing/<int:key>/", 1, marks=survival("Django", "exception_handler(Exception)")),
    pytest.param("/secret/path/", None, 1, marks=survival("Django", "404 and exception handlers")),
]


@pytest.mark.parametrize(("path", "name", "calls"), CASES)
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_under_wsgi_a_call_knows_the_signed_in_user_and_its_route(
    cookie: str, path: str, name: str | None, calls: int
) -> None:
    """Views of every kind."""
    events = over_wsgi(path, cookie)
    assert [who(event) for event in events] == [("5", name)] * calls
    assert events[0].user_source == "framework"
    assert [event.user and event.user.email for event in events] == ["ada@example.org"] * calls
    assert [event.user for event in over_wsgi(path, None)] == [None] * calls


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "name", "calls"), CASES)
async def test_under_asgi_a_call_knows_the_signed_in_user_and_its_route(
    cookie: str, path: str, name: str | None, calls: int
) -> None:
    """Views of every kind, without `SynchronousOnlyOperation`."""
    assert [who(event) for event in await over_asgi(path, cookie)] == [("5", name)] * calls
    assert [event.user for event in await over_asgi(path, None)] == [None] * calls


@survival("Django", "streamed body, sync")
def test_under_wsgi_a_streamed_body_knows_user_and_route(cookie: str) -> None:
    """It runs after the middleware has returned, and is of the feature that a class's method is decorated with."""
    assert [who(event) for event in over_wsgi("/stream/7/", cookie)] == [("5", "GET /stream/<int:key>/")]
    assert [who(event) for event in over_wsgi("/method/7/", cookie)] == [("5", "method")]


def test_a_streamed_body_that_is_closed_early_ends_inside_its_request(cookie: str) -> None:
    """Its `finally` runs where a client has left, and what it raises there is nobody's."""
    with capture_events() as events:
        app = WSGIClient(get_wsgi_application(), use_cookies=False)
        response = app.get("/closing/7/", headers={"cookie": cookie}, buffered=False)
        assert next(response.iter_encoded()) == b"one"
        response.close()
    assert [who(event) for event in events] == [("5", "GET /closing/<int:key>/")]


@pytest.mark.anyio
@survival("Django", "streamed body, async")
async def test_under_asgi_a_streamed_body_knows_user_and_route(cookie: str) -> None:
    """A feature that is open across its steps is there at each of them."""
    events = await over_asgi("/async-stream/7/", cookie)
    assert [who(event) for event in events] == [("5", "GET /async-stream/<int:key>/"), ("5", "inner"), ("5", "inner")]
    assert len({event.request_id for event in events}) == 1
    assert [who(event) for event in await over_asgi("/named-stream/7/", cookie)] == [("5", "named")]


@pytest.mark.anyio
async def test_a_call_of_the_async_client_in_an_async_view_awaits_the_user(cookie: str) -> None:
    """`request.auser()`, before the call: nothing is queried on the loop."""
    instrument_openai()
    events = await over_asgi("/openai/7/", cookie)
    assert [who(event) for event in events] == [("5", "GET /openai/<int:key>/")]


@pytest.mark.anyio
async def test_whom_an_applications_own_auser_gives_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware that reads a token leaves its user nowhere else; Django's own leaves it on the request."""

    async def auser(request: Any) -> Any:
        return SimpleNamespace(is_authenticated=True, id=9)

    monkeypatch.setattr("django.contrib.auth.middleware.auser", auser)
    instrument_openai()
    assert [who(event) for event in await over_asgi("/openai/7/", None)] == [("9", "GET /openai/<int:key>/")]


@pytest.mark.anyio
async def test_a_sync_call_in_an_async_view_knows_nobody_rather_than_query_on_the_loop(cookie: str) -> None:
    """Django forbids the query there; the call goes on, and its route is known."""
    assert [who(event) for event in await over_asgi("/sync-call/7/", cookie)] == [(None, "GET /sync-call/<int:key>/")]


@pytest.mark.anyio
async def test_what_is_queued_is_delivered_before_the_shutdown_though_django_has_no_lifespan(tmp_path: Path) -> None:
    """It raises where it is told of it; then uvicorn tells nobody, and ends by the signal that it caught."""
    fg = FluxGate(spool_dir=tmp_path, emit_interval_s=60)
    fg.record(UsageEvent())
    fg.flush()  # the delivery is at work, and looks at the queue again in a minute
    fg.record(UsageEvent())
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[tuple[str, int]] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append((message["type"], fg.statistics().spooled))

    try:
        await FluxGateMiddleware(get_asgi_application(), fluxgate=fg)({"type": "lifespan"}, receive, send)
        assert sent == [("lifespan.startup.complete", 1), ("lifespan.shutdown.complete", 2)]
    finally:
        fg.stop()


def test_a_request_without_calls_loads_no_user(cookie: str) -> None:
    """And one with a call loads the user once."""
    with CaptureQueriesContext(connection) as queries:
        assert over_wsgi("/silent/", cookie) == []
    assert len(queries) == 0
    assert connection.queries_log is not None


def test_files_are_left_to_the_server() -> None:
    """The server's own file wrapper is what it gets."""
    environ: dict[str, Any] = {"PATH_INFO": "/file/", "wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    body = get_wsgi_application()(environ, lambda _status, _headers: None)  # type: ignore[arg-type]
    assert type(body) is FileWrapper
    body.close()


@pytest.mark.anyio
async def test_inside_the_asgi_and_wsgi_middlewares_it_adds_user_and_route_to_their_request(cookie: str) -> None:
    """Both may be there: one request, as the outer one made it."""
    events = await over_asgi("/async-stream/7/", cookie, FluxGateMiddleware)
    assert [who(event) for event in events][:1] == [("5", "GET /async-stream/<int:key>/")]
    assert len({event.request_id for event in events}) == 1


def test_inside_the_wsgi_middleware_too(cookie: str) -> None:
    """As under ASGI."""
    assert [who(event) for event in over_wsgi("/stream/7/", cookie, FluxGateWSGIMiddleware)] == [
        ("5", "GET /stream/<int:key>/")
    ]


@pytest.mark.anyio
async def test_the_cost_is_sent_with_plain_responses_where_it_is_turned_on(
    cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by default; a response of no call says nothing; another `Server-Timing` of the view's stays."""

    def over_wsgi_header(path: str) -> str | None:
        return WSGIClient(get_wsgi_application(), use_cookies=False).get(path).headers.get("Server-Timing")

    with capture_events():
        assert over_wsgi_header("/timed/") == "db;dur=1"
        monkeypatch.setattr(DjangoMiddleware, "cost_header", True)
        sent = over_wsgi_header("/timed/")
        assert sent is not None
        assert sent.startswith('db;dur=1, llm;desc="1 call $0.0002";dur=')
        assert over_wsgi_header("/silent/") is None
        transport = httpx.ASGITransport(get_asgi_application())
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for path in ("/async/7/", "/sync/7/"):
                response = await client.get(path)
                assert response.headers["server-timing"].startswith('llm;desc="1 call $0.0002";dur=')


@pytest.mark.anyio
async def test_the_cost_ends_server_sent_events_where_it_is_turned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last comment line, under WSGI and under ASGI; nothing where it is off, and nothing in another stream."""

    def over_wsgi_body(path: str) -> bytes:
        return WSGIClient(get_wsgi_application(), use_cookies=False).get(path).get_data()

    with capture_events():
        assert over_wsgi_body("/events/") == b"data: answer\n\n"
        monkeypatch.setattr(DjangoMiddleware, "cost_header", True)
        assert over_wsgi_body("/stream/7/") == b"oneanswer"
        plain, comment, rest = over_wsgi_body("/events/").partition(b": llm;")
        assert (plain, comment) == (b"data: answer\n\n", b": llm;")
        assert rest.startswith(b'desc="1 call $0.0002";dur=')
        assert rest.endswith(b"\n")
        transport = httpx.ASGITransport(get_asgi_application())
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            response = await client.get("/async-events/")
            assert response.content.startswith(b'data: answer\n\n: llm;desc="1 call $0.0002";dur=')
            assert response.content.count(b"llm;") == 1


def test_a_cookie_session_user_is_not_asked_where_the_framework_is_switched_off(
    cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`user_sources` without `framework`: nobody, and no query."""
    monkeypatch.setattr(DjangoMiddleware, "user_sources", ["identify", "resolver"])
    assert [who(event) for event in over_wsgi("/sync/7/", cookie)] == [(None, "GET /sync/<int:key>/")]
