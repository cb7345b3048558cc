"""The ambient context: who is served and for which feature, wherever in a request a call is made.

One `ContextVar` holds a frozen `Ambient`; it points at one small `RequestContext` that every task and thread of the
request shares. User and route are resolved late, when somebody asks. This module knows no framework: how a request
names its user and its route comes in as `RequestSources`.

A request's frame is left only when it is the one on top, and never by resetting a token: a coroutine may be finalised
in another context than the one that it began in.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.event import User, new_event_id, usd
from fluxgate_mw.semconv import FeatureSource, UserSource
from fluxgate_mw.types import Carrier
from fluxgate_mw.users import as_user

__all__ = [
    "CARRIER_KEY",
    "Ambient",
    "Current",
    "Decoration",
    "RequestContext",
    "RequestSources",
    "current",
    "end_request",
    "enter",
    "get",
    "identify",
    "learn_user",
]

CARRIER_KEY: Final = "fluxgate"
"""Where the request context is kept on scope or environ."""

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class Decoration(Protocol):
    """What `@feature` left on an endpoint."""

    def under(self, ambient: Ambient, /) -> Ambient:
        """Return `ambient` with what it leaves open filled in."""
        ...


class RequestSources(Protocol):
    """How a kind of request names its user, its feature and its route. Never raises."""

    recorder: Any
    awaited: bool
    """`learn` may know more than `user`: an `async` call should await it first."""

    def admits(self, source: UserSource, /) -> bool:
        """Return whether users of that source count here."""
        ...

    def user(self, carrier: Carrier, /) -> tuple[User | None, UserSource]:
        """Return the signed-in user, or None while not known."""
        ...

    async def learn(self, carrier: Carrier, /) -> None:
        """Let the framework find out who is signed in, where only `await` can."""
        ...

    def decoration(self, carrier: Carrier, /) -> Decoration | None:
        """Return what `@feature` put on the request's endpoint, or None."""
        ...

    def feature(self, carrier: Carrier, /) -> str | None:
        """Return what the application's resolver calls the feature, or None."""
        ...

    def route(self, carrier: Carrier, /) -> str | None:
        """Return method and route template (`GET /items/{id}`), or None while nothing has matched."""
        ...

    def method(self, carrier: Carrier, /) -> str | None:
        """Return the request's method; None for what is no request."""
        ...

    def request_id(self, carrier: Carrier, /) -> str | None:
        """Return the id that a trusted proxy gave the request, or None."""
        ...


_first_to_name: Final = threading.Lock()
"""Threads that ask for a request's id at once agree on it."""


class RequestContext(msgspec.Struct, eq=False, weakref=True):
    """What the tasks and threads of one request share. Compared by identity.

    `carrier` is the scope or environ while the request is served and whatever of it still runs needs it; None once
    all that a late call may ask is known.

    Concurrency: any thread; each attribute is written whole, and `add` is whole under the interpreter's lock.
    """

    carrier: Carrier | None
    sources: RequestSources
    frozen: bool = False
    calls: int = 0
    cost_nanos: int = 0
    latency_ms: float = 0.0
    user_source: UserSource = "none"
    known_user: User | None = None
    known_route: str | None = None
    known_method: str | None = None
    known_decoration: Decoration | None = None
    known_feature: str | None = None
    known_request_id: str | None = None
    links: tuple[str, ...] = ()
    """Keys of the carrier, but for `CARRIER_KEY`, that lead back to it: taken out at the end, so that neither waits
    for the collector."""

    @property
    def request_id(self) -> str:
        """The id that joins the calls of this request: a trusted proxy's, else made."""
        if self.known_request_id is None:
            given = None if self.carrier is None else self.sources.request_id(self.carrier)
            made = given or new_event_id()
            with _first_to_name:
                if self.known_request_id is None:
                    self.known_request_id = made
        return self.known_request_id

    def identify(self, user: User) -> None:
        """Say who is served, for every call of this request from now on."""
        if self.sources.admits("identify"):
            self.known_user, self.user_source = user, "identify"

    def user(self) -> tuple[User | None, UserSource]:
        """Return who is served and how that is known; asks the sources again until they know."""
        if self.known_user is None and self.carrier is not None:
            user, source = self.sources.user(self.carrier)
            if user is not None and self.known_user is None:
                self.known_user, self.user_source = user, source
        return self.known_user, self.user_source

    def route(self) -> str | None:
        """Return method and route template; asks the sources again until they know."""
        if self.known_route is None and self.carrier is not None:
            self.known_route = self.sources.route(self.carrier)
        return self.known_route

    def method(self) -> str | None:
        """Return the request's method, which is known where nothing has matched, too."""
        if self.known_method is None and self.carrier is not None:
            self.known_method = self.sources.method(self.carrier)
        return self.known_method

    def decoration(self) -> Decoration | None:
        """Return what `@feature` put on the endpoint that serves the request."""
        if self.known_decoration is None and self.carrier is not None:
            self.known_decoration = self.sources.decoration(self.carrier)
        return self.known_decoration

    def feature(self) -> str | None:
        """Return what the application's resolver calls the feature; asks again until it knows."""
        if self.known_feature is None and self.carrier is not None:
            self.known_feature = self.sources.feature(self.carrier)
        return self.known_feature

    def add(self, cost_nanos: int | None, latency_ms: float) -> None:
        """Count one finished call."""
        cost_nanos = cost_nanos or 0
        self.calls += 1
        self.cost_nanos += cost_nanos
        self.latency_ms += latency_ms

    def settle(self) -> None:
        """Find out now what a late call of a detached task may ask, and let go of scope or environ."""
        self.user()
        self.feature()
        self.decoration()
        self.route()
        self.method()
        _ = self.request_id
        self.carrier = None


