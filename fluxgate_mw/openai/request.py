"""From the arguments of the client's one `request` method to the call that it starts, for every resource alike.

The caller's arguments are never changed: where usage is asked for on his behalf, that is on a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import openai
from openai._base_client import SyncAPIClient

from fluxgate_mw import diagnostics
from fluxgate_mw.ambient import Ambient, get
from fluxgate_mw.openai import unfinished
from fluxgate_mw.openai.calls import OpenAICall, Retrieval
from fluxgate_mw.openai.hosts import OPERATIONS, asks_for_usage, operation_of, uncovered_kind
from fluxgate_mw.recorder import Recorder, choose, in_hand

__all__ = ["Origin", "begin"]

_AZURE_V1: Final = "/openai/v1"
_NO_BODY: Final[Mapping[str, Any]] = {}
_PLAIN: Final = frozenset({SyncAPIClient.base_url, openai.OpenAI.base_url, openai.AsyncOpenAI.base_url})
"""Properties that return `_base_url`; those of openai 3 import a module first, each time."""


class Origin(msgspec.Struct, frozen=True):
    """Where calls are said to come from: the explicit tracker's recorder and frame, and the patch's own recorder.

    None leaves it to the ambient context and to the default.
    """

    recorder: Recorder | None = None
    ambient: Ambient | None = None
    fallback: Recorder | None = None


def begin(client: Any, options: Any, stream: bool, origin: Origin) -> OpenAICall | Retrieval | None:  # noqa: FBT001
    """Return the call that a `request` starts; None where it is no call of ours.

    Args:
        client: An `OpenAI` client of any kind.
        options: The `FinalRequestOptions` that it was given; never changed.
        stream: The caller asked for a stream.
        origin: Who asks.
    """
    running = in_hand.get()
    if running is not None and isinstance(running, OpenAICall | Retrieval) and running.client is client:
        return None
    path = options.url
    operation = OPERATIONS.get(path)
    if operation is None or options.method != "post":
        path, operation = _seen(path, options)
    if operation is None:
        return _retrieval(client, path, options)
    ambient = origin.ambient or get()
    chosen = choose(origin.recorder, ambient, origin.fallback)
    if chosen is None:
        return None
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
    )
    if chosen.settings.capture_content:
        call.capture()
    if operation == "batch":
        diagnostics.note("not_covered_batch_results", "a batch was created; what its requests use is not recorded")
    if stream and asks_for_usage(call.provider_name(), path, _api_version(client)):
        call.options = _asking_for_usage(call, options, body)
    return call


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _retrieval(client: Any, path: str, options: Any) -> Retrieval | None:
    """Return what follows a request that is no call, where it may bring the answer of a background create."""
    return Retrieval(client, options) if unfinished.any_open() and path.startswith("/responses/") else None


def _seen(url: str, options: Any) -> tuple[str, str | None]:
    """Return the path below the base address and the operation that a request is; count what is billed and is none."""
    path = url.partition("?")[0]
    if options.method.lower() != "post":
        return path, None
    known = operation_of(path)
    if known is not None:
        operation, path = known
        return path, operation
    kind = uncovered_kind(path)
    if kind is not None:
        diagnostics.note(kind, f"{kind.removeprefix('not_covered_')}: seen, but what it uses is not recorded")
    return path, None


def _api_version(client: Any) -> str | None:
    """Return Azure's API version; `v1` where a plain client's address says so.

    Source: https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle (read 2026-11).
    """
    version: str | None = getattr(client, "_api_version", None)
    return "v1" if version is None and _AZURE_V1 in client.base_url.path else version


def _body_of(options: Any) -> Mapping[str, Any]:
    body = options.json_data if isinstance(options.json_data, Mapping) else _NO_BODY
    extra = getattr(options, "extra_json", None)
    return {**body, **extra} if extra and isinstance(extra, Mapping) else body


def _asking_for_usage(call: OpenAICall, options: Any, body: Mapping[str, Any]) -> Any:
    asked = body.get("stream_options")
    if not isinstance(asked, Mapping | None) or (asked and asked.get("include_usage") is not None):
        return options
    copied = options.model_copy() if hasattr(options, "model_copy") else options.copy()
    extra = getattr(options, "extra_json", None)
    place = "extra_json" if isinstance(extra, Mapping) and "stream_options" in extra else "json_data"
    given = getattr(options, place)
    setattr(copied, place, {**given, "stream_options": {**(asked or {}), "include_usage": True}})
    call.hide_usage = True
    return copied
