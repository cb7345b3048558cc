"""Isolation: no call ever carries another request's user or feature, nothing stays bound, nothing is retained."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import random
import socket
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fluxgate_mw import FluxGateMiddleware, ambient, context, current, feature, track
from fluxgate_mw.request import RequestContext
from fluxgate_mw.serving import serving
from fluxgate_mw.testing import capture_events
from tests.asking import CopiesScope, SignIn, aask

pytestmark = pytest.mark.anyio
REQUESTS = 2000


async def witnessed(user: str | None, name: str) -> None:
    """Make a call whose model is a witness of whose it is, that does not pass through the context."""
    async with track() as call:
        await pause()
        call.usage(provider="test", model=f"{user}|{name}", input_tokens=1, output_tokens=1)


async def pause() -> None:
    """Let others run, for a while that nobody knows."""
    for _ in range(random.randrange(4)):
        await asyncio.sleep(0)


detached: set[asyncio.Task[None]] = set()


async def busy(request: Request) -> Response:
    """Do, in this order, what the request's number says, and make a call at each."""
    user, number = request.headers.get("x-user"), int(request.path_params["number"])
    route = "GET /busy/{number}"
    await witnessed(user, route)
    async with asyncio.TaskGroup() as group:
        group.create_task(witnessed(user, route))
        group.create_task(inside(user, f"inner {number}"))
    if number % 3 == 0:
        task = asyncio.create_task(later(user, route))
        detached.add(task)
        task.add_done_callback(detached.discard)
    if number % 7 == 0:
        raise KeyError("x")
    if number % 17 == 0:
        raise Unforeseen

    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            await witnessed(user, route)
            yield b"x"
            await pause()

    return StreamingResponse(body(), background=BackgroundTask(witnessed, user, route))


async def inside(user: str | None, name: str) -> None:
    with feature(name):
        await witnessed(user, name)
        with context(step="s"):
            await witnessed(user, name)


async def later(user: str | None, name: str) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    await witnessed(user, name)


async def on_key_error(request: Request, error: Exception) -> Response:
    await witnessed(request.headers.get("x-user"), "GET /busy/{number}")
    return PlainTextResponse(status_code=400)


class Unforeseen(Exception):
    """An error that only the handler of `Exception` knows."""


async def on_any_error(request: Request, error: Exception) -> Response:
    await witnessed(request.headers.get("x-user"), "GET /busy/{number}")
    return PlainTextResponse(status_code=500)


