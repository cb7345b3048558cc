"""Quart: the ASGI middleware as an extension.

It keeps a request's route, and Quart-Auth's user, for bodies that are streamed after it.
"""

from __future__ import annotations

from typing import Any

from quart import Quart, Response, current_app, request, websocket

from fluxgate_mw.asgi import FluxGateMiddleware
from fluxgate_mw.frameworks import QUART, keep_quart
from fluxgate_mw.recorder import guarded
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.types import HasRecorder

__all__ = ["FluxGateQuart"]


class FluxGateQuart:
    """Attribute the calls of a Quart application: `FluxGateQuart(app)`, or `init_app(app)` in an app factory.

    Args:
        app: The application; None to give it later.
        fluxgate: Where its events go; None = the process's default at the time of the call.
        options: As of `FluxGateMiddleware`.
    """

    def __init__(self, app: Quart | None = None, fluxgate: HasRecorder | None = None, **options: Any) -> None:
        self._fluxgate = fluxgate
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Put the middleware around the application; a second time changes nothing."""
        if "fluxgate" in app.extensions:
            return
        app.extensions["fluxgate"] = self
        app.asgi_app = FluxGateMiddleware(app.asgi_app, self._fluxgate, **self._options)  # type: ignore[assignment, method-assign, arg-type]
        app.before_request_funcs[None].insert(0, _keep_request)
        app.before_websocket_funcs[None].insert(0, _keep_websocket)
        app.after_request_funcs[None].append(_keep_user)


async def _keep_request() -> None:
    _keep(request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001


async def _keep_websocket() -> None:
    _keep(websocket._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001


async def _keep_user(response: Response) -> Response:
    scope: Any = request.scope
    guarded("quart", keep_quart, scope)
    return response


def _keep(served: Any) -> None:
    scope = served.scope
    scope[QUART] = (current_app._get_current_object(), served)  # type: ignore[attr-defined]  # noqa: SLF001
    known = scope.get(CARRIER_KEY)
    if isinstance(known, RequestContext):
        known.links = (QUART,)
