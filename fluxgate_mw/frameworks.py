"""Read user, endpoint and route template off what each framework leaves on a `scope` or `environ`.

No framework is imported: one is recognised by its marks. Everything here is asked late, once routing ran, and may
raise; whoever asks guards. A raw path is never a template.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, Final

from fluxgate_mw.event import User
from fluxgate_mw.types import Carrier
from fluxgate_mw.users import signed_in

__all__ = [
    "DJANGO",
    "QUART",
    "TEMPLATE",
    "asgi_endpoint",
    "asgi_template",
    "django_knows",
    "framework_user",
    "keep_django",
    "keep_flask",
    "keep_quart",
    "serving",
    "signed_in_on_scope",
    "signed_in_on_state",
    "without_lifespan",
    "wsgi_endpoint",
    "wsgi_template",
]

DJANGO: Final = "fluxgate.django"
"""Where the Django middleware leaves its request on scope or environ."""
TEMPLATE: Final = "fluxgate.template"
"""Where an adapter leaves the route's template on scope or environ, if its framework does not."""
QUART: Final = "fluxgate.quart"
"""Where a Quart application leaves itself and its request on the scope."""
QUART_USER: Final = "fluxgate.quart_user"
DJANGO_USER: Final = "fluxgate.django_user"
FLASK_REQUEST: Final = "fluxgate.flask_request"
FLASK_APP: Final = "fluxgate.flask_app"
FLASK_USER: Final = "fluxgate.flask_user"
_DISPATCHING: Final = ("dispatch", "dispatch_request", "__call__")
"""What serves every method: of Django's and Starlette's classes of views, of Flask's and Quart's, of any object."""


def framework_user(carrier: Carrier) -> User | None:
    """Return who Django, Flask-Login or Quart-Auth knows to be signed in; None where that cannot be asked now."""
    if (request := carrier.get(DJANGO)) is not None:
        return _django_user(request) or carrier.get(DJANGO_USER)
    if FLASK_USER in carrier:
        kept: User = carrier[FLASK_USER]
        return kept
    if "werkzeug.request" in carrier:
        return _flask_user()
    return _quart_user(carrier) if "quart_auth" in sys.modules else None


def asgi_endpoint(scope: Carrier) -> object:
    """Return the function or class that serves the request, where routing has found it."""
    if DJANGO in scope:
        return _django_view(scope[DJANGO])
    if (found := _quart(scope)) is not None:
        app, request = found
        return app.view_functions.get(request.endpoint)
    handler = getattr(scope.get("route_handler"), "fn", None)
    return scope.get("endpoint") or getattr(handler, "func", handler)  # Litestar wraps what it runs in a thread


def asgi_template(scope: Carrier) -> str | None:
    """Return the route template of an ASGI request: Starlette, FastAPI, Litestar, Quart, Django, Falcon."""
    if template := scope.get("path_template") or scope.get(TEMPLATE):
        return str(template)
    if (request := scope.get(DJANGO)) is not None:
        return _django_template(request)
    if (found := _quart(scope)) is not None:
        return getattr(found[1].url_rule, "rule", None)
    return _starlette_template(scope)


def serving(endpoint: Any, method: str) -> Sequence[object]:
    """Return what serves a request, the innermost first: of a class of views, its method for the request's, and itself.

    Args:
        endpoint: As found by `asgi_endpoint` or `wsgi_endpoint`.
        method: Of the request, one of a few.
    """
    if endpoint is None:
        return ()
    if type(endpoint) is FunctionType and not hasattr(endpoint, "view_class"):
        return (endpoint,)
    while isinstance(endpoint, partial):
        endpoint = endpoint.func
    view = getattr(endpoint, "view_class", endpoint)
    handler = sys.intern(method.lower())  # the interpreter's cache of attributes keeps each name that is new
    names = (handler, *(("get",) if method == "HEAD" else ()), *_DISPATCHING)
    return [*(getattr(view, name, None) for name in names), view, endpoint, getattr(endpoint, "__self__", None)]


def wsgi_endpoint(environ: Carrier) -> object:
    """Return the function that serves a Flask, Bottle or Django request, where routing has found it."""
    if DJANGO in environ:
        return _django_view(environ[DJANGO])
    if "bottle.route" in environ:
        return getattr(environ["bottle.route"], "callback", None)
    request = environ.get(FLASK_REQUEST) or environ.get("werkzeug.request")
    app = environ.get(FLASK_APP) or _flask_app()
    return None if request is None or app is None else app.view_functions.get(request.endpoint)


