"""The global patch of the OpenAI client: its one `request` method, sync and async, and nothing else of its behaviour.

`SyncAPIClient.request` and `AsyncAPIClient.request` are what every resource, helper and SDK on top goes through once
a logical call, retries inside. `_process_response` is passed through too, for status and retries of the last HTTP
response. A subclass that has a `request` of its own (another instrumentation may have put it there) is patched as
well; a nested `request` belongs to the outer call, so no call counts twice.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, Final

from openai import AsyncStream, BaseModel, Stream
from openai._base_client import AsyncAPIClient, SyncAPIClient
from openai._legacy_response import LegacyAPIResponse
from openai._response import BaseAPIResponse

from fluxgate_mw.ambient import learn_user
from fluxgate_mw.errors import InstrumentationError
from fluxgate_mw.openai import derived, unfinished
from fluxgate_mw.openai.calls import OpenAICall
from fluxgate_mw.openai.owners import MARK, VIEW, is_bypassed, marked, owners_of_request, put_back
from fluxgate_mw.openai.passing import Passing
from fluxgate_mw.openai.request import Origin, begin
from fluxgate_mw.openai.told import OURS, is_told, note_response
from fluxgate_mw.openai.tracking import FLUXGATE, register
from fluxgate_mw.openai.uncovered import absent_client, clients, replacements, yields
from fluxgate_mw.recorder import Recorder, guarded, in_hand
from fluxgate_mw.types import HasRecorder
from fluxgate_mw.wrapping import bound

__all__ = ["arequested", "instrument_openai", "requested", "uninstrument_openai"]

_Rest = tuple[tuple[Any, ...], dict[str, Any]]
_Replaced = tuple[type, str, Any, Any]
"""The class, the attribute's name, what was found there (None for nothing) and what is ours."""
_LIBRARY: Final = (SyncAPIClient, AsyncAPIClient)
_ANSWERS: Final = (BaseModel, Stream, AsyncStream, LegacyAPIResponse, BaseAPIResponse)


def requested(send: Callable[..., Any], client: Any, cast_to: Any, options: Any, rest: _Rest, origin: Origin) -> Any:
    """Return what `send(cast_to, options, ...)` returns, or raise what it raises, and record that as a call."""
    arguments, keywords = rest
    call = guarded("openai", begin, client, options, bool(keywords.get("stream")), origin)
    if call is None:
        return send(cast_to, options, *arguments, **keywords)
    outer = in_hand.get()
    try:
        try:
            in_hand.set(call)
            result = send(cast_to, call.options, *arguments, **keywords)
        finally:
            in_hand.set(outer)
    except BaseException as error:
        _failed(call, error)
        raise
    _answered(call, result)
    return result


async def arequested(
    send: Callable[..., Awaitable[Any]], client: Any, cast_to: Any, options: Any, rest: _Rest, origin: Origin
) -> Any:
    """Return what `await send(cast_to, options, ...)` returns, or raise what it raises, and record it."""
    arguments, keywords = rest
    await learn_user()
    call = guarded("openai", begin, client, options, bool(keywords.get("stream")), origin)
    if call is None:
        return await send(cast_to, options, *arguments, **keywords)
    outer = in_hand.get()
    try:
        try:
            in_hand.set(call)
            result = await send(cast_to, call.options, *arguments, **keywords)
        finally:
            if in_hand.get() is call:  # a coroutine may be finalised in another context than it began in
                in_hand.set(outer)
    except BaseException as error:
        _failed(call, error)
        raise
    _answered(call, result)
    return result


def _answered(call: OpenAICall | Passing, result: object) -> None:
    if call.response is None:
        if guarded("openai", is_told, call, result):
            return
        guarded("openai", _patch.mend, call.client)
    try:
        known = guarded("openai", call.answered, result)
    except BaseException as error:  # an interrupt, while we were at work
        guarded("openai", call.failed, error)
        raise
    if known is None and isinstance(call, OpenAICall):
        guarded("openai", call.end)


def _failed(call: OpenAICall | Passing, error: BaseException) -> None:
    try:
        told = guarded("openai", is_told, call, error)
    except BaseException:  # an interrupt, while we were at work
        if call.client is not None:
            guarded("openai", call.failed, error)
        raise
    if not told:
        guarded("openai", call.failed, error)
        if isinstance(call, OpenAICall):
            register(error, call)


