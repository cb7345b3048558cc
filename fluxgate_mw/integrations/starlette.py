"""Starlette, by the name that its users look for: the ASGI middleware itself."""

from fluxgate_mw.asgi import FluxGateMiddleware

__all__ = ["FluxGateMiddleware"]
