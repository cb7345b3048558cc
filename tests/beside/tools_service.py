"""A served model that uses a tool: it asks for `weather` once where tools are offered, then answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.calls.service import Service, answer, chat, chat_chunks, events, response, response_events

TOOL: Final = "weather"
ARGUMENTS: Final = '{"city":"Oslo"}'
_CALL: Final = {"id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": ARGUMENTS}}
_ITEM: Final = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": TOOL,
    "arguments": ARGUMENTS,
    "status": "completed",
}


def use_tools(service: Service) -> None:
    """Have the service ask for the tool where it is offered and has not answered yet."""
    service.answers["/chat/completions"] = _chat
    service.answers["/responses"] = _response


def _chat(asked: Mapping[str, Any]) -> Any:
    wanted = bool(asked.get("tools")) and asked["messages"][-1]["role"] != "tool"
    if asked.get("stream"):
        return events(*_with_call(chat_chunks(asked)) if wanted else chat_chunks(asked))
    body = chat(asked)
    if wanted:
        body["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
        body["choices"][0]["finish_reason"] = "tool_calls"
    return answer(200, body)


def _with_call(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the chunks of a stream whose content is the call of the tool, in two parts."""
    first, second, third, last = chunks[:4]
    pieces = ({**_CALL, "function": {"name": TOOL, "arguments": ""}}, {"function": {"arguments": ARGUMENTS}})
    for chunk, piece in zip((second, third), pieces, strict=True):
        chunk["choices"][0]["delta"] = {"tool_calls": [{"index": 0, **piece}]}
    last["choices"][0]["finish_reason"] = "tool_calls"
    return [first, second, third, last, *chunks[4:]]


def _response(asked: Mapping[str, Any]) -> Any:
    given = asked["input"] if isinstance(asked["input"], list) else []
    wanted = bool(asked.get("tools")) and not any(item.get("type") == "function_call_output" for item in given)
    if not asked.get("stream"):
        return answer(200, {**response(asked), "output": [_ITEM]} if wanted else response(asked))
    return events(*_calling(response_events(asked)) if wanted else response_events(asked), done=False)


def _calling(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of a response whose one output is the call of the tool."""
    where = {"item_id": "fc_1", "output_index": 0}
    done = {**bodies[-1]["response"], "output": [_ITEM]}
    called: list[dict[str, Any]] = [
        *bodies[:2],
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**_ITEM, "arguments": "", "status": "in_progress"},
        },
        {"type": "response.function_call_arguments.delta", **where, "delta": ARGUMENTS},
        {"type": "response.function_call_arguments.done", **where, "name": TOOL, "arguments": ARGUMENTS},
        {"type": "response.output_item.done", "output_index": 0, "item": _ITEM},
        {"type": "response.completed", "response": done},
    ]
    return [{**body, "sequence_number": number} for number, body in enumerate(called)]