class _Patch:
    """What is patched now, and at whose request.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[object, Recorder | None] = {}
        self._replaced: list[_Replaced] = []
        self._still_wrapped: list[_Replaced] = []
        self._helpers: set[type] = set()
        self._clients: set[type] = set()
        self._absent: str | None = None
        self._origin: Origin | None = None

    def __reduce__(self) -> str:
        """Be the patch of any process that a class is sent to by value, with our wrapper of its `request` on it."""
        return "_patch"

    def unlock(self) -> None:
        """Have a lock that is free: in a forked child the thread that may have held it is gone."""
        self._lock = threading.Lock()

    def ask(self, recorder: Recorder | None) -> Callable[[], None]:
        """Patch, if it is not done yet, and return the undo of this request."""
        token = object()
        with self._lock:
            if not self._asked:
                self._restore()
                with ExitStack() as midway:
                    midway.callback(self._restore)
                    self._install()
                    midway.pop_all()
            self._asked[token] = recorder
            self._choose_origin()
        return functools.partial(self._withdraw, token)

    def clear(self) -> None:
        """Take every request back."""
        with self._lock:
            self._asked.clear()
            self._choose_origin()
            self._restore()

    def _withdraw(self, token: object) -> None:
        with self._lock:
            if token not in self._asked:
                return
            del self._asked[token]
            self._choose_origin()
            if not self._asked:
                self._restore()

    def _choose_origin(self) -> None:
        recorders = [recorder for recorder in self._asked.values() if recorder is not None]
        self._origin = Origin(fallback=recorders[-1] if recorders else None, last=True) if self._asked else None

    def _install(self) -> None:
        for client in _LIBRARY:
            if not callable(client.__dict__.get("request")):
                raise InstrumentationError(f"openai's {client.__name__} has no request method; nothing was patched")
        for client, wrap in ((SyncAPIClient, self._sync_request), (AsyncAPIClient, self._async_request)):
            for owner in dict.fromkeys(owners_of_request(client)):
                self._replace(owner, "request", wrap(owner, owner.__dict__["request"]))
            if callable(processes := client.__dict__.get("_process_response")):
                self._replace(client, "_process_response", self._process_response(client, processes))
        for answer in _ANSWERS:
            if "fluxgate" not in answer.__dict__:
                self._replace(answer, "fluxgate", FLUXGATE)
        for owner, name, replacement in (*replacements(self._replace), *derived.parsers()):
            self._replace(owner, name, replacement)
        self._cover_helpers()
        guarded("uncovered", self._cover_clients)

    def _cover_clients(self) -> None:
        for owner, name, replacement in clients(self._clients):
            self._clients.add(owner)
            self._replace(owner, name, replacement)
        self._absent = absent_client(self._clients)

    def _cover_late_client(self) -> None:
        """Cover the HTTP client that the application has imported since."""
        with self._lock:
            if self._asked:
                self._cover_clients()

    def _cover_helpers(self) -> None:
        """Follow what stream helpers make of a stream; the client imports them when they are first used."""
        for owner, name, replacement in derived.helpers(self._helpers):
            self._helpers.add(owner)
            self._replace(owner, name, replacement)

    def _cover_late_helpers(self) -> None:
        if len(self._helpers) < derived.HELPERS:
            with self._lock:
                if self._asked:
                    self._cover_helpers()

    def mend(self, client: Any) -> None:
        """Put ours back where another instrumentation has taken it away with its own, or in place of its own."""
        kind = type(client)
        with self._lock:
            if not self._asked or hasattr(kind, VIEW):
                return
            is_sync = isinstance(client, SyncAPIClient)
            wraps = {
                "request": self._sync_request if is_sync else self._async_request,
                "_process_response": self._process_response,
            }
            for name, wrap in wraps.items():
                owner = next(base for base in kind.__mro__ if name in base.__dict__)
                if not hasattr(owner.__dict__[name], MARK):
                    self._replaced = [entry for entry in self._replaced if entry[:2] != (owner, name)]
                    self._replace(owner, name, wrap(owner, owner.__dict__[name]))

    def _replace(self, owner: type, name: str, replacement: Any) -> None:
        self._replaced.append((owner, name, owner.__dict__.get(name), replacement))
        setattr(owner, name, replacement)

    def _restore(self) -> None:
        """Put back the very objects found.

        Where somebody has wrapped ours since, ours passes through; once he is gone the next call puts it back.
        """
        entries = (*self._still_wrapped, *reversed(self._replaced))
        self._still_wrapped = [entry for entry in entries if not put_back(*entry)]
        self._replaced.clear()
        self._helpers.clear()
        self._clients.clear()
        unfinished.end_all(tracked=False)

    def settle(self, client: Any, name: str, ours: Any, original: Any) -> None:
        """Put back what somebody had wrapped when the patch was taken back, where he is gone now.

        Whoever found ours on a class may also have left it on another, that inherits it.
        """
        with self._lock:
            self._still_wrapped = [entry for entry in self._still_wrapped if not put_back(*entry)]
            for base in type(client).__mro__:
                put_back(base, name, original, ours)

    def _origin_here(self, *, is_last: bool, streams: bool) -> Origin | None:
        """Return the origin of a call that comes to one of ours, with what it may need covered; None where none is on.

        Args:
            is_last: Of `Origin`: no `request` of a subclass is still to come.
            streams: Its answer will be a stream.
        """
        origin = self._origin
        if origin is None:
            return None
        if self._absent in sys.modules:
            guarded("uncovered", self._cover_late_client)
        if streams:
            guarded("openai", self._cover_late_helpers)
        return origin if is_last else Origin(fallback=origin.fallback)

    def _sync_request(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        is_last = owner in _LIBRARY

        @functools.wraps(original)
        def request(client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            origin = self._origin_here(is_last=is_last, streams=bool(kwargs.get("stream")))
            if origin is None:
                guarded("openai", self.settle, client, "request", request, original)
                return bound(original, client)(cast_to, options, *args, **kwargs)
            return requested(bound(original, client), client, cast_to, options, (args, kwargs), origin)

        return marked(request)

    def _async_request(self, owner: type, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        is_last = owner in _LIBRARY

        @functools.wraps(original)
        async def request(client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            origin = self._origin_here(is_last=is_last, streams=bool(kwargs.get("stream")))
            if origin is None:
                guarded("openai", self.settle, client, "request", request, original)
                return await bound(original, client)(cast_to, options, *args, **kwargs)
            return await arequested(bound(original, client), client, cast_to, options, (args, kwargs), origin)

        return marked(request)

    def _process_response(self, _owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the client's method, sync or async alike, telling the running call of its response."""

        @functools.wraps(original)
        def process_response(client: Any, *args: Any, **kwargs: Any) -> Any:
            origin = self._origin
            if origin is None:
                guarded("openai", self.settle, client, "_process_response", process_response, original)
                return bound(original, client)(*args, **kwargs)
            call = in_hand.get()
            if not isinstance(call, OURS) and (call is not None or is_bypassed(client)):
                return self._passed_by(bound(original, client), client, args, kwargs, origin)
            note_response(call, kwargs)
            return bound(original, client)(*args, **kwargs)

        return marked(yields(process_response, original))

    def _passed_by(
        self, process: Callable[..., Any], client: Any, args: Any, kwargs: dict[str, Any], origin: Origin
    ) -> Any:
        """Record a call whose `request` did not pass ours: an undo took it away, or somebody holds what was there."""
        guarded("openai", self.mend, client)
        call = guarded("openai", begin, client, kwargs.get("options"), bool(kwargs.get("stream")), origin)
        if call is None:
            return process(*args, **kwargs)
        call.response, call.retries = kwargs.get("response"), kwargs.get("retries_taken", 0)
        if isinstance(call, OpenAICall):
            call.hide_usage = False
        try:
            result = process(*args, **kwargs)
        except BaseException as error:
            _failed(call, error)
            raise
        if inspect.isawaitable(result):
            return _aanswered(call, result)
        _answered(call, result)
        return result


async def _aanswered(call: OpenAICall | Passing, coming: Awaitable[Any]) -> Any:
    try:
        result = await coming
    except BaseException as error:
        _failed(call, error)
        raise
    _answered(call, result)
    return result


_patch = _Patch()
os.register_at_fork(after_in_child=_patch.unlock)


def instrument_openai(fg: HasRecorder | None = None) -> Callable[[], None]:
    """Record every call of every OpenAI client in this process; clients made before too.

    Args:
        fg: Where calls go that neither a tracker nor a request's middleware claims; None = the default at the time.

    Returns:
        The undo of this request. The last one restores the very objects found; calling it again does nothing.

    Raises:
        InstrumentationError: The installed `openai` is of unknown shape; nothing was patched.

    Guarantees: idempotent; the caller of the client gets, and is raised, what he would get without us.

    Concurrency: any thread.
    """
    return _patch.ask(None if fg is None else fg.recorder)


def uninstrument_openai() -> None:
    """Remove the global patch, whoever asked for it; what they hold to undo it does nothing any more."""
    _patch.clear()
