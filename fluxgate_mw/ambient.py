"""The ambient context: who is served and for which feature, wherever in a request a call is made.

One `ContextVar` holds a frozen `Ambient`; it points at one small `RequestContext` that every task and thread of the
request shares. User and route are resolved late, when somebody asks. This module knows no framework: how a request
names its user and its route comes in as `RequestSources`.

A request's frame is left only when it is the one on top, and never by resetting a token: a coroutine may be finalised
in another context than the one that it began in.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.event import User, new_event_id, usd
from fluxgate_mw.semconv import FeatureSource, UserSource
from fluxgate_mw.types import Carrier

__all__ = [
    "Ambient",
    "Current",
    "Decoration",
    "RequestContext",
    "RequestSources",
    "as_user",
    "current",
    "enter",
    "get",
    "identify",
    "leave",
]

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class Decoration(Protocol):
    """What `@feature` left on an endpoint."""

    def under(self, ambient: Ambient, /) -> Ambient:
        """Return `ambient` with what it leaves open filled in."""
        ...


class RequestSources(Protocol):
    """How a kind of request names its user, its feature and its route. Never raises."""

    recorder: Any

    def user(self, carrier: Carrier, /) -> tuple[User | None, UserSource]:
        """Return the signed-in user, or None while not known."""
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


class RequestContext:
    """What the tasks and threads of one request share. Compared by identity.

    Concurrency: any thread; each attribute is written whole.
    """

    __slots__ = (
        "_request_id",
        "_route",
        "_user",
        "calls",
        "carrier",
        "cost_nanos",
        "frozen",
        "latency_ms",
        "sources",
        "user_source",
    )

    def __init__(self, carrier: Carrier, sources: RequestSources) -> None:
        self.carrier = carrier
        self.sources = sources
        self.frozen = False
        self.user_source: UserSource = "none"
        self.calls = 0
        self.cost_nanos = 0
        self.latency_ms = 0.0
        self._user: User | None = None
        self._route: str | None = None
        self._request_id: str | None = None

    @property
    def request_id(self) -> str:
        """The id that joins the calls of this request."""
        if self._request_id is None:
            self._request_id = new_event_id()
        return self._request_id

    def identify(self, user: User) -> None:
        """Say who is served, for every call of this request from now on."""
        self._user, self.user_source = user, "identify"

    def user(self) -> tuple[User | None, UserSource]:
        """Return who is served and how that is known; asks the sources again until they know."""
        if self._user is None:
            user, source = self.sources.user(self.carrier)
            if user is not None and self._user is None:
                self._user, self.user_source = user, source
        return self._user, self.user_source

    def route(self) -> str | None:
        """Return method and route template; asks the sources again until they know."""
        if self._route is None:
            self._route = self.sources.route(self.carrier)
        return self._route

    def add(self, cost_nanos: int | None, latency_ms: float) -> None:
        """Count one finished call."""
        self.calls += 1
        self.cost_nanos += cost_nanos or 0
        self.latency_ms += latency_ms

    def freeze(self, carrier: Carrier) -> None:
        """End the request: keep of it only `carrier`, what a late call of a detached task may still be asked."""
        self.frozen = True
        self.carrier = carrier


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
        sources, carrier = request.sources, request.carrier
        if (decoration := sources.decoration(carrier)) is not None:
            return decoration.under(self)
        if (name := sources.feature(carrier)) is not None:
            return msgspec.structs.replace(self, feature=name, feature_source="resolver")
        if (route := request.route()) is not None:
            return msgspec.structs.replace(self, feature=route, feature_source="route")
        return self


NOTHING: Final = Ambient()
_ambient: ContextVar[Ambient] = ContextVar("fluxgate_ambient", default=NOTHING)
get = _ambient.get


def enter(ambient: Ambient) -> None:
    """Make `ambient` the frame on top in this context."""
    _ambient.set(ambient)


def leave(ambient: Ambient, restored: Ambient) -> None:
    """Put `restored` on top if `ambient` is what is on top here; elsewhere it is not ours to change."""
    if _ambient.get() is ambient:
        _ambient.set(restored)


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


def as_user(value: object) -> User | None:
    """Return the user that `value` describes, or None where it describes none. Never raises.

    Args:
        value: As in `identify`. Numbers and UUIDs count as ids.
    """
    if isinstance(value, User):
        return value if value.id else None
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return User(str(value)) if str(value) else None
    read = value.get if isinstance(value, Mapping) else functools.partial(_attribute, value)
    key = read("id")
    if key is None or isinstance(key, bool) or str(key) == "":
        return None
    return User(
        str(key),
        email=_text(read("email")),
        name=_text(read("name")),
        image=_text(read("image")),
        monthly_revenue=_amount(read("monthly_revenue")),
    )


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception as error:  # noqa: BLE001  (an ORM's attribute may raise anything)
        diagnostics.note("user_attribute", f"reading .{name} of a {type(value).__name__} raised {type(error).__name__}")
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        return float(value)
    except ValueError:
        return None