async def drive(app: Any, number: int) -> None:
    """Send one request, which is read to its end, cancelled or disconnected as its number says.

    Whichever way it ends, its own context is as it was, and its scope leads to nothing of ours.
    """
    headers = [] if number % 5 == 0 else [(b"x-user", f"user-{number}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/busy/{number}",
        "root_path": "",
        "headers": headers,
        "query_string": b"",
    }
    sent = 0

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        await pause()
        if number % 11 == 0 and sent > 1:
            raise OSError("the client is gone")

    async def receive() -> Any:
        await anyio.sleep_forever()

    its_own = contextvars.copy_context()
    task = asyncio.create_task(app(scope, receive, send), context=its_own)
    if number % 13 == 0:
        for _ in range(random.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
    try:
        await task
    except* (asyncio.CancelledError, ClientDisconnect, OSError, Unforeseen):
        pass  # alone, or in a group of an older Starlette's
    assert its_own.run(ambient.get) is ambient.NOTHING, "a frame is left"
    assert getattr(scope.get("fluxgate"), "carrier", None) is None, "a cycle is left"


def busy_app() -> Starlette:
    """Return the application that the requests are sent to."""
    return Starlette(
        routes=[Route("/busy/{number}", busy)],
        middleware=[Middleware(FluxGateMiddleware), Middleware(CopiesScope), Middleware(SignIn)],
        exception_handlers={KeyError: on_key_error, Exception: on_any_error},
    )


async def wave(app: Starlette, requests: int = REQUESTS) -> None:
    """Send all requests at once, and wait for what outlives them."""
    await asyncio.gather(*(drive(app, number) for number in range(requests)))
    while detached:
        await asyncio.wait(detached)


async def test_no_call_of_two_thousand_interleaved_requests_is_attributed_to_another() -> None:
    """With awaits, cancellations, disconnects, errors, detached tasks and calls after the end; nothing stays bound.

    ambient-code/platform PR#997.
    """
    random.seed(3)
    with capture_events() as events:
        await wave(busy_app())
    wrong = [event for event in events if event.request_model not in (None, witness(event))]
    assert wrong == []
    assert len([event for event in events if event.request_model]) > 3 * REQUESTS
    users: dict[str, set[str | None]] = {}
    for event in events:
        users.setdefault(event.request_id or "", set()).add(event.user and event.user.id)
    assert all(len(known) == 1 for known in users.values())
    assert ambient.get() is ambient.NOTHING


@pytest.mark.timeout(180)
async def test_two_thousand_interleaved_requests_retain_nothing() -> None:
    """By object counts, and by traced memory (which is slow: of fewer), between one wave of them and the next."""
    random.seed(4)
    app = busy_app()
    with capture_events() as events:
        await wave(app)
        events.clear()
        await collect()
        objects = len(gc.get_objects())
        await wave(app)
        events.clear()
        await collect()
        retained = len(gc.get_objects()) - objects
        tracemalloc.start()
        try:
            await wave(app, 500)
            events.clear()
            await collect()
            before = tracemalloc.get_traced_memory()[0]
            await wave(app, 500)
            events.clear()
            await collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert retained < 100
    assert grown < 50_000
    assert [found for found in gc.get_objects() if type(found) is RequestContext] == []


async def collect() -> None:
    """Collect what is garbage, and let the loop close the generators that were."""
    gc.collect()
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()


def witness(event: Any) -> str:
    return f"{event.user and event.user.id}|{event.feature}"


async def show(request: Request) -> Response:
    """Say who the request is thought to be."""
    body = await request.body()
    now = current()
    return JSONResponse({"user": now.user and now.user.id, "bytes": len(body), "id": now.request_id})


async def test_under_uvicorn_an_anonymous_request_never_inherits_the_one_before_it() -> None:
    """Pipelined on one connection, and after a body over 64 KiB: `Kludex/uvicorn#3158`, `python/cpython#140947`."""
    app = Starlette(
        routes=[Route("/show", show, methods=["GET", "POST"])],
        middleware=[Middleware(FluxGateMiddleware), Middleware(SignIn)],
    )
    big = b"x" * 200_000
    signed_in = b"GET /show HTTP/1.1\r\nHost: a\r\nx-user: ada\r\n\r\n"
    nobody = b"GET /show HTTP/1.1\r\nHost: a\r\n\r\n"
    posted = b"POST /show HTTP/1.1\r\nHost: a\r\nx-user: bob\r\nContent-Length: %d\r\n\r\n" % len(big) + big
    async with serving(app) as address:
        host, port = address.removeprefix("http://").split(":")
        answers = await anyio.to_thread.run_sync(
            talk, (host, int(port)), [signed_in + nobody + signed_in + nobody, posted, nobody, posted + nobody]
        )
    assert [answer["user"] for answer in answers] == ["ada", None, "ada", None, "bob", None, "bob", None]
    assert len({answer["id"] for answer in answers}) == 8


def talk(address: tuple[str, int], packets: list[bytes]) -> list[dict[str, Any]]:
    """Send the packets on one connection and return every answer."""
    answers: list[dict[str, Any]] = []
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rb") as stream:
        for packet in packets:
            connection.sendall(packet)
            for _ in range(packet.count(b"HTTP/1.1\r\n")):
                length = 0
                while (line := stream.readline().strip()) != b"":
                    if line.lower().startswith(b"content-length"):
                        length = int(line.split(b":")[1])
                answers.append(json.loads(stream.read(length)))
    return answers


class Session:
    """Something that a scope holds."""


async def one(app: Any, scope: dict[str, Any]) -> None:
    """Serve one request whose body is read."""

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        return None

    await app(scope, receive, send)


async def test_a_request_that_is_over_is_gone_without_the_garbage_collector() -> None:
    """Neither the scope nor the request context waits for it, with and without calls."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/call":
            await aask()

    served = FluxGateMiddleware(app)
    gc.collect()
    gc.disable()
    try:
        for path in ("/call", "/none"):
            session = Session()
            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "session": session}
            gone = weakref.ref(session)
            with capture_events():
                await one(served, scope)
            del scope, session
            assert gone() is None
            assert not [found for found in gc.get_objects() if type(found) is RequestContext]
    finally:
        gc.enable()


async def test_a_long_task_keeps_user_and_route_but_not_the_scope() -> None:
    """What the scope held is gone while the task still runs; a late call is still attributed."""
    release = asyncio.Event()
    tasks: list[asyncio.Task[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = SimpleNamespace(id="ada")
        scope["path_template"] = "/items/{id}"
        tasks.append(asyncio.create_task(late()))

    async def late() -> str:
        await release.wait()
        return await aask()

    session = Session()
    gone = weakref.ref(session)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "session": session}
    with capture_events() as events:
        await one(FluxGateMiddleware(app), scope)
        del scope, session
        assert gone() is None
        release.set()
        await tasks[0]
    assert [(event.user and event.user.id, event.feature) for event in events] == [("ada", "GET /items/{id}")]


async def test_ten_thousand_requests_retain_nothing() -> None:
    """By memory and by object counts, in steady state."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/call":
            await aask()

    served = FluxGateMiddleware(app, cost_header=True)

    async def many(number: int) -> None:
        for index in range(number):
            path = "/call" if index % 10 == 0 else "/none"
            await one(served, {"type": "http", "method": "GET", "path": path, "headers": []})

    with capture_events() as events:
        await many(1000)
        events.clear()
        gc.collect()
        objects = len(gc.get_objects())
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await many(10_000)
            events.clear()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert len(gc.get_objects()) - objects < 100
    assert grown < 5_000
