"""The WSGI middleware: our variable is swapped in around the app call, each step of the body, and its close.

A WSGI server may run the steps of several responses interleaved in one thread, or one response's steps in several:
so nothing stays set between steps, and what a step left on the context is put back before the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Final

import msgspec

from fluxgate_mw.ambient import NOTHING, Ambient, end_request, enter, get
from fluxgate_mw.recorder import guarded
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.resolvers import USER_SOURCES, WSGISources
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.timing import Costs
from fluxgate_mw.trust import TrustedProxies
from fluxgate_mw.types import Environ, FeatureResolver, HasRecorder, StartResponse, UserResolver, WSGIApp

__all__ = ["Body", "FluxGateWSGIMiddleware"]

_modules: Final = sys.modules
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
        cost_header: Tell the client what its calls cost: `Server-Timing: llm;desc="3 calls $0.0042";dur=940` for the
            calls that ended before the response began, and a last comment line on server-sent events.
        user_sources: Which of `resolvers.USER_SOURCES` count.
        trusted: What proxies in front may say; None = nothing.

    Guarantees: changes neither request nor response (but for `cost_header`) and raises nothing of its own.
    """

    def __init__(
        self,
        app: WSGIApp,
        fluxgate: HasRecorder | None = None,
        resolve_user: UserResolver | None = None,
        resolve_feature: FeatureResolver | None = None,
        cost_header: bool = False,  # noqa: FBT001, FBT002  (the contract's signature)
        *,
        user_sources: Sequence[UserSource] = USER_SOURCES,
        trusted: TrustedProxies | None = None,
    ) -> None:
        self.app = app
        self._sources = WSGISources(
            None if fluxgate is None else fluxgate.recorder, resolve_user, resolve_feature, user_sources, trusted
        )
        self._cost_header = cost_header

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request inside a request context of its own."""
        covered = get()
        if CARRIER_KEY in environ and environ[CARRIER_KEY] is covered.request and not covered.request.frozen:
            return self.app(environ, start_response)
        request = environ[CARRIER_KEY] = RequestContext(environ, self._sources)
        costs = Costs(request) if self._cost_header else None
        if costs is not None or "flask" in _modules:  # else nothing has to be kept for the body
            start_response = partial(_start, environ, start_response, self._sources, costs)
        ambient = Ambient(request=request)
        enter(ambient)
        try:
            body = self.app(environ, start_response)
        except BaseException:
            enter(covered)
            end_request(request, ambient)
            raise
        inside = get()
        enter(covered)
        if type(body) is list or type(body) is tuple or _is_file_wrapper(body, environ):
            del inside
            end_request(request, ambient)
            return body
        return Body(body, request, ambient, inside, costs)


def _start(
    environ: Environ,
    start_response: StartResponse,
    sources: WSGISources,
    costs: Costs | None,
    status: str,
    headers: list[tuple[str, str]],
    exc_info: ExcInfo | None = None,
    /,
) -> Callable[[bytes], object]:
    """Start the response, and keep what of the framework's context will be gone when its body runs."""
    if "werkzeug.request" in environ:
        guarded("wsgi", sources.keep, environ, headers)
    if costs is not None:
        headers = _telling(headers, costs)
    return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)


def _telling(headers: list[tuple[str, str]], costs: Costs) -> list[tuple[str, str]]:
    """Return the headers with the cost of the calls that have ended by now."""
    said = costs.text_header(headers)
    return headers if said is None else [*headers, ("Server-Timing", said)]


class Body(msgspec.Struct, eq=False):
    """A response body whose steps and close run inside the request's context.

    As a server does: what is iterated is `iter(body)`, and what is closed is the body itself.

    Args:
        body: The application's.
        request: Ends when the body is closed.
        ambient: The request's frame.
        inside: What is on top at the next step.
        costs: What is told of costs; None = nothing.
        iterator: Of the body, once it was asked for.
    """

    body: Iterable[bytes]
    request: RequestContext
    ambient: Ambient
    inside: Ambient
    costs: Costs | None = None
    iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self._steps()

    def __next__(self) -> bytes:
        return next(self._steps())

    def _steps(self) -> Iterator[bytes]:
        """Yield what is left of the body. A generator, for a method costs more at each step.

        Collected in between steps, it touches no context.
        """
        costs = self.costs
        running = True
        covered = get()
        enter(self.inside)
        try:
            if self.iterator is None:
                self.iterator = _iterator(self.body)
            for chunk in self.iterator:
                self.inside = get()
                enter(covered)
                running = False
                if costs is not None:
                    costs.on_chunk(chunk)
                yield chunk
                covered = get()
                running = True
                enter(self.inside)
        finally:
            if running:
                self.inside = get()
                enter(covered)
        if costs is not None and (last := costs.closing()) is not None:
            yield last

    def close(self) -> None:
        """Close the application's body inside the request's context, then end the request."""
        close = getattr(self.body, "close", None)
        covered = get()
        enter(self.inside)
        try:
            if close is not None:
                close()
        finally:
            enter(covered)
            ambient, self.ambient, self.inside = self.ambient, NOTHING, NOTHING
            end_request(self.request, ambient)


def _iterator(body: Iterable[bytes]) -> Iterator[bytes]:
    """Return the body's iterator; one that only knows `__next__` is made one that `for` takes, too."""
    iterator = iter(body)
    return iterator if hasattr(iterator, "__iter__") else iter(iterator.__next__, None)


def _is_file_wrapper(body: Iterable[bytes], environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)
