"""Prompts and answers are kept only where the user asked for them, redacted and cut, and never in a log."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from functools import partial

import pytest
from openai import Stream

from fluxgate_mw import FluxGate, FluxGateError
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event, encode_event
from fluxgate_mw.testing import capture_events
from tests.calls.clients import SSE, Asked, Reply, Wire, recorded, typed
from tests.calls.mocks import CHAT, MESSAGES, answer, chat_events, event, streamed, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}


def _event(handler=lambda r: answer(CHAT), **asked):
    with capture_events() as events:
        result = sync_client(handler).chat.completions.create(**{**CREATE, **asked})
        if asked.get("stream"):
            list(result)
    return events[0]


def test_nothing_is_kept_by_default(fg):
    """No word of prompt or answer is in the event's wire form."""
    event = _event()
    assert (event.input_content, event.output_content) == (None, None)
    assert b"test" not in encode_event(event)
    assert b"Hello" not in encode_event(event)


def test_both_are_kept_where_it_is_asked_for():
    """The request's messages and the answer's choices, as JSON, through the wire and back."""
    FluxGate(capture_content=True)
    event = decode_event(encode_event(_event()))
    assert json.loads(event.input_content) == {"messages": MESSAGES}
    assert json.loads(event.output_content) == {"choices": CHAT["choices"]}


def test_a_streams_texts_are_kept():
    """What was delivered, joined; also of a stream that was left early."""
    FluxGate(capture_content=True)
    event = _event(lambda r: streamed(chat_events("Hel", 'lo "', "\n!")), stream=True)
    assert event.output_content == 'Hello "\n!'


def _choice(index=0, finish=None, **delta):
    return event(json.dumps({"id": "c-1", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}))


def _ended(*events):
    return streamed([*events, _choice(finish="stop"), event("[DONE]")])


def _without_addresses(text):
    return re.sub(r"\S+@\S+", "[mail]", text)


def test_each_choice_of_a_stream_is_kept_by_itself():
    """Though their pieces come in turn, `redact` sees the whole text of each."""
    FluxGate(capture_content=True, redact=_without_addresses)
    pieces = [(0, "To bob@"), (1, "Hello "), (0, "corp.com, "), (1, "you"), (0, "now")]
    kept = _event(lambda r: _ended(*(_choice(index, content=text) for index, text in pieces)), stream=True, n=2)
    assert json.loads(kept.output_content) == {"choices.0.content": "To [mail] now", "choices.1.content": "Hello you"}


def test_each_part_of_a_streamed_choice_is_kept_by_itself():
    """What it said, thought, refused and called."""
    FluxGate(capture_content=True)

    def called(index, **function):
        return _choice(tool_calls=[{"index": index, "id": "call", "type": "function", "function": function}])

    events = [
        _choice(reasoning_content="Let "),
        _choice(reasoning_content="me see"),
        _choice(role="assistant", content="I "),
        _choice(content="see"),
        called(0, name="weather", arguments=""),
        called(0, arguments='{"city":'),
        called(1, name="time", arguments="{"),
        called(0, arguments='"Bonn"}'),
        called(1, arguments="}"),
    ]
    assert json.loads(_event(lambda r: _ended(*events), stream=True).output_content) == {
        "choices.0.reasoning_content": "Let me see",
        "choices.0.content": "I see",
        "choices.0.tool_calls.0.function.name": "weather",
        "choices.0.tool_calls.0.function.arguments": '{"city":"Bonn"}',
        "choices.0.tool_calls.1.function.name": "time",
        "choices.0.tool_calls.1.function.arguments": "{}",
    }


def test_each_part_of_a_streamed_response_is_kept_by_itself():
    """Of the responses API, by what it is and where it stands; a single text is kept as the text that it is."""
    FluxGate(capture_content=True, redact=_without_addresses)

    def delta(kind, text, **place):
        return {"type": f"response.{kind}.delta", "sequence_number": 1, "item_id": "x", "delta": text, **place}

    end = {"type": "response.completed", "sequence_number": 2, "response": {"id": "resp_1", "status": "completed"}}
    summary = delta("reasoning_summary_text", "Hm", output_index=0, summary_index=0)
    said = [
        delta("output_text", text, output_index=index, content_index=0)
        for index, text in [(1, "To bob@"), (2, "Hello "), (1, "corp.com"), (2, "you")]
    ]
    asked = Asked("responses", {"model": "gpt-4o-mini", "input": "Hi", "stream": True})
    with recorded() as events:
        asked.plain(Wire(Reply(typed(summary, *said, end), headers=SSE)))
        asked.plain(Wire(Reply(typed(*said[1::2], end), headers=SSE)))
    assert json.loads(events[0].output_content) == {
        "response.reasoning_summary_text.0.0": "Hm",
        "response.output_text.1.0": "To [mail]",
        "response.output_text.2.0": "Hello you",
    }
    assert events[1].output_content == "Hello you"


