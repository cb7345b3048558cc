"""What is billed beside the tokens leaves the cost unknown: containers by the minute, searches by the call.

Source: https://platform.openai.com/docs/pricing (containers, read 2026-11) and community.openai.com/t/1364328 (a
container is made for a request that offers the tool, called or not).
"""

from __future__ import annotations

import json

import pytest

from tests.calls.clients import ASKED, SSE, Asked, Reply, Wire, completion, recorded, typed
from tests.calls.mocks import answer, sync_client

USAGE = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
ASK = {"model": "gpt-4o-mini", "input": "hi"}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": []}


def body(*output, status="completed", usage=USAGE):
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-4o-mini-2024-07-18", "status": status,
        "output": list(output), "usage": usage, "tools": [], "parallel_tool_calls": True, "tool_choice": "auto",
    }  # fmt: skip


def event_of(asked, reply):
    with recorded() as events:
        Asked("responses", asked).plain(Wire(reply))
    return events[0]


def test_a_hosted_shell():
    """Its container is billed by the minute."""
    item = {"type": "shell_call", "id": "sh_1", "call_id": "c", "status": "completed", "action": {"commands": ["ls"]}}
    event = event_of(ASK, Reply(json.dumps(body(item, MESSAGE)).encode()))
    assert (event.cost_nanos, event.input_tokens) == (None, 12)


@pytest.mark.parametrize("stream", [False, True])
def test_a_container_that_is_offered(stream):
    """It is made for the request, called or not."""
    asked = {**ASK, "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}
    answer = body(MESSAGE)
    done = typed({"type": "response.completed", "sequence_number": 1, "response": answer})
    reply = Reply(done, headers=SSE) if stream else Reply(json.dumps(answer).encode())
    event = event_of({**asked, "stream": True} if stream else asked, reply)
    assert (event.cost_nanos, event.input_tokens) == (None, 12)


RESEARCH = {"prompt_tokens": 33, "completion_tokens": 7163, "total_tokens": 7196, "citation_tokens": 8123}
SEARCHED = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@pytest.mark.parametrize(
    ("host", "model", "usage", "nanos"),
    [
        ("api.perplexity.ai", "sonar-deep-research", {**RESEARCH, "num_search_queries": 18}, None),
        ("api.perplexity.ai", "sonar-deep-research", {**RESEARCH, "num_search_queries": 0}, 57_370_000),
        ("api.x.ai/v1", "grok-4", {**SEARCHED, "num_sources_used": 8}, None),
        ("api.x.ai/v1", "grok-4", {**SEARCHED, "num_server_side_tools_used": 1}, None),
        ("api.x.ai/v1", "grok-4", {**SEARCHED, "server_side_tool_usage_details": {"x_search_calls": 2}}, None),
        ("api.x.ai/v1", "grok-4", {**SEARCHED, "server_side_tool_usage_details": {"x_search_calls": 0}}, 450_000),
        ("api.x.ai/v1", "grok-4", {**SEARCHED, "num_sources_used": 8, "cost_in_usd_ticks": 70_000_000}, 7_000_000),
    ],
)
def test_what_the_usage_counts_beside_its_tokens(host, model, usage, nanos):
    """Searches and tools leave the cost unknown, unless the provider says it."""
    wire = Wire(Reply(json.dumps(completion(model=model, usage=usage)).encode()))
    with recorded() as events:
        wire.client(base_url=f"https://{host}").chat.completions.create(**{**ASKED, "model": model})
    assert (events[0].cost_nanos, events[0].input_tokens) == (nanos, usage["prompt_tokens"])


def test_a_search_in_a_stream_that_breaks_off():
    """The search was made and is billed, whatever became of the rest."""
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": body(status="in_progress", usage=None)},
        {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": item},
    ]
    event = event_of({**ASK, "stream": True}, Reply(typed(*events), headers=SSE))
    assert event.usage_source == "estimated"
    assert event.cost_nanos is None


def test_an_svg():
    """Its authoring is billed as a second model's tokens, which are not those of the image (openai 3.57)."""
    usage = {"input_tokens": 50, "output_tokens": 1000, "total_tokens": 1050}
    authored = {"input_tokens": 5000, "model": "gpt-5.2", "output_tokens": 9000, "reasoning_tokens": 4000}
    drawn = {"created": 1, "data": [], "usage": usage, "svg_usage": {**authored, "total_tokens": 14_000}}
    with recorded() as events:
        sync_client(lambda r: answer(drawn)).images.generate(model="gpt-image-2", prompt="x")
    assert (events[0].cost_nanos, events[0].output_tokens) == (None, 1000)
    assert events[0].unpriced_reason == "the call used the authoring of an SVG, which is billed beside its tokens"


@pytest.mark.parametrize("place", [{"type": "local"}, "cntr_1", None])
def test_a_shell_of_the_callers_own(place):
    """A shell on his machine, or in a container that is there, is paid by its tokens."""
    item = {"type": "shell_call", "id": "sh_1", "call_id": "c", "status": "completed", "environment": {"type": "local"}}
    asked = {**ASK, "tools": [{"type": "shell", "environment": place}]}
    assert event_of(asked, Reply(json.dumps(body(item, MESSAGE)).encode())).cost_nanos == 3_600
