"""Track a call to any provider by hand: user and feature from the ambient context, latency and errors by themselves."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from types import TracebackType
from typing import Any, Final, TypeVar, cast

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import get, learn_user
from fluxgate_mw.call import Call, is_given_up
from fluxgate_mw.event import TokenUsage, Tracking
from fluxgate_mw.recorder import Outcome, choose, guarded, in_hand, safe_message
from fluxgate_mw.semconv import Status
from fluxgate_mw.wrapping import NOTHING_AROUND, wrap

__all__ = ["TrackedCall", "track"]

_F = TypeVar("_F", bound=Callable[..., Any])
MOST: Final = 2**53
"""A count past this is no count: JSON numbers are exact only so far."""


class TrackedCall:
    """One call while it is tracked. Report its usage with `usage`; the rest is measured.

    Concurrency: one task or thread.
    """

    __slots__ = ("_call", "_ended", "_outcome", "_outer")

    def __init__(self) -> None:
        self._call: Call | None = guarded("track", _begin)
        self._ended = False
        self._outer = _still_open(in_hand.get())
        in_hand.set(self)
        self._outcome = Outcome()

    def usage(
        self,
        *,
        provider: str,
        model: str,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cache_read_input_tokens: int | None = None,
        cache_creation_input_tokens: int | None = None,
        reasoning_output_tokens: int | None = None,
        status: Status = "SUCCESS",
    ) -> None:
        """Say what the call used, before its block ends; a second report replaces the first.

        What is said after the end is counted and logged, and changes nothing.

        Where only the input or only the output is told, and the published price has a rate for the other one, the cost
        is unknown.

        Args:
            provider: `anthropic`, `google`, ..., as the price table spells it.
            model: The model that answered.
            input_tokens: Total; includes what was read from and written to a cache, whatever the provider's habit.
            output_tokens: Total; includes reasoning.
            cache_read_input_tokens: Part of `input_tokens`.
            cache_creation_input_tokens: Part of `input_tokens`.
            reasoning_output_tokens: Part of `output_tokens`.
            status: How the call ended, where no exception says it.

        Guarantees: never raises for a count: one that is no whole number from 0 to 2^53 is unknown, counted and logged,
        and so is the cost then.
        """
        call = self._call
        if call is None:
            return
        if self._ended:
            diagnostics.note("track_usage_late", "track(): usage was told after its block had ended; it is not counted")
            return
        call.provider, call.model = provider, model
        told = (
            input_tokens,
            output_tokens,
            cache_read_input_tokens,
            cache_creation_input_tokens,
            reasoning_output_tokens,
        )
        counts = tuple(map(_count, told))
        usage = TokenUsage(*counts)
        known = usage != TokenUsage()
        rejected = any(given is not None and count is None for given, count in zip(told, counts, strict=True))
        self._outcome = Outcome(
            status=status,
            response_model=model,
            usage=usage if known else None,
            usage_source="provider" if known else "none",
            unpriced_reason="the usage is incomplete" if rejected else None,
        )

    @property
    def tracking(self) -> Tracking | None:
        """Status, cost and the id of the event; None until the call has ended."""
        return None if self._call is None else self._call.tracking

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        in_hand.set(_still_open(in_hand.get()))
        if self._call is None:
            return
        outcome = self._outcome
        if error is not None and is_given_up(error):
            outcome = msgspec.structs.replace(outcome, status="CANCELLED", error_type=type(error).__name__)
        elif error is not None:
            text = guarded("text", str, error)
            message = None if text is None else safe_message(text)
            outcome = msgspec.structs.replace(
                outcome, status="ERROR", error_type=type(error).__name__, error_message=message
            )
        self._call.end(outcome)


def _still_open(call: object) -> object:
    """Return the innermost call from `call` outwards that has not ended: blocks may be left in any order."""
    while isinstance(call, TrackedCall) and call._ended:  # noqa: SLF001
        call = call._outer  # noqa: SLF001
    return call


class track:  # noqa: N801  (used as a context manager and as a decorator)
    """Track one call of a provider that is not patched: `with`, `async with`, or a decorator.

    User and feature come from the ambient context; latency is measured; an exception is recorded and passes. Without
    `usage` and without an exception there is one event with `usage_source="none"`.

    Concurrency: one instance may be entered again, and by many tasks and threads at once.

    Example:
        >>> from fluxgate_mw.testing import capture_events
        >>> with capture_events() as events, track() as call:
        ...     call.usage(provider="anthropic", model="claude-3-5-haiku-latest", input_tokens=9, output_tokens=3)
        >>> events[0].input_tokens, events[0].status
        (9, 'SUCCESS')
    """

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[TrackedCall, None] = {}

    def __enter__(self) -> TrackedCall:
        call = TrackedCall()
        self._open[call] = None
        return call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        guarded("track", self._leave, error)

    def _leave(self, error: BaseException | None) -> None:
        """End the innermost call that this context entered here; left in another context, the last that is open."""
        call: Any = in_hand.get()
        while call is not None and call not in self._open:
            call = getattr(call, "_outer", None)
        if call is None:
            call = next(reversed(self._open))
        del self._open[call]
        call._end(error)  # noqa: SLF001

    async def __aenter__(self) -> TrackedCall:
        await learn_user()
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, target: _F) -> _F:
        """Return the function with each of its calls tracked; it keeps its signature and its kind.

        A call of a generator lasts until the generator ends. Where a plain function returns a coroutine or a generator,
        the call is that one's.
        """
        return cast("_F", wrap(target, _Tracked()))


class _Tracked:
    """Around a decorated callable: one call, from its beginning to its end."""

    __slots__ = ()

    def call(self) -> track:
        return track()

    def steps(self) -> tuple[track, Any]:
        return track(), NOTHING_AROUND

    def postponed(self, entered: TrackedCall) -> None:
        entered._call = None  # noqa: SLF001


def _begin() -> Call | None:
    ambient = get()
    recorder = choose(None, ambient)
    return None if recorder is None else Call(recorder, ambient, operation="chat")


def _count(value: object) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if (whole or (isinstance(value, float) and value.is_integer())) and 0 <= value <= MOST:  # type: ignore[operator]
        return int(value)  # type: ignore[call-overload, no-any-return]
    diagnostics.note("track_usage", "track(): a token count is no whole number from 0 to 2^53; it is taken as unknown")
    return None
