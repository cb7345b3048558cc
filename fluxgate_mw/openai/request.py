"""From the arguments of the client's one `request` method to the call that it starts, for every resource alike.

The caller's arguments are never changed: where usage is asked for on his behalf, that is on a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec
import openai
from openai._base_client import SyncAPIClient

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import Ambient, get
from fluxgate_mw.openai import unfinished
from fluxgate_mw.openai.calls import OpenAICall
from fluxgate_mw.openai.hosts import OPERATIONS, asks_for_usage, operation_of, uncovered_kind
from fluxgate_mw.openai.passing import Passing, Retrieval
from fluxgate_mw.recorder import Recorder, choose, in_hand

__all__ = ["Origin", "begin"]

_AZURE_V1: Final = "/openai/v1"
_NO_BODY: Final[Mapping[str, Any]] = {}
_PLAIN: Final = frozenset({SyncAPIClient.base_url, openai.OpenAI.base_url, openai.AsyncOpenAI.base_url})
"""Properties that return `_base_url`; those of openai 3 import a module first, each time."""


_sent_in: Final[ContextVar[object]] = ContextVar("fluxgate_sent_in", default=None)
"""See `OpenAICall.sent_in`."""


class _OnBehalf(dict[str, Any]):
    """Stream options that ask for usage on the caller's behalf, known as such by whoever they are handed on to.

    Args:
        own: The caller's own.
    """

    def __init__(self, own: Mapping[str, Any] | None) -> None:
        super().__init__({**(own or {}), "include_usage": True})
        self.own = own


class Origin(msgspec.Struct, frozen=True):
    """Where calls are said to come from: the explicit tracker's recorder and frame, and the patch's own recorder.

    None leaves it to the ambient context and to the default. `last` says that no wrapper of ours is asked after this
    one: what it asks goes out, where a subclass's own `request` may also ask another client, or several times.
    """

    recorder: Recorder | None = None
    ambient: Ambient | None = None
    fallback: Recorder | None = None
    last: bool = False


def begin(client: Any, options: Any, stream: bool, origin: Origin) -> OpenAICall | Passing | None:  # noqa: FBT001
    """Return the call that a `request` starts, or goes on with; None where there is nothing to follow.

    Args:
        client: An `OpenAI` client of any kind.
        options: The `FinalRequestOptions` that it was given; never changed.
        stream: The caller asked for a stream.
        origin: Who asks.
    """
    outer = in_hand.get()
    if outer is None or not isinstance(outer, OpenAICall | Passing):
        return _begun(client, options, stream, origin)
    if outer.client is client and not _is_another(outer, options):
        return _sent(outer, options) if origin.last else None
    call = _begun(client, options, stream, _handed_on(outer, options, origin))
    if isinstance(call, OpenAICall) and isinstance(outer, OpenAICall) and outer.api_path == call.api_path:
        outer.inner = call
    return call or Passing(client, options)  # what is got inside of a call is not that call's answer


def _begun(client: Any, options: Any, stream: bool, origin: Origin) -> OpenAICall | Passing | None:  # noqa: FBT001
    """Return what follows a request that is not sent for a call of this same client."""
    url = path = options.url
    operation = OPERATIONS.get(url)
    if operation is None or options.method != "post":
        operation, path = _seen(path, options)
    if operation is None:
        return _no_call(client, path, options)
    ambient = origin.ambient or get()
    chosen = choose(origin.recorder, ambient, origin.fallback)
    if chosen is None:
        return Passing(client, options)
    body = _body_of(options)
    call = OpenAICall(
        chosen,
        ambient,
        operation=operation,
        api_path=path,
        model=_text(body.get("model")),
        stream=stream,
        user_parameter=_text(body.get("user")),
        client=client,
        body=body,
        options=options,
        base_url=client._base_url if type(client).base_url in _PLAIN else client.base_url,  # noqa: SLF001
        azure="_azure_endpoint" in client.__dict__,
        tracked=origin.ambient is not None,
        outside=not origin.last,
    )
    if path is not url:
        call.base_url = _address(call.base_url, url)
    if chosen.settings.capture_content:
        call.capture()
    if operation == "batch":
        diagnostics.note("not_covered_batch_results", "a batch was created; what its requests use is not recorded")
    if stream:
        _ask_for_usage(call, options, body)
    return call


def _is_another(outer: OpenAICall | Passing, options: Any) -> bool:
    """Say whether a request is not the one that a call now sends: made in a hook or transport of that, or beside it.

    Of that one there may be copies. Before it is sent, a subclass's own `request` may change the body, or ask for
    something else.
    """
    if not isinstance(outer, OpenAICall):
        return False
    known = outer.options
    if (options.url, options.method) != (known.url, known.method):
        return True
    if outer.outside:
        return False
    return options.json_data is not known.json_data or (
        outer.sent_in is not None and _sent_in.get() is not outer.sent_in
    )


def _sent(outer: OpenAICall | Passing, options: Any) -> OpenAICall | None:
    """Return the call that the client now sends, where a wrapper further out began it; None where this one did."""
    if not isinstance(outer, OpenAICall) or not outer.outside:
        return None
    outer.outside, outer.options, outer.sent_in = False, options, object()
    _sent_in.set(outer.sent_in)
    if outer.stream:
        _ask_for_usage(outer, options, _body_of(options))
    return outer


def _handed_on(outer: OpenAICall | Passing, options: Any, origin: Origin) -> Origin:
    """Return the outer call's own origin, where a client hands on to another what it was asked."""
    if isinstance(outer, OpenAICall) and outer.options is options and origin.ambient is None:
        return Origin(outer.recorder, outer.ambient if outer.tracked else None, origin.fallback, origin.last)
    return origin


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _no_call(client: Any, path: str, options: Any) -> Passing | None:
    """Return what follows a request that is no call: what may bring a background create's answer, or a POST."""
    if unfinished.any_open() and "/responses/" in f"/{path}":
        return Retrieval(client, options)
    return Passing(client, options) if options.method.lower() == "post" else None


