"""FastAPI: dependencies of every kind, its routers' prefixes, its schema, and what it does to decorated endpoints."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.background import BackgroundTask

from fluxgate_mw import FluxGateMiddleware, UsageEvent, User, feature, identify
from fluxgate_mw.integrations.fastapi import identified
from fluxgate_mw.testing import capture_events
from tests.asking import CopiesScope, SignIn, aask, ask, who


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("FastAPI", place)


ROUTE = "GET /items/{item_id}"


def make() -> FastAPI:
    """Return an application with ours outermost, and the sign-in inside."""
    app = FastAPI()
    app.add_middleware(SignIn)
    app.add_middleware(FluxGateMiddleware)
    return app


def events_of(app: FastAPI, path: str = "/items/7", *, user: str = "ada", method: str = "GET") -> list[UsageEvent]:
    """Return what one request recorded."""
    with capture_events() as events, TestClient(app, raise_server_exceptions=False) as client:
        client.request(method, path, headers={"x-user": user})
    return events


async def async_dependency() -> str:
    return await aask()


def sync_dependency() -> str:
    return ask()


async def async_yield_dependency() -> AsyncIterator[str]:
    yield await aask()


def sync_yield_dependency() -> Iterator[str]:
    yield ask()


async def async_after_yield_dependency() -> AsyncIterator[str]:
    yield "x"
    await aask()


def sync_after_yield_dependency() -> Iterator[str]:
    yield "x"
    ask()


@pytest.mark.parametrize(
    "dependency",
    [
        pytest.param(async_dependency, marks=survival("dependencies, async")),
        pytest.param(sync_dependency, marks=survival("dependencies, sync")),
        pytest.param(async_yield_dependency, marks=survival("dependencies with yield")),
        pytest.param(sync_yield_dependency, marks=survival("dependencies with yield")),
        pytest.param(async_after_yield_dependency, marks=survival("dependencies with yield")),
        pytest.param(sync_after_yield_dependency, marks=survival("dependencies with yield")),
    ],
)
def test_a_call_in_a_dependency_knows_user_and_route(dependency: Callable[[], Any]) -> None:
    """Before the yield and after it."""
    app = make()

    @app.get("/items/{item_id}")
    async def handler(item_id: int, _value: str = Depends(dependency)) -> str:
        return "ok"

    assert [who(event) for event in events_of(app)] == [("ada", ROUTE)]


@survival("async handler")
@survival("sync handler in a worker thread")
@survival("background task")
@survival("streamed body, async")
@survival("streamed body, sync")
@survival("websocket")
def test_handlers_background_tasks_streams_and_websockets_know_user_and_route() -> None:
    """Each in one application.

    langfuse/langfuse#3961, #2015, #8216; open-telemetry/opentelemetry-python-contrib#3586.
    """
    app = make()

    @app.get("/async/{x}")
    async def handler(x: str, tasks: BackgroundTasks) -> str:
        tasks.add_task(ask)
        tasks.add_task(aask)
        return await aask()

    @app.get("/sync/{x}")
    def sync_handler(x: str, tasks: BackgroundTasks) -> str:
        tasks.add_task(ask)
        return ask()

    @app.get("/stream/{x}")
    async def stream(x: str) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield await aask()

        return StreamingResponse(body())

    @app.get("/sync-stream/{x}")
    def sync_stream(x: str) -> StreamingResponse:
        return StreamingResponse(ask() for _ in range(2))

    @app.websocket("/socket/{x}")
    async def socket(websocket: WebSocket, x: str) -> None:
        await websocket.accept()
        await websocket.send_text(await aask())
        await websocket.close()

    assert [who(event) for event in events_of(app, "/async/1")] == [("ada", "GET /async/{x}")] * 3
    assert [who(event) for event in events_of(app, "/sync/1")] == [("ada", "GET /sync/{x}")] * 2
    assert [who(event) for event in events_of(app, "/stream/1")] == [("ada", "GET /stream/{x}")]
    assert [who(event) for event in events_of(app, "/sync-stream/1")] == [("ada", "GET /sync-stream/{x}")] * 2
    with (
        capture_events() as events,
        TestClient(app) as client,
        client.websocket_connect("/socket/1", headers={"x-user": "ada"}) as websocket,
    ):
        websocket.receive_text()
    assert [who(event) for event in events] == [("ada", "WEBSOCKET /socket/{x}")]


@survival("included routers, prefix kept")
@survival("mounted and nested applications, prefix kept")
def test_included_nested_and_mounted_routers_keep_every_prefix() -> None:
    """`prometheus-fastapi-instrumentator#370`, `opentelemetry-python-contrib#4707`: FastAPI 0.137 moved them."""
    leaf, branch = APIRouter(prefix="/leaf"), APIRouter(prefix="/branch")

    @leaf.get("/items/{item_id}")
    async def handler(item_id: str) -> str:
        return await aask()

    branch.include_router(leaf, prefix="/again")
    app, sub = make(), FastAPI()
    sub.include_router(branch)
    app.include_router(branch, prefix="/v1")
    app.include_router(leaf, prefix="/{tenant}")
    app.mount("/sub/{place}", sub)
    assert [who(e) for e in events_of(app, "/v1/branch/again/leaf/items/1")] == [
        ("ada", "GET /v1/branch/again/leaf/items/{item_id}")
    ]
    assert [who(e) for e in events_of(app, "/acme/leaf/items/1")] == [("ada", "GET /{tenant}/leaf/items/{item_id}")]
    assert [who(e) for e in events_of(app, "/sub/here/branch/again/leaf/items/1")] == [
        ("ada", "GET /sub/{place}/branch/again/leaf/items/{item_id}")
    ]


@pytest.mark.parametrize("prefix", ["", "/v1", "/sub/1"])
def test_included_and_mounted_routes_are_spelled_as_routes_of_the_application_are(prefix: str) -> None:
    """Converters too: one endpoint has one spelling, wherever its router is put and whatever FastAPI it runs on."""
    router = APIRouter()

    @router.get("/files/{name:path}")
    async def handler(name: str) -> str:
        return await aask()

    app, sub = make(), FastAPI()
    app.add_api_route("/files/{name:path}", handler)
    app.include_router(router, prefix="/v1")
    sub.include_router(router)
    app.mount("/sub/{place:int}", sub)
    template = prefix.replace("sub/1", "sub/{place:int}")
    assert [who(e) for e in events_of(app, f"{prefix}/files/a/b")] == [("ada", f"GET {template}/files/{{name:path}}")]


@survival("404 and exception handlers")
@survival("exception_handler(Exception)")
def test_exception_handlers_know_user_and_route_and_unmatched_paths_have_no_feature() -> None:
    """Of one class, of `Exception`, and of 404."""
    app = make()

    @app.exception_handler(KeyError)
    async def on_key_error(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(await aask(), 400)

    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(await aask(), 500)

    @app.exception_handler(404)
    def on_missing(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(ask(), 404)

    @app.get("/items/{item_id}")
    async def handler(item_id: int) -> str:
        raise (KeyError if item_id == 1 else RuntimeError)("x")

    assert [who(event) for event in events_of(app, "/items/1")] == [("ada", ROUTE)]
    assert [who(event) for event in events_of(app, "/items/2")] == [("ada", ROUTE)]
    assert [who(event) for event in events_of(app, "/secret/path")] == [("ada", None)]


@survival("a middleware that copies the scope")
def test_a_middleware_that_copies_the_scope_hides_nothing() -> None:
    """Below ours, above the router."""
    app = FastAPI()
    router = APIRouter(prefix="/p")

    @router.get("/items/{item_id}")
    async def handler(item_id: int) -> str:
        return await aask()

    app.include_router(router)
    app.add_middleware(SignIn)
    app.add_middleware(CopiesScope)
    app.add_middleware(FluxGateMiddleware)
    assert [who(event) for event in events_of(app, "/p/items/1")] == [("ada", "GET /p/items/{item_id}")]


@survival("decorated endpoint: its streamed body and background tasks")
def test_decorated_endpoints_keep_schema_injection_and_status_and_name_all_of_their_calls() -> None:
    """Under `from __future__ import annotations`, for sync and async endpoints."""

    def build(decorate: Callable[[Any], Any]) -> FastAPI:
        app = make()

        @app.get("/items/{item_id}", status_code=201)
        @decorate
        async def handler(
            item_id: int, tasks: BackgroundTasks, agent: Annotated[str | None, Header()] = None
        ) -> dict[str, int]:
            """Document me."""
            tasks.add_task(ask)
            await aask()
            return {"item": item_id}

        @app.post("/sync")
        @decorate
        def sync_handler(body: dict[str, int], value: Annotated[str, Depends(sync_dependency)]) -> dict[str, int]:
            ask()
            return body

        return app

    plain, decorated = build(lambda function: function), build(feature("named"))
    assert decorated.openapi() == plain.openapi()
    events = events_of(decorated)
    assert [(event.feature, event.route) for event in events] == [("named", ROUTE)] * 2
    with capture_events() as events, TestClient(decorated) as client:
        answer = client.post("/sync", json={"a": 1})
        assert (answer.status_code, answer.json()) == (200, {"a": 1})
        assert client.get("/items/not-a-number").status_code == 422
        assert client.get("/items/3").json() == {"item": 3}
    assert {event.feature for event in events} == {"named"}


@survival("class-based views")
def test_methods_of_a_decorated_class_serve_as_endpoints() -> None:
    """Bound methods, as class-based views register them."""

    @feature("views")
    class Views:
        async def read(self, item_id: int) -> str:
            return await aask()

    class Called:
        @feature("called")
        def __call__(self, item_id: int) -> PlainTextResponse:
            return PlainTextResponse(ask(), background=BackgroundTask(aask))

    app = make()
    app.add_api_route("/items/{item_id}", Views().read)
    assert [(event.feature, event.route) for event in events_of(app)] == [("views", ROUTE)]
    app = make()
    app.add_api_route("/items/{item_id}", Called(), response_model=None)
    assert [(event.feature, event.route) for event in events_of(app)] == [("called", ROUTE)] * 2


class Account:
    """A user of the application."""

    def __init__(self, key: str) -> None:
        self.id, self.email, self.name = key, f"{key}@example.org", key.title()


def sync_account(x_user: Annotated[str, Header()]) -> Account:
    return Account(x_user)


async def async_account(x_user: Annotated[str, Header()]) -> Account:
    return Account(x_user)


def yielding_account(x_user: Annotated[str, Header()]) -> Iterator[Account]:
    yield Account(x_user)


async def async_yielding_account(x_user: Annotated[str, Header()]) -> AsyncIterator[Account]:
    yield Account(x_user)


class CallableAccount:
    """A dependency that is an object."""

    def __call__(self, x_user: Annotated[str, Header()]) -> Account:
        return Account(x_user)


@pytest.mark.parametrize(
    "dependency", [sync_account, async_account, yielding_account, async_yielding_account, CallableAccount()]
)
def test_identified_identifies_with_what_a_dependency_of_any_kind_gives(dependency: Callable[..., Any]) -> None:
    """The endpoint gets the same value; the dependency's own parameters are injected."""
    app = FastAPI()
    app.add_middleware(FluxGateMiddleware)

    @app.get("/items/{item_id}")
    def handler(item_id: int, account: Account = Depends(identified(dependency))) -> str:
        ask()
        return account.name

    with capture_events() as events, TestClient(app) as client:
        assert client.get("/items/1", headers={"x-user": "ada"}).json() == "Ada"
        assert client.get("/items/1").status_code == 422
    assert [event.user for event in events] == [User("ada", email="ada@example.org", name="Ada")]
    assert events[0].user_source == "identify"


