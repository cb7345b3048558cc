"""Real OpenAI clients over the client's own mock transport, and bodies that arrive in parts."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import openai

http = sys.modules["httpx2"] if int(openai.__version__.partition(".")[0]) >= 3 else sys.modules["httpx"]
"""The HTTP library that the installed `openai` runs on."""

Handler = Callable[[Any], Any]
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
MESSAGES = [{"role": "user", "content": "Say this is a test"}]
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello there.", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    },
}


class Parts(http.SyncByteStream, http.AsyncByteStream):
    """A body in parts, for both kinds of client; an exception among the parts is raised in its place."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts = list(parts)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            if callable(part):
                await part()
                continue
            yield part

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def answer(body: Any, status: int = 200, **headers: str) -> Any:
    """Return a JSON answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.Response(status, headers={"content-type": "application/json", **named}, content=content)


def event(data: Any, name: str | None = None) -> bytes:
    """Return one server-sent event as OpenAI spells it."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return one chunk of a streamed chat completion."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    return {**base, "choices": choices, **fields}


def chat_events(*texts: str, finish: str | None = "stop", usage: Any = None, done: bool = True) -> list[bytes]:
    """Return the events of a streamed chat completion; with `usage`, as it is sent where usage was asked for."""
    null = {} if usage is None else {"usage": None}
    events = [event(chunk({"role": "assistant", "content": ""}, **null))]
    events += [event(chunk({"content": text}, **null)) for text in texts]
    if finish:
        events.append(event(chunk({}, finish, **null)))
    if usage is not None:
        events.append(event({**chunk(), "choices": [], "usage": usage}))
    return [*events, event("[DONE]")] if done else events


def streamed(parts: Iterable[Any], content_type: str = "text/event-stream; charset=utf-8", **headers: str) -> Any:
    """Return a streamed answer of these parts."""
    return http.Response(200, headers={"content-type": content_type, **headers}, stream=Parts(parts))


def wants_usage(request: Any) -> bool:
    """Say whether the request asks for usage in its stream."""
    return bool((json.loads(request.content).get("stream_options") or {}).get("include_usage"))


def obliging(*texts: str) -> Handler:
    """Return a handler that streams these texts, with usage where it is asked for: as OpenAI does."""
    return lambda request: streamed(chat_events(*texts, usage=USAGE if wants_usage(request) else None))


def sync_client(handler: Handler, kind: Any = openai.OpenAI, **options: Any) -> Any:
    """Return a client whose requests the handler answers."""
    options.setdefault("api_key", "sk-test-key-0123456789")
    return kind(http_client=http.Client(transport=http.MockTransport(handler)), max_retries=0, **options)


def async_client(handler: Handler, kind: Any = openai.AsyncOpenAI, **options: Any) -> Any:
    """Return an asynchronous client whose requests the handler answers."""

    async def answered(request: Any) -> Any:
        return handler(request)

    options.setdefault("api_key", "sk-test-key-0123456789")
    return kind(http_client=http.AsyncClient(transport=http.MockTransport(answered)), max_retries=0, **options)


def dumped(answers: Iterable[Any]) -> list[Any]:
    """Return what a caller can tell of chunks, each with the fields that were sent."""
    return [item.model_dump(exclude_unset=True) for item in answers]
