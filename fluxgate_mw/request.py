"""What the tasks and threads of one request share: its carrier, who is served, and what its calls cost so far.

Knows no framework: how a request names its user and its route comes in as `RequestSources`.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from fluxgate_mw.event import User, new_event_id
from fluxgate_mw.semconv import UserSource
from fluxgate_mw.types import Carrier

__all__ = ["CARRIER_KEY", "Decoration", "RequestContext", "RequestSources", "Unsettled"]

CARRIER_KEY: Final = "fluxgate"
"""Where the request context is kept on scope or environ."""


class Decoration(Protocol):
    """What `@feature` left on an endpoint."""

    def under(self, ambient: Any, /) -> Any:
        """Return this `Ambient` with what it leaves open filled in."""
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


class Unsettled(Protocol):
    """A call that has ended and whose cost nobody has asked for yet."""

    def settle(self) -> None:
        """Find out what it cost and count that in its request. Idempotent, and never raises."""
        ...


class _Found(msgspec.Struct, eq=False):
    """What was found out about a request and counted in it, from its first call on."""

    calls: int = 0
    priced_nanos: int = 0
    unpriced: int = 0
    latency_ms: float = 0.0
    user: User | None = None
    user_source: UserSource = "none"
    route: str | None = None
    method: str | None = None
    decoration: Decoration | None = None
    feature: str | None = None
    request_id: str | None = None
    unsettled: dict[int, Unsettled] = msgspec.field(default_factory=dict)


class RequestContext(msgspec.Struct, eq=False, weakref=True):
    """What the tasks and threads of one request share. Compared by identity.

    `carrier` is the scope or environ while the request is served and whatever of it still runs needs it; None once
    all that a late call may ask is known.

    Concurrency: any thread. A look and the write that follows it with no call in between are one step under the
    interpreter's lock; what is said to be counted or named once relies on that.
    """

    carrier: Carrier | None
    sources: RequestSources
    frozen: bool = False
    links: tuple[str, ...] = ()
    """Keys of the carrier, but for `CARRIER_KEY`, that lead back to it: taken out at the end, so that neither waits
    for the collector."""
    known: _Found | None = None

    @property
    def found(self) -> _Found:
        """What is known of it so far."""
        if self.known is None:
            made = _Found()
            if self.known is None:
                self.known = made
        return self.known

    @property
    def calls(self) -> int:
        """How many calls have ended."""
        return 0 if self.known is None else self.known.calls

    @property
    def cost_nanos(self) -> int:
        """Nano-USD of the priced calls that have ended."""
        found = self.known
        if found is None:
            return 0
        for call in tuple(found.unsettled.values()):
            call.settle()
        return found.priced_nanos

    @property
    def unpriced(self) -> int:
        """How many of the calls whose cost has been asked for have none that is known."""
        return 0 if self.known is None else self.known.unpriced

    @property
    def latency_ms(self) -> float:
        """Milliseconds that the ended calls took, one after another."""
        return 0.0 if self.known is None else self.known.latency_ms

    @property
    def request_id(self) -> str:
        """The id that joins the calls of this request: a trusted proxy's, else made."""
        found = self.found
        if found.request_id is None:
            given = None if self.carrier is None else self.sources.request_id(self.carrier)
            made = given or new_event_id()
            if found.request_id is None:
                found.request_id = made
        return found.request_id

    def identify(self, user: User) -> None:
        """Say who is served, for every call of this request from now on."""
        if self.sources.admits("identify"):
            found = self.found
            found.user, found.user_source = user, "identify"

    def user(self) -> tuple[User | None, UserSource]:
        """Return who is served and how that is known; asks the sources again until they know."""
        found = self.found
        if found.user is None and self.carrier is not None:
            user, source = self.sources.user(self.carrier)
            if user is not None and found.user is None:
                found.user, found.user_source = user, source
        return found.user, found.user_source

    def route(self) -> str | None:
        """Return method and route template; asks the sources again until they know."""
        found = self.found
        if found.route is None and self.carrier is not None:
            found.route = self.sources.route(self.carrier)
        return found.route

    def method(self) -> str | None:
        """Return the request's method, which is known where nothing has matched, too."""
        found = self.found
        if found.method is None and self.carrier is not None:
            found.method = self.sources.method(self.carrier)
        return found.method

    def decoration(self) -> Decoration | None:
        """Return what `@feature` put on the endpoint that serves the request."""
        found = self.found
        if found.decoration is None and self.carrier is not None:
            found.decoration = self.sources.decoration(self.carrier)
        return found.decoration

    def feature(self) -> str | None:
        """Return what the application's resolver calls the feature; asks again until it knows."""
        found = self.found
        if found.feature is None and self.carrier is not None:
            found.feature = self.sources.feature(self.carrier)
        return found.feature

    def ended(self, call: Unsettled, latency_ms: float) -> None:
        """Count a call that has ended; what it cost is counted when it is settled."""
        found = self.found
        found.unsettled[id(call)] = call
        found.calls += 1
        found.latency_ms += latency_ms

    def settle(self) -> None:
        """Find out now what a late call of a detached task may ask, and let go of scope or environ."""
        self.user()
        self.feature()
        self.decoration()
        self.route()
        self.method()
        _ = self.request_id
        self.carrier = None
