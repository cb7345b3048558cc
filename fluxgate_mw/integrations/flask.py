"""Flask: the WSGI middleware as an extension.

Flask-Login's user is asked for when a call is made, or a streamed body begins. A thread that outlives its response
knows the user only if the request had loaded one by then: `current_user` was read, or a call was made, in the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxgate_mw.wsgi import FluxGateWSGIMiddleware

if TYPE_CHECKING:
    from flask import Flask

    from fluxgate_mw.types import HasRecorder

__all__ = ["FluxGateFlask"]


class FluxGateFlask:
    """Attribute the calls of a Flask application: `FluxGateFlask(app)`, or `init_app(app)` in an app factory.

    Args:
        app: The application; None to give it later.
        fluxgate: Where its events go; None = the process's default at the time of the call.
        options: As of `FluxGateWSGIMiddleware`.

    Example:
        >>> import flask
        >>> app = flask.Flask("shop")
        >>> extension = FluxGateFlask(app)
    """

    def __init__(
        self,
        app: Flask | None = None,
        fluxgate: HasRecorder | None = None,
        **options: Any,
    ) -> None:
        self._fluxgate = fluxgate
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the middleware around the application; a second time changes nothing."""
        if "fluxgate" in app.extensions:
            return
        app.extensions["fluxgate"] = self
        app.wsgi_app = FluxGateWSGIMiddleware(app.wsgi_app, self._fluxgate, **self._options)  # type: ignore[method-assign]
