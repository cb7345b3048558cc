"""Quart: the ASGI middleware as an extension."""

from __future__ import annotations

from typing import Any

from fluxgate_mw.asgi import FluxGateMiddleware
from fluxgate_mw.errors import MissingExtraError
from fluxgate_mw.types import HasRecorder

try:
    from quart import Quart
except ModuleNotFoundError as error:
    raise MissingExtraError("quart", needed_for=__name__) from error

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
