"""What is read from an answer's bytes, whole and as server-sent events, and how bytes are cut into events."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.openai.answer import Answer, status_of
from fluxgate_mw.openai.plain import plain_event
from fluxgate_mw.openai.sse import event_data, split_events, without_null_usage


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def chunk(content: str, **fields: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None}
    return {"id": "c-1", "model": "m-1", "choices": [choice], **fields}


@pytest.mark.parametrize(
    ("reasons", "status"),
    [
        ((), "SUCCESS"),
        (("stop",), "SUCCESS"),
        (("stop", "length"), "MAX_TOKENS"),
        (("length", "content_filter"), "BLOCKED"),
        (("eos",), "SUCCESS"),
        (("stop", "eos"), "SUCCESS"),
        (("eos", "model_length"), "MAX_TOKENS"),
        (("stop", "never heard of"), "ERROR"),
        (("never heard of", "content_filter"), "BLOCKED"),
    ],
)
def test_the_gravest_reason_counts(reasons, status):
    """Of several choices the one that went worst says how the call ended."""
    assert status_of(reasons) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status": "completed"}, "SUCCESS"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "MAX_TOKENS"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "BLOCKED"),
        ({"status": "incomplete"}, "ERROR"),
        ({"status": "incomplete", "incomplete_details": "text"}, "ERROR"),
        ({"status": "failed", "error": {"code": "server_error", "message": "It broke"}}, "ERROR"),
        ({"status": "cancelled"}, "CANCELLED"),
        ({"status": 5}, "SUCCESS"),
    ],
)
def test_the_status_of_a_response(fields, status):
    """The responses API says how it ended in a field of its own."""
    answer = Answer()
    answer.read_whole(json.dumps({"id": "resp_1", "model": "m", **fields}).encode())
    assert answer.outcome_status() == status
    assert answer.ended


def test_a_response_that_is_incomplete_for_no_reason():
    """A reason that is not told is none."""
    answer = Answer()
    answer.read_whole(b'{"id": "resp_1", "status": "incomplete", "incomplete_details": null}')
    assert (answer.outcome_status(), answer.finish_reasons) == ("ERROR", ())


def test_a_later_event_does_not_forget():
    """What a later event leaves out stays as it was said before."""
    answer = Answer()
    answer.read_event(event(chunk("a", service_tier="flex")))
    answer.read_event(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}))
    answer.read_event(event({"choices": [], "usage": None}))
    answer.read_event(event({"choices": [], "usage": {}}))
    assert (answer.response_id, answer.model, answer.service_tier) == ("c-1", "m-1", "flex")
    assert answer.usage.output_tokens == 2


WHOLE = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [
        ([WHOLE, ZEROS], (12, 5, 4)),
        ([ZEROS, WHOLE], (12, 5, 4)),
        ([ZEROS, ZEROS], (0, 0, 0)),
        ([{"prompt_tokens": 12}, ZEROS], (12, None, None)),
        ([{"prompt_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}, {"completion_tokens": 5}], (12, 5, 4)),
        ([{**WHOLE, "completion_tokens": 0}, {"prompt_tokens": 0, "completion_tokens": 5}], (12, 5, 4)),
        ([{**WHOLE, "completion_tokens": 1}, {**WHOLE, "completion_tokens": 3}, WHOLE], (12, 5, 4)),
        ([WHOLE, {"prompt_tokens": 20, "completion_tokens": 6}], (20, 6, 4)),
        ([WHOLE, {**WHOLE, "prompt_tokens_details": {"cached_tokens": 0}}], (12, 5, 0)),
        ([WHOLE, {"prompt_tokens": 3, "completion_tokens": 5}], (3, 5, None)),
    ],
    ids=[
        "zeros last",
        "zeros first",
        "zeros alone",
        "zeros after a half",
        "halves",
        "halves of zeros",
        "cumulative",
        "with fewer details",
        "a part of zero",
        "less than its part",
    ],
)
def test_what_a_later_usage_does_not_count_stays(blocks, counts):
    """Of several blocks the last counts, and what it leaves out is as it was said before; zeros replace no counts."""
    answer = Answer()
    for block in blocks:
        answer.read_event(event({"choices": [], "usage": block}))
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.cache_read_input_tokens) == counts


@pytest.mark.parametrize(("later", "nanos"), [({**ZEROS, "cost": 0}, 2_000_000), ({**WHOLE, "cost": 0.003}, 3_000_000)])
def test_the_cost_beside_a_later_usage(later, nanos):
    """It counts where its block does."""
    answer = Answer()
    answer.read_event(event({"choices": [], "usage": {**WHOLE, "cost": 0.002}}))
    answer.read_event(event({"choices": [], "usage": later}))
    assert answer.cost_nanos == nanos


def test_what_brings_usage_and_nothing_else():
    """Only a chunk with usage and without choices is one to hide."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    assert Answer().read_event(event({"choices": [], "usage": usage}))
    assert not Answer().read_event(event({"choices": [], "usage": None}))
    assert not Answer().read_event(event({"choices": []}))
    assert not Answer().read_event(event(chunk("a", usage=usage)))
    assert not Answer().read_event(b"data: [DONE]\n\n")
    assert not Answer().read_event(b": comment\n\n")


