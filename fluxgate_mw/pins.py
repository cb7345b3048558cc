"""Steps put into a Starlette, FastAPI or Quart application, so that a request stays known all the way through.

A middleware may hand a copy of the scope on: routing then writes route and user where the request context does not
look. One step inside the router points the context at the scope that arrived there. And the application's handler of
`Exception` runs outside of every added middleware: one step around it brings the request's frame back.

Quart has put its request away when a body is streamed: what runs before a request leaves it on the scope.

All are found by feature, put there once, and change nothing for requests that are not known.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from fluxgate_mw.ambient import Ambient, enter, get
from fluxgate_mw.frameworks import QUART, keep_quart
from fluxgate_mw.recorder import guarded
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.types import ASGIApp, Receive, Scope, Send

__all__ = ["pin"]

_DEEPEST: Final = 100
_PINNED: Final = "__fluxgate_pinned__"


def pin(app: ASGIApp, scope: Scope) -> None:
    """Put the steps into the application that `app` leads to, and into those mounted in it. Idempotent.

    Args:
        app: What is inside the middleware.
        scope: A connection's; it names the application that the middleware was added to.
    """
    for part in _chain(app):
        _pin_application(part)
    if (application := scope.get("app")) is not None:
        _pin_application(application)


def _chain(app: Any) -> Iterator[Any]:
    """Yield `app` and what each middleware says it wraps."""
    for _ in range(_DEEPEST):
        yield app
        app = getattr(app, "app", None)
        if app is None:
            return


def _pin_application(part: Any) -> None:
    owner = getattr(part, "__self__", part)
    if "quart" in sys.modules and isinstance(owner, sys.modules["quart"].Quart):
        _pin_quart(owner)
    outermost = getattr(part, "middleware_stack", None)
    if hasattr(outermost, "error_response"):
        _pin_handler(outermost)
    router = getattr(part, "router", part)
    if hasattr(router, "routes") and callable(getattr(router, "middleware_stack", None)):
        _pin_router(router, 0)


def _pin_router(router: Any, depth: int) -> None:
    if not isinstance(router.middleware_stack, _Pinned):
        router.middleware_stack = _Pinned(router.middleware_stack)
    if depth == _DEEPEST:
        return
    for route in router.routes:
        mounted = getattr(getattr(route, "app", None), "router", None)
        if hasattr(mounted, "routes") and callable(getattr(mounted, "middleware_stack", None)):
            _pin_router(mounted, depth + 1)


class _Pinned:
    """A router's own stack, with the request context pointed at the scope that arrives at it."""

    __slots__ = ("app",)

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        request = scope.get(CARRIER_KEY)
        if isinstance(request, RequestContext) and request.carrier is not scope and not request.frozen:
            request.carrier = scope
        return self.app(scope, receive, send)


def _pin_quart(app: Any) -> None:
    if _keep_request not in app.before_request_funcs[None]:
        app.before_request_funcs[None].insert(0, _keep_request)
        app.before_websocket_funcs[None].insert(0, _keep_websocket)
        app.after_request_funcs[None].append(_keep_user)


async def _keep_request() -> None:
    guarded("quart", _keep, sys.modules["quart"].request)


async def _keep_websocket() -> None:
    guarded("quart", _keep, sys.modules["quart"].websocket)


async def _keep_user(response: Any) -> Any:
    guarded("quart", _keep_signed_in)
    return response


def _keep_signed_in() -> None:
    keep_quart(sys.modules["quart"].request.scope)


def _keep(proxy: Any) -> None:
    served, app = proxy._get_current_object(), sys.modules["quart"].current_app._get_current_object()  # noqa: SLF001
    served.scope[QUART] = (app, served)
    if isinstance(known := served.scope.get(CARRIER_KEY), RequestContext):
        known.links = (QUART,)


def _pin_handler(errors: Any) -> None:
    handler = getattr(errors, "handler", None)
    if handler is not None and not hasattr(handler, _PINNED):
        errors.handler = _around(handler)


def _around(handler: Callable[[Any, Exception], Any]) -> Callable[[Any, Exception], Any]:
    """Return the handler inside the frame of the request that it answers."""
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004

        @functools.wraps(handler)
        async def awaited(request: Any, error: Exception) -> Any:
            with _Again(request.scope):
                return await handler(request, error)

        wrapped: Callable[[Any, Exception], Any] = awaited
    else:

        @functools.wraps(handler)
        def called(request: Any, error: Exception) -> Any:
            with _Again(request.scope):
                return handler(request, error)

        wrapped = called
    setattr(wrapped, _PINNED, True)
    return wrapped


class _Again:
    """The frame of a request that has left its middleware already."""

    __slots__ = ("_covered", "_request")

    def __init__(self, scope: Scope) -> None:
        request = scope.get(CARRIER_KEY)
        self._request = request if isinstance(request, RequestContext) and request.frozen else None

    def __enter__(self) -> None:
        self._covered = get()
        if self._request is not None and self._covered.request is not self._request:
            enter(Ambient(request=self._request))

    def __exit__(self, *_: object) -> None:
        if self._request is not None and get().request is self._request:
            enter(self._covered)
