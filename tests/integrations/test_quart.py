"""Quart: views, blueprints, streamed bodies, background tasks and websockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import quart
import quart_auth
from quart.views import MethodView

from fluxgate_mw import FluxGateMiddleware, UsageEvent, feature
from fluxgate_mw.integrations.quart import FluxGateQuart
from fluxgate_mw.testing import capture_events
from tests.asking import SignIn, aask, ask, who

pytestmark = pytest.mark.anyio


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("Quart", place)


def make(*, extension: bool = True) -> quart.Quart:
    """Return an application with ours as its extension, or else as a plain middleware."""
    app = quart.Quart("shop")
    app.asgi_app = SignIn(app.asgi_app)  # type: ignore[method-assign, assignment]
    if extension:
        FluxGateQuart(app)
    else:
        app.asgi_app = FluxGateMiddleware(app.asgi_app)  # type: ignore[method-assign, assignment, arg-type]
    return app


async def events_of(app: quart.Quart, path: str = "/items/7") -> list[UsageEvent]:
    """Return what one request recorded."""
    with capture_events() as events:
        async with app.test_app() as running:
            response = await running.test_client().get(path, headers={"x-user": "ada"})
            await response.get_data()
    return events


async def whos(app: quart.Quart, path: str = "/items/7") -> list[tuple[str | None, str | None]]:
    """Return user and feature of what one request recorded."""
    return [who(event) for event in await events_of(app, path)]


ROUTE = "GET /items/<int:key>"


@pytest.mark.parametrize("extension", [True, False])
@survival("async handler")
@survival("sync handler in a worker thread")
@survival("background task")
@survival("blueprints, prefix kept")
async def test_views_and_background_tasks_know_user_and_rule(extension: bool) -> None:  # noqa: FBT001
    """Async, sync, of a blueprint, and what a view leaves to the background."""
    app, blueprint = make(extension=extension), quart.Blueprint("b", __name__, url_prefix="/b")

    @app.get("/items/<int:key>")
    async def view(key: int) -> str:
        app.add_background_task(aask)
        return await aask()

    @app.get("/sync/<int:key>")
    def sync_view(key: int) -> str:
        return ask()

    @blueprint.get("/items/<int:key>")
    async def of_blueprint(key: int) -> str:
        return await aask()

    app.register_blueprint(blueprint)
    assert await whos(app) == [("ada", ROUTE)] * 2
    assert await whos(app, "/sync/7") == [("ada", "GET /sync/<int:key>")]
    assert await whos(app, "/b/items/7") == [("ada", "GET /b/items/<int:key>")]


@pytest.mark.parametrize("extension", [True, False])
@survival("streamed body, async")
@survival("decorated endpoint: its streamed body and background tasks")
async def test_a_streamed_body_knows_user_and_rule(extension: bool) -> None:  # noqa: FBT001
    """Quart has put its request away by then."""
    app = make(extension=extension)

    def body() -> AsyncIterator[str]:
        async def steps() -> AsyncIterator[str]:
            yield await aask()

        return steps()

    @app.get("/items/<int:key>")
    async def view(key: int) -> Any:
        return body()

    @app.get("/named/<int:key>")
    @feature("named")
    async def named(key: int) -> Any:
        return body()

    assert await whos(app) == [("ada", ROUTE)]
    assert await whos(app, "/named/7") == [("ada", "named")]


@survival("class-based views")
async def test_method_views_are_named_by_their_rule_or_their_decoration() -> None:
    """A decorated class serves as before."""
    app = make()

    @feature("class")
    class Decorated(MethodView):
        async def get(self, key: int) -> str:
            return await aask()

    class Method(MethodView):
        @feature("method")
        async def get(self, key: int) -> Any:
            async def body() -> AsyncIterator[str]:
                yield await aask()

            return body()

    app.add_url_rule("/items/<int:key>", view_func=Decorated.as_view("decorated"))
    app.add_url_rule("/method/<int:key>", view_func=Method.as_view("method"))
    assert await whos(app) == [("ada", "class")]
    assert await whos(app, "/method/7") == [("ada", "method")]


@survival("404 and exception handlers")
@survival("exception_handler(Exception)")
async def test_error_handlers_know_their_user_and_unmatched_paths_have_no_feature() -> None:
    """Of 404, and of `Exception`."""
    app = make()

    @app.errorhandler(404)
    async def missing(error: Exception) -> tuple[str, int]:
        return await aask(), 404

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> tuple[str, int]:
        return await aask(), 500

    @app.get("/items/<int:key>")
    async def view(key: int) -> str:
        raise RuntimeError("x")

    assert await whos(app) == [("ada", ROUTE)]
    assert await whos(app, "/secret/path") == [("ada", None)]


@survival("websocket")
async def test_a_call_in_a_websocket_knows_user_and_rule() -> None:
    """The route's method is `WEBSOCKET`."""
    app = make()

    @app.websocket("/socket/<int:key>")
    async def socket(key: int) -> None:
        await quart.websocket.send(await aask())

    with capture_events() as events:
        async with (
            app.test_app() as running,
            running.test_client().websocket("/socket/7", headers={"x-user": "ada"}) as connected,
        ):
            await connected.receive()
    assert [who(event) for event in events] == [("ada", "WEBSOCKET /socket/<int:key>")]


class Member(quart_auth.AuthUser):
    """A user of the application, whose name is known."""

    name = "Ada"


@survival("Quart-Auth")
@pytest.mark.parametrize("extension", [True, False])
async def test_quart_auths_user_is_known_in_views_of_every_kind(extension: bool) -> None:  # noqa: FBT001
    """Who is signed in by a cookie, never asked for by the view; nobody is nobody; in a stream too."""
    app = make(extension=extension)
    app.secret_key = "secret"
    quart_auth.QuartAuth(app, user_class=Member, cookie_secure=False)

    @app.post("/sign-in")
    async def sign_in() -> str:
        quart_auth.login_user(Member("bob"))
        return await aask()

    @app.get("/async")
    async def view() -> str:
        return await aask()

    @app.get("/sync")
    def sync_view() -> str:
        return ask()

    @app.get("/streamed")
    async def streamed() -> AsyncIterator[str]:
        async def body() -> AsyncIterator[str]:
            yield await aask()

        return body()

    with capture_events() as events:
        async with app.test_app() as running:
            client = running.test_client()
            await client.get("/async")
            await client.post("/sign-in")
            for path in ("/async", "/sync", "/streamed"):
                await (await client.get(path)).get_data()
    users = [(event.user and event.user.id, event.user_source) for event in events]
    assert users == [(None, "none"), *[("bob", "framework")] * (len(events) - 1)]
    assert len(events) == 5


@survival("Quart-Auth")
@pytest.mark.parametrize("extension", [True, False])
async def test_quart_auths_user_is_known_in_a_websocket(extension: bool) -> None:  # noqa: FBT001
    """As in views."""
    app = make(extension=extension)
    app.secret_key = "secret"
    quart_auth.QuartAuth(app, mode="bearer")

    @app.websocket("/socket/<int:key>")
    async def socket(key: int) -> None:
        await quart.websocket.send(await aask())

    with capture_events() as events:
        async with app.test_app() as running:
            token = quart_auth.generate_auth_token(running.test_client(), "bob")
            headers = {"Authorization": f"Bearer {token}"}
            async with running.test_client().websocket("/socket/7", headers=headers) as connected:
                await connected.receive()
    assert [who(event) for event in events] == [("bob", "WEBSOCKET /socket/<int:key>")]
