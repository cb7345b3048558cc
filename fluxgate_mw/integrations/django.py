"""Django: one middleware class for sync and async projects, under WSGI and ASGI.

Put it anywhere in `MIDDLEWARE`: user and route are asked for when a call is made, so it may stand before Django's
own `AuthenticationMiddleware`. It patches nothing: make the `FluxGate()` in an `AppConfig.ready()`.

Under uvicorn, wrap the application once more: `application = fluxgate_mw.FluxGateMiddleware(get_asgi_application())`.
Uvicorn ends by the signal that it caught, without exit hooks, and tells of that only who takes part in the lifespan.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fluxgate_mw.ambient import NOTHING, Ambient, end_request, enter, get
from fluxgate_mw.errors import MissingExtraError
from fluxgate_mw.frameworks import DJANGO
from fluxgate_mw.recorder import guarded
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.resolvers import USER_SOURCES, ASGISources, WSGISources
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.timing import Costs
from fluxgate_mw.trust import TrustedProxies
from fluxgate_mw.types import Carrier, FeatureResolver, HasRecorder, UserResolver
from fluxgate_mw.wsgi import Body

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
except ModuleNotFoundError as error:
    raise MissingExtraError("django", needed_for=__name__) from error

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["FluxGateMiddleware"]

_LINKS: Final = (DJANGO,)


class FluxGateMiddleware:
    """Attribute the calls of a Django project: `fluxgate_mw.integrations.django.FluxGateMiddleware` in `MIDDLEWARE`.

    The options are attributes of the class, for a subclass to set; they mean what the ASGI middleware's arguments do.
    A resolver is a `staticmethod`; its carrier holds the `HttpRequest` under `"fluxgate.django"`. `cost_header` adds
    `Server-Timing` for the calls that ended before the response was returned, and a last comment line to server-sent
    events (a `StreamingHttpResponse`).

    Guarantees: loads no user for requests that make no call, and none twice. Inside `async` views the user is awaited
    when an `async` call is made; a sync call there knows only a user who is loaded already.
    """

    sync_capable = True
    async_capable = True
    fluxgate: ClassVar[HasRecorder | None] = None
    resolve_user: ClassVar[UserResolver | None] = None
    resolve_feature: ClassVar[FeatureResolver | None] = None
    user_sources: ClassVar[Sequence[UserSource]] = USER_SOURCES
    trusted: ClassVar[TrustedProxies | None] = None
    cost_header: ClassVar[bool] = False

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)
        options = (
            None if self.fluxgate is None else self.fluxgate.recorder,
            self.resolve_user,
            self.resolve_feature,
            self.user_sources,
            self.trusted,
        )
        self._asgi, self._wsgi = ASGISources(*options), WSGISources(*options)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve one request inside a request context of its own."""
        scope = getattr(request, "scope", None)
        carrier: Carrier = request.META if scope is None else scope
        carrier[DJANGO] = request
        covered = get()
        known = carrier.get(CARRIER_KEY)
        if isinstance(known, RequestContext) and known is covered.request and not known.frozen:
            known.carrier, known.links = carrier, _LINKS
            response: HttpResponseBase | Awaitable[HttpResponseBase] = self._get_response(request)
            return response
        served = carrier[CARRIER_KEY] = RequestContext(carrier, self._wsgi if scope is None else self._asgi)
        served.links = _LINKS
        return self._aserve(request, served) if self._async else self._serve(request, served)

    def _serve(self, request: HttpRequest, served: RequestContext) -> HttpResponseBase:
        covered = get()
        ambient = Ambient(request=served)
        enter(ambient)
        streamed = False
        try:
            response: HttpResponseBase = self._get_response(request)
            costs = guarded("django", _told_costs, response, served) if self.cost_header else None
            streamed = _inside(response, served, ambient, get(), costs)
        finally:
            enter(covered)
            if not streamed:
                end_request(served, ambient)
        return response

    async def _aserve(self, request: HttpRequest, served: RequestContext) -> HttpResponseBase:
        covered = get()
        ambient = Ambient(request=served)
        enter(ambient)
        streamed = False
        try:
            response: HttpResponseBase = await self._get_response(request)
            costs = guarded("django", _told_costs, response, served) if self.cost_header else None
            streamed = _inside(response, served, ambient, get(), costs)
        finally:
            if get().request is served:
                enter(covered)
            if not streamed:
                end_request(served, ambient)
        return response


def _told_costs(response: HttpResponseBase, served: RequestContext) -> Costs:
    """Say in the response's headers what its calls cost so far, and return what may be said at its end."""
    costs = Costs(served)
    said = costs.text_header(response.items())
    if said is not None:
        response.headers["Server-Timing"] = ", ".join(filter(None, [response.headers.get("Server-Timing"), said]))
    return costs


def _inside(response: Any, served: RequestContext, ambient: Ambient, inside: Ambient, costs: Costs | None) -> bool:
    """Put a streamed body inside the request's context; False for a response that is whole, or a file."""
    if not response.streaming or getattr(response, "file_to_stream", None) is not None:
        return False
    if response.is_async:
        response.streaming_content = _AsyncBody(response.streaming_content, served, ambient, inside, costs)
    else:
        response.streaming_content = Body(_Content(response), served, ambient, inside, costs)
    return True


class _Content:
    """A sync body, and what its response would close: a generator's last steps are of the request too."""

    def __init__(self, response: Any) -> None:
        self._content: Iterable[bytes] = response.streaming_content
        closers = getattr(response, "_resource_closers", [])
        self._closers = list(closers)
        closers.clear()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._content)

    def close(self) -> None:
        """Close them one by one; like Django, whatever one of them raises."""
        for closer in self._closers:
            with suppress(Exception):
                closer()


class _AsyncBody:
    """An async body whose steps run inside the request's context. Django closes it with its response."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        request: RequestContext,
        ambient: Ambient,
        inside: Ambient,
        costs: Costs | None,
    ) -> None:
        self._body = body
        self._request = request
        self._ambient = ambient
        self._inside = inside
        self._costs = costs

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        covered = get()
        enter(self._inside)
        try:
            chunk = await anext(self._body)
            if self._costs is not None:
                self._costs.on_chunk(chunk)
        except StopAsyncIteration:
            if self._costs is None or (last := self._costs.closing()) is None:
                raise
            return last
        else:
            return chunk
        finally:
            if get().request is self._request:
                self._inside = get()
                enter(covered)

    def close(self) -> None:
        """End the request."""
        ambient, self._ambient, self._inside = self._ambient, NOTHING, NOTHING
        end_request(self._request, ambient)
