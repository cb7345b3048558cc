"""Streams of the responses API: each of its ends, and its helpers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calls.clients import SSE, Asked, Reply, Wire, recorded, typed
from tests.calls.streaming import counts, cut


def response_of(status, **fields):
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "status": status,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **fields,
    }


RESPONSE_USAGE = {
    "input_tokens": 22,
    "input_tokens_details": {"cached_tokens": 6},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 31,
}
CREATED = {"type": "response.created", "sequence_number": 0, "response": response_of("in_progress")}
DELTA = {
    "type": "response.output_text.delta",
    "sequence_number": 1,
    "item_id": "msg_1",
    "output_index": 0,
    "content_index": 0,
    "delta": "word " * 8,
    "logprobs": [],
}
RESPONSES = Asked("responses", {"model": "gpt-4o-mini", "input": "Say this is a test", "stream": True})


def ended(kind, **fields):
    return {"type": f"response.{kind}", "sequence_number": 2, "response": response_of(kind, **fields)}


@pytest.mark.parametrize(
    ("last", "status", "error_type", "reasons"),
    [
        (ended("completed", usage=RESPONSE_USAGE), "SUCCESS", None, ()),
        (
            ended("incomplete", usage=RESPONSE_USAGE, incomplete_details={"reason": "max_output_tokens"}),
            "MAX_TOKENS",
            None,
            ("max_output_tokens",),
        ),
        (
            ended("incomplete", usage=RESPONSE_USAGE, incomplete_details={"reason": "content_filter"}),
            "BLOCKED",
            None,
            ("content_filter",),
        ),
        (
            ended("failed", usage=RESPONSE_USAGE, error={"code": "server_error", "message": "It broke"}),
            "ERROR",
            "server_error",
            (),
        ),
    ],
    ids=["completed", "max_output_tokens", "content_filter", "failed"],
)
@pytest.mark.parametrize("way", ["plain", "asynchronous", "raw"])
def test_how_a_streamed_response_ended(last, status, error_type, reasons, way):
    """Each end of the responses API is its own status, with the usage it carried (openllmetry#3395, logfire#1651)."""
    body = typed(CREATED, DELTA, last)
    ask = getattr(RESPONSES, way)
    without = ask(Wire(Reply(body, headers=SSE)))
    with recorded() as events:
        assert ask(Wire(Reply(body, headers=SSE))) == without
    [event] = events
    assert (event.status, event.error_type, event.finish_reasons) == (status, error_type, reasons)
    assert counts(event) == (22, 9, 6, 3)
    assert (event.response_id, event.usage_source) == ("resp_1", "provider")
    assert event.error_message == ("It broke" if error_type else None)


def test_an_error_event_of_the_responses_api():
    """An `error` event is an error with its code, estimated."""
    fault = {"type": "error", "sequence_number": 2, "code": "server_error", "message": "It broke", "param": None}
    body = typed(CREATED, DELTA, fault)
    without = RESPONSES.plain(Wire(Reply(body, headers=SSE)))
    with recorded() as events:
        assert RESPONSES.plain(Wire(Reply(body, headers=SSE))) == without
    [event] = events
    assert (event.status, event.error_message, event.output_tokens) == ("ERROR", "It broke", 10)
    assert event.error_type == "server_error"
    assert event.usage_source == "estimated"


def test_a_response_without_its_last_event():
    """A responses stream that just stops is an error, estimated."""
    with recorded() as events:
        RESPONSES.plain(Wire(Reply(typed(CREATED, DELTA), headers=SSE)))
    [event] = events
    assert (event.status, event.error_type, event.output_tokens) == ("ERROR", "IncompleteStream", 10)


def test_a_provider_that_leaves_the_output_out():
    """An event without `response.output` neither stops the caller nor the record (logfire#1683)."""
    bare = {"type": "response.created", "response": {"id": "resp_1"}}
    last = {"type": "response.completed", "response": {"id": "resp_1", "usage": RESPONSE_USAGE}}
    body = typed(bare, DELTA, last)
    without = RESPONSES.plain(Wire(Reply(body, headers=SSE)))
    with recorded() as events:
        assert RESPONSES.plain(Wire(Reply(body, headers=SSE))) == without
    assert counts(events[0]) == (22, 9, 6, 3)


def test_the_responses_stream_helper():
    """`responses.stream` gives its events and the final response, and is one call (logfire#1651)."""
    wire = Wire(Reply(typed(CREATED, ended("completed", usage=RESPONSE_USAGE)), headers=SSE))
    with recorded() as events:
        with wire.client().responses.stream(model="gpt-4o-mini", input="Say") as stream:
            stream.until_done()
        assert stream.get_final_response().usage.output_tokens == 9
    assert (len(events), counts(events[0])) == (1, (22, 9, 6, 3))


@given(cuts=st.lists(st.integers(0, 10_000), max_size=30), newline=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=25)
def test_any_split_of_a_response(cuts, newline):
    """However its bytes are cut, a responses stream gives the same events and the same usage."""
    events_sent = (CREATED, DELTA, {**DELTA, "delta": '\u00e4"\\'}, ended("completed", usage=RESPONSE_USAGE))
    body = typed(*events_sent, newline=newline)
    without = RESPONSES.plain(Wire(Reply([body], headers=SSE)))
    with recorded() as events:
        assert RESPONSES.plain(Wire(Reply(cut(body, cuts), headers=SSE))) == without
    assert counts(events[0]) == (22, 9, 6, 3)
