"""The ambient context: who is served and for which feature, wherever in a request a call is made.

One `ContextVar` holds a frozen `Ambient`; it points at one small `RequestContext` that every task and thread of the
request shares. User and route are resolved late, when somebody asks. This module knows no framework: how a request
names its user and its route comes in as `RequestSources`.

A request's frame is left only when it is the one on top, and never by resetting a token: a coroutine may be finalised
in another context than the one that it began in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.event import User, usd
from fluxgate_mw.request import CARRIER_KEY, RequestContext
from fluxgate_mw.semconv import FeatureSource, UserSource
from fluxgate_mw.users import as_user

__all__ = [
    "Ambient",
    "Current",
    "current",
    "end_request",
    "enter",
    "get",
    "identify",
    "learn_user",
]

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


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

    def attributed(self) -> Ambient:
        """Return this frame with all that an event says of its request found out now, and no other frame held on to.

        What is asked belongs to the application, and to the thread that asks.
        """
        request = self.request
        if request is None:
            return self
        ambient = self.resolved()
        user, user_source = ambient.resolve_user()
        request.route()
        request.method()
        _ = request.request_id
        return msgspec.structs.replace(ambient, user=user, user_source=user_source, owner=None, covered=None)

    def resolved(self) -> Ambient:
        """Return this frame with its feature filled in, where the request names one.

        In this order: the frame's own, the decoration of the request's endpoint, the application's resolver, the
        route template.
        """
        request = self.request
        if self.feature is not None or request is None:
            return self
        if (decoration := request.decoration()) is not None:
            filled: Ambient = decoration.under(self)
            return filled
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
    elif request.known is not None:
        request.carrier = None
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
    if request is None or not request.sources.awaited or request.carrier is None:
        return
    if request.known is not None and request.known.user is not None:
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
