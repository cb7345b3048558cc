"""Starlette: every place of a request that a call is made from, under its own test client."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from fluxgate_mw import FluxGateMiddleware, UsageEvent, current, diagnostics, feature, identify
from fluxgate_mw.integrations.threads import carry_context
from fluxgate_mw.testing import capture_events
from tests.asking import CopiesScope, SignIn, aask, ask, who


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("Starlette", place)


def serve(routes: list[Any], *middleware: Middleware, make: type[Starlette] = Starlette, **options: Any) -> Starlette:
    """Return an application with ours outermost, the sign-in next, then `middleware`."""
    return make(routes=routes, middleware=[Middleware(FluxGateMiddleware), Middleware(SignIn), *middleware], **options)


def events_of(app: Any, path: str = "/items/7", *, user: str = "ada", **options: Any) -> list[UsageEvent]:
    """Return what one request as `user` recorded."""
    with capture_events() as events, TestClient(app, raise_server_exceptions=False) as client:
        client.request(options.pop("method", "GET"), path, headers={"x-user": user}, **options)
    return events


def once(events: list[UsageEvent]) -> tuple[str | None, str | None]:
    """Return user and feature of the only event."""
    assert len(events) == 1
    return who(events[0])


ROUTE = "GET /items/{id}"
CARRIED = "executors and threads, with carry_context()"


async def in_async_handler(request: Request) -> Response:
    await aask()
    return PlainTextResponse()


def in_sync_handler(request: Request) -> Response:
    ask()
    return PlainTextResponse()


async def in_background(request: Request) -> Response:
    return PlainTextResponse(background=BackgroundTask(aask))


async def in_sync_background(request: Request) -> Response:
    tasks = BackgroundTasks()
    tasks.add_task(ask)
    return PlainTextResponse(background=tasks)


async def in_async_stream(request: Request) -> Response:
    async def body() -> AsyncIterator[str]:
        yield "one"
        yield await aask()

    return StreamingResponse(body())


async def in_sync_stream(request: Request) -> Response:
    def body() -> Iterator[str]:
        yield "one"
        yield ask()

    return StreamingResponse(body())


async def in_server_sent_events(request: Request) -> Response:
    async def body() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        yield f"data: {await aask()}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


async def in_create_task(request: Request) -> Response:
    await asyncio.create_task(aask())
    return PlainTextResponse()


async def in_task_group(request: Request) -> Response:
    async with asyncio.TaskGroup() as group:
        group.create_task(aask())
    return PlainTextResponse()


async def in_gather(request: Request) -> Response:
    await asyncio.gather(aask())
    return PlainTextResponse()


async def in_asyncio_thread(request: Request) -> Response:
    await asyncio.to_thread(ask)
    return PlainTextResponse()


async def in_anyio_thread(request: Request) -> Response:
    await anyio.to_thread.run_sync(ask)
    return PlainTextResponse()


async def in_copied_executor(request: Request) -> Response:
    with ThreadPoolExecutor() as executor:
        executor.submit(contextvars.copy_context().run, ask).result()
    return PlainTextResponse()


async def in_copied_thread(request: Request) -> Response:
    thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
    thread.start()
    thread.join()
    return PlainTextResponse()


PLACES = [
    (in_async_handler, "async handler"),
    (in_sync_handler, "sync handler in a worker thread"),
    (in_background, "background task"),
    (in_sync_background, "background task"),
    (in_async_stream, "streamed body, async"),
    (in_sync_stream, "streamed body, sync"),
    (in_server_sent_events, "server-sent events"),
    (in_create_task, "create_task, TaskGroup, gather"),
    (in_task_group, "create_task, TaskGroup, gather"),
    (in_gather, "create_task, TaskGroup, gather"),
    (in_asyncio_thread, "asyncio.to_thread, anyio.to_thread"),
    (in_anyio_thread, "asyncio.to_thread, anyio.to_thread"),
    (in_copied_executor, "executors and threads, with copy_context().run"),
    (in_copied_thread, "executors and threads, with copy_context().run"),
]


@pytest.mark.parametrize(
    ("make", "handler"),
    [
        pytest.param(make, handler, marks=pytest.mark.survival(make.__name__, place))
        for make in (Starlette, FastAPI)
        for handler, place in PLACES
    ],
)
def test_a_call_knows_user_and_route(make: type[Starlette], handler: Callable[[Request], Any]) -> None:
    """Wherever in the request it is made."""
    assert once(events_of(serve([Route("/items/{id}", handler)], make=make))) == ("ada", ROUTE)


async def in_executor(request: Request) -> Response:
    await asyncio.get_running_loop().run_in_executor(None, ask)
    return PlainTextResponse()


async def in_pool(request: Request) -> Response:
    with ThreadPoolExecutor() as executor:
        executor.submit(ask).result()
    return PlainTextResponse()


async def in_thread(request: Request) -> Response:
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return PlainTextResponse()


@pytest.mark.parametrize("handler", [in_executor, in_pool, in_thread])
@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=pytest.mark.survival(make.__name__, CARRIED)) for make in (Starlette, FastAPI)]
)
def test_threads_and_executors_are_carried_by_the_opt_in_until_it_is_undone(
    make: type[Starlette], handler: Callable[[Request], Any]
) -> None:
    """Without it Python carries nothing there, and nobody is guessed."""
    app = serve([Route("/items/{id}", handler)], make=make)
    assert once(events_of(app)) == (None, None)
    undo = carry_context()
    try:
        assert once(events_of(app)) == ("ada", ROUTE)
    finally:
        undo()
    assert once(events_of(app)) == (None, None)


@survival("detached task after the response")
def test_a_task_that_outlives_the_response_knows_user_and_route_after_the_scope_is_gone() -> None:
    """Also where it makes its first call only then."""
    answered = threading.Event()
    tasks: list[asyncio.Task[str]] = []
    left: list[object] = []

    async def later() -> str:
        await anyio.to_thread.run_sync(answered.wait)
        return await aask()

    async def handler(request: Request) -> Response:
        tasks.append(asyncio.create_task(later()))
        left.append(request.scope)
        return PlainTextResponse()

    async def wait(request: Request) -> Response:
        answered.set()
        await tasks[0]
        return PlainTextResponse()

    app = serve([Route("/items/{id}", handler), Route("/wait", wait)])
    with capture_events() as events, TestClient(app) as client:
        client.get("/items/7", headers={"x-user": "ada"})
        client.get("/wait", headers={"x-user": "bob"})
    assert once(events) == ("ada", ROUTE)
    assert "fluxgate" not in left[0]  # type: ignore[operator]


@survival("websocket")
def test_a_call_in_a_websocket_knows_user_and_route() -> None:
    """The route's method is `WEBSOCKET`."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await aask()
        await websocket.close()

    app = serve([WebSocketRoute("/chat/{room}", endpoint)])
    with (
        capture_events() as events,
        TestClient(app) as client,
        client.websocket_connect("/chat/1", headers={"x-user": "ada"}) as websocket,
    ):
        websocket.send_text("hello")
        with pytest.raises(WebSocketDisconnect):
            websocket.receive_text()
    assert once(events) == ("ada", "WEBSOCKET /chat/{room}")


