"""Flask: the WSGI middleware as an extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxgate_mw.wsgi import FluxGateWSGIMiddleware

if TYPE_CHECKING:
    from flask import Flask

    from fluxgate_mw.types import FeatureResolver, HasRecorder, UserResolver

__all__ = ["FluxGateFlask"]


class FluxGateFlask:
    """Attribute the calls of a Flask application: `FluxGateFlask(app)`, or `init_app(app)` in an app factory.

    Args:
        app: The application; None to give it later.
        fluxgate: Where its events go; None = the process's default at the time of the call.
        resolve_user: As in `FluxGateWSGIMiddleware`.
        resolve_feature: As in `FluxGateWSGIMiddleware`.

    Example:
        >>> import flask
        >>> app = flask.Flask("shop")
        >>> extension = FluxGateFlask(app)
    """

    def __init__(
        self,
        app: Flask | None = None,
        fluxgate: HasRecorder | None = None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
    ) -> None:
        self._fluxgate = fluxgate
        self._resolve_user = resolve_user
        self._resolve_feature = resolve_feature
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the middleware around the application; a second time changes nothing."""
        if "fluxgate" in app.extensions:
            return
        app.extensions["fluxgate"] = self
        app.wsgi_app = FluxGateWSGIMiddleware(  # type: ignore[method-assign]
            app.wsgi_app,
            fluxgate=self._fluxgate,
            resolve_user=self._resolve_user,
            resolve_feature=self._resolve_feature,
        )
