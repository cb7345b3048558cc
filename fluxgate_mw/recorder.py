"""From a finished call to its event: who, for what, how it ended, what it cost; then on to a sink.

Here also stand the process-wide slot of the default recorder, which the composition root fills, the captures of
`testing`, and the one guard that keeps our own exceptions from the host application.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast, get_args

import msgspec

from fluxgate_mw import diagnostics, pricing
from fluxgate_mw.ambient import Ambient
from fluxgate_mw.diagnostics import safe_message
from fluxgate_mw.errors import ConfigurationError, FluxGateError
from fluxgate_mw.event import TokenUsage, Tracking, UsageEvent, User, new_event_id, usd
from fluxgate_mw.semconv import Status, UsageSource
from fluxgate_mw.settings import Settings
from fluxgate_mw.types import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Call",
    "Outcome",
    "Recorder",
    "capturing",
    "choose",
    "guarded",
    "in_hand",
    "safe_message",
    "set_default",
    "set_default_factory",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def guarded(stage: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """Return what `function` returns; where it raises, count and log our bug and return None.

    The log names the error's class and place but not its message, which may quote a prompt.

    Guarantees: no `Exception` leaves it; cancellation, `KeyboardInterrupt` and `SystemExit` do.
    """
    try:
        return function(*args, **kwargs)
    except FluxGateError as error:
        diagnostics.note(f"failed_{stage}", f"nothing is recorded: {error}", level=logging.ERROR)
        return None
    except Exception as error:  # noqa: BLE001  (the one guard between our bugs and the host)
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        place = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames))  # noqa: PTH119
        diagnostics.note(
            f"bug_{stage}", f"fluxgate-mw failed in {stage}: {type(error).__name__} at {place}", level=logging.ERROR
        )
        return None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, as the one who made it saw it. Fields as in `UsageEvent`; None = not known.

    `reported_nanos` is what the provider says that it cost; `unpriced_reason` says why its usage cannot be priced.
    `asked` and `answered` are plain data, given only where content is captured.
    """

    status: Status = "SUCCESS"
    http_status: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    service_tier: str | None = None
    retries: int = 0
    usage: TokenUsage | None = None
    usage_source: UsageSource = "none"
    unpriced_reason: str | None = None
    reported_nanos: int | None = None
    asked: Any = None
    answered: Any = None


class Recorder:
    """Turn finished calls into events, with the settings of one `FluxGate`, and give them to its sink.

    Args:
        settings: Of that one.
        sink: Where its events go.
        redact: Given each text of captured content, returns what to keep of it; None keeps it as it is.

    Raises:
        ConfigurationError: The price file is not valid, or `redact` cannot be called.

    Concurrency: any thread.
    """

    def __init__(self, settings: Settings, sink: Sink, *, redact: Callable[[str], str] | None = None) -> None:
        if redact is not None and not callable(redact):
            raise ConfigurationError(f"redact: expected a callable, not a {type(redact).__name__}")
        self.settings = settings
        self.sink = sink
        self.price_file = None if settings.price_file is None else pricing.PriceFile(settings.price_file)
        self._redact = redact
        self.provider_of = lru_cache(maxsize=256)(self._provider_of)

    def record(self, event: UsageEvent) -> None:
        """Hand the event to whoever captures, else to the sink. Never raises."""
        if _captures:
            for capture in _captures:
                capture.append(event)
            return
        self.sink.emit(event)

    def kept(self, content: Any) -> str | None:
        """Return captured content as a redacted text of at most `content_max_bytes`; None for nothing. Never raises."""
        if content is None:
            return None
        try:
            plain = content if self._redact is None else _redacted(content, self._redact)
            text = plain if isinstance(plain, str) else _JSON.encode(plain).decode()
        except Exception as error:  # noqa: BLE001  (the user's redact, or a prompt that has no JSON form)
            diagnostics.note("content", f"a call's content was left out: {type(error).__name__} while redacting it")
            return None
        encoded = text.encode("utf-8", "replace")
        limit = self.settings.content_max_bytes
        return text if len(encoded) <= limit else encoded[: limit - 3].decode("utf-8", "ignore") + "…"

    def _provider_of(self, host: str, port: int | None) -> str:
        """Return the provider behind a host: as the settings say, else as the price table knows it."""
        hosts = self.settings.provider_hosts
        return hosts.get(f"{host}:{port}") or hosts.get(host) or pricing.provider_of_host(host)