@survival("mounted and nested applications, prefix kept")
def test_mounted_routers_and_applications_keep_their_prefix_as_a_template() -> None:
    """Concrete values of a mount's parameters never show."""
    inner = Starlette(routes=[Route("/items/{id}", in_async_handler), Mount("/deep", Router([Route("/x", ask_route)]))])
    app = serve([Mount("/tenants/{tenant}", inner), Mount("/api", routes=[Mount("/v1", inner)])])
    assert once(events_of(app, "/tenants/t1/items/7")) == ("ada", "GET /tenants/{tenant}/items/{id}")
    assert once(events_of(app, "/tenants/t1/deep/x")) == ("ada", "GET /tenants/{tenant}/deep/x")
    assert once(events_of(app, "/api/v1/items/7")) == ("ada", "GET /api/v1/items/{id}")


async def ask_route(request: Request) -> Response:
    await aask()
    return PlainTextResponse()


def test_an_opaque_application_that_is_mounted_is_known_by_its_mount() -> None:
    """Its own routes cannot be told: its raw paths never show."""

    async def opaque(scope: Any, receive: Any, send: Any) -> None:
        await aask()
        await PlainTextResponse()(scope, receive, send)

    app = serve([Mount("/a", routes=[Mount("/b/{c}", app=opaque)]), Mount("/raw", app=opaque)])
    assert once(events_of(app, "/a/b/1/secret-path")) == ("ada", "GET /a/b/{c}")
    assert once(events_of(app, "/raw/secret-path")) == ("ada", "GET /raw")


