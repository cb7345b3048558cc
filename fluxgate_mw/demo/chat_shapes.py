"""How an OpenAI-compatible service writes chat completions, embeddings and errors.

Source: the shapes are those of the service's answers of November 2024 to April 2026; see tests.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec

from fluxgate_mw.demo.answers import Ask, Reply, Usage, count_tokens

__all__ = ["Frame", "chat_body", "chat_frames", "chat_id", "embeddings_body", "error_body", "models_body"]

_FINGERPRINT = "fp_0ba0d124f1"
_DIMENSIONS = 256
_ARGUMENT_PIECE = 6


class Frame(msgspec.Struct, frozen=True):
    """One part of a streamed body, and whether it carries the usage."""

    data: bytes
    carries_usage: bool = False


def chat_id(reply: Reply) -> str:
    """Return the id of a chat completion."""
    return f"chatcmpl-{reply.key[:29]}"


def chat_body(reply: Reply) -> dict[str, Any]:
    """Return the JSON body of a plain chat completion."""
    body = {
        "id": chat_id(reply),
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [
            {"index": index, "message": _message(reply), "logprobs": None, "finish_reason": reply.finish}
            for index in range(reply.choices)
        ],
    }
    if reply.usage is not None:
        body["usage"] = _usage(reply.usage)
    return body | {"service_tier": "default", "system_fingerprint": _FINGERPRINT}


def _message(reply: Reply) -> dict[str, Any]:
    if reply.tool is None:
        return {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    function = {"name": reply.tool.name, "arguments": reply.tool.arguments}
    calls = [{"id": reply.tool.call_id, "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "annotations": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_frames(reply: Reply, *, include_usage: bool) -> Iterator[Frame]:
    """Yield the parts of a streamed chat completion.

    With `include_usage` every chunk but the last says `"usage": null`, and the last one has the usage and no choice;
    a reply without usage ignores the wish.
    """
    with_usage = include_usage and reply.usage is not None
    head = {
        "id": chat_id(reply),
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }
    tail = {"usage": None} if with_usage else {}
    for delta, finish in _deltas(reply):
        for index in range(reply.choices):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield _frame(head | {"choices": [choice]} | tail)
    if with_usage and reply.usage is not None:
        yield Frame(_frame(head | {"choices": [], "usage": _usage(reply.usage)}).data, carries_usage=True)
    yield Frame(b"data: [DONE]\n\n")


def _deltas(reply: Reply) -> Iterator[tuple[dict[str, Any], str | None]]:
    if reply.tool is None:
        yield {"role": "assistant", "content": "", "refusal": None}, None
        for word in reply.words:
            yield {"content": word}, None
    else:
        call = {"index": 0, "id": reply.tool.call_id, "type": "function"}
        first = call | {"function": {"name": reply.tool.name, "arguments": ""}}
        yield {"role": "assistant", "content": None, "tool_calls": [first], "refusal": None}, None
        arguments = reply.tool.arguments
        for start in range(0, len(arguments), _ARGUMENT_PIECE):
            piece = {"arguments": arguments[start : start + _ARGUMENT_PIECE]}
            yield {"tool_calls": [{"index": 0, "function": piece}]}, None
    yield {}, reply.finish


def _frame(value: dict[str, Any]) -> Frame:
    return Frame(b"data: " + msgspec.json.encode(value) + b"\n\n")


def embeddings_body(ask: Ask, random: Random) -> dict[str, Any]:
    """Return the JSON body of an embeddings call: one vector for every input text."""
    given = ask.body.get("input")
    texts = given if isinstance(given, list) else [given]
    tokens = count_tokens(texts)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(ask, random)} for index in range(len(texts))
        ],
        "model": ask.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(ask: Ask, random: Random) -> list[float] | str:
    vector = [random.uniform(-1, 1) for _ in range(int(ask.body.get("dimensions") or _DIMENSIONS))]
    if ask.body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


def models_body(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON body of the list of models."""
    models = [{"id": name, "object": "model", "created": 1_715_367_049, "owned_by": "system"} for name in names]
    return {"object": "list", "data": models}


def error_body(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
