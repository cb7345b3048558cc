"""Real OpenAI clients over their own mock transport: what they ask is kept, what they get is given part by part.

Which HTTP library the client stands on (httpx, or httpx2 since openai 3) is found out here and nowhere else.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import openai
from openai import _base_client

from fluxgate_mw import UsageEvent, instrument_openai
from fluxgate_mw.testing import capture_events

httpx: Any = getattr(_base_client, "httpx2", None) or _base_client.httpx

SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
ASKED: Mapping[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say this is a test"}]}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives in parts, and may break after the last one.

    Args:
        parts: As the network delivers them.
        error: Raised after them; None = the body ends there.
        forever: Never ends: after the parts an asynchronous reader waits until he is cancelled.
    """

    def __init__(self, parts: Iterable[bytes], error: BaseException | None = None, *, forever: bool = False) -> None:
        self.parts = list(parts)
        self.error = error
        self.forever = forever
        self.closed = 0
        self.delivered = 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            self.delivered += 1
            yield part
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            await asyncio.sleep(0)
            self.delivered += 1
            yield part
        if self.forever:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Count how often the connection is given back."""
        self.closed += 1

    async def aclose(self) -> None:
        """Count the same of an asynchronous reader."""
        self.closed += 1


class Reply:
    """One answer of the other side; `refused` is raised instead of any answer."""

    def __init__(
        self,
        parts: bytes | Iterable[bytes] = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] = JSON,
        error: BaseException | None = None,
        forever: bool = False,
        refused: BaseException | None = None,
    ) -> None:
        self.parts = [parts] if isinstance(parts, bytes) else list(parts)
        self.status = status
        self.headers = dict(headers)
        self.error = error
        self.forever = forever
        self.refused = refused


class Wire:
    """The other side of clients' transports: replies in order, the last one again and again.

    Attributes:
        sent: The JSON bodies of the requests that reached it.
        requests: The requests themselves.
        bodies: The bodies it gave.
        reached: Set when an asynchronous request has its answer.
    """

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.sent: list[Any] = []
        self.requests: list[Any] = []
        self.bodies: list[Body] = []
        self.reached = asyncio.Event()

    def answer(self, request: Any) -> Any:
        """Keep the request and give the next reply."""
        self.requests.append(request)
        content = request.read()
        self.sent.append(json.loads(content) if content[:1] == b"{" else content)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.refused is not None:
            raise reply.refused
        body = Body(reply.parts, reply.error, forever=reply.forever)
        self.bodies.append(body)
        return httpx.Response(reply.status, headers=reply.headers, stream=body)

    async def aanswer(self, request: Any) -> Any:
        """Do the same for an asynchronous client."""
        await asyncio.sleep(0)
        self.reached.set()
        return self.answer(request)

    def client(self, kind: type[openai.OpenAI] = openai.OpenAI, **options: Any) -> openai.OpenAI:
        """Return a synchronous client of this wire."""
        http_client = httpx.Client(transport=httpx.MockTransport(self.answer))
        return kind(**{"api_key": "sk-unused", "max_retries": 0, "http_client": http_client, **options})

    def async_client(self, kind: type[openai.AsyncOpenAI] = openai.AsyncOpenAI, **options: Any) -> openai.AsyncOpenAI:
        """Return an asynchronous client of this wire."""
        http_client = httpx.AsyncClient(transport=httpx.MockTransport(self.aanswer))
        return kind(**{"api_key": "sk-unused", "max_retries": 0, "http_client": http_client, **options})


@contextmanager
def recorded() -> Iterator[list[UsageEvent]]:
    """Give the events of the calls made inside, with the global patch on."""
    undo = instrument_openai()
    try:
        with capture_events() as events:
            yield events
    finally:
        undo()


def dumped(value: Any) -> Any:
    """Return what a caller can see of an answer, a chunk or a plain value."""
    return value.model_dump(exclude_unset=True, warnings=False) if isinstance(value, openai.BaseModel) else value


def raised(error: BaseException) -> dict[str, Any]:
    """Return what a caller can see of an exception."""
    names = ("message", "body", "code", "type", "status_code", "request_id")
    return {"class": type(error), "args": error.args, **{name: getattr(error, name, None) for name in names}}


async def read_into(got: list[Any], stream: Any) -> None:
    """Read a stream to its end; what came before an error is kept."""
    async for each in stream:
        got.append(dumped(each))  # noqa: PERF401


def shaping(client: Any) -> Any:
    """Return the completions of a client that parse and have the stream helper: below `beta` in older versions."""
    completions = client.chat.completions
    return completions if hasattr(completions, "parse") else client.beta.chat.completions


class Asked:
    """One request made in every way that the client has, each telling all that its caller gets.

    Args:
        resource: The name path of the resource below the client: `chat.completions`.
        arguments: What `create` is called with; what this version of the client does not know is sent all the same.
    """

    def __init__(self, resource: str, arguments: Mapping[str, Any]) -> None:
        self.resource = resource
        self.arguments = dict(arguments)
        known = inspect.signature(self.of(Wire().client())).parameters
        newer = {name: value for name, value in arguments.items() if name not in known}
        if newer:
            kept = {name: value for name, value in arguments.items() if name in known}
            self.arguments = {**kept, "extra_body": newer}

    def of(self, client: Any, view: str | None = None) -> Callable[..., Any]:
        """Return the `create` of the resource, or of a view of it."""
        for name in self.resource.split("."):
            client = getattr(client, name)
        create: Callable[..., Any] = (client if view is None else getattr(client, view)).create
        return create

    def plain(self, wire: Wire) -> Any:
        """Ask a synchronous client."""
        got: list[Any] = []
        try:
            result = self.of(wire.client())(**self.arguments)
            if isinstance(result, openai.Stream):
                got.extend(dumped(chunk) for chunk in result)
            else:
                got.append((type(result), dumped(result), getattr(result, "_request_id", None)))
        except Exception as error:  # noqa: BLE001  (what is raised is compared too)
            got.append(raised(error))
        return got

    def raw(self, wire: Wire) -> Any:
        """Ask by `with_raw_response`."""
        got: list[Any] = []
        try:
            result = self.of(wire.client(), "with_raw_response")(**self.arguments)
            got += [type(result), result.status_code, dict(result.headers), result.retries_taken, result.request_id]
            parsed = result.parse()
            got += map(dumped, parsed) if isinstance(parsed, openai.Stream) else [dumped(parsed), result.text]
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return got

    def streaming(self, wire: Wire) -> Any:
        """Ask by `with_streaming_response`."""
        got: list[Any] = []
        try:
            with self.of(wire.client(), "with_streaming_response")(**self.arguments) as result:
                got += [type(result), result.status_code, dict(result.headers)]
                parsed = result.parse()
                got += map(dumped, parsed) if isinstance(parsed, openai.Stream) else [dumped(parsed)]
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return got

    def asynchronous(self, wire: Wire) -> Any:
        """Ask an asynchronous client."""
        return asyncio.run(self._asynchronous(wire))

    async def _asynchronous(self, wire: Wire) -> Any:
        got: list[Any] = []
        try:
            result = await self.of(wire.async_client())(**self.arguments)
            if isinstance(result, openai.AsyncStream):
                await read_into(got, result)
            else:
                got.append((type(result), dumped(result), getattr(result, "_request_id", None)))
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return got

    def asynchronous_raw(self, wire: Wire) -> Any:
        """Ask an asynchronous client by `with_raw_response`."""
        return asyncio.run(self._asynchronous_raw(wire))

    async def _asynchronous_raw(self, wire: Wire) -> Any:
        got: list[Any] = []
        try:
            result = await self.of(wire.async_client(), "with_raw_response")(**self.arguments)
            got += [type(result), result.status_code, dict(result.headers), result.retries_taken]
            parsed = result.parse()
            if isinstance(parsed, openai.AsyncStream):
                await read_into(got, parsed)
            else:
                got += [dumped(parsed), result.text]
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return got

    def asynchronous_streaming(self, wire: Wire) -> Any:
        """Ask an asynchronous client by `with_streaming_response`."""
        return asyncio.run(self._asynchronous_streaming(wire))

    async def _asynchronous_streaming(self, wire: Wire) -> Any:
        got: list[Any] = []
        try:
            async with self.of(wire.async_client(), "with_streaming_response")(**self.arguments) as result:
                got += [type(result), result.status_code, dict(result.headers)]
                parsed = await result.parse()
                if isinstance(parsed, openai.AsyncStream):
                    await read_into(got, parsed)
                else:
                    got.append(dumped(parsed))
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return got


WAYS = ("plain", "raw", "streaming", "asynchronous", "asynchronous_raw", "asynchronous_streaming")


def chunk(content: str | None = None, *, usage: Any = ..., **fields: Any) -> dict[str, Any]:
    """Return one chunk of a streamed chat as the service sends it; `usage` only where it is given."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    made = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
    }
    if usage is not ...:
        made["usage"] = usage
    return {**made, **fields}


def finish(reason: str = "stop", index: int = 0) -> list[dict[str, Any]]:
    """Return the choices of the chunk that ends one choice."""
    return [{"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}]


def sse(*events: Any, done: bool = True, newline: str = "\n") -> bytes:
    """Return chunks as server-sent events; bytes are taken as the data itself."""
    datas = [
        event if isinstance(event, bytes) else json.dumps(event, separators=(",", ":")).encode() for event in events
    ]
    end = newline.encode() * 2
    return b"".join(b"data: " + data + end for data in [*datas, *([b"[DONE]"] if done else [])])


def typed(*events: Mapping[str, Any], newline: str = "\n") -> bytes:
    """Return events of the responses API as the service sends them: named, with no `[DONE]`."""
    end = newline.encode()
    return b"".join(
        b"event: " + event["type"].encode() + end + b"data: " + json.dumps(event).encode() + end + end
        for event in events
    )


def completion(**fields: Any) -> dict[str, Any]:
    """Return a chat completion as the service sends it."""
    message = {"role": "assistant", "content": "This is a test.", "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
        **fields,
    }
