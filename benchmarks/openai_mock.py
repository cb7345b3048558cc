"""The real OpenAI client with the network taken out: its own HTTP library's mock transport answers at once.

Every body is a byte stream in separate parts, one server-sent event each, as it comes from a socket; a body handed
over whole would count as already read, and a stream over it would cost nothing to follow.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import import_module
from typing import Any, Final

import openai

__all__ = ["CHUNKS", "HTTP_LIBRARY", "async_client", "client"]

CHUNKS: Final = 200
"""Content chunks of a streamed answer."""

HTTP_LIBRARY: Final = next(
    root
    for base in openai.DefaultHttpxClient.__mro__
    if (root := base.__module__.partition(".")[0]) in ("httpx", "httpx2")
)
"""The library that the installed client runs on: `httpx` or `httpx2`."""

_http: Any = import_module(HTTP_LIBRARY)

_HEAD = {"id": "chatcmpl-bench", "created": 1_764_000_000, "model": "gpt-4o-mini-2024-07-18", "service_tier": "default"}
_USAGE = {
    "prompt_tokens": 412,
    "completion_tokens": CHUNKS,
    "total_tokens": 412 + CHUNKS,
    "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_HEADERS = {
    "x-request-id": "req_0123456789abcdef",
    "openai-processing-ms": "412",
    "openai-version": "2020-10-01",
    "x-ratelimit-remaining-requests": "9999",
}


class _Parts(_http.SyncByteStream, _http.AsyncByteStream):  # type: ignore[misc]
    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


def _plain() -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": "word " * CHUNKS, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps(_HEAD | {"object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()


def _event(delta: dict[str, str], finish: str | None, tail: dict[str, None], number: int = 0) -> bytes:
    """Return one event, padded as the service does where it is not told `include_obfuscation: false`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    padding = {"obfuscation": "Wu9QNX2aIPio8PDecz"[: 2 + number % 16]}
    return _frame(_HEAD | {"object": "chat.completion.chunk", "choices": [choice]} | tail | padding)


def _frame(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _streamed(*, with_usage: bool) -> list[bytes]:
    tail: dict[str, None] = {"usage": None} if with_usage else {}
    parts = [_event({"role": "assistant", "content": ""}, None, tail)]
    parts += [_event({"content": f"word{number} "}, None, tail, number) for number in range(CHUNKS)]
    parts += [_event({}, "stop", tail)]
    if with_usage:
        parts += [_frame(_HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": _USAGE})]
    return [*parts, b"data: [DONE]\n\n"]


_PLAIN, _STREAMED, _STREAMED_WITH_USAGE = [_plain()], _streamed(with_usage=False), _streamed(with_usage=True)


def _answer(request: Any) -> Any:
    """Answer as the service does: usage in a stream only where the request asks for it."""
    asked = json.loads(request.content)
    if not asked.get("stream"):
        headers = {**_HEADERS, "content-type": "application/json", "content-length": str(len(_PLAIN[0]))}
        return _http.Response(200, headers=headers, stream=_Parts(_PLAIN))
    with_usage = (asked.get("stream_options") or {}).get("include_usage")
    headers = {**_HEADERS, "content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    return _http.Response(200, headers=headers, stream=_Parts(_STREAMED_WITH_USAGE if with_usage else _STREAMED))


def client() -> openai.OpenAI:
    """Return a synchronous client that never leaves the process."""
    http_client = _http.Client(transport=_http.MockTransport(_answer))
    return openai.OpenAI(api_key="sk-bench", max_retries=0, http_client=http_client)


def async_client() -> openai.AsyncOpenAI:
    """Return an asynchronous client that never leaves the process."""
    http_client = _http.AsyncClient(transport=_http.MockTransport(_answer))
    return openai.AsyncOpenAI(api_key="sk-bench", max_retries=0, http_client=http_client)
