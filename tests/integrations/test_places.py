"""Places that no framework knows of (tasks, threads, executors), in a handler of each framework."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio.to_thread
import flask
import httpx
import litestar
import pytest
import quart
from fastapi import FastAPI
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from werkzeug.test import Client

from fluxgate_mw import FluxGateMiddleware, FluxGateWSGIMiddleware, UsageEvent
from fluxgate_mw.integrations.litestar import FluxGatePlugin
from fluxgate_mw.integrations.quart import FluxGateQuart
from fluxgate_mw.integrations.threads import carry_context
from fluxgate_mw.testing import capture_events
from fluxgate_mw.trust import TrustedProxies
from tests import django_project
from tests.asking import CopiesScope, SignIn, aask, ask, who

Place = Callable[[], Awaitable[Any]]
SyncPlace = Callable[[], Any]
RULE = "GET /items/<int:key>"


def of_starlette(place: Place, make: type[Starlette] = Starlette) -> Any:
    async def endpoint(request: Request) -> Response:
        await place()
        return PlainTextResponse()

    middleware = [Middleware(FluxGateMiddleware), Middleware(SignIn)]
    return make(routes=[Route("/items/{id}", endpoint)], middleware=middleware)


def of_litestar(place: Place) -> Any:
    @litestar.get("/items/{key:int}")
    async def handler() -> str:
        await place()
        return "x"

    return litestar.Litestar(
        [handler],
        middleware=[DefineMiddleware(SignIn)],
        plugins=[FluxGatePlugin()],
        openapi_config=None,
        logging_config=None,
    )


def of_quart(place: Place) -> Any:
    app = quart.Quart("shop")
    app.asgi_app = SignIn(app.asgi_app)  # type: ignore[method-assign, assignment]
    FluxGateQuart(app)

    @app.get("/items/<int:key>")
    async def view(key: int) -> str:
        await place()
        return "x"

    return app


def of_django(place: Place) -> Any:
    django_project.places["async"] = place
    return SignIn(django_project.get_asgi_application())


def of_bare_asgi(place: Place) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await place()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return FluxGateMiddleware(SignIn(app))


ASGI: dict[str, tuple[Callable[[Place], Any], str | None]] = {
    "Starlette": (of_starlette, "GET /items/{id}"),
    "FastAPI": (partial(of_starlette, make=FastAPI), "GET /items/{id}"),
    "Litestar": (of_litestar, "GET /items/{key}"),
    "Quart": (of_quart, RULE),
    "Django": (of_django, "GET /items/<int:key>/async"),
    "bare ASGI": (of_bare_asgi, None),
}


async def events_of(app: Any, path: str = "/items/7", after: Callable[[], Awaitable[Any]] | None = None) -> list[Any]:
    """Return what one request recorded, and what was recorded after it was answered."""
    with capture_events() as events:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            response = await client.get(path, headers={"x-user": "ada"})
        assert response.status_code == 200
        if after is not None:
            await after()
    return events


async def in_task() -> None:
    await asyncio.create_task(aask())


async def in_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(aask())


async def in_gather() -> None:
    await asyncio.gather(aask())


async def in_asyncio_thread() -> None:
    await asyncio.to_thread(ask)


async def in_anyio_thread() -> None:
    await anyio.to_thread.run_sync(ask)


def in_copied_executor() -> None:
    with ThreadPoolExecutor() as executor:
        executor.submit(contextvars.copy_context().run, ask).result()


def in_copied_thread() -> None:
    thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
    thread.start()
    thread.join()


def in_executor() -> None:
    with ThreadPoolExecutor() as executor:
        executor.submit(ask).result()


def in_thread() -> None:
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


async def in_run_in_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, ask)


def called(place: SyncPlace) -> Place:
    """Return a place of a sync function as one of an async handler."""

    async def calling() -> None:
        place()

    return calling


TASKS, TO_THREAD = "create_task, TaskGroup, gather", "asyncio.to_thread, anyio.to_thread"
BY_HAND, CARRIED = "executors and threads, with copy_context().run", "executors and threads, with carry_context()"
PLACES: list[tuple[str, str, Place]] = [
    ("create_task", TASKS, in_task),
    ("TaskGroup", TASKS, in_task_group),
    ("gather", TASKS, in_gather),
    ("asyncio.to_thread", TO_THREAD, in_asyncio_thread),
    ("anyio.to_thread", TO_THREAD, in_anyio_thread),
    ("executor by hand", BY_HAND, called(in_copied_executor)),
    ("thread by hand", BY_HAND, called(in_copied_thread)),
]
OPTED_IN: list[tuple[str, Place]] = [
    ("run_in_executor", in_run_in_executor),
    ("executor", called(in_executor)),
    ("thread", called(in_thread)),
]


def asgi_path(framework: str) -> str:
    return "/items/7/async" if framework == "Django" else "/items/7"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("framework", "place"),
    [
        pytest.param(framework, place, marks=pytest.mark.survival(framework, row), id=f"{framework}-{name}")
        for framework in ASGI
        for name, row, place in PLACES
    ],
)
async def test_a_call_in_a_task_or_thread_of_an_async_handler_knows_user_and_route(
    framework: str, place: Place
) -> None:
    """As Python carries it, or by the documented line."""
    make, route = ASGI[framework]
    assert [who(event) for event in await events_of(make(place), asgi_path(framework))] == [("ada", route)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("framework", "place"),
    [
        pytest.param(framework, place, marks=pytest.mark.survival(framework, CARRIED), id=f"{framework}-{name}")
        for framework in ASGI
        for name, place in OPTED_IN
    ],
)
async def test_what_python_does_not_carry_is_carried_by_the_opt_in(framework: str, place: Place) -> None:
    """Without it there is nobody, rather than somebody else."""
    make, route = ASGI[framework]
    app = make(place)
    assert [who(event) for event in await events_of(app, asgi_path(framework))] == [(None, None)]
    undo = carry_context()
    try:
        assert [who(event) for event in await events_of(app, asgi_path(framework))] == [("ada", route)]
    finally:
        undo()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "framework",
    [
        pytest.param(framework, marks=pytest.mark.survival(framework, "detached task after the response"))
        for framework in ASGI
    ],
)
async def test_a_task_that_outlives_its_response_still_knows_user_and_route(framework: str) -> None:
    """Also where it makes its first call only then."""
    make, route = ASGI[framework]
    answered = asyncio.Event()
    tasks: list[asyncio.Task[str]] = []

    async def later() -> str:
        await answered.wait()
        return await aask()

    async def detach() -> None:
        tasks.append(asyncio.create_task(later()))

    async def after() -> None:
        answered.set()
        await tasks[0]

    events = await events_of(make(detach), asgi_path(framework), after)
    assert [who(event) for event in events] == [("ada", route)]


COPIED = "a middleware that copies the scope"


def copying_litestar() -> Any:
    @litestar.get("/items/{key:int}")
    async def handler() -> str:
        return await aask()

    inner = [DefineMiddleware(middleware) for middleware in (CopiesScope, SignIn, FluxGateMiddleware)]
    return litestar.Litestar(
        [handler], middleware=inner, plugins=[FluxGatePlugin()], openapi_config=None, logging_config=None
    )


def copying_quart() -> Any:
    app = of_quart(aask)
    app.asgi_app = FluxGateMiddleware(CopiesScope(SignIn(app.asgi_app)))
    return app


def copying_django() -> Any:
    return FluxGateMiddleware(CopiesScope(of_django(aask)))


def copying_bare() -> Any:
    return FluxGateMiddleware(CopiesScope(SignIn(of_bare_asgi(aask))))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("framework", "make"),
    [
        pytest.param(framework, make, marks=pytest.mark.survival(framework, f"{COPIED}, ours once more inside"))
        for framework, make in {
            "Litestar": copying_litestar,
            "Quart": copying_quart,
            "Django": copying_django,
            "bare ASGI": copying_bare,
        }.items()
    ],
)
async def test_behind_a_copy_of_the_scope_ours_once_more_says_which_one_is_read(
    framework: str, make: Callable[[], Any]
) -> None:
    """Innermost, as a middleware or an adapter; there is one request all the same."""
    events = await events_of(make(), asgi_path(framework))
    assert [who(event) for event in events] == [("ada", ASGI[framework][1])]


def of_flask(place: SyncPlace) -> Any:
    app = flask.Flask("shop")

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        place()
        return "x"

    return app.wsgi_app


def of_django_wsgi(place: SyncPlace) -> Any:
    django_project.places["sync"] = place
    return django_project.get_wsgi_application()


def of_bare_wsgi(place: SyncPlace) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        place()
        start_response("200 OK", [])
        return [b"x"]

    return app


WSGI: dict[str, tuple[Callable[[SyncPlace], Any], str, str | None]] = {
    "Flask": (of_flask, "/items/7", RULE),
    "Django": (of_django_wsgi, "/items/7/sync", "GET /items/<int:key>/sync"),
    "bare WSGI": (of_bare_wsgi, "/items/7", None),
}


def wsgi_events_of(framework: str, place: SyncPlace) -> list[UsageEvent]:
    """Return what one request recorded."""
    make, path, _route = WSGI[framework]
    trusted = TrustedProxies(["127.0.0.1"], user_header="X-User")
    client = Client(FluxGateWSGIMiddleware(make(place), trusted=trusted))
    with capture_events() as events:
        response = client.get(path, headers={"x-user": "ada"}, environ_base={"REMOTE_ADDR": "127.0.0.1"})
        assert response.status_code == 200
    return events


@pytest.mark.parametrize("place", [in_copied_executor, in_copied_thread])
@pytest.mark.parametrize("framework", [pytest.param(name, marks=pytest.mark.survival(name, BY_HAND)) for name in WSGI])
def test_a_call_in_a_thread_of_a_sync_view_knows_user_and_route(framework: str, place: SyncPlace) -> None:
    """By the documented line."""
    assert [who(event) for event in wsgi_events_of(framework, place)] == [("ada", WSGI[framework][2])]


@pytest.mark.parametrize("place", [in_executor, in_thread])
@pytest.mark.parametrize("framework", [pytest.param(name, marks=pytest.mark.survival(name, CARRIED)) for name in WSGI])
def test_a_thread_of_a_sync_view_is_carried_by_the_opt_in(framework: str, place: SyncPlace) -> None:
    """Without it there is nobody, rather than somebody else."""
    assert [who(event) for event in wsgi_events_of(framework, place)] == [(None, None)]
    undo = carry_context()
    try:
        assert [who(event) for event in wsgi_events_of(framework, place)] == [("ada", WSGI[framework][2])]
    finally:
        undo()


@pytest.mark.survival("Flask", "server-sent events")
def test_a_call_in_flasks_server_sent_events_knows_user_and_route() -> None:
    """Of a view that returns them as a stream."""
    app = flask.Flask("shop")

    @app.get("/items/<int:key>")
    def view(key: int) -> flask.Response:
        return flask.Response((f"data: {ask()}\n\n" for _ in range(2)), mimetype="text/event-stream")

    trusted = TrustedProxies(["127.0.0.1"], user_header="X-User")
    client = Client(FluxGateWSGIMiddleware(app.wsgi_app, trusted=trusted))
    with capture_events() as events:
        client.get("/items/7", headers={"x-user": "ada"}, environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_data()
    assert [who(event) for event in events] == [("ada", RULE)] * 2


@pytest.mark.anyio
@pytest.mark.survival("Quart", "server-sent events")
async def test_a_call_in_quarts_server_sent_events_knows_user_and_route() -> None:
    """Of a view that returns them as a stream."""
    app = of_quart(aask)

    @app.get("/events/<int:key>")
    async def streaming(key: int) -> quart.Response:
        async def body() -> Any:
            for _ in range(2):
                yield f"data: {await aask()}\n\n"

        return quart.Response(body(), mimetype="text/event-stream")

    assert [who(event) for event in await events_of(app, "/events/7")] == [("ada", "GET /events/<int:key>")] * 2


@pytest.mark.anyio
@pytest.mark.survival("Django", "server-sent events")
async def test_a_call_in_djangos_server_sent_events_knows_user_and_route() -> None:
    """Of a view that returns them as a stream."""
    events = await events_of(of_django(aask), "/async-events/")
    assert [who(event) for event in events] == [("ada", "GET /async-events/")]