def wsgi_template(environ: Carrier) -> str | None:
    """Return the route template of a WSGI request: of Werkzeug (Flask), Bottle, Pyramid, Falcon, Django."""
    if (request := environ.get(DJANGO)) is not None:
        template = _django_template(request)
    else:
        request = environ.get(FLASK_REQUEST) or environ.get("werkzeug.request")
        rule = getattr(request, "url_rule", None) or environ.get("bottle.route")
        template = getattr(rule, "rule", None) or environ.get(TEMPLATE) or _pyramid_template(environ)
    return None if template is None else f"{environ.get('SCRIPT_NAME', '')}{template}"


def keep_flask(environ: Carrier, *, streamed: bool) -> None:
    """Keep in the `environ` what Flask will have put away when a streamed body runs.

    Flask-Login loads a user when somebody asks. For a streamed body it is asked now, while it can be; else only a user
    who is loaded already is kept, so that a response that is whole costs no query of ours.
    """
    app = _flask_app()
    if app is None:
        return
    environ[FLASK_REQUEST], environ[FLASK_APP] = environ["werkzeug.request"], app
    if hasattr(app, "login_manager"):
        user = _flask_user() if streamed else signed_in(sys.modules["flask"].g.get("_login_user"))
        if user is not None:
            environ[FLASK_USER] = user


def _flask_app() -> Any:
    flask = sys.modules.get("flask")
    return flask.current_app._get_current_object() if flask is not None and flask.has_app_context() else None  # noqa: SLF001


def _flask_user() -> User | None:
    login = sys.modules.get("flask_login")
    if login is None or not hasattr(_flask_app(), "login_manager"):
        return None
    return signed_in(login.current_user._get_current_object())  # noqa: SLF001


def _quart(scope: Carrier) -> tuple[Any, Any] | None:
    """Return Quart's application and request: as they were left there, else where its context is alive."""
    kept: tuple[Any, Any] | None = scope.get(QUART)
    return kept or _quart_now(scope)


def _quart_now(scope: Carrier) -> tuple[Any, Any] | None:
    quart = sys.modules.get("quart")
    if quart is None or not (quart.has_request_context() or quart.has_websocket_context()):
        return None
    served = (quart.request if quart.has_request_context() else quart.websocket)._get_current_object()  # noqa: SLF001
    return (quart.current_app, served) if served.scope is scope else None


def keep_quart(scope: Carrier) -> None:
    """Keep on the `scope` whom Quart-Auth has loaded, who cannot be asked for when a streamed body runs."""
    user = _quart_user(scope) if "quart_auth" in sys.modules else None
    if user is not None:
        scope[QUART_USER] = user


def _quart_user(scope: Carrier) -> User | None:
    if (found := _quart_now(scope)) is not None and "QUART_AUTH" in found[0].extensions:
        return signed_in(sys.modules["quart_auth"].current_user._get_current_object())  # noqa: SLF001
    kept: User | None = scope.get(QUART_USER)
    return kept


def _pyramid_template(environ: Carrier) -> str | None:
    threadlocal = sys.modules.get("pyramid.threadlocal")
    request = None if threadlocal is None else threadlocal.get_current_request()
    route = getattr(request, "matched_route", None) if request is not None and request.environ is environ else None
    return None if route is None else f"/{route.pattern.removeprefix('/')}"


def _django_view(request: Any) -> object:
    return getattr(getattr(request, "resolver_match", None), "func", None)


def _django_user(request: Any) -> User | None:
    """Return the request's user; where an event loop runs, only one that is loaded already.

    `request.user` of a session may query the database, which Django forbids on the loop.
    """
    assigned = vars(request).get("user")
    if assigned is not None and _loaded(assigned):
        return signed_in(assigned)
    cached = getattr(request, "_cached_user", None) or getattr(request, "_acached_user", None)
    if cached is None and not _on_loop():
        cached = assigned
    return signed_in(cached)


