"""`/healthz`, `/readyz` and `/metrics`: what orchestrators, load balancers and Prometheus ask, as an ASGI app.

Who may ask: `/healthz` says only that the process lives and is open to all. The other two are counts and reasons
without any name of host, key or user. Without a token they are open like the pages beside them, to requests whose
Host header is a loopback name. With a token they are open on loopback (a peer of 127.0.0.0/8 or ::1 and no trace of a
proxy), and to everybody else who sends it as a bearer, which Prometheus and Kubernetes probes can.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fluxgate_mw.health import MAX_LAG_S, Health
from fluxgate_mw.metrics import CONTENT_TYPE, render
from fluxgate_mw.types import ASGIApp, Receive, Scope, Send

__all__ = ["Probes"]

_PROXY_HEADERS: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Probes:
    """Answer the three paths, and pass everything else on.

    `/readyz` answers 200, or 503 with `reasons`; `?max_lag_s=60` asks for another bound of the oldest event's age than
    five minutes. `/metrics` is Prometheus' text format 0.0.4.

    Args:
        app: Gets every other request; None answers them with 404.
        health: Where the answers come from.
        token: Secret asked of peers that are not on loopback; None = no token.

    Concurrency: event loop only.
    """

    def __init__(self, app: ASGIApp | None, health: Health, *, token: str | None = None) -> None:
        self.app = app
        self._health = health
        self._token = token
        self._answers = {"/healthz": self._alive, "/readyz": self._ready, "/metrics": self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        answer = self._answers.get(_path_below_mount(scope)) if scope["type"] == "http" else None
        if answer is not None:
            request = Request(scope)
            response = await answer(request) if request.method in ("GET", "HEAD") else _refused(405, "read only")
            response.headers["Cache-Control"] = "no-store"
            await response(scope, receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _refused(404, "there are /healthz, /readyz and /metrics")(scope, receive, send)

    async def _alive(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        try:
            max_lag_s = float(request.query_params.get("max_lag_s", MAX_LAG_S))
        except ValueError:
            max_lag_s = math.nan
        if not max_lag_s >= 0:
            return _refused(400, "max_lag_s: expected a number of seconds")
        reasons = (await self._health.snapshot()).reasons(max_lag_s)
        status = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        return JSONResponse(status, status_code=503 if reasons else 200)

    async def _metrics(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        return PlainTextResponse(render(await self._health.snapshot()), headers={"Content-Type": CONTENT_TYPE})

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            host = request.url.hostname or ""
            return None if host == "localhost" or _is_loopback(host) else _refused(400, "this host is not served")
        if _from_loopback(request) or self._has_token(request):
            return None
        return _refused(401, "the token is asked for", {"WWW-Authenticate": "Bearer"})

    def _has_token(self, request: Request) -> bool:
        scheme, _, offered = request.headers.get("authorization", "").partition(" ")
        token = (self._token or "").encode("utf-8", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(offered.strip().encode("utf-8", "replace"), token)


def _path_below_mount(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _from_loopback(request: Request) -> bool:
    proxied = any(name in request.headers for name in _PROXY_HEADERS)
    return request.client is not None and _is_loopback(request.client.host) and not proxied


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=headers)
