"""The middlewares that ours is measured beside, each as its documentation says, sending nothing anywhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from environments import Peer

__all__ = ["PEERS", "Middlewares"]

Middlewares = dict[str, Callable[[Any], Any]]
"""What wraps an application, by the interface that it serves: `asgi`, `wsgi`."""


def _asgi_correlation_id() -> Middlewares:
    return {"asgi": import_module("asgi_correlation_id").CorrelationIdMiddleware}


def _starlette_context() -> Middlewares:
    return {"asgi": import_module("starlette_context.middleware").RawContextMiddleware}


def _base_http_middleware() -> Middlewares:
    base = import_module("starlette.middleware.base").BaseHTTPMiddleware

    async def dispatch(request: Any, call_next: Callable[[Any], Any]) -> Any:
        return await call_next(request)

    return {"asgi": lambda app: base(app, dispatch=dispatch)}


def _sentry() -> Middlewares:
    sentry_sdk = import_module("sentry_sdk")
    transport = import_module("sentry_sdk.transport").Transport
    discarding = type("Discarding", (transport,), {"capture_envelope": lambda _self, _envelope: None})
    sentry_sdk.init(dsn="http://key@127.0.0.1/1", traces_sample_rate=0, transport=discarding)
    return {
        "asgi": import_module("sentry_sdk.integrations.asgi").SentryAsgiMiddleware,
        "wsgi": import_module("sentry_sdk.integrations.wsgi").SentryWsgiMiddleware,
    }


def _opentelemetry() -> Middlewares:
    provider = import_module("opentelemetry.sdk.trace").TracerProvider()
    asgi = import_module("opentelemetry.instrumentation.asgi").OpenTelemetryMiddleware
    wsgi = import_module("opentelemetry.instrumentation.wsgi").OpenTelemetryMiddleware
    return {
        "asgi": lambda app: asgi(app, tracer_provider=provider),
        "wsgi": lambda app: wsgi(app, tracer_provider=provider),
    }


PEERS = {
    "asgi-correlation-id": Peer(("asgi-correlation-id",), _asgi_correlation_id),
    "starlette-context": Peer(("starlette-context",), _starlette_context),
    "base-http-middleware": Peer((), _base_http_middleware),
    "sentry": Peer(("sentry-sdk",), _sentry),
    "opentelemetry": Peer(
        ("opentelemetry-instrumentation-asgi", "opentelemetry-instrumentation-wsgi", "opentelemetry-sdk"),
        _opentelemetry,
    ),
}
