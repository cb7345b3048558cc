"""What is billed but does not pass the patch: seen and counted as `not_covered_...`, never recorded as a call.

Websockets have no `request`; a program that posts to a provider by itself has no client of `openai`. Both are let
through as they are. The counts are in `FluxGate.statistics().notes`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator
from inspect import iscoroutinefunction
from typing import Any, Final

from openai._resource import AsyncAPIResource, SyncAPIResource

from fluxgate_mw import diagnostics
from fluxgate_mw.openai.calls import OpenAICall
from fluxgate_mw.openai.hosts import OPERATIONS
from fluxgate_mw.pricing import provider_of_host
from fluxgate_mw.recorder import guarded, in_hand

__all__ = ["absent_client", "clients", "replacements", "yields"]

Replace = Callable[[type, str, Any], None]

_BILLED: Final = (*OPERATIONS, "/messages", ":generateContent", ":streamGenerateContent")
_CLIENTS: Final = (("httpx", "Client"), ("httpx", "AsyncClient"), ("httpx2", "Client"), ("httpx2", "AsyncClient"))


def replacements(replace: Replace) -> Iterator[tuple[type, str, Any]]:
    """Yield the class attributes to put in place: owner, name, replacement.

    Args:
        replace: Called later for classes that are defined later; the client imports its resources when first used.
    """
    for base in (SyncAPIResource, AsyncAPIResource):
        for resource in _all_below(base):
            if "connect" in resource.__dict__:
                yield resource, "connect", _connect(resource.__dict__["connect"])
        yield base, "__init_subclass__", classmethod(functools.partial(_defined, replace))


def clients(known: Collection[type]) -> Iterator[tuple[type, str, Any]]:
    """Yield as much for those of the HTTP clients that are not known yet, where the application has imported them."""
    for module, name in _CLIENTS:
        client = getattr(sys.modules.get(module), name, None)
        if client is not None and client not in known:
            yield client, "send", _send(client.__dict__["send"])


def absent_client(known: Collection[type]) -> str | None:
    """Return the module of an HTTP client that is not among those that are known; None where all are.

    openai 3 has httpx2, what went before and most other SDKs httpx, which may be imported at any time.
    """
    covered = {client.__module__.partition(".")[0] for client in known}
    return next((module for module, _ in _CLIENTS if module not in covered), None)


def yields(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return our wrapper: who takes the outermost one for his own, as ddtrace's undo does, gets what is below his."""
    vars(ours)["__wrapped__"] = getattr(original, "__wrapped__", original)
    return ours


def _all_below(base: type) -> Iterator[type]:
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _all_below(subclass)


def _defined(replace: Replace, resource: type, **_: Any) -> None:
    if "connect" in resource.__dict__:
        replace(resource, "connect", _connect(resource.__dict__["connect"]))


def _connect(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        diagnostics.note("not_covered_websocket", "a websocket to the provider: what it uses is not recorded")
        return original(*args, **kwargs)

    return yields(connect, original)


def _send(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the HTTP client's method, looking at what is sent outside of any call."""
    if iscoroutinefunction(original):
        return _asend(original)

    @functools.wraps(original)
    def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = in_hand.get()
        if isinstance(call, OpenAICall):
            call.request = request
        elif call is None:
            guarded("uncovered", _look, request)
        return original(client, request, *args, **kwargs)

    return yields(send, original)


def _asend(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return as much of an async one: a coroutine function again, as `unittest.mock` and others look for."""

    @functools.wraps(original)
    async def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = in_hand.get()
        if isinstance(call, OpenAICall):
            call.request = request
        elif call is None:
            guarded("uncovered", _look, request)
        return await original(client, request, *args, **kwargs)

    return yields(send, original)


def _look(request: Any) -> None:
    url = request.url
    if request.method != "POST" or not url.path.endswith(_BILLED) or provider_of_host(url.host) == url.host:
        return
    diagnostics.note(
        "not_covered_host", "a provider was called without the openai client; what that uses is not recorded"
    )
