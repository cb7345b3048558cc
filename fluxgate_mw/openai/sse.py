"""Server-sent events as bytes: where they end, what their data is, and a quick look at the most common kind.

Source: WHATWG HTML, section 9.2 (https://html.spec.whatwg.org/multipage/server-sent-events.html, read 2026-11).
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NOT_PLAIN", "event_data", "is_text", "plain_delta", "plain_span", "split_events", "without_null_usage"]

NOT_PLAIN: Final = -1

_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_NULL_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])|"usage"\s*:\s*null\s*,\s*')
_CHAT_TEXT: Final = b'"delta":{"content":"'
_CHAT_END: Final = b'"finish_reason":null}]'
_TYPED: Final = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
_TYPED_TEXT: Final = b'"delta":"'


def split_events(buffered: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole events at the start of `buffered`, each with its blank line, and the rest."""
    if b"\r" not in buffered:
        pieces = buffered.split(b"\n\n")
        rest = pieces.pop()
        return [piece + b"\n\n" for piece in pieces], rest
    events, start = [], 0
    for match in _EVENT_END.finditer(buffered):
        if match.end() == len(buffered) and buffered.endswith(b"\r"):
            break
        events.append(buffered[start : match.end()])
        start = match.end()
    return events, buffered[start:]


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event; None where it has none."""
    event = event.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def is_text(data: bytes) -> bool:
    """Say whether these bytes are UTF-8: over others the client raises."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain_delta(event: bytes) -> int:
    r"""Return the bytes of text that one event delivers, where it brings nothing else of interest.

    Only the exact shape that OpenAI sends is known here, and only texts without a backslash: what looks like a
    field's name past the text then is one.

    Returns:
        `NOT_PLAIN` where the event must be decoded to know.

    >>> plain_delta(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}\n\n')
    2
    """
    span = plain_span(event)
    return NOT_PLAIN if span is None else span[1] - span[0]


def plain_span(event: bytes) -> tuple[int, int] | None:
    """Return where the text of a plain event starts and ends; None where `plain_delta` knows nothing."""
    if b"\\" in event or not is_text(event):
        return None
    start = event.find(_CHAT_TEXT)
    if start >= 0:
        start += 20
        end = event.find(b'"', start)
        tail = event[end:]
        plain = tail.startswith(b'"}') and _CHAT_END in tail and b'"delta"' not in tail and b'"error"' not in event
        return (start, end) if plain and (b'"usage":null' in event or b'"usage"' not in event) else None
    if event.startswith(_TYPED):
        start = event.find(_TYPED_TEXT) + 9
        return (start, event.find(b'"', start)) if start > 9 and b'"usage"' not in event else None  # noqa: PLR2004
    return None


def without_null_usage(event: bytes) -> bytes:
    """Return the event without the `"usage":null` that asking for usage adds to it."""
    if b'"usage"' not in event:
        return event
    short = event.replace(b',"usage":null', b"")
    return short if len(short) != len(event) else _NULL_USAGE.sub(b"", event)
