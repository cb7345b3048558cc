"""Tell a response's reader what its calls cost: a `Server-Timing` header, or a last line of server-sent events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fluxgate_mw.event import usd
from fluxgate_mw.request import RequestContext
from fluxgate_mw.types import Message, Send

__all__ = ["Costs", "closing_comment", "is_event_stream", "server_timing", "with_cost"]

_EVENT_STREAM: Final = b"text/event-stream"
_SHOWN_BY_FOUR: Final = 100_000
"""The least nano-USD of which four decimals show something."""


def server_timing(request: RequestContext) -> str:
    """Return `llm;desc="3 calls $0.0042";dur=940` for the calls that have ended in this request.

    With one of them unpriced it is `3 calls >= $0.0042, 1 unpriced`, with all of them `3 calls unpriced`.

    Source: Server Timing, W3C Working Draft, section 3 (metric name, `desc`, `dur` in milliseconds).
    """
    nanos, unpriced, calls = request.cost_nanos, request.unpriced, request.calls
    said = f"{calls} call" if calls == 1 else f"{calls} calls"
    if unpriced >= calls:
        said += " unpriced"
    else:
        said += f" >= {_cost(nanos)}, {unpriced} unpriced" if unpriced else f" {_cost(nanos)}"
    return f'llm;desc="{said}";dur={request.latency_ms:.0f}'


def _cost(nanos: int) -> str:
    """Return USD to four decimals, and exactly where those would all be zeros."""
    return f"${usd(nanos):.{4 if nanos >= _SHOWN_BY_FOUR or not nanos else 9}f}"


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


class Costs:
    """What one response says of its request's costs: a header, and a last line of server-sent events.

    Concurrency: one task or thread at a time.
    """

    __slots__ = ("_event_stream", "_request", "_tail")

    def __init__(self, request: RequestContext) -> None:
        self._request = request
        self._event_stream = False
        self._tail = b"\n"

    def header(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return what `Server-Timing` says beside these headers; None where no call has ended by now."""
        self._event_stream = is_event_stream(headers)
        return server_timing(self._request) if self._request.calls else None

    def text_header(self, headers: Iterable[tuple[str, str]]) -> str | None:
        """Return the same beside headers that are text."""
        return self.header(
            (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
        )

    def on_chunk(self, chunk: bytes) -> None:
        """Note how the stream ends so far."""
        self._tail = chunk[-1:] or self._tail

    def closing(self) -> bytes | None:
        """Return the last chunk of an event stream, once; None where there is nothing to say or no line to say it."""
        said = self._event_stream and self._tail == b"\n" and self._request.calls > 0
        self._event_stream = False
        return closing_comment(self._request) if said else None


def with_cost(request: RequestContext, send: Send) -> Send:
    """Return `send` that adds the header where calls ended before the response began, and the comment to a stream."""
    costs = Costs(request)

    async def send_wrapper(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            if (said := costs.header(headers)) is not None:
                message = {**message, "headers": [*headers, (b"server-timing", said.encode())]}
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            costs.on_chunk(body)
            if not message.get("more_body") and (last := costs.closing()) is not None:
                message = {**message, "body": body + last}
        await send(message)

    return send_wrapper
