"""The OpenAI service as a transport: every path's answer in the service's shape, and what was asked, kept.

Bodies come as streams, as they do from a network, so the real client reads them as it does in production.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import openai

from tests.calls.clients import Body, httpx

MODEL: Final = "gpt-4o-mini-2024-07-18"
CHAT_USAGE: Final = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}
RESPONSES_USAGE: Final = {
    "input_tokens": 20,
    "output_tokens": 7,
    "total_tokens": 27,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens_details": {"reasoning_tokens": 2},
}
TEXT: Final = '{"word":"blue"}'


def answer(status: int, body: Any, *, headers: Mapping[str, str] | None = None) -> Any:
    """Return an HTTP response: JSON of `body`, or the bytes that it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    sent = {"content-type": kind, "x-request-id": "req_1", **(headers or {})}
    return httpx.Response(status, headers=sent, stream=Body([content]))


def events(*bodies: Any, done: bool = True) -> Any:
    """Return a response of server-sent events, one part each."""
    frames = [frame(body) for body in bodies] + ([b"data: [DONE]\n\n"] if done else [])
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(frames))


def frame(body: Any) -> bytes:
    """Return one server-sent event, with its name where the body has a type."""
    name = f"event: {body['type']}\n".encode() if "type" in body else b""
    return name + b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def chat(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_764_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": CHAT_USAGE,
    }


def chat_chunks(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a streamed completion: with usage only where it was asked for."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL}
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": TEXT[:6]}, None), ({"content": TEXT[6:]}, None), ({}, "stop")]
    wanted = (asked.get("stream_options") or {}).get("include_usage")
    tail = {"usage": None} if wanted else {}
    chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": f}], **tail} for d, f in deltas]
    return [*chunks, {**head, "choices": [], "usage": CHAT_USAGE}] if wanted else chunks


def text_completion(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a legacy completion."""
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1_764_000_000,
        "model": "gpt-3.5-turbo-instruct",
        "choices": [choice],
        "usage": CHAT_USAGE,
    }


def response(asked: Mapping[str, Any], *, status: str = "completed", number: int = 1) -> dict[str, Any]:
    """Return an object of the responses API in that state."""
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    finished = status == "completed"
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1_764_000_000.0,
        "status": status,
        "background": bool(asked.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": MODEL,
        "output": [message] if finished else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSES_USAGE if finished else None,
        "service_tier": "default",
    }


def response_events(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a streamed response."""
    begun, done = response(asked, status="in_progress"), response(asked)
    item = {**done["output"][0], "status": "in_progress", "content": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    whole = {**part, "text": TEXT}
    bodies: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **where, "part": part},
        {"type": "response.output_text.delta", **where, "delta": TEXT, "logprobs": []},
        {"type": "response.output_text.done", **where, "text": TEXT, "logprobs": []},
        {"type": "response.content_part.done", **where, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": done["output"][0]},
        {"type": "response.completed", "response": done},
    ]
    return [{**body, "sequence_number": number} for number, body in enumerate(bodies)]


_IMAGE = {
    "created": 1_764_000_000,
    "data": [{"b64_json": "aGk="}],
    "usage": {
        "input_tokens": 20,
        "output_tokens": 7,
        "total_tokens": 27,
        "input_tokens_details": {"image_tokens": 4, "text_tokens": 16},
    },
}
_DECISION = {"model": MODEL, "answers": [{"type": "predicate", "probability": 0.5}], "usage": RESPONSES_USAGE}
_VIDEO = {
    "id": "video_1",
    "object": "video",
    "created_at": 1_764_000_000,
    "model": "sora-2",
    "progress": 0,
    "seconds": "4",
    "size": "720x1280",
    "status": "queued",
}
_TRANSCRIPT_TOKENS = {
    "type": "tokens",
    "input_tokens": 20,
    "output_tokens": 7,
    "total_tokens": 27,
    "input_token_details": {"audio_tokens": 16, "text_tokens": 4},
}
_EMBEDDING = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "usage": {"prompt_tokens": 20, "total_tokens": 20},
}
_MODERATION = {"id": "modr-1", "model": "omni-moderation-latest", "results": []}
_BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "validating",
    "created_at": 1_764_000_000,
}
_JOB = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "model": MODEL,
    "created_at": 1_764_000_000,
    "status": "queued",
    "training_file": "file-1",
    "hyperparameters": {},
    "result_files": [],
    "seed": 1,
    "organization_id": "org-1",
}
_COMPACTED = {
    "id": "resp_1",
    "object": "response.compaction",
    "created_at": 1_764_000_000,
    "output": [],
    "usage": RESPONSES_USAGE,
}
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "openai"}]}
_PAGE = {"object": "list", "data": [_BATCH], "has_more": True, "first_id": "batch_1", "last_id": "batch_1"}


