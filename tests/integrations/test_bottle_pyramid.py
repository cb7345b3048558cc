"""Bottle and Pyramid: nothing to install beside the WSGI middleware, which recognises both by their marks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import bottle
import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from werkzeug.test import Client

from fluxgate_mw import FluxGateWSGIMiddleware, UsageEvent, feature, identify
from fluxgate_mw.testing import capture_events
from fluxgate_mw.trust import TrustedProxies
from tests.asking import ask, who

TRUSTED = TrustedProxies(["127.0.0.1"], user_header="X-User")


def events_of(app: Any, path: str) -> list[UsageEvent]:
    """Return what one request recorded, its body read and closed as a server does."""
    with capture_events() as events:
        client = Client(FluxGateWSGIMiddleware(app, trusted=TRUSTED))
        response = client.get(
            path, headers={"x-user": "ada"}, environ_base={"REMOTE_ADDR": "127.0.0.1"}, buffered=False
        )
        response.get_data()
        response.close()
    return events


def of_bottle() -> bottle.Bottle:
    """Return an application with a mounted one."""
    app, mounted = bottle.Bottle(), bottle.Bottle()

    @app.get("/items/<key:int>")
    def view(key: int) -> str:
        return ask()

    @app.get("/streamed/<key:int>")
    def streamed(key: int) -> Iterator[str]:
        yield "one"
        yield ask()

    @app.get("/named/<key:int>")
    @feature("named")
    def named(key: int) -> Iterator[str]:
        def body() -> Iterator[str]:
            yield ask()

        return body()

    @app.error(404)
    def missing(error: bottle.HTTPError) -> str:
        return ask()

    @mounted.get("/items/<key:int>")
    def mounted_view(key: int) -> str:
        return ask()

    app.mount("/api/", mounted)
    return app


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param("/items/7", "GET /items/<key:int>", marks=pytest.mark.survival("Bottle", "sync handler")),
        pytest.param(
            "/streamed/7", "GET /streamed/<key:int>", marks=pytest.mark.survival("Bottle", "streamed body, sync")
        ),
        pytest.param("/named/7", "named"),
        pytest.param(
            "/api/items/7",
            "GET /api/items/<key:int>",
            marks=pytest.mark.survival("Bottle", "mounted and nested applications, prefix kept"),
        ),
        pytest.param("/secret/path", None, marks=pytest.mark.survival("Bottle", "404 and exception handlers")),
    ],
)
def test_a_call_in_bottle_knows_its_user_and_rule(path: str, name: str | None) -> None:
    """In Bottle's own spelling; an unmatched path has none."""
    assert [who(event) for event in events_of(of_bottle(), path)] == [("ada", name)]


def of_pyramid() -> Any:
    """Return an application with included routes and a traversed view."""

    def view(request: Request) -> Response:
        ask()
        return Response("x")

    def failed(error: Exception, request: Request) -> Response:
        ask()
        return Response("x", status=500)

    def failing(request: Request) -> Response:
        raise KeyError("x")

    def signing_in(request: Request) -> Response:
        identify("bob")
        return view(request)

    @feature("named")
    def named(request: Request) -> Response:
        return view(request)

    @feature("named")
    def named_with_context(context: object, request: Request) -> Response:
        return view(request)

    class Named:
        def __init__(self, request: Request) -> None:
            self.request = request

        @feature("named")
        def __call__(self) -> Response:
            return view(self.request)

    def api(config: Configurator) -> None:
        config.add_route("deep", "/deep/{key}")
        config.add_view(view, route_name="deep")

    with Configurator() as config:
        views = {"items": view, "failing": failing, "signing-in": signing_in}
        for name, served in {**views, "named": named, "context": named_with_context, "class": Named}.items():
            config.add_route(name, f"/{name}/{{key}}")
            config.add_view(served, route_name=name)
        config.include(api, route_prefix="/api")
        config.add_exception_view(failed, context=KeyError)
        config.add_notfound_view(view)
        return config.make_wsgi_app()


@pytest.mark.parametrize(
    ("path", "known"),
    [
        pytest.param("/items/7", ("ada", "GET /items/{key}"), marks=pytest.mark.survival("Pyramid", "sync handler")),
        pytest.param(
            "/api/deep/7",
            ("ada", "GET /api/deep/{key}"),
            marks=pytest.mark.survival("Pyramid", "included routers, prefix kept"),
        ),
        pytest.param(
            "/failing/7",
            ("ada", "GET /failing/{key}"),
            marks=pytest.mark.survival("Pyramid", "404 and exception handlers"),
        ),
        pytest.param(
            "/secret/path", ("ada", None), marks=pytest.mark.survival("Pyramid", "404 and exception handlers")
        ),
        pytest.param("/signing-in/7", ("bob", "GET /signing-in/{key}")),
    ],
)
def test_a_call_in_pyramid_knows_its_user_and_pattern(path: str, known: tuple[str | None, str | None]) -> None:
    """Of URL dispatch; where nothing matched there is none."""
    assert [who(event) for event in events_of(of_pyramid(), path)] == [known]


@pytest.mark.parametrize("path", ["/named/7", "/context/7", "/class/7"])
def test_a_decorated_view_of_pyramid_is_called_with_what_it_takes(path: str) -> None:
    """Pyramid counts its arguments: with a request alone, or a context before it."""
    assert [(event.feature, event.route) for event in events_of(of_pyramid(), path)] == [
        ("named", f"GET {path.removesuffix('7')}{{key}}")
    ]


def test_an_object_that_is_called_keeps_its_annotations() -> None:
    """FastAPI asks for them evaluated, which nothing that Pyramid is told may hide."""

    class Called:
        @feature("named")
        def __call__(self, request: Request) -> Response:
            return Response(ask())

    assert inspect.signature(Called(), eval_str=True).parameters["request"].annotation is Request
