"""The ASGI middleware: a fresh request context for every request, and nothing else in its way."""

from __future__ import annotations

from fluxgate_mw.ambient import Ambient, RequestContext, enter, get, leave
from fluxgate_mw.resolvers import ASGISources
from fluxgate_mw.timing import server_timing
from fluxgate_mw.types import ASGIApp, FeatureResolver, HasRecorder, Message, Receive, Scope, Send, UserResolver

__all__ = ["FluxGateMiddleware"]

SCOPE_KEY = "fluxgate"


class FluxGateMiddleware:
    """Attribute every call that the application's handlers make to the signed-in user and the matched route.

    Serves FastAPI, Starlette, Litestar, Quart and any other ASGI application, for `http` and `websocket` scopes.
    Added more than once, the innermost says which `scope` is read: add it again below a middleware that copies it.

    Args:
        app: The application.
        fluxgate: Where the request's events go; None = the process's default at the time of the call.
        resolve_user: Asked for the user before the framework is; None = the framework alone.
        resolve_feature: Beats the route template, loses to `feature()` and `context()`.
        cost_header: Send `Server-Timing: llm;desc="3 calls $0.0042";dur=940` with the response, for the calls that
            ended before it began.

    Guarantees: changes neither request nor response (but for `cost_header`) and raises nothing of its own.

    Example:
        >>> async def app(scope, receive, send): ...
        >>> app = FluxGateMiddleware(app)
    """

    def __init__(
        self,
        app: ASGIApp,
        fluxgate: HasRecorder | None = None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
        cost_header: bool = False,  # noqa: FBT001, FBT002  (the contract's signature)
    ) -> None:
        self.app = app
        self._sources = ASGISources(None if fluxgate is None else fluxgate.recorder, resolve_user, resolve_feature)
        self._cost_header = cost_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection inside a request context of its own."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        covered = get()
        known = scope.get(SCOPE_KEY)
        if isinstance(known, RequestContext) and known is covered.request and not known.frozen:
            known.carrier = scope
            await self.app(scope, receive, send)
            return
        request = RequestContext(scope, self._sources)
        scope[SCOPE_KEY] = request
        if self._cost_header and scope["type"] == "http":
            send = _with_cost(request, send)
        ambient = Ambient(request=request)
        enter(ambient)
        try:
            await self.app(scope, receive, send)
        finally:
            leave(ambient, covered)
            scope.pop(SCOPE_KEY, None)
            request.freeze(dict(request.carrier))


def _with_cost(request: RequestContext, send: Send) -> Send:
    async def send_wrapper(message: Message) -> None:
        if message["type"] == "http.response.start" and request.calls:
            headers = [*message.get("headers", ()), (b"server-timing", server_timing(request).encode())]
            message = {**message, "headers": headers}
        await send(message)

    return send_wrapper
