"""Read user, endpoint and route template off a request, without importing frameworks.

A framework is recognised by what it leaves on the ASGI `scope` or the WSGI `environ`. A route is known once routing
ran, so everything here is asked late, and "not known" is never kept. A raw path is never a route.
"""

from __future__ import annotations

import inspect
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import Decoration, as_user
from fluxgate_mw.event import User
from fluxgate_mw.frames import DECORATION
from fluxgate_mw.recorder import Recorder, guarded
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.types import Carrier, FeatureResolver, UserResolver

__all__ = ["ASGISources", "WSGISources"]

SLOW_S: Final = 0.005
"""A resolver that takes longer is said to do so, once a minute: it runs on the event loop."""


class _Sources(ABC):
    """What the two kinds of request share: the application's own resolvers, asked first."""

    def __init__(
        self,
        recorder: Recorder | None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
    ) -> None:
        self.recorder = recorder
        self._resolve_user = resolve_user
        self._resolve_feature = resolve_feature

    def user(self, carrier: Carrier) -> tuple[User | None, UserSource]:
        """Return the first user that a source knows, and the source."""
        if self._resolve_user is not None:
            user = as_user(_asked("resolve_user", self._resolve_user, carrier))
            if user is not None:
                return user, "resolver"
        return guarded("resolvers", self._framework_user, carrier) or (None, "none")

    def feature(self, carrier: Carrier) -> str | None:
        """Return what the application's resolver calls the feature."""
        if self._resolve_feature is None:
            return None
        name = _asked("resolve_feature", self._resolve_feature, carrier)
        if isinstance(name, str) and name:
            return name
        if name is not None:
            diagnostics.note(
                "resolver_value", f"resolve_feature returned a {type(name).__name__}; expected str or None"
            )
        return None

    def decoration(self, carrier: Carrier) -> Decoration | None:
        """Return what `@feature` left on the endpoint that serves the request."""
        endpoint = guarded("resolvers", self._endpoint, carrier)
        found: Decoration | None = getattr(endpoint, DECORATION, None)
        return found or getattr(getattr(endpoint, "view_class", None), DECORATION, None)

    def route(self, carrier: Carrier) -> str | None:
        """Return method and route template."""
        template = guarded("resolvers", self._template, carrier)
        if not template:
            return None
        return f"{self._method(carrier)} {template}"

    @abstractmethod
    def _framework_user(self, carrier: Carrier) -> tuple[User | None, UserSource]: ...

    @abstractmethod
    def _endpoint(self, carrier: Carrier) -> object: ...

    @abstractmethod
    def _template(self, carrier: Carrier) -> str | None: ...

    @abstractmethod
    def _method(self, carrier: Carrier) -> str: ...


class ASGISources(_Sources):
    """Read a `scope`: Starlette, FastAPI, Litestar, and what else leaves `user`, `route` or `endpoint` there."""

    def _framework_user(self, scope: Carrier) -> tuple[User | None, UserSource]:
        if (user := _signed_in(scope.get("user"))) is not None:
            return user, "scope"
        state = scope.get("state")
        stated = state.get("user") if isinstance(state, Mapping) else getattr(state, "user", None)
        if (user := _signed_in(stated)) is not None:
            return user, "state"
        return None, "none"

    def _endpoint(self, scope: Carrier) -> object:
        return scope.get("endpoint") or getattr(scope.get("route_handler"), "fn", None)

    def _template(self, scope: Carrier) -> str | None:
        if template := scope.get("path_template"):
            return str(template)
        route = scope.get("route")
        if route is None:
            return None
        if getattr(route, "app", None) is scope.get("endpoint") and hasattr(scope["endpoint"], "routes"):
            return None
        effective = (scope.get("fastapi") or {}).get("effective_route_context")
        path = getattr(effective, "path_format", None) or getattr(route, "path", None)
        prefix = _mount_prefix(scope)
        if path is None or prefix is None:
            return None
        return prefix if path == prefix else f"{prefix}{path}"

    def _method(self, scope: Carrier) -> str:
        return str(scope.get("method") or scope["type"].upper())