def test_a_root_path_of_the_server_is_no_part_of_the_route() -> None:
    """What a proxy strips is not the application's."""
    app = serve([Route("/items/{id}", in_async_handler), Mount("/sub", routes=[Route("/x", ask_route)])])
    with capture_events() as events, TestClient(app, root_path="/behind/proxy") as client:
        client.get("/behind/proxy/items/7")
        client.get("/behind/proxy/sub/x")
    assert [event.feature for event in events] == [ROUTE, "GET /sub/x"]


@survival("404 and exception handlers")
def test_unmatched_paths_have_no_feature_but_their_user() -> None:
    """A raw path is never a feature; neither is a method that nobody knows."""

    async def missing(request: Request, error: Exception) -> Response:
        await aask()
        return PlainTextResponse(status_code=404)

    app = serve(
        [Route("/items/{id}", ask_route), Mount("/sub", routes=[Route("/x", ask_route)])],
        exception_handlers={404: missing, 405: missing},
    )
    assert once(events_of(app, "/nowhere/123")) == ("ada", None)
    assert once(events_of(app, "/sub/nowhere")) == ("ada", None)
    assert once(events_of(app, "/items/7", method="BREW-123"))[1] in (None, "OTHER /items/{id}")


@survival("404 and exception handlers")
def test_a_call_in_a_handler_of_an_error_knows_user_and_route() -> None:
    """As a handler of one class, whose error the endpoint raised."""

    async def raises(request: Request) -> Response:
        raise KeyError("x")

    async def handler(request: Request, error: Exception) -> Response:
        await aask()
        return PlainTextResponse(status_code=400)

    app = serve([Route("/items/{id}", raises)], exception_handlers={KeyError: handler})
    assert once(events_of(app)) == ("ada", ROUTE)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["async", "sync"])
@survival("exception_handler(Exception)")
def test_a_call_in_the_handler_of_exception_knows_user_and_route(kind: str, wrapped: bool) -> None:  # noqa: FBT001
    """Starlette runs it outside of every added middleware; from the very first request on it is known."""

    async def raises(request: Request) -> Response:
        raise RuntimeError("x")

    async def handler(request: Request, error: Exception) -> Response:
        await aask()
        return PlainTextResponse(status_code=500)

    def sync_handler(request: Request, error: Exception) -> Response:
        ask()
        return PlainTextResponse(status_code=500)

    handlers = {Exception: handler if kind == "async" else sync_handler}
    app: Any
    if wrapped:
        app = FluxGateMiddleware(
            Starlette(
                routes=[Route("/items/{id}", raises)], middleware=[Middleware(SignIn)], exception_handlers=handlers
            )
        )
    else:
        app = serve([Route("/items/{id}", raises)], exception_handlers=handlers)
    client = TestClient(app, raise_server_exceptions=False)  # without a lifespan: the first request is the first scope
    with capture_events() as events:
        assert client.get("/items/7", headers={"x-user": "ada"}).status_code == 500
        assert client.get("/items/7", headers={"x-user": "bob"}).status_code == 500
    assert [who(event) for event in events] == [("ada", ROUTE), ("bob", ROUTE)]


