"""Falcon: a middleware component that leaves the route's template where the ASGI and WSGI middlewares read it.

Falcon keeps it to itself: `falcon.App(middleware=[FluxGateFalcon()])`, and the application inside
`FluxGateWSGIMiddleware`; or `falcon.asgi.App(...)` inside `FluxGateMiddleware`. Who is signed in, `identify()` says.
"""

from __future__ import annotations

from typing import Any

from fluxgate_mw.frameworks import TEMPLATE

__all__ = ["FluxGateFalcon"]


class FluxGateFalcon:
    """Name the calls of a Falcon application by its URI templates. One component for WSGI and ASGI."""

    def process_resource(self, req: Any, resp: object, resource: object, params: object) -> None:  # noqa: ARG002
        """Leave the template on the environ."""
        req.env[TEMPLATE] = req.uri_template

    async def process_resource_async(self, req: Any, resp: object, resource: object, params: object) -> None:  # noqa: ARG002
        """Leave the template on the scope."""
        req.scope[TEMPLATE] = req.uri_template