def _image_events(kind: str) -> list[dict[str, Any]]:
    image = {
        "b64_json": "aGk=",
        "background": "auto",
        "created_at": 1_764_000_000,
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    return [
        {**image, "type": f"{kind}.partial_image", "partial_image_index": 0},
        {**image, "type": f"{kind}.completed", "usage": _IMAGE["usage"]},
    ]


class Service:
    """Answers as the service does and keeps what was asked.

    Attributes:
        requests: Every request's method, path and decoded body (bytes where it is not JSON), in order.
        answers: Path to a function of the body that answers in place of the usual answer.
        failures: Responses given before anything else, first one first.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[Any] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.failures: list[Any] = []
        self._numbers = iter(range(1, 1_000_000))

    def bodies(self) -> list[Any]:
        """Return the decoded bodies of every request, in order."""
        return [body for _, _, body in self.requests]

    def __call__(self, request: Any) -> Any:
        """Keep what is asked and answer it."""
        path = request.url.path.removeprefix("/v1")
        content = request.content
        is_json = content.startswith((b"{", b"["))
        body = json.loads(content) if is_json else content
        self.requests.append((request.method, path, body))
        self.headers.append(request.headers)
        if self.failures:
            return self.failures.pop(0)
        asked = body if isinstance(body, dict) else {"stream": b'name="stream"' in content}
        if path in self.answers:
            return self.answers[path](asked)
        return self._usual(request.method, path.partition("/openai")[2].removeprefix("/v1") or path, asked)

    def _usual(self, method: str, path: str, asked: dict[str, Any]) -> Any:
        if path.startswith("/deployments/"):
            path = "/" + path.split("/", 3)[3]
        if method == "GET":
            return answer(200, self._got(path))
        if path in _STREAMS and asked.get("stream"):
            return events(*_STREAMS[path](asked), done=path == "/chat/completions")
        if path == "/responses":
            state = "queued" if asked.get("background") else "completed"
            return answer(200, response(asked, status=state, number=next(self._numbers)))
        return answer(200, _WHOLES[path](asked))

    def _got(self, path: str) -> Any:
        if path.startswith("/responses/"):
            return {**response({"background": True}), "id": path.rpartition("/")[2]}
        if path.startswith("/batches/"):
            return {**_BATCH, "status": "completed", "output_file_id": "file-2"}
        return {"/models": _MODELS, "/batches": {**_PAGE, "has_more": False}}.get(path, _PAGE)


_STREAMS: Final[Mapping[str, Callable[[Mapping[str, Any]], list[dict[str, Any]]]]] = {
    "/chat/completions": chat_chunks,
    "/responses": response_events,
    "/images/generations": lambda _: _image_events("image_generation"),
    "/images/edits": lambda _: _image_events("image_edit"),
}
_WHOLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "/chat/completions": chat,
    "/completions": text_completion,
    "/responses/compact": lambda _: _COMPACTED,
    "/embeddings": lambda _: _EMBEDDING,
    "/images/generations": lambda _: _IMAGE,
    "/images/edits": lambda _: _IMAGE,
    "/images/variations": lambda _: _IMAGE,
    "/audio/speech": lambda _: b"sound",
    "/audio/transcriptions": lambda _: {"text": "blue", "usage": _TRANSCRIPT_TOKENS},
    "/audio/translations": lambda _: {"text": "blue"},
    "/moderations": lambda _: _MODERATION,
    "/batches": lambda _: _BATCH,
    "/fine_tuning/jobs": lambda _: _JOB,
    "/files": lambda _: {"id": "file-1", "object": "file"},
    "/decisions": lambda _: _DECISION,
    "/videos": lambda _: _VIDEO,
    "/videos/edits": lambda _: _VIDEO,
    "/videos/extensions": lambda _: _VIDEO,
    "/videos/video_1/remix": lambda _: _VIDEO,
}


def sync_client(service: Callable[[Any], Any], kind: Any = openai.OpenAI, **options: Any) -> Any:
    """Return a synchronous client of that service."""
    http_client = httpx.Client(transport=httpx.MockTransport(service))
    return kind(**{"api_key": "sk-test", "max_retries": 0, "http_client": http_client, **options})


def async_client(service: Callable[[Any], Any], kind: Any = openai.AsyncOpenAI, **options: Any) -> Any:
    """Return an asynchronous client of that service."""
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(service))
    return kind(**{"api_key": "sk-test", "max_retries": 0, "http_client": http_client, **options})
