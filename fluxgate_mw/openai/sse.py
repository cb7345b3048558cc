"""Server-sent events as bytes: where they end, and what their data is.

Source: WHATWG HTML, section 9.2 (https://html.spec.whatwg.org/multipage/server-sent-events.html, read 2026-11).
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["blank_lines_before", "event_data", "is_comment", "is_text", "split_events", "without_null_usage"]

_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_NULL_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])|"usage"\s*:\s*null\s*,\s*')


def split_events(buffered: bytes, *, ended: bool = False) -> tuple[list[bytes], bytes]:
    """Return the whole events at the start of `buffered`, each with its blank line, and the rest.

    Args:
        buffered: As much as has come.
        ended: No more will come: a carriage return at its end is a line's end, not the half of one. Two of them are
            the end of an event in any case.
    """
    if b"\r" not in buffered:
        pieces = buffered.split(b"\n\n")
        rest = pieces.pop()
        return [piece + b"\n\n" for piece in pieces], rest
    events, start = [], 0
    for match in _EVENT_END.finditer(buffered):
        if match.end() == len(buffered) and buffered.endswith(b"\r") and not (ended or buffered.endswith(b"\r\r")):
            break
        events.append(buffered[start : match.end()])
        start = match.end()
    return events, buffered[start:]


def blank_lines_before(event: bytes) -> bytes:
    """Return the empty lines at the start of what `split_events` gives as one event."""
    return event[: len(event) - len(event.lstrip(b"\r\n"))]


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event; None where it has none."""
    event = event.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def is_comment(chunk: bytes) -> bool:
    """Say whether these bytes bring nothing yet: lines by which a server shows that it is there.

    Source: https://openrouter.ai/docs/api_reference/streaming, openai/openai-go#227 (read 2026-11).
    """
    return all(line.startswith(b":") for line in _LINE_END.split(chunk) if line)


def is_text(data: bytes) -> bool:
    """Say whether these bytes are UTF-8: over others the client raises."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def without_null_usage(event: bytes) -> bytes:
    """Return the event without the `"usage":null` that asking for usage adds to it."""
    short = event.replace(b',"usage":null', b"")
    if len(short) != len(event) or event.find(b'"usage"') < 0:
        return short
    return _NULL_USAGE.sub(b"", event)