def test_identified_leaves_the_schema_and_the_cleanup_of_its_dependency_as_they_were() -> None:
    """The error of the endpoint reaches the generator; it is closed once."""
    seen: list[str] = []

    async def account(x_user: Annotated[str, Header()]) -> AsyncIterator[Account]:
        try:
            yield Account(x_user)
        except KeyError:
            seen.append("error")
            raise
        finally:
            seen.append("closed")

    def build(dependency: Callable[..., Any]) -> FastAPI:
        app = FastAPI()
        app.add_middleware(FluxGateMiddleware)

        @app.get("/items/{fails}")
        def handler(fails: bool, account: Any = Depends(dependency)) -> str:  # noqa: FBT001
            if fails:
                raise KeyError("x")
            return "ok"

        return app

    app = build(identified(account))
    assert app.openapi() == build(account).openapi()
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/items/false", headers={"x-user": "ada"}).status_code == 200
        assert client.get("/items/true", headers={"x-user": "ada"}).status_code == 500
    assert seen == ["closed", "error", "closed"]


def keeps_it() -> Iterator[str]:
    try:
        yield "ada"
    except KeyError:
        return


async def akeeps_it() -> AsyncIterator[str]:
    try:
        yield "ada"
    except KeyError:
        return


def gives_another() -> Iterator[str]:
    try:
        yield "ada"
    except KeyError:
        raise LookupError("another") from None


