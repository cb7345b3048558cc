"""An OpenAI-compatible service on the loopback interface, which keeps a ledger of what it answered.

It answers `POST /v1/chat/completions`, `/v1/responses`, `/v1/embeddings` and `GET /v1/models` in the shapes of the
real service. What it does is steered by the request: by its natural fields (`stream`, `tools`, `n`, `max_tokens`,
`stream_options`), by a model named `missing-...`, by the key `wrong`, and by a marker, `[behave NAME]` in the
text or the header `x-demo-behaviour: NAME`, with one of these names:

    content-filter      the answer is filtered
    no-usage            the answer carries no usage
    cut                 a stream's connection is dropped after its first chunk
    stall               a stream stops after its third part until the client has gone
    error-400, error-401, error-404, error-429, error-500
                        that error, every time
    rate-limit, server-error
                        429 with `retry-after-ms` or 500 at the first try, then an answer
    rate-limit-seconds  429 with `Retry-After` at the first try, then an answer
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Any, Final

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fluxgate_mw.demo.answers import Ask, Reply, compose
from fluxgate_mw.demo.chat_shapes import (
    Frame,
    chat_body,
    chat_frames,
    chat_id,
    embeddings_body,
    models_body,
)
from fluxgate_mw.demo.failures import Failure, failure_of
from fluxgate_mw.demo.ledger import Ledger, LedgerRow, witness_in
from fluxgate_mw.demo.responses_shapes import response_body, response_frames, response_id
from fluxgate_mw.types import ASGIApp, Receive, Scope, Send

__all__ = ["OpenAIServer"]

_MODELS: Final = ("gpt-4o", "gpt-4o-mini", "o4-mini", "text-embedding-3-small")
_EVENT_STREAM: Final = MappingProxyType({"content-type": "text/event-stream; charset=utf-8"})
_STALL_LIMIT_S: Final = 10.0
_STALL_AFTER: Final = 3
_PLAIN_TOKEN_NAMES: Final = ("prompt_tokens", "completion_tokens")
_RESPONSES_TOKEN_NAMES: Final = ("input_tokens", "output_tokens")


class _Answer:
    """Send one answer, and write its row when it ended: whole, cut short, or left by the client."""

    def __init__(self, server: OpenAIServer, ask: Ask, *, status: int, response_id: str | None = None) -> None:
        self._server = server
        self._ask = ask
        self._status = status
        self._response_id = response_id
        self._tokens: tuple[int | None, int | None] = (None, None)

    def plain(self, body: dict[str, Any], headers: Mapping[str, str]) -> ASGIApp:
        """Answer with a JSON body."""
        response = JSONResponse(body, self._status, dict(headers))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            names = _RESPONSES_TOKEN_NAMES if self._ask.path == "/responses" else _PLAIN_TOKEN_NAMES
            usage = body.get("usage") or {}
            self._tokens = (usage.get(names[0]), usage.get(names[1]))
            try:
                await response(scope, receive, send)
            finally:
                self._write()

        return app

    def streamed(self, reply: Reply, frames: Iterator[Frame], headers: Mapping[str, str]) -> ASGIApp:
        """Answer with server-sent events; a client that leaves ends it."""

        async def app(_: Scope, receive: Receive, send: Send) -> None:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                    await self._send_frames(reply, frames, headers, send)
                    tasks.cancel_scope.cancel()
            finally:
                self._write()

        return app

    async def _send_frames(self, reply: Reply, frames: Iterator[Frame], headers: Mapping[str, str], send: Send) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": raw})
        for number, frame in enumerate(frames, start=1):
            await send({"type": "http.response.body", "body": frame.data, "more_body": True})
            if frame.carries_usage and reply.usage:
                self._tokens = (reply.usage.input_tokens, reply.usage.output_tokens)
            if self._ask.behaviour == "cut":
                return
            if self._ask.behaviour == "stall" and number == _STALL_AFTER:
                await anyio.sleep(_STALL_LIMIT_S)
            await anyio.sleep(self._server.chunk_latency_s)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _write(self) -> None:
        said = witness_in(self._ask.prompt)
        prompt_tokens, completion_tokens = self._tokens
        row = LedgerRow(
            response_id=self._response_id,
            path=self._ask.path,
            stream=self._ask.stream,
            http_status=self._status,
            user=said.user,
            feature=said.feature,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        self._server.ledger.write(row)


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class OpenAIServer:
    """The service: an ASGI app, to be served by any server.

    Args:
        ledger: Where it writes a row for every call that it answered (reading the list of models is no call).
        seed: The same seed and the same order of calls give the same answers and ids.
        latency_s: How long a call takes before its first byte, on average.
        chunk_latency_s: How long it waits after each part of a stream.

    Concurrency: one event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        seed: int = 0,
        latency_s: float = 0.0,
        chunk_latency_s: float = 0.0,
    ) -> None:
        self.ledger = ledger
        self.seed = seed
        self.latency_s = latency_s
        self.chunk_latency_s = chunk_latency_s
        self._numbers = itertools.count(1)
        self._app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/responses", self._responses, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/models", self._models),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event as ASGI asks."""
        await self._app(scope, receive, send)

    async def _models(self, _: Request) -> ASGIApp:
        return JSONResponse(models_body(_MODELS))

    async def _chat(self, request: Request) -> ASGIApp:
        ask, random = await self._begin(request)
        if failure := failure_of(ask):
            return self._fail(ask, failure)
        reply = compose(ask, random)
        answer = _Answer(self, ask, status=200, response_id=chat_id(reply))
        if not ask.stream:
            return answer.plain(chat_body(reply), self._headers(random))
        wished = (ask.body.get("stream_options") or {}).get("include_usage") is True
        return answer.streamed(reply, chat_frames(reply, include_usage=wished), self._headers(random, _EVENT_STREAM))

    async def _responses(self, request: Request) -> ASGIApp:
        ask, random = await self._begin(request)
        if failure := failure_of(ask):
            return self._fail(ask, failure)
        reply = compose(ask, random)
        answer = _Answer(self, ask, status=200, response_id=response_id(reply))
        if not ask.stream:
            return answer.plain(response_body(ask, reply), self._headers(random))
        return answer.streamed(reply, response_frames(ask, reply), self._headers(random, _EVENT_STREAM))

    async def _embeddings(self, request: Request) -> ASGIApp:
        ask, random = await self._begin(request)
        if failure := failure_of(ask):
            return self._fail(ask, failure)
        return _Answer(self, ask, status=200).plain(embeddings_body(ask, random), self._headers(random))

    async def _begin(self, request: Request) -> tuple[Ask, Random]:
        random = Random(f"{self.seed}/{next(self._numbers)}")
        ask = await _read(request)
        await anyio.sleep(self.latency_s * random.uniform(0.5, 1.5))
        return ask, random

    def _fail(self, ask: Ask, failure: Failure) -> ASGIApp:
        headers = {"x-request-id": f"req_{next(self._numbers):032x}", **failure.headers}
        return _Answer(self, ask, status=failure.status).plain(failure.body, headers)

    def _headers(self, random: Random, content: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        return {
            "x-request-id": f"req_{random.getrandbits(128):032x}",
            "openai-processing-ms": str(round(self.latency_s * 1000)),
            "openai-version": "2020-10-01",
            **content,
        }


async def _read(request: Request) -> Ask:
    try:
        body = msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.DecodeError:
        body = {}
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    return Ask(
        path=request.url.path.removeprefix("/v1"),
        body=body,
        behaviour=request.headers.get("x-demo-behaviour") or Ask.behaviour_in(body),
        retry_count=int(request.headers.get("x-stainless-retry-count", "0")),
        authorized=key not in ("", "wrong"),
    )
