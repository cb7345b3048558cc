"""Litestar: handlers, dependencies, streams, background tasks and websockets, with its own templates and users."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from litestar import Controller, Litestar, Request, Router, WebSocket, get, websocket
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.events import listener
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from litestar.response import Response, ServerSentEvent, Stream
from litestar.testing import TestClient

from fluxgate_mw import FluxGate, FluxGateMiddleware, UsageEvent, context, current, feature
from fluxgate_mw.ambient import Current
from fluxgate_mw.integrations.litestar import FluxGatePlugin
from fluxgate_mw.testing import capture_events
from tests.asking import aask, ask, who

# Parameters that are inferred from the path, as every release takes them.
pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated inferred style|Inferred dependency):DeprecationWarning")


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("Litestar", place)


class Account:
    """A user of the application."""

    def __init__(self, key: str) -> None:
        self.id = key


class Authentication(AbstractAuthenticationMiddleware):
    """Litestar's own way to sign somebody in."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        named = connection.headers.get("x-user")
        return AuthenticationResult(user=None if named is None else Account(named), auth=None)


@get("/async/{key:int}")
async def async_handler(key: int) -> str:
    return await aask()


@get("/sync/{key:int}", sync_to_thread=True)
def sync_handler(key: int) -> str:
    return ask()


@get("/background/{key:int}")
async def background_handler(key: int) -> Response[str]:
    return Response("x", background=BackgroundTask(aask))


@get("/stream/{key:int}")
async def stream_handler(key: int) -> Stream:
    async def body() -> AsyncIterator[str]:
        yield await aask()

    return Stream(body())


@get("/sync-stream/{key:int}")
async def sync_stream_handler(key: int) -> Stream:
    def body() -> Iterator[str]:
        yield ask()

    return Stream(body())


@get("/events/{key:int}")
async def events_handler(key: int) -> ServerSentEvent:
    async def body() -> AsyncIterator[str]:
        yield await aask()

    return ServerSentEvent(body())


async def provide_answer() -> AsyncIterator[str]:
    yield await aask()


@get("/dependency/{key:int}", dependencies={"answer": Provide(provide_answer)})
async def dependency_handler(key: int, answer: str) -> str:
    return answer


@get("/named/{key:int}")
@feature("named")
async def named_handler(key: int) -> Response[str]:
    await aask()
    return Response("x", background=BackgroundTask(aask))


@get("/named-in-a-thread/{key:int}", sync_to_thread=True)
@feature("named")
def named_sync_handler(key: int) -> Stream:
    def body() -> Iterator[str]:
        yield ask()

    return Stream(body(), background=BackgroundTask(aask))


@get("/failing/{key:int}")
async def failing_handler(key: int) -> str:
    raise KeyError("x")


def on_key_error(request: Request[Any, Any, Any], error: KeyError) -> Response[str]:
    return Response(ask(), status_code=400)


@websocket("/socket/{key:int}")
async def socket_handler(socket: WebSocket[Any, Any, Any], key: int) -> None:
    await socket.accept()
    await socket.send_text(await aask())
    await socket.close()


class Items(Controller):
    """A class-based view."""

    path = "/items"

    @get("/{key:int}")
    async def read(self, key: int) -> str:
        return await aask()


@feature("controller")
class Decorated(Controller):
    """A decorated one."""

    path = "/decorated"

    @get("/{key:int}")
    async def read(self, key: int) -> str:
        return await aask()

    @get("/{key:int}/own")
    @feature("own")
    async def read_own(self, key: int) -> Stream:
        async def body() -> AsyncIterator[str]:
            yield await aask()

        return Stream(body())


HANDLERS = [
    async_handler,
    sync_handler,
    background_handler,
    stream_handler,
    sync_stream_handler,
    events_handler,
    dependency_handler,
    named_handler,
    named_sync_handler,
    failing_handler,
    socket_handler,
    Items,
    Decorated,
]


def make(*, plugin: bool = True) -> Litestar:
    """Return an application with ours as its plugin, or else as a plain middleware."""
    return Litestar(
        [*HANDLERS, Router("/v1", route_handlers=[Items])],
        middleware=[*([] if plugin else [FluxGateMiddleware]), DefineMiddleware(Authentication)],
        plugins=[FluxGatePlugin()] if plugin else [],
        exception_handlers={KeyError: on_key_error},
        openapi_config=None,
        logging_config=None,
    )


def events_of(path: str, *, plugin: bool = True) -> list[UsageEvent]:
    """Return what one request recorded."""
    with capture_events() as events, TestClient(make(plugin=plugin), raise_server_exceptions=False) as client:
        client.get(path, headers={"x-user": "ada"})
    return events


@pytest.mark.parametrize("plugin", [True, False])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        pytest.param("/async/7", ["GET /async/{key}"], marks=survival("async handler")),
        pytest.param("/sync/7", ["GET /sync/{key}"], marks=survival("sync handler in a worker thread")),
        pytest.param("/background/7", ["GET /background/{key}"], marks=survival("background task")),
        pytest.param("/stream/7", ["GET /stream/{key}"], marks=survival("streamed body, async")),
        pytest.param("/sync-stream/7", ["GET /sync-stream/{key}"], marks=survival("streamed body, sync")),
        pytest.param("/events/7", ["GET /events/{key}"], marks=survival("server-sent events")),
        pytest.param("/dependency/7", ["GET /dependency/{key}"], marks=survival("dependencies with yield")),
        pytest.param(
            "/named/7",
            ["named", "named"],
            marks=survival("decorated endpoint: its streamed body and background tasks"),
        ),
        pytest.param(
            "/named-in-a-thread/7",
            ["named", "named"],
            marks=survival("decorated endpoint: its streamed body and background tasks"),
        ),
        pytest.param("/items/7", ["GET /items/{key}"], marks=survival("class-based views")),
        pytest.param("/decorated/7", ["controller"], marks=survival("class-based views")),
        pytest.param("/decorated/7/own", ["own"], marks=survival("class-based views")),
        pytest.param("/v1/items/7", ["GET /v1/items/{key}"], marks=survival("included routers, prefix kept")),
        pytest.param("/failing/7", ["GET /failing/{key}"], marks=survival("404 and exception handlers")),
    ],
)
def test_a_call_knows_user_and_template(path: str, names: list[str], plugin: bool) -> None:  # noqa: FBT001
    """In Litestar's own spelling, from each place."""
    events = events_of(path, plugin=plugin)
    assert [who(event) for event in events] == [("ada", name) for name in names]
    assert events[0].user_source == "scope"