async def agives_another() -> AsyncIterator[str]:
    try:
        yield "ada"
    except KeyError:
        raise LookupError("another") from None


@pytest.mark.parametrize("dependency", [keeps_it, akeeps_it, gives_another, agives_another])
def test_a_dependency_that_keeps_the_error_ends_as_without_identified(dependency: Callable[..., Any]) -> None:
    """What FastAPI makes of an error that is kept, or replaced, is the same; ours was one about StopIteration."""

    def outcome(dependency: Callable[..., Any]) -> str:
        app = make()

        @app.get("/")
        async def handler(_user: str = Depends(dependency)) -> None:
            raise KeyError("x")

        with TestClient(app) as client, pytest.raises((LookupError, RuntimeError)) as caught:
            client.get("/")
        return repr(caught.value)

    assert outcome(identified(dependency)) == outcome(dependency)


@pytest.mark.anyio
async def test_a_dependency_is_told_of_a_cancelled_request_as_without_identified() -> None:
    """A clean-up that asks for `CancelledError` runs: a time-out and a client that leaves cancel a handler."""
    seen: list[str] = []

    async def account() -> AsyncIterator[str]:
        try:
            yield "ada"
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    for dependency in (account, identified(account)):
        with anyio.move_on_after(0.01) as scope:
            async with asynccontextmanager(dependency)():
                await anyio.sleep(10)
        assert scope.cancelled_caught
    assert seen == ["CancelledError"] * 2


