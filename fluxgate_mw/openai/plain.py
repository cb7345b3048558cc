"""Events that bring a text and nothing else: told at a glance from those that have to be decoded.

Only what OpenAI sends is known here, spelled as it spells it. Whatever else a stream holds is no plain event, and is
read with the care that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from fluxgate_mw.openai.sse import is_text, without_null_usage

__all__ = ["NOT_PLAIN", "Glance", "PlainEvent", "alike", "plain_delta", "plain_event"]

NOT_PLAIN: Final = -1

PlainEvent = tuple[int, int, int]
"""Where the JSON string of its text starts and ends, quotes included, and the UTF-8 bytes of the text."""

Glance = Callable[[bytes], "tuple[bytes, int] | None"]
"""Given a chunk, returns what the caller gets of it, and the UTF-8 bytes of its text; None where it is not alike."""

_CHAT_TEXT: Final = b'"delta":{"content":'
_CHAT_END: Final = b'"finish_reason":null}]'
_TYPED: Final = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
_TYPED_TEXT: Final = b'"delta":'
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PADDING: Final = re.compile(rb'(?<="obfuscation":")[0-9A-Za-z]+(?=")')
"""Characters that OpenAI adds to each event at random, so that its length does not tell the text's.
Source: `include_obfuscation` in `openai.types.chat.ChatCompletionStreamOptionsParam` (openai 3.57)."""
_BACKSLASH: Final = ord("\\")
_NEEDLE: Final = 12
_decode_text: Final = msgspec.json.Decoder(str).decode
_NO_TEXT: Final = (msgspec.MsgspecError, UnicodeDecodeError)


def plain_delta(event: bytes) -> int:
    r"""Return the UTF-8 bytes of text that one event delivers, where it brings nothing else of interest.

    Returns:
        `NOT_PLAIN` where the event must be decoded to know.

    >>> plain_delta(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}\n\n')
    2
    """
    found = plain_event(event)
    return NOT_PLAIN if found is None else found[2]


def plain_event(event: bytes) -> PlainEvent | None:
    """Return what there is to know of a plain event; None where it must be decoded to know.

    A backslash beside the text makes it no plain one: what looks like a field's name might then be inside of another
    text.
    """
    name = _TYPED_TEXT if event.startswith(_TYPED) else _CHAT_TEXT
    at = event.find(name)
    found = None if at < 0 else _STRING.match(event, at + len(name))
    if found is None or not is_text(event):
        return None
    start, end = found.span()
    if _BACKSLASH in event and (_BACKSLASH in event[:start] or _BACKSLASH in event[end:]):
        return None
    size = _text_bytes(found.group())
    return None if size is None or not _is_all(event, end) else (start, end, size)


def _is_all(event: bytes, end: int) -> bool:
    """Say whether an event brings nothing beside the text that ends there."""
    if event.startswith(_TYPED):
        return event.find(b'"usage"') < 0
    if not event.startswith(b"}", end) or event.find(_CHAT_END, end) < 0:
        return False
    if event.count(b'"delta"') > 1 or event.count(b'"finish_reason"') > 1:
        return False
    return event.find(b'"error"') < 0 and (event.find(b'"usage":null') >= 0 or event.find(b'"usage"') < 0)


def _text_bytes(string: bytes) -> int | None:
    """Return the UTF-8 bytes of what a JSON string spells; None where it is none."""
    try:
        text = _decode_text(string)
    except _NO_TEXT:
        return None
    return len(text) if text.isascii() else len(text.encode())


def alike(event: bytes, known: PlainEvent, *, hide_usage: bool) -> Glance | None:
    """Return what knows the events that differ from this one in their text and their padding only; None for none.

    The responses API numbers its events, so that no two are alike.

    Args:
        event: A plain one.
        known: What `plain_event` says of it.
        hide_usage: The caller is not to see the `"usage":null` that asking for usage adds.
    """
    if event.startswith(_TYPED):
        return None
    start, end, _ = known
    before, rest = event[: start + 1], event[end - 1 :]
    padding = _PADDING.search(rest)
    middle, after = (rest, b"") if padding is None else (rest[: padding.start()], rest[padding.end() :])
    shown_before, shown_middle = before, middle
    if hide_usage:
        shown_before, shown_middle = without_null_usage(before), without_null_usage(middle)
    shown_before, shown_middle = shown_before[:-1], shown_middle[1:]
    first, width, needle, cut = len(before), len(middle), middle[:_NEEDLE], -len(after)

    def glance(chunk: bytes) -> tuple[bytes, int] | None:
        if not chunk.startswith(before):
            return None
        at = chunk.find(needle, first)
        if not chunk.startswith(middle, at):
            return None
        string, tail = chunk[first - 1 : at + 1], chunk[at + width :]
        if tail != after and not (cut and tail[cut:] == after and tail[:cut].isalnum()):
            return None
        try:
            text = _decode_text(string)
        except _NO_TEXT:
            return None
        size = len(text) if text.isascii() else len(text.encode())
        return b"".join((shown_before, string, shown_middle, tail)) if hide_usage else chunk, size

    shown = without_null_usage(event) if hide_usage else event
    return glance if glance(event) == (shown, known[2]) else None
