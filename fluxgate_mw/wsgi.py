"""The WSGI middleware: our variable is swapped in around the app call, each step of the body, and its close.

A WSGI server may run the steps of several responses interleaved in one thread, or one response's steps in several:
so nothing stays set between steps, and what a step left on the context is put back before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from fluxgate_mw.ambient import Ambient, RequestContext, enter, get
from fluxgate_mw.recorder import guarded
from fluxgate_mw.resolvers import WSGISources
from fluxgate_mw.timing import server_timing
from fluxgate_mw.types import Environ, FeatureResolver, HasRecorder, StartResponse, UserResolver, WSGIApp

__all__ = ["FluxGateWSGIMiddleware"]

ENVIRON_KEY = "fluxgate"

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class FluxGateWSGIMiddleware:
    """Attribute every call that a WSGI application's views make to the signed-in user and the matched route.

    Serves Flask (`app.wsgi_app = FluxGateWSGIMiddleware(app.wsgi_app)`) and any other WSGI application. Lists and the
    server's own file wrapper are returned untouched.

    Args:
        app: The application.
        fluxgate: Where the request's events go; None = the process's default at the time of the call.
        resolve_user: Asked for the user before the framework is; None = the framework alone.
        resolve_feature: Beats the route template, loses to `feature()` and `context()`.
        cost_header: Send `Server-Timing: llm;desc="3 calls $0.0042";dur=940` with the response, for the calls that
            ended before it began.

    Guarantees: changes neither request nor response (but for `cost_header`) and raises nothing of its own.
    """

    def __init__(
        self,
        app: WSGIApp,
        fluxgate: HasRecorder | None = None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
        cost_header: bool = False,  # noqa: FBT001, FBT002  (the contract's signature)
    ) -> None:
        self.app = app
        self._sources = WSGISources(None if fluxgate is None else fluxgate.recorder, resolve_user, resolve_feature)
        self._cost_header = cost_header

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request inside a request context of its own."""
        known = environ.get(ENVIRON_KEY)
        covered = get()
        if isinstance(known, RequestContext) and known is covered.request and not known.frozen:
            return self.app(environ, start_response)
        request = RequestContext(environ, self._sources)
        environ[ENVIRON_KEY] = request
        inside = Ambient(request=request)
        enter(inside)
        try:
            body = self.app(environ, self._started(request, start_response))
        except BaseException:
            _end(request, self._sources)
            raise
        finally:
            inside = get()
            enter(covered)
        if isinstance(body, list | tuple) or _is_file_wrapper(body, environ):
            _end(request, self._sources)
            return body
        return _Body(body, request, self._sources, inside)

    def _started(self, request: RequestContext, start_response: StartResponse) -> StartResponse:
        """Return `start_response` that keeps what of the framework's context will be gone when the body runs."""
        sources, cost_header = self._sources, self._cost_header

        def started(
            status: str,
            headers: list[tuple[str, str]],
            exc_info: ExcInfo | None = None,
            /,
        ) -> Callable[[bytes], object]:
            guarded("wsgi", sources.keep, request.carrier)
            if cost_header and request.calls:
                headers = [*headers, ("Server-Timing", server_timing(request))]
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        return started


class _Body:
    """A response body whose steps and close run inside the request's context."""

    __slots__ = ("_body", "_inside", "_iterator", "_request", "_sources")

    def __init__(self, body: Iterable[bytes], request: RequestContext, sources: WSGISources, inside: Ambient) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._request = request
        self._sources = sources
        self._inside = inside

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk: bytes = self._step(self._next)
        return chunk

    def close(self) -> None:
        """Close the application's body inside the request's context, then end the request."""
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                self._step(close)
        finally:
            _end(self._request, self._sources)

    def _next(self) -> bytes:
        if self._iterator is None:
            self._iterator = iter(self._body)
        return next(self._iterator)

    def _step(self, step: Callable[[], Any]) -> Any:
        covered = get()
        enter(self._inside)
        try:
            return step()
        finally:
            self._inside = get()
            enter(covered)


def _is_file_wrapper(body: Iterable[bytes], environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _end(request: RequestContext, sources: WSGISources) -> None:
    environ = request.carrier
    if environ.get(ENVIRON_KEY) is request:
        del environ[ENVIRON_KEY]
    request.freeze(sources.at_end(environ))