@pytest.mark.parametrize("given", [True, False])
def test_what_is_queued_is_delivered_before_the_application_has_shut_down(tmp_path: Path, given: bool) -> None:  # noqa: FBT001
    """Also what the application's own lifespan records at its end: uvicorn may end by a signal right after."""
    fg = FluxGate(spool_dir=tmp_path, emit_interval_s=60)

    @asynccontextmanager
    async def theirs(app: Litestar) -> AsyncIterator[None]:
        fg.record(UsageEvent())
        assert await fg.aflush()
        yield
        fg.record(UsageEvent())

    plugin = FluxGatePlugin(fg if given else None)
    try:
        with TestClient(Litestar([], plugins=[plugin], lifespan=[theirs], logging_config=None)):
            pass
        assert fg.statistics().spooled == 2
    finally:
        fg.stop()


@survival("websocket")
def test_a_call_in_a_websocket_knows_user_and_template() -> None:
    """The route's method is `WEBSOCKET`."""
    with (
        capture_events() as events,
        TestClient(make()) as client,
        client.websocket_connect("/socket/7", headers={"x-user": "ada"}) as socket,
    ):
        socket.receive_text()
    assert [who(event) for event in events] == [("ada", "WEBSOCKET /socket/{key}")]


@get("/broken/{key:int}", sync_to_thread=False)
def broken_handler(key: int) -> str:
    raise RuntimeError("x")


def on_any_error(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    return Response(ask(), status_code=500)


@survival("exception_handler(Exception)")
@survival("404 and exception handlers")
def test_a_call_in_the_handler_of_exception_knows_user_and_template_and_a_404_has_no_feature() -> None:
    """Of an application whose handler answers everything that is raised; nobody signs in where nothing is routed."""
    app = Litestar(
        [broken_handler],
        middleware=[DefineMiddleware(Authentication)],
        plugins=[FluxGatePlugin()],
        exception_handlers={Exception: on_any_error},
        openapi_config=None,
        logging_config=None,
    )
    with capture_events() as events, TestClient(app, raise_server_exceptions=False) as client:
        client.get("/broken/7", headers={"x-user": "ada"})
        client.get("/secret/path", headers={"x-user": "ada"})
    assert [who(event) for event in events] == [("ada", "GET /broken/{key}"), (None, None)]


@listener("asked")
async def on_asked(user: str | None) -> None:
    with context(metadata={"asked by": str(user)}):
        await aask()


@listener("asked with context")
async def on_asked_with_context(user: str | None, asked: Current) -> None:
    with context(user=asked.user, feature=asked.feature, metadata={"asked by": str(user)}):
        await aask()


@get("/emit/{key:int}")
async def emitting_handler(request: Request[Any, Any, Any], key: int) -> str:
    request.app.emit("asked", user=request.headers.get("x-user"))
    return "x"


@get("/emit-with-context/{key:int}")
async def emitting_with_context_handler(request: Request[Any, Any, Any], key: int) -> str:
    request.app.emit("asked with context", user=request.headers.get("x-user"), asked=current())
    return "x"


def heard(path: str, **options: Any) -> list[UsageEvent]:
    """Return what listeners recorded, for overlapping requests of many users and of nobody."""
    app = Litestar(
        [emitting_handler, emitting_with_context_handler],
        middleware=[DefineMiddleware(Authentication)],
        plugins=[FluxGatePlugin(**options)],
        listeners=[on_asked, on_asked_with_context],
        openapi_config=None,
        logging_config=None,
    )
    with capture_events() as events:
        with TestClient(app) as client, ThreadPoolExecutor(8) as clients:

            def ask_as(number: int) -> None:
                client.get(path, headers={"x-user": f"user-{number}"} if number % 3 else {})

            list(clients.map(ask_as, range(40)))
        assert len(events) == 40
    return events


def test_an_event_listener_is_outside_of_every_request_and_never_in_anothers() -> None:
    """Litestar runs listeners in a task of the application's start: not carried, and nobody's."""
    assert {who(event) for event in heard("/emit/7")} == {(None, None)}


@survival("event listeners, given current()")
def test_an_event_listener_that_is_given_current_knows_who_asked() -> None:
    """The documented way; an anonymous request's is nobody."""
    for event in heard("/emit-with-context/7"):
        assert (str(event.user and event.user.id), event.feature) == (
            event.metadata["asked by"],
            "GET /emit-with-context/{key}",
        )


@survival("event listeners, with carry_to_listeners=True")
def test_an_event_listener_that_is_carried_to_knows_who_asked_and_how() -> None:
    """Where the plugin is told to; each of overlapping requests is its own, an anonymous one is nobody's."""
    events = heard("/emit/7", carry_to_listeners=True)
    for event in events:
        assert (str(event.user and event.user.id), event.feature) == (event.metadata["asked by"], "GET /emit/{key}")
    assert len({event.request_id for event in events}) == 40