class Ambient(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One immutable frame of the ambient context, and the frame that it covers.

    `eq=False` keeps the comparison by identity: frameworks compare context values when they copy contexts.
    """

    request: RequestContext | None = None
    user: User | None = None
    user_source: UserSource = "none"
    feature: str | None = None
    feature_source: FeatureSource = "none"
    step: str | None = None
    session_id: str | None = None
    conversation_id: str | None = None
    metadata: Mapping[str, Any] = _EMPTY
    cost_override: Mapping[str, Any] | None = None
    owner: object = None
    covered: Ambient | None = None

    def resolve_user(self) -> tuple[User | None, UserSource]:
        """Return the user and where it came from: this frame's, else the request's."""
        if self.user is not None:
            return self.user, self.user_source
        return (None, "none") if self.request is None else self.request.user()

    def resolved(self) -> Ambient:
        """Return this frame with its feature filled in, where the request names one.

        In this order: the frame's own, the decoration of the request's endpoint, the application's resolver, the
        route template.
        """
        request = self.request
        if self.feature is not None or request is None:
            return self
        if (decoration := request.decoration()) is not None:
            return decoration.under(self)
        if (name := request.feature()) is not None:
            return msgspec.structs.replace(self, feature=name, feature_source="resolver")
        if (route := request.route()) is not None:
            return msgspec.structs.replace(self, feature=route, feature_source="route")
        return self


NOTHING: Final = Ambient()
_ambient: ContextVar[Ambient] = ContextVar("fluxgate_ambient", default=NOTHING)
get = _ambient.get
enter = _ambient.set
"""Make a frame the one on top in this context. The token is never used: a coroutine may end in another context."""


def end_request(request: RequestContext, ambient: Ambient) -> None:
    """End a request whose frame was taken off this context.

    What may still ask is a task, a thread or an open call that holds the frame: then what it may ask is found out
    now. Where nothing holds it, the request goes with its last reference, and nothing is asked for nothing.

    Args:
        request: The one that ended.
        ambient: Its frame; the caller's only other reference to it is one local variable.
    """
    request.frozen = True
    carrier = request.carrier
    if sys.getrefcount(ambient) > _UNSHARED:
        request.settle()
    if carrier is not None:
        carrier.pop(CARRIER_KEY, None)
        for link in request.links:
            carrier.pop(link, None)


def _unshared() -> int:
    ambient = Ambient()
    return _seen_from_callee(ambient)


def _seen_from_callee(ambient: Ambient) -> int:
    return sys.getrefcount(ambient)


_UNSHARED: Final = _unshared()
"""References to a frame that only its middleware still has: counted as `end_request` counts them."""


async def learn_user() -> None:
    """Let the request's framework find out who is signed in where only `await` can: before an `async` call.

    Guarantees: never raises but for cancellation; returns at once where nobody needs to be asked.
    """
    request = _ambient.get().request
    if request is None or not request.sources.awaited or request.known_user is not None or request.carrier is None:
        return
    await request.sources.learn(request.carrier)


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the ambient context. `cost` is USD, `cost_nanos` nano-USD: the priced calls so far."""

    user: User | None
    feature: str | None
    route: str | None
    request_id: str | None
    session_id: str | None
    conversation_id: str | None
    calls: int
    cost_nanos: int

    @property
    def cost(self) -> Decimal:
        """The cost so far in this request, in USD."""
        return usd(self.cost_nanos) or Decimal(0)


def current() -> Current:
    """Return a snapshot of the ambient context; outside a request, of what encloses the caller.

    Concurrency: any thread or task of the request.

    Example:
        >>> current().calls
        0
    """
    ambient = _ambient.get()
    request = ambient.request
    return Current(
        user=ambient.resolve_user()[0],
        feature=ambient.resolved().feature,
        route=None if request is None else request.route(),
        request_id=None if request is None else request.request_id,
        session_id=ambient.session_id,
        conversation_id=ambient.conversation_id,
        calls=0 if request is None else request.calls,
        cost_nanos=0 if request is None else request.cost_nanos,
    )


def identify(user: object) -> None:
    """Say who is served, for the rest of this request, wherever in it this is called from.

    Args:
        user: A `str`, a `User`, or any mapping or object with an `id` (and optionally `email`, `name`, `image`,
            `monthly_revenue`). None changes nothing.

    Guarantees: never raises. Outside a request, after its end, or with something that is no user: counted and
    logged once, and nothing else happens.

    Concurrency: any thread or task of the request.
    """
    request = _ambient.get().request
    if request is None or request.frozen:
        diagnostics.note("identify_outside_request", "identify() was called outside a request; it has no effect there")
        return
    known = as_user(user)
    if known is not None:
        request.identify(known)
    elif user is not None:
        diagnostics.note("identify_no_user", f"identify() was given a {type(user).__name__} without a usable id")