def _address(base_url: Any, url: str) -> Any:
    """Return the address that a request by hand goes to: a whole one is its own."""
    return type(base_url)(url) if url.startswith(("http://", "https://")) else base_url


def _seen(url: str, options: Any) -> tuple[str | None, str]:
    """Return the operation that a request is, and the path below the base address; count what is billed and is none."""
    path = url.partition("?")[0]
    if options.method.lower() != "post":
        return None, path
    known = operation_of(path)
    if known is not None:
        return known
    kind = uncovered_kind(path)
    if kind is not None:
        diagnostics.note(kind, f"{kind.removeprefix('not_covered_')}: seen, but what it uses is not recorded")
    return None, path


def _ask_for_usage(call: OpenAICall, options: Any, body: Mapping[str, Any]) -> None:
    """Ask for a stream's usage on the caller's behalf, on a copy, where its provider is known to accept that.

    Where a client that handed this on asked already, its own provider did: this one is asked, or not, by its own.
    """
    if not body:
        return
    accepted = asks_for_usage(call.provider_name(), call.api_path or "", _api_version(call.client, call.base_url))
    asked = body.get("stream_options")
    if isinstance(asked, _OnBehalf):
        call.hide_usage = accepted
        if not accepted:
            call.options = _with_stream_options(options, asked.own)
    elif accepted and isinstance(asked, Mapping | None) and (not asked or asked.get("include_usage") is None):
        call.hide_usage = True
        call.options = _with_stream_options(options, _OnBehalf(asked))


def _api_version(client: Any, base_url: Any) -> str | None:
    """Return Azure's API version; `v1` where the address that a plain client calls says so.

    Source: https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle (read 2026-11).
    """
    version: str | None = getattr(client, "_api_version", None)
    return "v1" if version is None and _AZURE_V1 in base_url.path else version


def _body_of(options: Any) -> Mapping[str, Any]:
    body = options.json_data
    if type(body) is not dict and not isinstance(body, Mapping):
        body = _NO_BODY
    extra = getattr(options, "extra_json", None)
    return {**body, **extra} if extra and isinstance(extra, Mapping) else body


def _with_stream_options(options: Any, stream_options: Any) -> Any:
    """Return a copy that sends these; None sends none."""
    copied = options.model_copy() if hasattr(options, "model_copy") else options.copy()
    extra = getattr(options, "extra_json", None)
    beside = isinstance(extra, Mapping) and (options.json_data is None or "stream_options" in extra)
    place = "extra_json" if beside else "json_data"
    given = {**getattr(options, place), "stream_options": stream_options}
    if stream_options is None:
        del given["stream_options"]
    setattr(copied, place, given)
    return copied
