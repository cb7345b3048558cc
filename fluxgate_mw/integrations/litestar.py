"""Litestar: the ASGI middleware as a plugin, put outside of every other middleware of the application.

Event listeners (`app.emit`) run in a task that began with the application, outside of every request: their calls have
no user and no feature unless the request hands on what is known of it. Emit `asked=current()`, and in the listener put
`with context(user=asked.user, feature=asked.feature):` around the call.
"""

from __future__ import annotations

from typing import Any

from litestar.config.app import AppConfig
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPluginProtocol

from fluxgate_mw.asgi import FluxGateMiddleware
from fluxgate_mw.types import HasRecorder

__all__ = ["FluxGatePlugin"]


class FluxGatePlugin(InitPluginProtocol):
    """Attribute the calls of a Litestar application: `Litestar(..., plugins=[FluxGatePlugin()])`.

    Args:
        fluxgate: Where its events go; None = the process's default at the time of the call.
        options: As of `FluxGateMiddleware`.
    """

    def __init__(self, fluxgate: HasRecorder | None = None, **options: Any) -> None:
        self._options = {"fluxgate": fluxgate, **options}

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware to the application that is being made."""
        middleware: Any = FluxGateMiddleware
        app_config.middleware.insert(0, DefineMiddleware(middleware, **self._options))
        return app_config
