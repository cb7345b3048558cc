"""The ASGI middleware: a fresh request context for every request, and nothing else in its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fluxgate_mw.ambient import Ambient, end_request, enter, get
from fluxgate_mw.frameworks import without_lifespan
from fluxgate_mw.pins import pin
from fluxgate_mw.recorder import finished, guarded
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.resolvers import USER_SOURCES, ASGISources
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.timing import with_cost
from fluxgate_mw.trust import TrustedProxies
from fluxgate_mw.types import ASGIApp, FeatureResolver, HasRecorder, Message, Receive, Scope, Send, UserResolver

__all__ = ["FluxGateMiddleware"]

_SHUT_DOWN: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")


class FluxGateMiddleware:
    """Attribute every call that the application's handlers make to the signed-in user and the matched route.

    Serves FastAPI, Starlette, Litestar, Quart and any other ASGI application, for `http` and `websocket` scopes.
    Added more than once, the outermost counts and the innermost says which `scope` is read.

    Args:
        app: The application.
        fluxgate: Where the request's events go; None = the process's default at the time of the call.
        resolve_user: Asked for the user before the framework is; None = the framework alone.
        resolve_feature: Beats the route template, loses to `feature()` and `context()`.
        cost_header: Tell the client what its calls cost: `Server-Timing: llm;desc="3 calls $0.0042";dur=940` for the
            calls that ended before the response began, and a last comment line on server-sent events.
        user_sources: Which of `resolvers.USER_SOURCES` count.
        trusted: What proxies in front may say; None = nothing.

    Guarantees: changes neither request nor response (but for `cost_header`) and raises nothing of its own. Where the
    server tells the application of its shutdown, what is queued is delivered before that is complete; Django's
    application, which wants to hear of neither start nor shutdown, is not told. Under
    Starlette and FastAPI, one step inside the router and one around the handler of `Exception` keep the request known
    where a middleware copies the scope and where Starlette answers outside of its middleware.

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
        *,
        user_sources: Sequence[UserSource] = USER_SOURCES,
        trusted: TrustedProxies | None = None,
    ) -> None:
        self.app = app
        self._sources = ASGISources(
            None if fluxgate is None else fluxgate.recorder, resolve_user, resolve_feature, user_sources, trusted
        )
        self._cost_header = cost_header
        self._pinned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection inside a request context of its own."""
        kind = scope["type"]
        if not self._pinned:
            self._pinned = True
            guarded("asgi", pin, self.app, scope)
        if kind != "http" and kind != "websocket":  # noqa: PLR1714  (half the time of a tuple)
            await self._beside_requests(scope, receive, send)
            return
        covered = get()
        if CARRIER_KEY in scope and _again(scope, covered):
            await self.app(scope, receive, send)
            return
        request = scope[CARRIER_KEY] = RequestContext(scope, self._sources)
        if self._cost_header and kind == "http":
            send = with_cost(request, send)
        ambient = Ambient(request=request)
        enter(ambient)
        try:
            await self.app(scope, receive, send)
        except Exception:
            request.settle()  # kept on the scope for the application's handler of `Exception`, which is further out
            raise
        finally:
            if get().request is request:
                enter(covered)
            if request.carrier is not None and request.carrier is not scope:
                scope.pop(CARRIER_KEY, None)
            end_request(request, ambient)

    async def _beside_requests(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        app = _lifespan if without_lifespan(self.app) else self.app
        await app(scope, receive, self._finishing(send))

    def _finishing(self, send: Send) -> Send:
        """Return the `send` of a lifespan at whose end nothing is left to deliver: a server may end by a signal then.

        Source: `Server.capture_signals` of uvicorn, which raises what it caught again once it has shut down.
        """

        async def sending(message: Message) -> None:
            if message.get("type") in _SHUT_DOWN:
                await finished(self._sources.recorder)
            await send(message)

        return sending


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  (an ASGI application)
    """Be told of start and shutdown in place of an application that refuses to be."""
    while (kind := (await receive())["type"]) != "lifespan.shutdown":
        await send({"type": f"{kind}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _again(scope: Scope, covered: Ambient) -> bool:
    """Return whether this very request came through already; then `scope` is the one that is read from now on."""
    known = scope[CARRIER_KEY]
    if not isinstance(known, RequestContext) or known is not covered.request or known.frozen:
        return False
    known.carrier = scope
    return True
