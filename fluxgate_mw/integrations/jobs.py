"""What every job queue's adapter shares: the ambient context as a small envelope that travels with the job.

It holds who, for which feature and in which request the job was asked for; never metadata values or prices. A worker
that takes the job makes a request context of its own from it, and leaves it when the job ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fluxgate_mw.ambient import NOTHING, Ambient, end_request, enter, get
from fluxgate_mw.event import User
from fluxgate_mw.recorder import guarded
from fluxgate_mw.request import RequestContext
from fluxgate_mw.semconv import FeatureSource, UserSource
from fluxgate_mw.types import Carrier

__all__ = ["ENVELOPE", "Job", "envelope"]

ENVELOPE = "fluxgate"
"""The name that an envelope has among a job's headers or arguments."""


class _Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    user: User | None = None
    user_source: UserSource = "none"
    feature: str | None = None
    feature_source: FeatureSource = "none"
    route: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    conversation_id: str | None = None


msgspec.json.Decoder(_Envelope)  # before threads convert one at once for the first time: see `pricing.table`


def envelope() -> dict[str, Any] | None:
    """Return what a job that is enqueued here must carry, as plain JSON values; None where there is nothing to carry.

    Guarantees: never raises.
    """
    return guarded("jobs", _packed)


def _packed() -> dict[str, Any] | None:
    ambient = get().resolved()
    if ambient is NOTHING:
        return None
    user, user_source = ambient.resolve_user()
    request = ambient.request
    packed: dict[str, Any] = msgspec.to_builtins(
        _Envelope(
            user=user,
            user_source=user_source,
            feature=ambient.feature,
            feature_source=ambient.feature_source,
            route=None if request is None else request.route(),
            request_id=None if request is None else request.request_id,
            session_id=ambient.session_id,
            conversation_id=ambient.conversation_id,
        )
    )
    return packed


class Job:
    """The context of one running job: `with`, or `start` and `end` where a queue has hooks instead.

    Args:
        sent: The envelope, as it arrived; None, or one that cannot be read, gives the job a context of its own.
        task: The job's own name, which becomes `step`.

    Guarantees: never raises. `end` restores what was there before; after it, nothing of the job is left.

    Concurrency: one task or thread.
    """

    __slots__ = ("_ambient", "_covered", "_request")

    def __init__(self, sent: object, task: str) -> None:
        carried = guarded("jobs", _unpacked, sent) or _Envelope()
        self._request = RequestContext({}, _JobSources(carried.route))
        self._request.found.request_id = carried.request_id
        self._ambient = Ambient(
            request=self._request,
            user=carried.user,
            user_source=carried.user_source,
            feature=carried.feature,
            feature_source=carried.feature_source,
            session_id=carried.session_id,
            conversation_id=carried.conversation_id,
            step=task,
        )
        self._covered = NOTHING

    def start(self) -> None:
        """Put the job's frame on top."""
        self._covered = get()
        enter(self._ambient)

    def end(self) -> None:
        """Take it off again."""
        if get().request is self._request:
            enter(self._covered)
        end_request(self._request, self._ambient)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.end()


def _unpacked(sent: object) -> _Envelope | None:
    if not isinstance(sent, Mapping):
        return None
    try:
        return msgspec.convert(dict(sent), _Envelope)
    except msgspec.ValidationError:
        return None


class _JobSources:
    """A job has no scope to ask: what it knows came with its envelope."""

    recorder = None
    awaited = False

    def __init__(self, route: str | None) -> None:
        self._route = route

    def admits(self, _source: UserSource) -> bool:
        return True

    def user(self, _carrier: Carrier) -> tuple[User | None, UserSource]:
        return None, "none"

    async def learn(self, _carrier: Carrier) -> None:
        return None

    def decoration(self, _carrier: Carrier) -> None:
        return None

    def feature(self, _carrier: Carrier) -> str | None:
        return None

    def route(self, _carrier: Carrier) -> str | None:
        return self._route

    def method(self, _carrier: Carrier) -> str | None:
        return None if self._route is None else self._route.partition(" ")[0]

    def request_id(self, _carrier: Carrier) -> str | None:
        return None
