"""Where finished calls go: one recorder a `FluxGate`, with its settings, its prices and its sink.

Here also stand the process-wide slot of the default recorder, which the composition root fills, the captures of
`testing`, the call that is in hand, what ends open calls with the process, and the one guard that keeps our own
exceptions from the host application.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from threading import current_thread, main_thread
from typing import Any, ParamSpec, TypeVar

import msgspec

from fluxgate_mw import diagnostics, pricing
from fluxgate_mw.ambient import Ambient
from fluxgate_mw.diagnostics import safe_message
from fluxgate_mw.errors import ConfigurationError, FluxGateError
from fluxgate_mw.event import TokenUsage, UsageEvent, spelled_out
from fluxgate_mw.semconv import Status, UsageSource
from fluxgate_mw.settings import Settings
from fluxgate_mw.types import Pending, Sink

__all__ = [
    "Outcome",
    "Recorder",
    "at_first_open",
    "at_process_end",
    "capturing",
    "choose",
    "end_open_calls",
    "finished",
    "guarded",
    "in_hand",
    "opened",
    "safe_message",
    "set_default",
    "set_default_factory",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def guarded(stage: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """Return what `function` returns; where it raises, count and log our bug and return None.

    The log names the error's class and place but not its message, which may quote a prompt.

    Guarantees: no `Exception` leaves it; cancellation, `KeyboardInterrupt` and `SystemExit` do, and whatever else a
    signal handler raises meanwhile: the time limits of celery and RQ are an `Exception`.
    """
    try:
        return function(*args, **kwargs)
    except FluxGateError as error:
        diagnostics.note(f"failed_{stage}", f"nothing is recorded: {error}", level=logging.ERROR)
        return None
    except Exception as error:
        if _is_signalled(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        place = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames))  # noqa: PTH119
        diagnostics.note(
            f"bug_{stage}", f"fluxgate-mw failed in {stage}: {type(error).__name__} at {place}", level=logging.ERROR
        )
        return None


def _is_signalled(error: Exception) -> bool:
    """Say whether a signal handler of the host has raised this, which interrupted us by chance."""
    if current_thread() is not main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {_code_of(handler) for handler in handlers if callable(handler)} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: Any) -> object:
    """Return the code that a handler runs first: a function's, a method's, a partial's, or an object's `__call__`."""
    while isinstance(handler, partial):
        handler = handler.func
    called = handler if hasattr(handler, "__code__") or hasattr(handler, "__func__") else type(handler).__call__
    return getattr(called, "__code__", None)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, as the one who made it saw it. Fields as in `UsageEvent`; None = not known.

    `reported_nanos` is what the provider says that it cost; `unpriced_reason` says why its usage cannot be priced;
    `fee` is what is billed beside the tokens, which leaves the cost unknown unless the user has rates of his own;
    `regional` says that it was sent to the endpoint of a region, where some models cost more.
    `asked` (as JSON) and `answered` (as plain data) are given only where content is captured.
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
    fee: str | None = None
    regional: bool = False
    reported_nanos: int | None = None
    asked: bytes | None = None
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
        _ = pricing.price  # imported now: a fork while the delivery's thread imports hangs the child
        self.provider_of = lru_cache(maxsize=256)(self._provider_of)

    def record(self, event: UsageEvent) -> None:
        """Hand the event to whoever captures, else to the sink. Never raises."""
        captures = tuple(_captures)  # one may end meanwhile, in another thread
        for capture in captures:
            capture.append(event)
        if not captures:
            self.sink.emit(event)

    def take(self, pending: Pending, *, now: bool) -> None:
        """Hand on an event that is made when it is delivered.

        It is made at once for `now`, where somebody captures events, and for a sink that has no `defer`; where an
        interrupt has kept it from that, at its delivery.
        """
        defer = getattr(self.sink, "defer", None)
        if not (now or _captures or defer is None):
            defer(pending)
            return
        try:
            event = pending.made()
        except BaseException:
            if defer is not None and not _captures:
                defer(pending)
            raise
        self.record(event)

    def kept(self, content: Any) -> str | None:
        """Return captured content as a redacted text of at most `content_max_bytes`; None for nothing.

        Guarantees: raises nothing but what ends the process, in its main thread.
        """
        if content is None:
            return None
        try:
            text = self._as_text(content)
        except BaseException as error:
            diagnostics.note("content", f"a call's content was left out: {type(error).__name__} while redacting it")
            if isinstance(error, KeyboardInterrupt | SystemExit) and current_thread() is main_thread():
                raise
            return None
        encoded = text.encode("utf-8", "replace")
        limit = self.settings.content_max_bytes
        return text if len(encoded) <= limit else encoded[: limit - 3].decode("utf-8", "ignore") + "…"

    def _as_text(self, content: Any) -> str:
        """Return JSON (`bytes`), a text, or plain data as a text, each string in it redacted."""
        if isinstance(content, bytes) and self._redact is None:
            return content.decode()
        plain = _redacted(msgspec.json.decode(content) if isinstance(content, bytes) else content, self._redact)
        return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()

    def _provider_of(self, host: str, port: int | None) -> str:
        """Return the provider behind a host: as the settings say, else as the price table knows it."""
        hosts = self.settings.provider_hosts
        return hosts.get(f"{host}:{port}") or hosts.get(host) or pricing.provider_of_host(host)


def _redacted(content: Any, redact: Callable[[str], str] | None) -> Any:
    if isinstance(content, str):
        text = spelled_out(content)
        return text if redact is None else _given_back(redact(text))
    if isinstance(content, dict):
        return {key: _redacted(value, redact) for key, value in content.items()}
    return [_redacted(value, redact) for value in content] if isinstance(content, list | tuple) else content


def _given_back(text: Any) -> Any:
    return spelled_out(text) if isinstance(text, str) else text


in_hand: ContextVar[object] = ContextVar("fluxgate_in_hand", default=None)
"""The call that this context is inside of: what is sent to a provider meanwhile is accounted for."""
at_process_end: list[Callable[[], None]] = []
"""What ends the calls that are still open when the process ends, before its last events are delivered."""

at_first_open: list[Callable[[], None]] = []
"""What sees to it that a process ends its open calls, asked in each one that opens any; it takes no lock."""
_opened: list[bool] = []
"""Empty until this process, which may be a forked child, has opened a call that outlives its `request`."""
os.register_at_fork(after_in_child=_opened.clear)


def opened() -> None:
    """Note that a call stays open though the client has returned: it has to end with this process at the latest."""
    if not _opened:
        _opened.append(True)
        for begin in at_first_open:
            begin()


def end_open_calls() -> None:
    """End the calls that are still open, where the process is about to end. Never raises."""
    for end in at_process_end:
        guarded("exit", end)


async def finished(recorder: Recorder | None) -> None:
    """End the calls that are still open and wait, no longer than a shutdown may, until their events are accepted.

    Args:
        recorder: None = the default one, where there is one.

    Guarantees: raises nothing but what ends the task.
    """
    end_open_calls()
    flush = getattr(getattr(recorder or _default["recorder"], "sink", None), "aflush", None)
    if flush is None:
        return
    try:
        await flush()
    except Exception as error:  # noqa: BLE001  (a server's shutdown goes on, whatever fails of ours)
        diagnostics.note("failed_shutdown", f"what is queued is delivered later: {type(error).__name__}")


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