class Based(BaseHTTPMiddleware):
    """Makes a call of its own before and after the rest."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        await aask()
        response: Response = await call_next(request)
        await aask()
        return response


@survival("above, below and between BaseHTTPMiddleware")
def test_calls_above_below_and_between_base_http_middleware_know_their_user() -> None:
    """The route is known once routing ran: before that a call has no feature, but its user.

    Kludex/starlette PR#2943, #1678.
    """
    app = serve([Route("/items/{id}", in_async_stream)], Middleware(Based), Middleware(Based))
    events = events_of(app)
    assert [event.user and event.user.id for event in events] == ["ada"] * 5
    assert [event.feature for event in events][:2] == [None, None]
    assert {event.feature for event in events[2:]} == {ROUTE}
    assert len({event.request_id for event in events}) == 1
    around = Starlette(
        routes=[Route("/items/{id}", in_async_handler)],
        middleware=[Middleware(Based), Middleware(FluxGateMiddleware), Middleware(SignIn), Middleware(Based)],
    )
    assert [who(event) for event in events_of(around)[1:4]] == [("ada", None), ("ada", ROUTE), ("ada", ROUTE)]


@survival("a middleware that copies the scope")
@pytest.mark.parametrize("outermost", [False, True])
def test_a_middleware_that_copies_the_scope_hides_neither_route_nor_user(outermost: bool) -> None:  # noqa: FBT001
    """Anywhere in the stack, from the first request on, also with the application wrapped."""
    routes = [
        Route("/items/{id}", in_async_stream),
        Mount("/sub", Starlette(routes=[Route("/x/{y}", ask_route)], middleware=[Middleware(CopiesScope)])),
    ]
    inside = [Middleware(CopiesScope), Middleware(SignIn), Middleware(CopiesScope)]
    app: Any
    if outermost:
        app = FluxGateMiddleware(CopiesScope(Starlette(routes=routes, middleware=inside)))
    else:
        app = serve(routes, *inside)
    client = TestClient(app)
    with capture_events() as events:
        client.get("/items/7", headers={"x-user": "ada"})
        client.get("/sub/x/1", headers={"x-user": "bob"})
    assert [who(event) for event in events] == [("ada", ROUTE), ("bob", "GET /sub/x/{y}")]


def test_the_middleware_added_twice_makes_one_request() -> None:
    """The inner one only points at the scope that it saw."""
    app = serve([Route("/items/{id}", in_async_handler)], Middleware(FluxGateMiddleware))
    assert once(events_of(app)) == ("ada", ROUTE)


def test_an_application_called_inside_a_request_has_a_request_of_its_own() -> None:
    """In-process: the inner request is not the outer one, and leaves it as it was."""
    inner = serve([Route("/inner", ask_route)])

    async def handler(request: Request) -> Response:
        await inner(
            {**request.scope, "path": "/inner", "headers": [(b"x-user", b"bob")], "user": None, "fluxgate": None},
            request.receive,
            _ignore,
        )
        await aask()
        return PlainTextResponse()

    async def _ignore(message: Any) -> None:
        return None

    events = events_of(serve([Route("/items/{id}", handler)]))
    assert [event.user and event.user.id for event in events] == ["bob", "ada"]
    assert events[0].request_id != events[1].request_id


@survival("decorated endpoint: its streamed body and background tasks")
def test_a_decorated_endpoint_names_its_streamed_body_and_background_tasks_too() -> None:
    """An inner feature still wins there."""

    @feature("summary", step="s", team="a")
    async def handler(request: Request) -> Response:
        await aask()

        async def body() -> AsyncIterator[str]:
            yield await aask()
            with feature("inner"):
                await aask()

        return StreamingResponse(body(), background=BackgroundTask(aask))

    events = events_of(serve([Route("/items/{id}", handler)]))
    assert [event.feature for event in events] == ["summary", "summary", "inner", "summary"]
    assert [event.step for event in events] == ["s", "s", None, "s"]
    assert {event.route for event in events} == {ROUTE}
    assert events[3].metadata == {"team": "a"}
    assert [event.feature_source for event in events] == ["decorator", "decorator", "context", "decorator"]


@survival("class-based views")
def test_class_based_endpoints_are_named_by_their_route_or_their_decoration_and_keep_their_405() -> None:
    """`HTTPEndpoint`, plain and decorated."""

    class Plain(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            await aask()
            return PlainTextResponse()

    @feature("decorated")
    class Decorated(HTTPEndpoint):
        def get(self, request: Request) -> Response:
            ask()
            return PlainTextResponse(background=BackgroundTask(aask))

    class Method(Decorated):
        @feature("method")
        def get(self, request: Request) -> Response:
            ask()
            return PlainTextResponse(background=BackgroundTask(aask))

    @feature("partial")
    async def handler(request: Request, given: int) -> Response:
        return PlainTextResponse(background=BackgroundTask(aask))

    app = serve(
        [
            Route("/plain/{id}", Plain),
            Route("/decorated/{id}", Decorated),
            Route("/method/{id}", Method),
            Route("/partial/{id}", functools.partial(handler, given=1)),
        ]
    )
    assert once(events_of(app, "/plain/1")) == ("ada", "GET /plain/{id}")
    assert [who(event) for event in events_of(app, "/method/1")] == [("ada", "method")] * 2
    assert once(events_of(app, "/partial/1")) == ("ada", "partial")
    assert [who(event) for event in events_of(app, "/method/1", method="HEAD")] == [("ada", "method")] * 2
    assert [who(event) for event in events_of(app, "/decorated/1")] == [("ada", "decorated")] * 2
    with TestClient(app) as client:
        assert client.post("/decorated/1").status_code == 405


def test_identify_and_current_work_in_every_thread_of_the_request() -> None:
    """`identify` in a worker thread holds for the rest of the request; the figures add up from all of its threads."""
    seen: list[Any] = []

    async def handler(request: Request) -> Response:
        await anyio.to_thread.run_sync(identify, {"id": 5, "name": "Five"})
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(asyncio.to_thread(ask))
        seen.append(current())
        return PlainTextResponse()

    events = events_of(serve([Route("/items/{id}", handler)]))
    assert {who(event) for event in events} == {("5", ROUTE)}
    assert (seen[0].calls, seen[0].cost_nanos) == (20, sum(event.cost_nanos or 0 for event in events))
    assert seen[0].cost_nanos > 0
    assert {event.request_id for event in events} == {seen[0].request_id}


def test_an_anonymous_request_is_nobody() -> None:
    """Never a guess, never the one before."""
    app = serve([Route("/items/{id}", in_async_handler)])
    with capture_events() as events, TestClient(app) as client:
        client.get("/items/7", headers={"x-user": "ada"})
        client.get("/items/7")
    assert [who(event) for event in events] == [("ada", ROUTE), (None, ROUTE)]
    assert events[1].user_source == "none"


def test_a_feature_open_across_the_steps_of_a_sync_body_is_lost_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each step runs in a worker thread's own copy of the context; the log says that decorating mends it."""

    async def endpoint(request: Request) -> Response:
        def body() -> Iterator[str]:
            with feature("lost"):
                yield ask()
                yield ask()

        return StreamingResponse(body())

    async def decorated(request: Request) -> Response:
        @feature("kept")
        def body() -> Iterator[str]:
            yield ask()
            yield ask()

        return StreamingResponse(body())

    app = serve([Route("/items/{id}", endpoint), Route("/decorated", decorated)])
    assert [who(event) for event in events_of(app, "/decorated")] == [("ada", "kept")] * 2
    assert diagnostics.counts() == {}
    for _ in range(2):
        assert [who(event) for event in events_of(app)] == [("ada", "lost"), ("ada", ROUTE)]
    said = [record.getMessage() for record in caplog.records if record.name == "fluxgate_mw"]
    assert len(said) == 1
    assert "decorate the generator" in said[0]
    assert diagnostics.counts()["frame_lost"] == 2
