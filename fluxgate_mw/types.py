"""ASGI and WSGI aliases, and every Protocol by which one stage knows the next.

A stage knows the value that it passes on and the Protocol of its neighbour, and nothing else. Each Protocol states
its guarantees here; an implementation documents only what differs. One contract test class per Protocol runs on
every implementation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from wsgiref.types import StartResponse, WSGIApplication

import msgspec

from fluxgate_mw.event import TokenUsage, UsageEvent

if TYPE_CHECKING:
    from fluxgate_mw.query import CostReport, Dimension, EventFilter, EventPage, EventQuery

__all__ = [
    "ASGIApp",
    "Buffer",
    "Carrier",
    "Entry",
    "Environ",
    "FeatureResolver",
    "HasRecorder",
    "Message",
    "Pending",
    "Provider",
    "Receive",
    "Scope",
    "Send",
    "Sink",
    "StartResponse",
    "Store",
    "UsageReader",
    "UserResolver",
    "WSGIApp",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Environ = dict[str, Any]
WSGIApp = WSGIApplication


Carrier = MutableMapping[str, Any]
"""What a resolver is given: the ASGI `scope` or the WSGI `environ` of the request."""


class UserResolver(Protocol):
    """Say who is signed in, from the request.

    Returns a `str` id, a `User`, any mapping or object with an `id`, or None for nobody or not yet known.

    Guarantees: asked when the first call of a request is made and again until it knows; what it raises is logged
    once per kind and counted, and the call goes on with the user unknown.

    Concurrency: any thread of the request; must not do I/O.
    """

    def __call__(self, carrier: Carrier, /) -> object:
        """Return the user of this request, or None."""
        ...


class FeatureResolver(Protocol):
    """Name the feature of a request, from the request. Same rules as `UserResolver`.

    The name must be of low cardinality: never a raw path, never an id.
    """

    def __call__(self, carrier: Carrier, /) -> str | None:
        """Return the feature of this request, or None to let the route template name it."""
        ...


class HasRecorder(Protocol):
    """What a middleware and a tracker need of a `FluxGate`."""

    @property
    def recorder(self) -> Any:
        """Where finished calls are turned into events: a `recorder.Recorder`."""
        ...


class Provider(Protocol):
    """Patch one client library so that its calls are recorded."""

    def instrument(self) -> Callable[[], None]:
        """Patch and return the undo of this very request; idempotent, both ways.

        Raises:
            InstrumentationError: The library is of unknown shape; nothing was patched.
        """
        ...


class Pending(Protocol):
    """An event that is still to be made, of a call that has ended."""

    @property
    def size_bytes(self) -> int:
        """About how much memory it holds on to until then."""
        ...

    def made(self) -> UsageEvent:
        """Make and return it, once.

        Concurrency: any thread; asks nothing of the application.
        """
        ...


class Sink(Protocol):
    """Take events away from the code that made them.

    Guarantees: never blocks, never raises; what it cannot take is counted.

    Concurrency: any thread, `__del__`, a signal handler, before and after fork.
    """

    def emit(self, event: UsageEvent, /) -> None:
        """Accept the event, or count it as dropped."""
        ...

    def defer(self, pending: Pending, /) -> None:
        """Accept an event that is made when it is delivered, in whatever thread, or count it as dropped.

        A sink may leave this out: it is then given the event itself.
        """
        ...

    async def aflush(self) -> bool:
        """Wait until all that was taken so far is accepted, no longer than a shutdown may; return whether it was.

        A sink may leave this out: then nobody waits for it.
        """
        ...


class Entry(msgspec.Struct, frozen=True):
    """One entry of a buffer: a pack of encoded events.

    Args:
        entry_id: The buffer's own key for it; opaque.
        payload: A pack, as `buffer.pack` made it.
        delivery_count: How often it was handed to a reader, this time included; 1 the first time.
    """

    entry_id: str
    payload: bytes
    delivery_count: int = 1


@runtime_checkable
class Buffer(Protocol):
    """A durable stream of entries between the emitters and the flushers.

    Guarantees: what `append` accepted is handed to a reader at least once, in order for one appender, and again
    after `reclaim` until it is acknowledged. Nothing is ever trimmed unread.

    Concurrency: one event loop; one task at a time per instance; any number of instances and processes.
    """

    name: str
    """`redis`, `spool` or `memory`: for messages and figures."""

    async def append(self, payload: bytes, events: int, /) -> None:
        """Accept one pack of `events` events. On return it outlives this process.

        Raises:
            BackendUnavailable: Not accepted, or not known to be; retry later or elsewhere.
            BufferFull: The buffer is at its cap.
        """
        ...

    async def read(self, *, max_entries: int, wait_s: float) -> Sequence[Entry]:
        """Return entries that no reader of the group was given yet; empty after `wait_s` seconds without any.

        Raises:
            BackendUnavailable: Nothing was read.
        """
        ...

    async def reclaim(self, *, min_idle_s: float, max_entries: int) -> Sequence[Entry]:
        """Take over entries that another reader was given at least `min_idle_s` seconds ago and never acknowledged.

        Raises:
            BackendUnavailable: Nothing was taken over.
        """
        ...

    async def ack(self, entries: Sequence[Entry], /) -> None:
        """Forget entries whose events are stored: they are never handed out again, and their room is freed.

        Raises:
            BackendUnavailable: They may come again; storing is idempotent, so that is harmless.
        """
        ...

    async def dead_letter(self, entry: Entry, payload: bytes, reason: str, /) -> None:
        """Keep `payload` (all or a part of `entry`) aside with the reason. The caller acknowledges the entry after.

        Raises:
            BackendUnavailable: Not kept; do not acknowledge.
        """
        ...

    async def oldest(self) -> Entry | None:
        """Return the first entry that is not acknowledged, given out or not, and leave it where it is; None = empty.

        Raises:
            BackendUnavailable: It cannot be had now.
        """
        ...

    async def backlog(self) -> Mapping[str, int]:
        """Return figures for people: `entries`, `pending`, `dead_letters`, `bytes` where known.

        Raises:
            BackendUnavailable: They cannot be had now.
        """
        ...

    async def aclose(self) -> None:
        """Release what is held; entries read and not acknowledged stay claimable. Idempotent."""
        ...


@runtime_checkable
class Store(Protocol):
    """Where events end up, and where the dashboard asks.

    Concurrency: one event loop; calls may overlap.
    """

    name: str
    """`sqlite`, `postgres`, ...: for messages and figures."""

    async def insert(self, events: Sequence[UsageEvent], /) -> int:
        """Store each event once per `event_id` and its roll-ups in one transaction; return how many were new.

        Guarantees: on return the events are durable; on an error none of them is. Inserting again changes nothing.
        An empty sequence stores nothing, and its success proves that the store can be written now.

        Raises:
            BackendUnavailable: Retry later.
            BackendRejected: This data will never be accepted.
        """
        ...

    async def event(self, event_id: str, /) -> UsageEvent | None:
        """Return the event of that id, or None.

        Raises:
            BackendUnavailable: The store cannot be asked now.
        """
        ...

    async def events(self, query: EventQuery, /) -> EventPage:
        """Return one page of events, newest first.

        Raises:
            BackendUnavailable: The store cannot be asked now.
        """
        ...

    async def costs(self, dimension: Dimension, where: EventFilter, /) -> CostReport:
        """Return spend by a dimension over a range, per UTC day.

        Raises:
            BackendUnavailable: The store cannot be asked now.
        """
        ...

    async def count(self) -> int:
        """Return the number of distinct events stored.

        Raises:
            BackendUnavailable: The store cannot be asked now.
        """
        ...

    async def aclose(self) -> None:
        """Release what is held. Idempotent."""
        ...


class UsageReader(Protocol):
    """Read a provider's usage block into token counts whose totals include their subsets.

    Guarantees: never raises; a count that is missing, negative, not a whole number or past 2^53 is None.
    """

    def __call__(self, usage: Mapping[str, Any], /) -> TokenUsage | None:
        """Return the counts of one usage block as decoded from JSON; None where it counts nothing."""
        ...