@survival("identify() in a sync dependency")
def test_identify_in_a_sync_dependency_holds_for_the_handler() -> None:
    """A variable set in the worker thread's context would be lost."""
    app = FastAPI()
    app.add_middleware(FluxGateMiddleware)

    def dependency(x_user: Annotated[str, Header()]) -> None:
        identify(x_user)

    @app.get("/items/{item_id}")
    async def handler(item_id: int, _nothing: None = Depends(dependency)) -> str:
        return await aask()

    assert [who(event) for event in events_of(app)] == [("ada", ROUTE)]


def test_a_decorated_dependency_is_a_feature_only_for_itself() -> None:
    """The endpoint's own calls keep the route."""
    app = make()

    @feature("checking")
    async def dependency() -> AsyncIterator[str]:
        yield await aask()

    @app.get("/items/{item_id}")
    async def handler(item_id: int, _value: str = Depends(dependency)) -> str:
        return await aask()

    assert [event.feature for event in events_of(app)] == ["checking", ROUTE]


def test_an_endpoint_whose_annotations_are_only_in_its_own_module_is_injected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI resolves string annotations in the endpoint's module, also behind the decorator."""
    (tmp_path / "fluxgate_endpoint_module.py").write_text(
        "from __future__ import annotations\n"
        "from typing import Annotated\n"
        "from fastapi import Query\n"
        "from pydantic import BaseModel\n"
        "from fluxgate_mw import feature\n"
        "Number = Annotated[int, Query(gt=3)]\n"
        "class Body(BaseModel):\n"
        "    text: str\n"
        "@feature('elsewhere')\n"
        "async def endpoint(body: Body, number: Number = 4) -> Body:\n"
        "    return body\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("fluxgate_endpoint_module")
    monkeypatch.delitem(sys.modules, "fluxgate_endpoint_module")
    app = make()
    app.post("/x")(module.endpoint)
    with TestClient(app) as client:
        assert client.post("/x?number=5", json={"text": "t"}).json() == {"text": "t"}
        assert client.post("/x?number=2", json={"text": "t"}).status_code == 422
