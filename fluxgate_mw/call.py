"""One call from its beginning to its event: who, for what, how it ended, what it cost.

In the thread that makes the call stands what only it can say: when, who and for what. What can be found out at any
time, what the answer says and what that cost, is found out when somebody asks for it or the event is delivered.
"""

from __future__ import annotations

import sys
import time
from asyncio import CancelledError
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, cast, get_args

import msgspec

from fluxgate_mw import diagnostics, pricing
from fluxgate_mw.ambient import NOTHING, Ambient
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import TokenUsage, Tracking, UsageEvent, User, new_event_id, usd
from fluxgate_mw.recorder import Outcome, Recorder, guarded
from fluxgate_mw.semconv import Status

__all__ = ["Call", "is_given_up"]

_STATUSES: Final = get_args(Status)
_NOT_PRICED: Final = pricing.Price(None, None, "pricing failed")
_NO_USAGE: Final = TokenUsage()
_INCOMPLETE: Final = pricing.Price(None, None, "the usage is incomplete")
_NO_MODEL: Final = pricing.Price(None, None, "no model")
_AZURE: Final = "azure"
_NOT_FOUND: Final = Outcome()
_ONE_SIDED: Final = frozenset({"embeddings", "moderation", "speech"})
"""Operations whose usage need not have both input and output."""
_UNCHANGING: Final = frozenset({str, int, float, bool, type(None)})
_GIVEN_UP: Final = (CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
_GIVEN_UP_BY: Final = (
    ("trio", "Cancelled"),
    ("greenlet", "GreenletExit"),
    ("gevent", "Timeout"),
    ("eventlet", "Timeout"),
)
"""What other schedulers than asyncio stop whoever waits with: `Greenlet.kill`, a cancelled scope, a time limit."""


class Call(msgspec.Struct, eq=False, weakref=True):
    """One logical call in flight. Whoever makes it ends it, once: later ends change nothing.

    Args:
        recorder: Where its event goes.
        ambient: The frame that it is made under; once it has ended, what its event says of it.
        provider: Provider's name, or the host's own name.
        operation: As `UsageEvent.operation_name`.
        api_path: Path below the client's base address; None for a call that is tracked by hand.
        model: The model that is asked for.
        stream: Whether a stream was asked for.
        user_parameter: The call's own `user=`.
        occurred_at_s: When it began, in Unix seconds.
        began_at: The same by the monotonic clock, as are `first_chunk_at` and `ended_at`; None = not yet. It has ended
            once all that only the thread that ends it can find out is known.
        size_bytes: See `types.Pending`.
        known: What the caller may know, once it has been found out; `tracking` sees to that.

    Concurrency: made in one thread, may be ended in another, and settled in several at once. A look and the write
    that follows it with no call in between are one step under the interpreter's lock.
    """

    recorder: Recorder
    ambient: Ambient
    provider: str | None = None
    operation: str = "other"
    api_path: str | None = None
    model: str | None = None
    stream: bool = False
    user_parameter: str | None = None
    occurred_at_s: float = msgspec.field(default_factory=time.time)
    began_at: float = msgspec.field(default_factory=time.perf_counter)
    first_chunk_at: float | None = None
    ended_at: float | None = None
    size_bytes: int = 1024
    known: Tracking | None = None
    _claimed: bool = False
    _outcome: Outcome | None = None
    _event: UsageEvent | None = None

    @property
    def tracking(self) -> Tracking | None:
        """What the caller may know; None until the call has ended."""
        self.settle()
        return self.known

    def first_chunk(self) -> None:
        """Note that the first chunk of the answer has come."""
        if self.first_chunk_at is None:
            self.first_chunk_at = time.perf_counter()

    def outcome(self) -> Outcome:
        """Return how the call ended, where `end` was not told. Asks nothing of the application."""
        return _NOT_FOUND

    def end(self, outcome: Outcome | None = None) -> None:
        """Count the call in its request and hand on its event.

        Args:
            outcome: How it ended; None leaves that to `outcome()`, which is asked later.

        Guarantees: exactly one event per call, however often it is ended.
        """
        now = time.perf_counter()
        if self._claimed:
            return
        self._claimed, at_once = True, False
        try:
            ambient = self.ambient
            request = ambient.request
            if request is not None:
                ambient = self.ambient = guarded("ambient", ambient.attributed) or ambient
                request.ended(self, (now - self.began_at) * 1000)
            changing = ambient.metadata and not _UNCHANGING.issuperset(map(type, ambient.metadata.values()))
            at_once = bool(changing) or self.is_made_quickly()
        finally:
            self._outcome, self.ended_at = outcome, now
            self.recorder.take(self, now=at_once)

    def is_made_quickly(self) -> bool:
        """Return whether its event is made in about the time that handing it on takes; asked when it has ended.

        Then the caller's thread, whose caches are warm, makes it many times faster than the delivery's would.
        """
        return False

    def made(self) -> UsageEvent:
        """Return the call's event and forget what it was made from. See `types.Pending`."""
        self.settle()
        event, outcome = cast("UsageEvent", self._event), self._outcome or _NOT_FOUND
        if outcome.asked is not None or outcome.answered is not None:
            asked, answered = self.recorder.kept(outcome.asked), self.recorder.kept(outcome.answered)
            event = msgspec.structs.replace(event, input_content=asked, output_content=answered)
        self._event, self._outcome, self.ambient = None, None, NOTHING
        return event

    def settle(self) -> None:
        """Find out how the call ended and what it cost, and count that in its request. Idempotent.

        Captured content is left as it is: `redact` is asked when the event is made.
        """
        ambient = self.ambient
        if self.known is not None or self.ended_at is None:
            return
        outcome = self._outcome or guarded("outcome", self.outcome) or _NOT_FOUND
        event = self._made_from(outcome, ambient)
        tracking = Tracking(
            status=event.status,
            cost=usd(event.cost_nanos),
            cost_nanos=event.cost_nanos,
            tracking_id=event.event_id,
            created_at=event.occurred_at,
            error_message=event.error_message,
        )
        found = None if ambient.request is None else ambient.request.known
        if self.known is None:
            self.known, self._event, self._outcome = tracking, event, outcome
            if found is not None:
                found.priced_nanos += event.cost_nanos or 0
                found.unpriced += event.cost_nanos is None
        if found is not None:
            found.unsettled.pop(id(self), None)

    def _made_from(self, outcome: Outcome, ambient: Ambient) -> UsageEvent:
        occurred_at = datetime.fromtimestamp(self.occurred_at_s, UTC)
        price = guarded("pricing", self._price, outcome, ambient, occurred_at) or _NOT_PRICED
        began_at, first_chunk_at, request = self.began_at, self.first_chunk_at, ambient.request
        found = None if request is None else request.known
        user, user_source = ambient.user, ambient.user_source
        if user is None and self.user_parameter and (request is None or request.sources.admits("parameter")):
            user, user_source = User(self.user_parameter), "parameter"
        recorder, usage = self.recorder, outcome.usage or _NO_USAGE
        return UsageEvent(
            event_id=new_event_id(self.occurred_at_s),
            occurred_at=occurred_at,
            provider_name=_text(self.provider),
            operation_name=self.operation,
            request_model=_text(self.model),
            response_model=_text(outcome.response_model),
            response_id=outcome.response_id,
            finish_reasons=outcome.finish_reasons,
            api_path=self.api_path,
            feature=_text(ambient.feature),
            feature_source=ambient.feature_source,
            step=_text(ambient.step),
            user=user,
            user_source=user_source,
            session_id=_text(ambient.session_id),
            conversation_id=_text(ambient.conversation_id),
            metadata=dict(ambient.metadata),
            route=None if found is None else found.route,
            http_method=None if found is None else found.method,
            request_id=None if found is None else found.request_id,
            service=recorder.settings.service,
            environment=recorder.settings.environment,
            status=_status(outcome.status),
            http_status=outcome.http_status,
            error_type=outcome.error_type,
            error_message=outcome.error_message,
            latency_ms=((self.ended_at or began_at) - began_at) * 1000,
            time_to_first_chunk_ms=None if first_chunk_at is None else (first_chunk_at - began_at) * 1000,
            stream=self.stream,
            retries=outcome.retries,
            usage_source=outcome.usage_source,
            service_tier=outcome.service_tier,
            cost_nanos=price.cost_nanos,
            price_version=price.price_version,
            unpriced_reason=price.reason,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_input_tokens=usage.cache_read_input_tokens,
            cache_creation_input_tokens=usage.cache_creation_input_tokens,
            reasoning_output_tokens=usage.reasoning_output_tokens,
            input_audio_tokens=usage.input_audio_tokens,
            output_audio_tokens=usage.output_audio_tokens,
            cache_read_input_audio_tokens=usage.cache_read_input_audio_tokens,
            input_image_tokens=usage.input_image_tokens,
            output_image_tokens=usage.output_image_tokens,
        )

    def _price(self, outcome: Outcome, ambient: Ambient, at: datetime) -> pricing.Price:
        """Return the cost: by the caller's rates, else the user's price list, else as reported, else as published."""
        usage, rates = outcome.usage, ambient.cost_override
        if rates is not None and usage is not None:
            try:
                return self._priced(outcome, usage, at, pricing.CostOverride.from_mapping(rates), "cost_override")
            except ConfigurationError as error:
                diagnostics.note("cost_override", f"a cost_override is not valid ({error}); the cost is unknown")
                return pricing.Price(None, None, "invalid cost_override")
        own = self.recorder.price_file
        if own is not None and usage is not None:
            for model in filter(None, (outcome.response_model, self.model)):
                if (listed := own.rates(self.provider, model, at)) is not None:
                    return self._priced(outcome, usage, at, listed, "price_file")
        if outcome.reported_nanos is not None:
            return pricing.Price(outcome.reported_nanos, "provider")
        if usage is None:
            return pricing.Price(None, None, outcome.unpriced_reason or "no usage")
        return self._priced(outcome, usage, at)

    def _priced(
        self,
        outcome: Outcome,
        usage: TokenUsage,
        at: datetime,
        rates: pricing.CostOverride | None = None,
        rates_name: str = "",
    ) -> pricing.Price:
        if outcome.unpriced_reason is not None:
            return pricing.Price(None, None, outcome.unpriced_reason)
        if outcome.fee is not None and rates is None:
            return pricing.Price(None, None, f"the call used {outcome.fee}, which is billed beside its tokens")
        price, two_sided = _NO_MODEL, rates is None and self.operation not in _ONE_SIDED
        for model in self._names(outcome):
            if two_sided and pricing.lacks_half(self.provider, model, usage, at=at, service_tier=outcome.service_tier):
                return _INCOMPLETE
            price = pricing.price(
                self.provider,
                model,
                usage,
                at=at,
                service_tier=outcome.service_tier,
                override=rates,
                override_version=rates_name,
                regional=outcome.regional,
            )
            if price.cost_nanos is not None or pricing.is_at_hand(self.provider, model):
                break
        return price

    def _names(self, outcome: Outcome) -> Iterable[str | None]:
        """Return the names to price the call by: the first that is known counts.

        A gateway may spell the model that answered in its own way, so the model that was asked for is the second;
        but what is asked of Azure is a deployment, and its name says nothing: the model is unknown where none answered.
        """
        if self.provider == _AZURE:
            return (outcome.response_model,)
        return filter(None, (outcome.response_model, self.model))


def is_given_up(error: BaseException) -> bool:
    """Say whether this was raised into the call because its caller gave it up, and not by what it does."""
    if isinstance(error, _GIVEN_UP):
        return True
    if isinstance(error, Exception):
        return False
    kinds = [getattr(sys.modules.get(module), name, None) for module, name in _GIVEN_UP_BY]
    return any(isinstance(kind, type) and isinstance(error, kind) for kind in kinds)


def _text(given: object) -> str | None:
    """Return a text that the application gave as the plain text that it is; another value as its own text."""
    if given is None or type(given) is str:
        return given
    return str.__str__(given) if isinstance(given, str) else guarded("text", str, given)


def _status(given: object) -> Status:
    """Return one of the statuses: what is none is an error, and counted."""
    if given in _STATUSES:
        return cast("Status", given)
    diagnostics.note("unknown_status", "a call was ended with a status that there is not; it is recorded as ERROR")
    return "ERROR"
