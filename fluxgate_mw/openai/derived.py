"""Answers that are made of other answers: what `parse()` of a raw response and a stream helper's last word return.

They belong to the call of what they were made of.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator
from inspect import iscoroutinefunction
from typing import Any, Final

from openai._legacy_response import LegacyAPIResponse
from openai._response import APIResponse, AsyncAPIResponse

from fluxgate_mw.openai.tracking import call_of, register
from fluxgate_mw.recorder import guarded, in_hand
from fluxgate_mw.wrapping import bound

__all__ = ["HELPERS", "helpers", "parsers"]

_HELPERS: Final = (
    ("openai.lib.streaming.chat", "ChatCompletionStream", "get_final_completion"),
    ("openai.lib.streaming.chat", "AsyncChatCompletionStream", "get_final_completion"),
    ("openai.lib.streaming.responses", "ResponseStream", "get_final_response"),
    ("openai.lib.streaming.responses", "AsyncResponseStream", "get_final_response"),
)
HELPERS: Final = len(_HELPERS)
"""How many stream helpers there are."""


def parsers() -> Iterator[tuple[type, str, Any]]:
    """Yield the class attributes to put in place: owner, name, replacement."""
    for owner in (LegacyAPIResponse, APIResponse, AsyncAPIResponse):
        if callable(owner.__dict__.get("parse")):
            yield owner, "parse", _followed(owner.__dict__["parse"])


def helpers(known: Collection[type]) -> Iterator[tuple[type, str, Any]]:
    """Yield those of the stream helpers that are not known yet, where the client has imported them."""
    for module, name, method in _HELPERS:
        owner = getattr(sys.modules.get(module), name, None)
        if owner is not None and owner not in known and callable(owner.__dict__.get(method)):
            yield owner, method, _followed(owner.__dict__[method])


def _followed(original: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(original):
        return _afollowed(original)

    @functools.wraps(original)
    def method(source: Any, *args: Any, **kwargs: Any) -> Any:
        answer = bound(original, source)(*args, **kwargs)
        if not _is_in_hand(source):
            guarded("openai", _follow, source, answer)
        return answer

    return method


def _afollowed(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def method(source: Any, *args: Any, **kwargs: Any) -> Any:
        answer = await bound(original, source)(*args, **kwargs)
        if not _is_in_hand(source):
            guarded("openai", _follow, source, answer)
        return answer

    return method


def _is_in_hand(source: Any) -> bool:
    """Say whether it is the client who makes the answer of the running call, which is registered when he returns it."""
    response = getattr(in_hand.get(), "response", None)
    return response is not None and getattr(source, "http_response", None) is response


def _follow(source: object, answer: object) -> None:
    call = call_of(source)
    if call is not None:
        register(answer, call)
