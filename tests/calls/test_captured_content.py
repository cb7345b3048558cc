"""Prompts and answers are kept only where the user asked for them, redacted and cut, and never in a log."""

from __future__ import annotations

import json

import pytest
from openai import Stream

from fluxgate_mw import FluxGate, FluxGateError
from fluxgate_mw.event import decode_event, encode_event
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, answer, chat_events, streamed, sync_client

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


def test_a_redact_that_cannot_be_called_fails_at_start():
    """In one line that names it."""
    with pytest.raises(FluxGateError, match="redact: expected a callable"):
        FluxGate(capture_content=True, redact="***")