def test_done_ends():
    """`[DONE]` ends an answer, a finish reason does not yet."""
    answer = Answer()
    answer.read_event(event({"choices": [{"finish_reason": "stop", "delta": {}}]}))
    assert not answer.ended
    answer.read_event(b"data: [DONE]\r\n\r\n")
    assert answer.ended


@given(st.text(max_size=30), st.booleans(), st.booleans())
def test_a_quick_look_sees_what_a_whole_one_sees(text, null_usage, ascii_only):
    """A chunk that is not decoded counts as many bytes as one that is."""
    fields = {"usage": None} if null_usage else {}
    data = json.dumps(chunk(text, **fields), separators=(",", ":"), ensure_ascii=ascii_only)
    raw = b"data: " + data.encode("utf-8", "surrogatepass") + b"\n\n"
    answer, plain = Answer(), plain_event(raw)
    answer.read_event(raw)
    if plain is not None:
        assert json.loads(raw[plain[0] : plain[1]]) == text
        assert plain[2] == len(text.encode("utf-8", "surrogatepass")) == answer.delivered_bytes


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": {"prompt_tokens": 1}},
        {"error": {"message": "no"}},
        {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": [{"delta": {"content": "a"}, "finish_reason": None}, {"delta": {"content": "b"}}]},
        {"choices": [{"delta": {"content": "a", "tool_calls": [{"function": {"arguments": "{}"}}]}}]},
        {"choices": [{"delta": {"content": "a"}, "usage": {"prompt_tokens": 1}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "a"}, "usage": {}, "finish_reason": None}], "usage": None},
    ],
    ids=["usage", "error", "finish", "two choices", "tool call", "a choice's usage", "beside a null one"],
)
def test_a_quick_look_passes_over_nothing_of_interest(fields):
    """What brings more than one text is decoded."""
    assert plain_event(event(chunk("a", **fields))) is None


def test_an_earlier_choice_is_not_passed_over():
    """Of two choices in one event, the last a mere text, the first counts too."""
    text = {"index": 1, "delta": {"content": "x"}, "finish_reason": None}
    answer = Answer()
    answer.read_event(event(chunk("a")))
    answer.read_event(event({"id": "c-1", "choices": [{"delta": {}, "finish_reason": "content_filter"}, text]}))
    assert answer.outcome_status() == "BLOCKED"
    called = {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1234567"}}]}, "finish_reason": None}
    answer.read_event(event({"id": "c-1", "choices": [called, text]}))
    assert answer.delivered_bytes == 1 + 1 + 7 + 1


def test_half_a_pair_of_surrogates_is_no_error():
    """What the client's own decoder takes is no error of the call."""
    answer = Answer()
    answer.read_event(event(chunk("a")))
    answer.read_event(b'data: {"id":"c-1","choices":[{"delta":{"content":"\\ud83d"},"finish_reason":null}]}\n\n')
    assert (answer.status, answer.error_type, answer.delivered_bytes) == (None, None, 1 + 3)


@given(
    st.lists(st.sampled_from([b"data: a", b"data: b\ndata: c", b"event: x\ndata: {}", b": note", b"data: \xc3\xa4"])),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 300), max_size=20),
)
def test_events_are_found_however_they_are_cut(events, newline, cuts):
    """Nothing is lost or doubled, and each event is whole, whatever the parts are."""
    whole = b"".join(each.replace(b"\n", newline) + newline * 2 for each in events)
    found, held = [], b""
    edges = [0, *sorted({place % (len(whole) + 1) for place in cuts}), len(whole)]
    for start, end in itertools.pairwise(edges):
        pieces, held = split_events(held + whole[start:end])
        found += pieces
    assert b"".join(found) + held == whole
    rest = [held] if held else []
    datas = [event_data(each) for each in [*found, *rest]]
    assert [data for data in datas if data] == [data for data in map(event_data, events) if data]


def test_two_lone_carriage_returns_end_an_event_at_once():
    """The client hands it on then; half a line's end is waited for, as the client does."""
    assert split_events(b"data: 1\r\r") == ([b"data: 1\r\r"], b"")
    assert split_events(b"data: 1\r\n\r") == ([], b"data: 1\r\n\r")
    assert split_events(b"data: 1\r\n\r", ended=True) == ([b"data: 1\r\n\r"], b"")


def test_null_usage_is_taken_out_and_nothing_else():
    """The field that asking for usage adds goes, as the service writes it and with blanks; texts stay."""
    assert without_null_usage(b'data: {"a":1,"usage":null}\n\n') == b'data: {"a":1}\n\n'
    assert without_null_usage(b'data: {"a": 1, "usage": null, "b": 2}\n\n') == b'data: {"a": 1, "b": 2}\n\n'
    assert without_null_usage(b'data: {"usage": null, "b": 2}\n\n') == b'data: {"b": 2}\n\n'
    text = event({"a": ',"usage":null', "b": '"usage": null, '})
    assert without_null_usage(text) == text
    reported = event({"usage": {"prompt_tokens": 1}})
    assert without_null_usage(reported) == reported


@given(st.binary(max_size=300))
def test_no_bytes_are_too_odd(body):
    """Reading raises nothing, whatever is read."""
    answer = Answer()
    answer.read_whole(body)
    answer.read_events(body)
    answer.read_event(body)
    without_null_usage(body)
    assert answer.ended
