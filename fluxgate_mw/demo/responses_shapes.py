"""How an OpenAI-compatible service writes answers of the Responses interface, plain and as events.

Source: the shapes and the order of events are those of the service's answers of April 2026; see tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fluxgate_mw.demo.answers import Ask, Reply, ToolCall, Usage
from fluxgate_mw.demo.chat_shapes import Frame

__all__ = ["response_body", "response_frames", "response_id"]

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_BLANK: Final[dict[str, dict[str, Any]]] = {"message": {"content": []}, "function_call": {"arguments": ""}}


def response_id(reply: Reply) -> str:
    """Return the id of a response."""
    return f"resp_{reply.key}"


def response_body(ask: Ask, reply: Reply) -> dict[str, Any]:
    """Return the JSON body of a finished response: `completed`, or `incomplete` with its reason."""
    reason = _INCOMPLETE.get(reply.finish)
    return _response(ask, reply) | {
        "status": "incomplete" if reason else "completed",
        "completed_at": None if reason else reply.created + 1,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": _output(reply),
        "usage": _usage(reply.usage),
    }


def _response(ask: Ask, reply: Reply) -> dict[str, Any]:
    return {
        "id": response_id(reply),
        "object": "response",
        "created_at": reply.created,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": ask.body.get("instructions"),
        "max_output_tokens": ask.body.get("max_output_tokens"),
        "model": reply.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": ask.body.get("tool_choice", "auto"),
        "tools": ask.body.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


def _output(reply: Reply) -> list[dict[str, Any]]:
    reasoning = reply.usage.reasoning_tokens if reply.usage else 0
    thoughts = [{"id": f"rs_{reply.key}", "type": "reasoning", "summary": []}] if reasoning else []
    return [*thoughts, _function_item(reply, reply.tool) if reply.tool else _message_item(reply)]


def _function_item(reply: Reply, tool: ToolCall) -> dict[str, Any]:
    item = {"id": f"fc_{reply.key}", "type": "function_call", "status": "completed"}
    return item | {"arguments": tool.arguments, "call_id": tool.call_id, "name": tool.name}


def _message_item(reply: Reply) -> dict[str, Any]:
    status = "completed" if reply.finish == "stop" else "incomplete"
    item = {"id": f"msg_{reply.key}", "type": "message", "status": status}
    return item | {"content": [_part(reply.text)], "role": "assistant"}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def response_frames(ask: Ask, reply: Reply) -> Iterator[Frame]:
    """Yield the parts of a streamed response, from `response.created` to `response.completed` or `.incomplete`."""
    final = response_body(ask, reply)
    last = f"response.{final['status']}"
    for number, (kind, fields) in enumerate(_events(ask, reply, final)):
        event = {"type": kind, **fields, "sequence_number": number}
        data = f"event: {kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
        yield Frame(data, carries_usage=kind == last and reply.usage is not None)


def _events(ask: Ask, reply: Reply, final: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    started = _response(ask, reply)
    yield "response.created", {"response": started}
    yield "response.in_progress", {"response": started}
    for index, item in enumerate(final["output"]):
        yield from _item_events(reply, item, index)
    yield f"response.{final['status']}", {"response": final}


def _item_events(reply: Reply, item: dict[str, Any], index: int) -> Iterator[tuple[str, dict[str, Any]]]:
    blank = _BLANK.get(item["type"], {})
    at_start = {"status": "in_progress"} if "status" in item else {}
    yield "response.output_item.added", {"item": item | blank | at_start, "output_index": index}
    place = {"item_id": item["id"], "output_index": index}
    if item["type"] == "message":
        yield from _text_events(reply, place | {"content_index": 0})
    elif item["type"] == "function_call":
        yield "response.function_call_arguments.delta", place | {"delta": item["arguments"]}
        done = {"arguments": item["arguments"], "name": item["name"]}
        yield "response.function_call_arguments.done", place | done
    yield "response.output_item.done", {"item": item, "output_index": index}


def _text_events(reply: Reply, place: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.content_part.added", place | {"part": _part("")}
    for word in reply.words:
        yield "response.output_text.delta", place | {"delta": word, "logprobs": []}
    yield "response.output_text.done", place | {"text": reply.text, "logprobs": []}
    yield "response.content_part.done", place | {"part": _part(reply.text)}
