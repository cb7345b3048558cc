"""Flask: views of every kind, streamed bodies, hooks, and Flask-Login, through the WSGI middleware."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import flask
import flask_login
import pytest
from flask.views import MethodView, View
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from fluxgate_mw import UsageEvent, context, feature, identify
from fluxgate_mw.integrations.flask import FluxGateFlask
from fluxgate_mw.testing import capture_events
from tests.asking import aask, ask, who


def survival(place: str) -> pytest.MarkDecorator:
    """Mark what a row of the survival table stands on."""
    return pytest.mark.survival("Flask", place)


class Account(flask_login.UserMixin):
    """A user of Flask-Login."""

    def __init__(self, key: str) -> None:
        self.id, self.email = key, f"{key}@example.org"


def make(name: str = "shop", **options: Any) -> flask.Flask:
    """Return an application with ours, and with Flask-Login reading who is signed in from a header."""
    app = flask.Flask(name)
    login = flask_login.LoginManager(app)
    app.secret_key = "secret"

    @login.request_loader
    def load(request: flask.Request) -> Account | None:
        named = request.headers.get("x-user")
        return None if named is None else Account(named)

    FluxGateFlask(app, **options)
    return app


def events_of(app: Any, path: str = "/items/7", *, user: str | None = "ada", method: str = "GET") -> list[UsageEvent]:
    """Return what one request recorded, its body read to the end and closed."""
    with capture_events() as events:
        headers = {} if user is None else {"x-user": user}
        response = Client(app).open(path, method=method, headers=headers, buffered=False)
        response.get_data()
        response.close()
    return events


def whos(app: Any, path: str = "/items/7", **options: Any) -> list[tuple[str | None, str | None]]:
    """Return user and feature of what one request recorded."""
    return [who(event) for event in events_of(app, path, **options)]


ROUTE = "GET /items/<int:key>"


@survival("sync handler")
@survival("Flask-Login")
def test_a_sync_view_knows_the_user_of_flask_login_and_its_rule() -> None:
    """With the user's e-mail, and from where it is known."""
    app = make()

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        return ask()

    (event,) = events_of(app)
    assert who(event) == ("ada", ROUTE)
    assert (event.user and event.user.email, event.user_source, event.route, event.http_method) == (
        "ada@example.org",
        "framework",
        ROUTE,
        "GET",
    )
    assert whos(app, user=None) == [(None, ROUTE)]


@survival("async handler")
def test_an_async_view_knows_user_and_rule() -> None:
    """Flask runs it in a loop of its own."""
    app = make()

    @app.get("/items/<int:key>")
    async def view(key: int) -> str:
        return await aask()

    assert whos(app) == [("ada", ROUTE)]


@survival("blueprints, prefix kept")
def test_blueprints_keep_their_prefixes() -> None:
    """Nested ones too."""
    app, outer, inner = make(), flask.Blueprint("outer", __name__), flask.Blueprint("inner", __name__)

    @inner.get("/items/<int:key>")
    def view(tenant: str, key: int) -> str:
        return ask()

    outer.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(outer, url_prefix="/<tenant>")
    assert whos(app, "/acme/inner/items/7") == [("ada", "GET /<tenant>/inner/items/<int:key>")]


@survival("mounted and nested applications, prefix kept")
def test_an_application_mounted_under_a_prefix_keeps_it() -> None:
    """As `SCRIPT_NAME`."""
    app, sub = make(), make("sub")

    @sub.get("/items/<int:key>")
    def view(key: int) -> str:
        return ask()

    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/sub": sub})  # type: ignore[method-assign]
    assert whos(app, "/sub/items/7") == [("ada", "GET /sub/items/<int:key>")]


@survival("class-based views")
def test_method_views_are_named_by_rule_decorated_method_or_decorated_class() -> None:
    """Each keeps its 405."""
    app = make()

    class Plain(MethodView):
        def get(self, key: int) -> str:
            return ask()

        @feature("method")
        def post(self, key: int) -> str:
            return ask()

    @feature("class")
    class Decorated(MethodView):
        def get(self, key: int) -> flask.Response:
            return flask.Response(ask() for _ in range(1))

        @feature("method")
        def put(self, key: int) -> flask.Response:
            return flask.Response(ask() for _ in range(1))

    class Dispatched(View):
        @feature("dispatched")
        def dispatch_request(self, key: int) -> flask.Response:
            return flask.Response(ask() for _ in range(1))

    app.add_url_rule("/dispatched/<int:key>", view_func=Dispatched.as_view("dispatched"))
    app.add_url_rule("/plain/<int:key>", view_func=Plain.as_view("plain"))
    app.add_url_rule("/decorated/<int:key>", view_func=Decorated.as_view("decorated"))
    assert whos(app, "/dispatched/1") == [("ada", "dispatched")]
    assert whos(app, "/plain/1") == [("ada", "GET /plain/<int:key>")]
    assert whos(app, "/plain/1", method="POST") == [("ada", "method")]
    assert whos(app, "/decorated/1") == [("ada", "class")]
    assert whos(app, "/decorated/1", method="PUT") == [("ada", "method")]
    assert Client(app).post("/decorated/1").status_code == 405