class Call:
    """One logical call in flight. Whoever makes it ends it, once: later ends change nothing.

    Args:
        recorder: Where its event goes.
        ambient: The frame that it is made under.
        provider: Provider's name, or the host's own name.
        operation: As `UsageEvent.operation_name`.
        api_path: Path below the client's base address; None for a call that is tracked by hand.
        model: The model that is asked for.

    Concurrency: made in one thread, may be ended in another.
    """

    __slots__ = (
        "ambient",
        "api_path",
        "event_id",
        "first_chunk_at",
        "model",
        "occurred_at",
        "operation",
        "provider",
        "recorder",
        "started",
        "stream",
        "tracking",
        "user_parameter",
    )

    def __init__(
        self,
        recorder: Recorder,
        ambient: Ambient,
        *,
        provider: str | None = None,
        operation: str = "other",
        api_path: str | None = None,
        model: str | None = None,
    ) -> None:
        self.recorder = recorder
        self.ambient = ambient
        self.provider = provider
        self.operation = operation
        self.api_path = api_path
        self.model = model
        self.event_id = new_event_id()
        self.occurred_at = datetime.now(UTC)
        self.started = time.perf_counter()
        self.first_chunk_at: float | None = None
        self.stream = False
        self.user_parameter: str | None = None
        self.tracking: Tracking | None = None

    def first_chunk(self) -> None:
        """Note that the first chunk of the answer has come."""
        if self.first_chunk_at is None:
            self.first_chunk_at = time.perf_counter()

    def end(self, outcome: Outcome) -> Tracking:
        """Price the call, count it in its request, record its event, and return what the caller may know.

        Guarantees: exactly one event per call, however often it is ended.
        """
        if self.tracking is not None:
            return self.tracking
        ended = time.perf_counter()
        price = guarded("pricing", self._price, outcome) or _NOT_PRICED
        self.tracking = Tracking(
            status=_status(outcome.status),
            cost=usd(price.cost_nanos),
            cost_nanos=price.cost_nanos,
            tracking_id=self.event_id,
            created_at=self.occurred_at,
            error_message=outcome.error_message,
        )
        latency_ms = (ended - self.started) * 1000
        request = self.ambient.request
        if request is not None:
            request.add(price.cost_nanos, latency_ms)
        self.recorder.record(self._event(outcome, self.tracking.status, price, latency_ms))
        return self.tracking

    def _price(self, outcome: Outcome) -> pricing.Price:
        """Return the cost: by the caller's rates, else the user's price list, else as reported, else as published."""
        usage, rates = outcome.usage, self.ambient.cost_override
        if rates is not None and usage is not None:
            try:
                return self._priced(outcome, usage, pricing.CostOverride.from_mapping(rates), "cost_override")
            except ConfigurationError as error:
                diagnostics.note("cost_override", f"a cost_override is not valid ({error}); the cost is unknown")
                return pricing.Price(None, None, "invalid cost_override")
        own = self.recorder.price_file
        if own is not None and usage is not None:
            for model in filter(None, (outcome.response_model, self.model)):
                if (listed := own.rates(self.provider, model, self.occurred_at)) is not None:
                    return self._priced(outcome, usage, listed, "price_file")
        if outcome.reported_nanos is not None:
            return pricing.Price(outcome.reported_nanos, "provider")
        if usage is None:
            return pricing.Price(None, None, "no usage")
        return self._priced(outcome, usage, None, "")

    def _priced(
        self, outcome: Outcome, usage: TokenUsage, rates: pricing.CostOverride | None, name: str
    ) -> pricing.Price:
        if outcome.unpriced_reason is not None:
            return pricing.Price(None, None, outcome.unpriced_reason)
        price = pricing.Price(None, None, "no model")
        for model in filter(None, (outcome.response_model, self.model)):
            price = pricing.price(
                self.provider,
                model,
                usage,
                at=self.occurred_at,
                service_tier=outcome.service_tier,
                override=rates,
                override_version=name,
            )
            if price.cost_nanos is not None:
                return price
        return price

    def _event(self, outcome: Outcome, status: Status, price: pricing.Price, latency_ms: float) -> UsageEvent:
        ambient = self.ambient.resolved()
        user, user_source = ambient.resolve_user()
        request = ambient.request
        if user is None and self.user_parameter and (request is None or request.sources.admits("parameter")):
            user, user_source = User(self.user_parameter), "parameter"
        settings = self.recorder.settings
        first_chunk_at = self.first_chunk_at
        usage = outcome.usage or _NO_USAGE
        return UsageEvent(
            event_id=self.event_id,
            occurred_at=self.occurred_at,
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
            route=None if request is None else request.route(),
            http_method=None if request is None else request.method(),
            request_id=None if request is None else request.request_id,
            service=settings.service,
            environment=settings.environment,
            status=status,
            http_status=outcome.http_status,
            error_type=outcome.error_type,
            error_message=outcome.error_message,
            latency_ms=latency_ms,
            time_to_first_chunk_ms=None if first_chunk_at is None else (first_chunk_at - self.started) * 1000,
            stream=self.stream,
            retries=outcome.retries,
            usage_source=outcome.usage_source,
            service_tier=outcome.service_tier,
            cost_nanos=price.cost_nanos,
            price_version=price.price_version,
            unpriced_reason=price.reason,
            input_content=self.recorder.kept(outcome.asked),
            output_content=self.recorder.kept(outcome.answered),
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


def _redacted(content: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, dict):
        return {key: _redacted(value, redact) for key, value in content.items()}
    return [_redacted(value, redact) for value in content] if isinstance(content, list | tuple) else content


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


_STATUSES: Final = get_args(Status)
_NOT_PRICED: Final = pricing.Price(None, None, "pricing failed")
_JSON: Final = msgspec.json.Encoder(enc_hook=repr)
_NO_USAGE: Final = TokenUsage()
in_hand: ContextVar[object] = ContextVar("fluxgate_in_hand", default=None)
"""The call that this context is inside of: what is sent to a provider meanwhile is accounted for."""
_captures: list[list[UsageEvent]] = []
_default: dict[str, Any] = {"recorder": None, "factory": None}


@contextmanager
def capturing() -> Iterator[list[UsageEvent]]:
    """Divert every event of the process into a list; several captures at once each get every event."""
    captured: list[UsageEvent] = []
    _captures.append(captured)
    try:
        yield captured
    finally:
        _captures[:] = [other for other in _captures if other is not captured]


def set_default_factory(factory: Callable[[], Recorder]) -> None:
    """Say how to make the default recorder when a call needs one and none was set."""
    _default["factory"] = factory


def set_default(recorder: Recorder | None) -> None:
    """Make `recorder` the one for calls that name no other; None forgets it."""
    _default["recorder"] = recorder


def choose(explicit: Recorder | None, ambient: Ambient, fallback: Recorder | None = None) -> Recorder | None:
    """Return the recorder for a call: the tracker's, else the request's, else `fallback`, else the default.

    None where that one is switched off.
    """
    recorder = explicit
    if recorder is None and ambient.request is not None:
        recorder = ambient.request.sources.recorder
    if recorder is None:
        recorder = fallback or _default["recorder"] or _default["factory"]()
    return recorder if recorder.settings.enabled else None