def _loaded(user: Any) -> bool:
    """Return whether `user` is no lazy object of Django's, or one that was read already."""
    functional = sys.modules["django.utils.functional"]
    return not isinstance(user, functional.LazyObject) or user._wrapped is not functional.empty  # noqa: SLF001


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def django_knows(carrier: Carrier) -> Any:
    """Return Django's own coroutine function that loads the request's user, or None where there is none to await."""
    return getattr(carrier.get(DJANGO), "auser", None)


def without_lifespan(app: Any) -> bool:
    """Return whether it is Django's ASGI application, which raises where a server tells of its start and shutdown."""
    return any(base.__module__ == "django.core.handlers.asgi" for base in type(app).__mro__)


def keep_django(carrier: Carrier, loaded: Any) -> None:
    """Keep in the scope whom an application's own `auser` gave: only Django's leaves the user on the request too."""
    if (user := signed_in(loaded)) is not None and _django_user(carrier[DJANGO]) is None:
        carrier[DJANGO_USER] = user


def _django_template(request: Any) -> str | None:
    route = getattr(getattr(request, "resolver_match", None), "route", None)
    return None if route is None else f"/{route.removeprefix('^')}"


def _starlette_template(scope: Carrier) -> str | None:
    route = scope.get("route")
    if route is None:
        return _searched(scope) if "endpoint" in scope else None
    if _is_mount(route):
        return None if getattr(route, "routes", None) else _mount_prefix(scope)
    effective = (scope.get("fastapi") or {}).get("effective_route_context")
    if effective is not None and getattr(effective, "original_route", None) is not route:
        effective = None
    path = getattr(effective, "path", None) or getattr(route, "path", None)
    prefix = _mount_prefix(scope)
    return None if path is None or prefix is None else f"{prefix}{path}"


def _is_mount(route: Any) -> bool:
    return (
        hasattr(route, "app")
        and "path" in getattr(getattr(route, "path_regex", None), "groupindex", ())
        and (not hasattr(route, "endpoint"))
    )


def _routes_of(owner: Any) -> Iterator[Any]:
    """Yield the routes of a router or mount, those of FastAPI's included routers with their prefixes."""
    for route in getattr(owner, "routes", None) or ():
        if hasattr(route, "effective_route_contexts"):
            for context in route.effective_route_contexts():
                yield context.starlette_route or context.original_route
        else:
            yield route


def _mount_prefix(scope: Carrier) -> str | None:
    """Return the templates of the mounts that led to the route; None where they cannot be told.

    `root_path` holds the concrete values of a mount's parameters, so the mounts are matched again for their templates.
    """
    root_path = scope.get("root_path", "")
    rest = root_path.removeprefix(scope.get("app_root_path", root_path))
    owner: Any = scope.get("router")
    prefix = ""
    while rest:
        for mount in filter(_is_mount, _routes_of(owner)):
            if (match := mount.path_regex.match(f"{rest}/")) is not None:
                break
        else:
            return None
        prefix += mount.path
        rest = f"/{match['path']}".rstrip("/")
        owner = mount
    return prefix


def _searched(scope: Carrier) -> str | None:
    """Return the template of the endpoint's route where the framework does not say which route it took.

    Starlette before 1.7 leaves only the endpoint on the scope.
    """
    path = scope["path"].removeprefix(scope.get("app_root_path", scope.get("root_path", "")))
    return _search(_routes_of(scope.get("router")), path, scope["endpoint"])


def _search(routes: Iterable[Any], path: str, endpoint: object) -> str | None:
    for route in routes:
        match = route.path_regex.match(path) if hasattr(route, "path_regex") else None
        if match is None:
            continue
        if not _is_mount(route):
            if getattr(route, "endpoint", None) is endpoint:
                return str(route.path)
            continue
        prefix = route.path
        if not getattr(route, "routes", None):
            return prefix if route.app is endpoint else None
        found = _search(_routes_of(route), f"/{match['path']}", endpoint)
        if found is not None:
            return f"{prefix}{found}"
    return None


def signed_in_on_scope(scope: Mapping[str, Any]) -> User | None:
    """Return the user that an authentication middleware left on the scope."""
    return signed_in(scope.get("user"))


def signed_in_on_state(scope: Mapping[str, Any]) -> User | None:
    """Return the user that the application put on `request.state`."""
    state = scope.get("state")
    return signed_in(state.get("user") if isinstance(state, Mapping) else getattr(state, "user", None))
