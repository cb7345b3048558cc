"""Falcon: one component for WSGI and ASGI, which leaves the template for the middlewares around the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import falcon
import falcon.asgi
import pytest
from falcon.testing import TestClient

from fluxgate_mw import FluxGateMiddleware, FluxGateWSGIMiddleware, feature, identify
from fluxgate_mw.integrations.falcon import FluxGateFalcon
from fluxgate_mw.testing import capture_events
from tests.asking import aask, ask, who


class Items:
    """A resource of a WSGI application."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, key: int) -> None:
        identify("ada")
        ask()
        resp.text = "x"

    def on_get_streamed(self, req: falcon.Request, resp: falcon.Response, key: int) -> None:
        def body() -> Iterator[bytes]:
            identify("ada")
            yield ask().encode()

        resp.stream = body()

    @feature("named")
    def on_get_named(self, req: falcon.Request, resp: falcon.Response, key: int) -> None:
        self.on_get(req, resp, key)


class AsyncItems:
    """A resource of an ASGI application."""

    async def on_get(self, req: Any, resp: Any, key: int) -> None:
        identify("ada")
        await aask()
        resp.text = "x"

    async def on_get_streamed(self, req: Any, resp: Any, key: int) -> None:
        async def body() -> AsyncIterator[bytes]:
            identify("ada")
            yield (await aask()).encode()

        resp.stream = body()

    @feature("named")
    async def on_get_named(self, req: Any, resp: Any, key: int) -> None:
        await self.on_get(req, resp, key)


def make(kind: str) -> Any:
    """Return an application that asks in each way, inside the middleware."""
    app: Any = (falcon.App if kind == "WSGI" else falcon.asgi.App)(middleware=[FluxGateFalcon()])
    items = Items() if kind == "WSGI" else AsyncItems()
    app.add_route("/items/{key:int}", items)
    app.add_route("/streamed/{key:int}", items, suffix="streamed")
    app.add_route("/named/{key:int}", items, suffix="named")

    def missing(req: Any, resp: Any) -> None:
        ask()

    async def amissing(req: Any, resp: Any) -> None:
        await aask()

    app.add_sink(missing if kind == "WSGI" else amissing, "/secret")
    return (FluxGateWSGIMiddleware if kind == "WSGI" else FluxGateMiddleware)(app)


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("Falcon", place)


@pytest.mark.parametrize(
    ("kind", "path", "known"),
    [
        pytest.param("WSGI", "/items/7", ("ada", "GET /items/{key:int}"), marks=survival("sync handler")),
        pytest.param("ASGI", "/items/7", ("ada", "GET /items/{key:int}"), marks=survival("async handler")),
        pytest.param("WSGI", "/streamed/7", ("ada", "GET /streamed/{key:int}"), marks=survival("streamed body, sync")),
        pytest.param("ASGI", "/streamed/7", ("ada", "GET /streamed/{key:int}"), marks=survival("streamed body, async")),
        pytest.param("WSGI", "/named/7", ("ada", "named"), marks=survival("class-based views")),
        pytest.param("ASGI", "/named/7", ("ada", "named"), marks=survival("class-based views")),
        pytest.param("WSGI", "/secret/path", (None, None)),
        pytest.param("ASGI", "/secret/path", (None, None)),
    ],
)
def test_a_call_in_falcon_knows_its_user_and_template(
    kind: str, path: str, known: tuple[str | None, str | None]
) -> None:
    """Of WSGI and of ASGI; where nothing matched there is none."""
    with capture_events() as events:
        TestClient(make(kind)).simulate_get(path)
    assert [who(event) for event in events] == [known]
