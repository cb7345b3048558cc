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
from fluxgate_mw.wrapping import bound

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
        yield base, "__init_subclass__", classmethod(functools.partial(_defined, replace, base))


def clients(known: Collection[type]) -> Iterator[tuple[type, str, Any]]:
    """Yield as much for those of the HTTP clients that are not known yet, where the application has imported them.

    What stands in a library's module under the name of its client may be a subclass that somebody has put there.
    """
    for module, name in _CLIENTS:
        client = getattr(sys.modules.get(module), name, None)
        for owner in client.__mro__ if isinstance(client, type) else ():
            if _library(owner) == module and "send" in owner.__dict__ and owner not in known:
                yield owner, "send", _send(owner.__dict__["send"])


def absent_client(known: Collection[type]) -> str | None:
    """Return the module of an HTTP client that is not there yet, as far as is known; None where all are.

    openai 3 has httpx2, what went before and most other SDKs httpx, which may be imported at any time.
    """
    covered = {*map(_library, known)}
    absent = (module for module, name in _CLIENTS if not hasattr(sys.modules.get(module), name))
    return next((module for module in absent if module not in covered), None)


def _library(client: type) -> str:
    return client.__module__.partition(".")[0]


def yields(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return our wrapper: who takes the outermost one for his own, as ddtrace's undo does, gets what is below his."""
    vars(ours)["__wrapped__"] = getattr(original, "__wrapped__", original)
    return ours


def _all_below(base: type) -> Iterator[type]:
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _all_below(subclass)


def _defined(replace: Replace, base: Any, resource: type, **arguments: Any) -> None:
    super(base, resource).__init_subclass__(**arguments)
    if "connect" in resource.__dict__:
        replace(resource, "connect", _connect(resource.__dict__["connect"]))


def _connect(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def connect(resource: Any, *args: Any, **kwargs: Any) -> Any:
        diagnostics.note("not_covered_websocket", "a websocket to the provider: what it uses is not recorded")
        return bound(original, resource)(*args, **kwargs)

    return yields(connect, original)


def _send(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the HTTP client's method, telling the call in hand what is sent; else that is looked at."""
    if iscoroutinefunction(original):
        return _asend(original)

    @functools.wraps(original)
    def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _sent(request)
        return bound(original, client)(request, *args, **kwargs)

    return yields(send, original)


def _asend(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return as much of an async one: a coroutine function again, as `unittest.mock` and others look for."""

    @functools.wraps(original)
    async def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _sent(request)
        return await bound(original, client)(request, *args, **kwargs)

    return yields(send, original)


def _sent(request: Any) -> None:
    """Tell the call in hand what is sent for it; look at what is sent for none."""
    call = in_hand.get()
    if isinstance(call, OpenAICall):
        call.request = request
    elif call is None:
        guarded("uncovered", _look, request)


def _look(request: Any) -> None:
    url = request.url
    if request.method != "POST" or not url.path.endswith(_BILLED) or provider_of_host(url.host) == url.host:
        return
    diagnostics.note(
        "not_covered_host", "a provider was called without the openai client; what that uses is not recorded"
    )
