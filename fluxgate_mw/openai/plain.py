"""Events that bring a text and nothing else: told at a glance from those that have to be decoded.

Only what OpenAI sends is known here, spelled as it spells it. Whatever else a stream holds is no plain event, and is
read with the care that it needs.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from fluxgate_mw.openai.sse import event_data, is_text, without_null_usage

__all__ = ["Counts", "Glance", "PlainEvent", "alike", "plain_event"]

PlainEvent = tuple[int, int, int]
"""Where the JSON string of its text starts and ends, quotes included, and the UTF-8 bytes of the text."""

Glance = Callable[[bytes], "bytes | None"]
"""Given a chunk, counts its text and returns what the caller gets of it; None where it is not alike."""

_CHAT_TEXT: Final = b'"delta":{"content":'
_CHAT_END: Final = b'"finish_reason":null}]'
_TYPED: Final = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
_TYPED_TEXT: Final = b'"delta":'
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PADDED: Final = b'"obfuscation":"'
_PADDING_ENDS: Final = b'"}\n\n'
_CHANGING: Final = re.compile(rb'(?<="obfuscation":")[0-9A-Za-z]+(?=")|(?<="sequence_number":)[0-9]+(?=[,}])')
"""What else is another in each event: its number, and the padding that OpenAI adds at random, so that its length does
not tell the text's.
Source: `include_obfuscation` in `openai.types.chat.ChatCompletionStreamOptionsParam` and `sequence_number` in
`openai.types.responses.ResponseTextDeltaEvent` (openai 3.57)."""
_ALNUM: Final = (string.digits + string.ascii_letters).encode()
_SPELLED_AS_THEY_ARE: Final = bytes(set(range(ord(" "), 0x7F)) - set(b'"\\'))
"""The ASCII characters that stand in a JSON string as themselves."""
_SHORT: Final = 32
"""Bytes of a text up to which it is quicker to look at each of them than to decode it."""
_BACKSLASH: Final = ord("\\")
_decode_text: Final = msgspec.json.Decoder(str).decode
_NO_TEXT: Final = (msgspec.MsgspecError, UnicodeDecodeError)


class _Anything(msgspec.Struct):
    """A JSON object of which nothing is kept."""


_skim: Final = msgspec.json.Decoder(_Anything).decode


class Counts(Protocol):
    """What counts the UTF-8 bytes of the texts that were delivered."""

    delivered_bytes: int


def plain_event(event: bytes) -> PlainEvent | None:
    r"""Return what there is to know of an event that brings a text and nothing else; None where it must be decoded.

    >>> plain_event(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}\n\n')
    (38, 42, 2)

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
    return None if size is None or not _is_all(event, end) or not _is_json(event) else (start, end, size)


def _is_all(event: bytes, end: int) -> bool:
    """Say whether an event brings nothing beside the text that ends there."""
    if event.startswith(_TYPED):
        return event.find(b'"usage"') < 0
    if not event.startswith(b"}", end) or event.find(_CHAT_END, end) < 0:
        return False
    if event.count(b'"delta"') > 1 or event.count(b'"finish_reason"') > 1:
        return False
    return event.find(b'"error"') < 0 and event.count(b'"usage"') == event.count(b'"usage":null')


def _is_json(event: bytes) -> bool:
    """Say whether the client makes something of it; over what is no JSON it raises."""
    try:
        _skim(event_data(event) or b"")
    except _NO_TEXT:
        return False
    return True


def _text_bytes(string: bytes) -> int | None:
    """Return the UTF-8 bytes of what a JSON string spells; None where it is none."""
    try:
        text = _decode_text(string)
    except _NO_TEXT:
        return None
    return len(text) if text.isascii() else len(text.encode())


def _spelled_bytes(spelled: bytes) -> int | None:
    """Return the UTF-8 bytes of what is spelled so between the quotes of a JSON string; None where it is no text."""
    if len(spelled) <= _SHORT and not spelled.strip(_SPELLED_AS_THEY_ARE):
        return len(spelled)
    return _text_bytes(b'"%b"' % spelled)


def alike(event: bytes, known: PlainEvent, counts: Counts, *, hide_usage: bool) -> Glance | None:
    """Return what knows the events that differ from this one in their text, their number and their padding only.

    Args:
        event: A plain one.
        known: What `plain_event` says of it.
        counts: Where the texts of those that are alike are counted.
        hide_usage: The caller is not to see the `"usage":null` that asking for usage adds.

    Returns:
        None where it would not even know this one. This one is not counted.
    """
    start, end, _ = known
    before, after = event[: start + 1], event[end - 1 :]
    if event.startswith(_TYPED):
        glance = _of_responses(before, after, counts)
    else:
        glance = _of_chat(before, after, counts, hide_usage=hide_usage)
    counted, shown = counts.delivered_bytes, without_null_usage(event) if hide_usage else event
    fits, counts.delivered_bytes = glance(event) == shown, counted
    return glance if fits else None


def _of_chat(before: bytes, after: bytes, counts: Counts, *, hide_usage: bool) -> Glance:
    """Know a text between these two, its quotes included; the second may end with padding."""
    middle, padded, _ = after.partition(_PADDED)
    between, changing, ending = (middle + padded, _ALNUM, _PADDING_ENDS) if padded else (after, b"", b"")
    first, width = len(before), len(between)
    shown_before, shown_between = without_null_usage(before), without_null_usage(between)

    def glance(chunk: bytes) -> bytes | None:
        end = chunk.find(between, first)
        spelled, rest = chunk[first:end], chunk[end + width :]
        if end < 0 or not chunk.startswith(before) or rest.lstrip(changing) != ending:
            return None
        size = _spelled_bytes(spelled)
        if size is None:
            return None
        counts.delivered_bytes += size
        return b"".join((shown_before, spelled, shown_between, rest)) if hide_usage else chunk

    return glance


def _of_responses(before: bytes, after: bytes, counts: Counts) -> Glance:
    """Know a text between these two, its quotes included, in both of which numbers and padding change."""
    start, *between = _CHANGING.split(before)
    end, *behind = _CHANGING.split(after)

    def glance(chunk: bytes) -> bytes | None:
        head, found, rest = chunk.partition(end)
        if not found or not head.startswith(start):
            return None
        text = _after_all(between, head[len(start) :])
        if text is None or _after_all(behind, rest) != b"":
            return None
        size = _spelled_bytes(text)
        if size is None:
            return None
        counts.delivered_bytes += size
        return chunk

    return glance


def _after_all(parts: Sequence[bytes], left: bytes) -> bytes | None:
    """Return what is left after these parts, each of which stands behind something that changes; None for no such."""
    for part in parts:
        changing, found, left = left.partition(part)
        if not found or not changing.isalnum():
            return None
    return left