def test_a_streamed_legacy_completion_is_kept():
    """Its choices have texts and no deltas."""
    FluxGate(capture_content=True)
    events = [
        event({"id": "c-1", "choices": [{"index": index, "text": text, "finish_reason": finish}]})
        for index, text, finish in [(0, "a", None), (1, "c", None), (0, "b", "stop"), (1, "d", "stop")]
    ]
    with capture_events() as captured:
        client = sync_client(lambda r: streamed([*events, event("[DONE]")]))
        list(client.completions.create(model="m", prompt="Hi", stream=True))
    assert json.loads(captured[0].output_content) == {"choices.0.text": "ab", "choices.1.text": "cd"}


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": None, "delta": {"content": "a"}}, {"delta": {"content": "b"}}],
        [{"index": [0], "delta": {"content": "a"}}, {"index": "1", "delta": {"content": "b"}}],
    ],
)
def test_choices_without_an_index_are_kept_by_their_place(choices):
    """What is no index, or is none, does not mix what stands side by side."""
    FluxGate(capture_content=True)
    kept = _event(lambda r: streamed([event({"id": "c-1", "choices": choices})]), stream=True)
    assert json.loads(kept.output_content) == {"choices.0.content": "a", "choices.1.content": "b"}


@pytest.mark.parametrize("redact", [None, lambda text: text])
def test_a_pair_of_surrogates_that_a_stream_splits_is_one_character(redact):
    """A half of one that stands alone is replaced; the rest of the event has its wire form."""
    FluxGate(capture_content=True, redact=redact)
    halves = [_choice(content=half) for half in ("Hi \ud83d", "\ude00", " and \ud83d")]
    kept = _event(lambda r: _ended(*halves), stream=True)
    assert kept.output_content == "Hi \U0001f600 and \ufffd"
    assert decode_event(encode_event(kept)) == kept
    two = _event(lambda r: _ended(*halves, _choice(refusal="\ud83d")), stream=True)
    assert json.loads(two.output_content)["choices.0.refusal"] == "\ufffd"


@pytest.mark.parametrize("redact", [None, lambda text: text])
def test_half_a_pair_of_surrogates_in_an_answer_is_replaced(redact):
    """The rest of the answer's content is kept."""
    FluxGate(capture_content=True, redact=redact)
    choices = [{"index": 0, "message": {"role": "assistant", "content": "a\ud83d"}, "finish_reason": "stop"}]
    kept = _event(lambda r: answer(json.dumps({**CHAT, "choices": choices}).encode()))
    assert json.loads(kept.output_content)["choices"][0]["message"]["content"] == "a\ufffd"
    assert decode_event(encode_event(kept)) == kept


def test_half_a_pair_of_surrogates_that_redact_returns_is_replaced():
    """What it cuts in two is no reason to leave the content out."""
    FluxGate(capture_content=True, redact=lambda text: f"{text[:1]}\ud83d")
    assert json.loads(_event().input_content)["messages"][0]["content"] == "S\ufffd"


def test_what_the_caller_changes_later_is_not_kept():
    """A prompt is kept as it was sent, though its stream ends later; by the client's low-level method, too."""
    FluxGate(capture_content=True)
    body = {**CREATE, "messages": [{"role": "user", "content": "first"}], "stream": True}
    with capture_events() as events:
        client = sync_client(lambda r: streamed(chat_events("Hi")))
        stream = client.post("/chat/completions", body=body, cast_to=object, stream=True, stream_cls=Stream[object])
        body["messages"][0]["content"] = "second"
        list(stream)
    assert json.loads(events[0].input_content) == {"messages": [{"role": "user", "content": "first"}]}


def test_redact_sees_every_text_before_it_is_kept():
    """Each string of prompt and answer passes the user's function; keys and structure stay."""
    FluxGate(capture_content=True, redact=lambda text: text.replace("test", "***").replace("Hello", "***"))
    event = _event()
    assert json.loads(event.input_content)["messages"][0] == {"role": "user", "content": "Say this is a ***"}
    assert "*** there." in event.output_content
    streamed_event = _event(lambda r: streamed(chat_events("Hel", "lo")), stream=True)
    assert streamed_event.output_content == "***"


def test_what_redact_does_wrong_leaves_the_content_out(caplog):
    """A redact that raises costs the content, never the call, and its message is not logged."""

    def wrong(text):
        raise ValueError(text)

    fg = FluxGate(capture_content=True, redact=wrong)
    event = _event()
    assert (event.input_content, event.output_content, event.input_tokens) == (None, None, 12)
    assert fg.statistics().notes["content"] == 2
    assert "Say this" not in caplog.text


def test_content_is_cut_at_the_cap():
    """At most so many bytes of each, cut between characters."""
    FluxGate(capture_content=True, content_max_bytes=100)
    event = _event(messages=[{"role": "user", "content": "ü" * 500}])
    assert len(event.input_content.encode()) <= 100
    assert event.input_content.endswith("…")


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, SystemExit])
def test_whatever_redact_raises_costs_the_content_alone(tmp_path, kind, durable):
    """Nor does it end the delivery's thread, or reach a caller who waits for the disk."""

    def wrong(_):
        raise kind

    fg = FluxGate(capture_content=True, redact=wrong, durable=durable, spool_dir=tmp_path)
    client = sync_client(lambda r: answer(CHAT))
    asking = threading.Thread(target=partial(client.chat.completions.create, **CREATE))
    asking.start()
    asking.join()
    assert fg.stop()
    [event] = [decode_event(data) for entry in Spool(tmp_path).read_nowait(100) for data in unpack(entry.payload)]
    assert (event.input_tokens, event.input_content, event.output_content) == (12, None, None)
    assert event.cost_nanos is not None
    assert fg.statistics().notes["content"] == 2


def test_a_redact_that_cannot_be_called_fails_at_start():
    """In one line that names it."""
    with pytest.raises(FluxGateError, match="redact: expected a callable"):
        FluxGate(capture_content=True, redact="***")