class WSGISources(_Sources):
    """Read an `environ`: Flask and anything built on Werkzeug, Bottle."""

    def keep(self, environ: Carrier) -> None:
        """Keep in the `environ` what Flask will have put away when a streamed body runs."""
        request = environ.get("werkzeug.request")
        app = None if request is None else _flask_app()
        if app is not None:
            environ[_REQUEST], environ[_APP] = request, app
            environ[_USER] = sys.modules["flask"].g.get("_login_user")

    def at_end(self, environ: Carrier) -> Carrier:
        """Return what of an ended request a late call may still be asked: nothing that holds a socket or a body."""
        if self._resolve_user is not None or self._resolve_feature is not None:
            return {
                key: value for key, value in environ.items() if not key.startswith(("wsgi.", "werkzeug.", "gunicorn."))
            }
        return {key: environ[key] for key in _KEPT if key in environ}

    def _framework_user(self, environ: Carrier) -> tuple[User | None, UserSource]:
        user = _signed_in(environ.get(_USER)) or _flask_user()
        return (None, "none") if user is None else (user, "framework")

    def _endpoint(self, environ: Carrier) -> object:
        request = environ.get(_REQUEST) or environ.get("werkzeug.request")
        app = environ.get(_APP) or _flask_app()
        return None if request is None or app is None else app.view_functions.get(request.endpoint)

    def _template(self, environ: Carrier) -> str | None:
        request = environ.get(_REQUEST) or environ.get("werkzeug.request")
        rule = getattr(request, "url_rule", None) or environ.get("bottle.route")
        template = getattr(rule, "rule", None)
        return None if template is None else f"{environ.get('SCRIPT_NAME', '')}{template}"

    def _method(self, environ: Carrier) -> str:
        return str(environ["REQUEST_METHOD"])


_REQUEST, _APP, _USER = "fluxgate.request", "fluxgate.app", "fluxgate.user"
_KEPT: Final = ("REQUEST_METHOD", "SCRIPT_NAME", "REMOTE_USER", "bottle.route", _REQUEST, _APP, _USER)


def _flask_app() -> Any:
    """Return the Flask application that serves this very moment, or None; Flask is not imported for it."""
    flask = sys.modules.get("flask")
    return flask.current_app._get_current_object() if flask is not None and flask.has_app_context() else None  # noqa: SLF001


def _flask_user() -> User | None:
    """Return who Flask-Login knows to be signed in, where the serving application uses it."""
    login = sys.modules.get("flask_login")
    if login is None or not hasattr(_flask_app(), "login_manager"):
        return None
    return _signed_in(login.current_user._get_current_object())  # noqa: SLF001


def _asked(name: str, resolver: Callable[[Carrier], object], carrier: Carrier) -> object:
    """Return the resolver's answer; None where it raised or gave a coroutine, which is counted and said once."""
    started = time.perf_counter()
    try:
        answer = resolver(carrier)
    except Exception as error:  # noqa: BLE001  (the application's own code)
        diagnostics.note("resolver_raised", f"{name} raised {type(error).__name__}; the call goes on without it")
        return None
    if time.perf_counter() - started > SLOW_S:
        diagnostics.note("resolver_slow", f"{name} took over {SLOW_S * 1000:g} ms; it runs inside the request")
    if inspect.iscoroutine(answer):
        answer.close()
        diagnostics.note("resolver_coroutine", f"{name} must be a plain function, but it returned a coroutine")
        return None
    return answer


def _signed_in(value: Any) -> User | None:
    """Return the user in a framework's user object; None for nobody and for anonymous placeholders."""
    if value is None or getattr(value, "is_authenticated", True) is False:
        return None
    user = as_user(value)
    if user is not None or isinstance(value, str | Mapping):
        return user
    name = getattr(value, "username", None) or getattr(value, "display_name", None)
    return User(name, name=name) if isinstance(name, str) and name else None


def _mount_prefix(scope: Carrier) -> str | None:
    """Return the templates of the mounts that led to the route; None where they cannot be told.

    `root_path` holds the concrete values of a mount's parameters, so the mounts are matched again for their templates.
    """
    rest = scope.get("root_path", "").removeprefix(scope.get("app_root_path", scope.get("root_path", "")))
    routes: Iterable[Any] = getattr(scope.get("router"), "routes", ())
    prefix = ""
    while rest:
        for mount in routes:
            match = (
                mount.path_regex.match(f"{rest}/") if hasattr(mount, "app") and hasattr(mount, "path_regex") else None
            )
            if match is not None and "path" in match.groupdict():
                break
        else:
            return None
        prefix += mount.path
        rest = f"/{match['path']}".rstrip("/")
        routes = getattr(mount, "routes", None) or ()
    return prefix
