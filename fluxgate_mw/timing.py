"""Tell a response's reader what its calls cost: a `Server-Timing` header, or a last line of server-sent events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fluxgate_mw.ambient import RequestContext
from fluxgate_mw.event import usd
from fluxgate_mw.types import Message, Send

__all__ = ["closing_comment", "is_event_stream", "server_timing", "with_cost"]

_EVENT_STREAM: Final = b"text/event-stream"


def server_timing(request: RequestContext) -> str:
    """Return `llm;desc="3 calls $0.0042";dur=940` for the calls that have ended in this request.

    Source: Server Timing, W3C Working Draft, section 3 (metric name, `desc`, `dur` in milliseconds).
    """
    noun = "call" if request.calls == 1 else "calls"
    cost = f"{usd(request.cost_nanos):.4f}"
    return f'llm;desc="{request.calls} {noun} ${cost}";dur={request.latency_ms:.0f}'


def closing_comment(request: RequestContext) -> bytes:
    """Return the comment that ends an event stream: clients skip it, people and proxies can read it.

    It fits wherever a line may begin, and never ends an event.

    Source: HTML Living Standard, 9.2.6 (a line that starts with a colon is a comment; an empty line ends an event).
    """
    return f": {server_timing(request)}\n".encode()


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether these are the headers of server-sent events that may grow: sent as they are, length not named."""
    named = {name.lower(): value for name, value in headers}
    content_type = named.get(b"content-type", b"")
    return (
        content_type.lower().startswith(_EVENT_STREAM)
        and b"content-length" not in named
        and b"content-encoding" not in named
    )


def with_cost(request: RequestContext, send: Send) -> Send:
    """Return `send` that adds the header where calls ended before the response began, and the comment to a stream."""
    stream = False
    tail = b"\n"

    async def send_wrapper(message: Message) -> None:
        nonlocal stream, tail
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            stream = is_event_stream(headers)
            if request.calls:
                message = {**message, "headers": [*headers, (b"server-timing", server_timing(request).encode())]}
        elif stream and message["type"] == "http.response.body":
            body = message.get("body", b"")
            tail = body[-1:] or tail
            if not message.get("more_body") and request.calls and tail == b"\n":
                message = {**message, "body": body + closing_comment(request)}
        await send(message)

    return send_wrapper