@pytest.mark.parametrize("kept", [False, True])
@survival("streamed body, sync")
def test_a_streamed_body_knows_user_and_rule_with_flasks_context_and_without(kept: bool) -> None:  # noqa: FBT001
    """Flask has put its request away by then; the view's decoration still names the body."""
    app = make()

    def body() -> Iterator[str]:
        yield "one"
        yield ask()
        with context(step="inner"):
            yield ask()
            yield ask()
        yield ask()

    @app.get("/items/<int:key>")
    def view(key: int) -> flask.Response:
        return flask.Response(flask.stream_with_context(body()) if kept else body())

    @app.get("/named/<int:key>")
    @feature("named")
    def named(key: int) -> flask.Response:
        return flask.Response(flask.stream_with_context(body()) if kept else body())

    events = events_of(app)
    assert [who(event) for event in events] == [("ada", ROUTE)] * 4
    assert [event.step for event in events] == [None, "inner", "inner", None]
    assert len({event.request_id for event in events}) == 1
    assert whos(app, "/named/1") == [("ada", "named")] * 4


@survival("before_request, after_request, teardown, call_on_close")
def test_hooks_before_and_after_the_view_and_at_the_close_know_user_and_rule() -> None:
    """`before_request`, `after_request`, `teardown_request`, `after_this_request`, `call_on_close`."""
    app = make()
    app.before_request(lambda: ask() and None)
    app.teardown_request(lambda _error: ask() and None)

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        ask()
        response.call_on_close(ask)
        return response

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        return "ok"

    assert whos(app) == [("ada", ROUTE)] * 4


@survival("404 and exception handlers")
@survival("exception_handler(Exception)")
def test_error_handlers_know_their_user_and_unmatched_paths_have_no_feature() -> None:
    """Of 404, and of `Exception`."""
    app = make()

    @app.errorhandler(404)
    def missing(error: Exception) -> tuple[str, int]:
        return ask(), 404

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[str, int]:
        return ask(), 500

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        raise RuntimeError("x")

    assert whos(app) == [("ada", ROUTE)]
    assert whos(app, "/secret/path") == [("ada", None)]


@survival("executors and threads, with copy_context().run")
def test_a_thread_that_is_given_a_copy_of_the_context_knows_user_and_rule() -> None:
    """The documented line."""
    app = make()

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
        thread.start()
        thread.join()
        return "ok"

    assert whos(app) == [("ada", ROUTE)]


@survival("detached task after the response")
def test_a_thread_that_outlives_the_response_knows_user_and_rule() -> None:
    """Its first call is made when Flask's context is long gone."""
    app, answered = make(), threading.Event()
    threads: list[threading.Thread] = []

    def later() -> None:
        answered.wait(10)
        ask()

    @app.get("/items/<int:key>")
    @flask_login.login_required
    def view(key: int) -> str:
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(later,)))
        threads[0].start()
        return "ok"

    with capture_events() as events:
        response = Client(app).get("/items/7", headers={"x-user": "ada"})
        response.close()
        answered.set()
        threads[0].join()
    assert [who(event) for event in events] == [("ada", ROUTE)]


@pytest.mark.parametrize(("loaded", "user"), [(False, None), (True, "ada")])
def test_a_thread_that_outlives_the_response_knows_only_a_user_who_was_loaded(loaded: bool, user: str | None) -> None:  # noqa: FBT001
    """Flask-Login cannot be asked any more: reading `current_user` in the view, or a call there, is enough."""
    app, answered = make(), threading.Event()
    threads: list[threading.Thread] = []

    def later() -> None:
        answered.wait(10)
        ask()

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(later,)))
        threads[0].start()
        return str(loaded and flask_login.current_user.is_authenticated)

    with capture_events() as events:
        Client(app).get("/items/7", headers={"x-user": "ada"}).close()
        Client(app).get("/missing", headers={"x-user": "eve"}).close()
        answered.set()
        threads[0].join()
    assert [who(event) for event in events] == [(user, ROUTE)]


def test_identify_beats_flask_login_for_the_rest_of_the_request() -> None:
    """Called anywhere in it."""
    app = make()

    @app.get("/items/<int:key>")
    def view(key: int) -> str:
        ask()
        identify("grace")
        return ask()

    assert whos(app) == [("ada", ROUTE), ("grace", ROUTE)]


def test_a_user_who_signs_in_during_the_request_is_known_to_its_later_calls() -> None:
    """Not known is never kept."""
    app = make()

    @app.get("/items/<int:key>")
    def view(key: int) -> flask.Response:
        ask()
        flask_login.login_user(Account("late"))
        return flask.Response(ask() for _ in range(1))

    assert whos(app, user=None) == [(None, ROUTE), ("late", ROUTE)]


def test_the_extension_is_put_around_an_application_only_once() -> None:
    """`init_app` again changes nothing."""
    app = make()
    wrapped = app.wsgi_app
    FluxGateFlask().init_app(app)
    assert app.wsgi_app is wrapped


def test_flask_login_is_not_asked_where_the_framework_is_switched_off() -> None:
    """`user_sources` without `framework`."""
    app = make(user_sources=["identify", "resolver"])

    @app.get("/items/<int:key>")
    def view(key: int) -> flask.Response:
        return flask.Response(ask() for _ in range(1))

    assert whos(app) == [(None, ROUTE)]
