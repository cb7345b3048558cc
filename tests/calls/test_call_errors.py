"""Errors: the caller is raised the same object at the same place, and the event says what happened, safely."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from types import SimpleNamespace

import openai
import pytest
from pydantic import BaseModel, ValidationError

from fluxgate_mw import diagnostics, track, uninstrument_openai
from fluxgate_mw.openai import calls, request, watch
from tests.calls.mocks import CHAT, MESSAGES, answer, async_client, chat_events, http, streamed, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}


def _error(code="invalid_value", message="Nothing was right about it"):
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (418, openai.APIStatusError),
    ],
)
def test_every_status_error(events, status, kind):
    """Status, class and message are on the event; neither tokens nor cost are known."""
    with pytest.raises(kind):
        sync_client(lambda r: answer(_error(), status)).chat.completions.create(**CREATE)
    event = events[0]
    assert (event.status, event.http_status, event.error_type) == ("ERROR", status, kind.__name__)
    assert event.error_message == "Nothing was right about it"
    assert (event.input_tokens, event.cost_nanos, event.unpriced_reason) == (None, None, "no usage")
    assert len(events) == 1


def test_a_filtered_prompt_is_blocked(events):
    """Azure's content filter refuses with a 400 whose code says so."""
    with pytest.raises(openai.BadRequestError):
        sync_client(lambda r: answer(_error("content_filter"), 400)).chat.completions.create(**CREATE)
    assert events[0].status == "BLOCKED"


def _raising(error):
    def handle(request):
        raise error

    return handle


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (http.ConnectError("refused"), openai.APIConnectionError),
        (http.ReadTimeout("slow"), openai.APITimeoutError),
    ],
)
def test_a_network_error(events, raised, kind):
    """A connection that fails is one event without a status."""
    with pytest.raises(kind):
        sync_client(_raising(raised)).chat.completions.create(**CREATE)
    assert [(e.status, e.http_status, e.error_type) for e in events] == [("ERROR", None, kind.__name__)]


def test_the_error_is_the_same_object_with_the_same_traceback(events):
    """Above our frames the traceback is what it is without us, and nothing is chained to the error."""

    def frames():
        with pytest.raises(openai.NotFoundError) as caught:
            sync_client(lambda r: answer(_error(), 404)).chat.completions.create(**CREATE)
        assert not hasattr(caught.value, "__notes__")
        found = traceback.extract_tb(caught.value.__traceback__)
        return [(f.filename, f.name) for f in found if "fluxgate_mw" not in f.filename], caught.value.__cause__

    ours = frames()
    uninstrument_openai()
    assert ours == frames()


class _Own(Exception):
    """An error of a caller's own transport."""


def test_an_error_that_the_client_does_not_know_is_raised_as_without_us(events):
    """What a caller's own hook raises is his, and its text is not kept: it may say anything."""
    own = _Own("the prompt was: tell me")
    with pytest.raises((_Own, openai.APIConnectionError)) as caught:  # openai before 3 wraps every error
        sync_client(_raising(own)).chat.completions.create(**CREATE)
    assert own in (caught.value, caught.value.__cause__)
    assert [e.error_type for e in events] == [type(caught.value).__name__]
    assert "tell me" not in str(events[0].error_message)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()])
def test_what_gives_the_call_up_passes_and_is_a_cancelled_call(events, raised):
    """An interrupt or an exit is the same object outside and one CANCELLED event."""
    with pytest.raises(type(raised)) as caught:
        sync_client(_raising(raised)).chat.completions.create(**CREATE)
    assert caught.value is raised
    assert [(e.status, e.error_type) for e in events] == [("CANCELLED", type(raised).__name__)]


class _Stopped(BaseException):
    """As what other schedulers stop with: no `asyncio.CancelledError`, and no `Exception`."""


@pytest.mark.parametrize(
    ("library", "name"),
    [("trio", "Cancelled"), ("greenlet", "GreenletExit"), ("gevent", "Timeout"), ("eventlet", "Timeout")],
)
def test_what_another_scheduler_stops_a_call_with_is_no_error(events, monkeypatch, library, name):
    """A killed greenlet and a cancelled trio task have given up as a cancelled asyncio task has, streams too."""
    monkeypatch.setitem(sys.modules, library, SimpleNamespace(**{name: _Stopped}))
    raised = _Stopped()
    for stream in (False, True):
        with pytest.raises(_Stopped) as caught:
            sync_client(_raising(raised)).chat.completions.create(**CREATE, stream=stream)
        assert caught.value is raised
    with pytest.raises(_Stopped), track():
        raise raised
    assert [(e.status, e.error_type) for e in events] == [("CANCELLED", "_Stopped")] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_timeout_around_the_call_is_raised_and_told(events, stream):
    """DataDog/dd-trace-py#10191: `wait_for` was swallowed. Here it is raised, and the call is CANCELLED."""

    async def never(request):
        await asyncio.Event().wait()

    transport = http.MockTransport(never)
    client = openai.AsyncOpenAI(api_key="k", http_client=http.AsyncClient(transport=transport), max_retries=0)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.chat.completions.create(**CREATE, stream=stream), 0.01)
    assert [(e.status, e.error_type, e.usage_source) for e in events] == [("CANCELLED", "CancelledError", "none")]


class _Word(BaseModel):
    word: str


def _said(text, finish):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {**CHAT, "choices": [choice]}


@pytest.mark.parametrize(
    ("text", "finish", "kind", "status"),
    [
        ("{", "length", openai.LengthFinishReasonError, "MAX_TOKENS"),
        ("{", "content_filter", openai.ContentFilterFinishReasonError, "BLOCKED"),
        ("no json", "stop", ValidationError, "ERROR"),
    ],
)
def test_an_answer_that_cannot_be_parsed_keeps_its_usage(events, text, finish, kind, status):
    """The provider bills what the client then raises over; the text of the answer is in no message."""
    client = sync_client(lambda r: answer(_said(text, finish)))
    parse = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
    with pytest.raises(kind):
        parse(**CREATE, response_format=_Word)
    event = events[0]
    assert (event.status, event.error_type, event.http_status) == (status, kind.__name__, 200)
    assert (event.input_tokens, event.output_tokens) == (12, 3)
    assert event.cost_nanos is not None
    assert text == "{" or text not in str(event.error_message)


@pytest.mark.anyio
async def test_an_async_answer_that_cannot_be_parsed_keeps_its_usage(events):
    """As with a synchronous client."""
    client = async_client(lambda r: answer(_said("{", "length")))
    with pytest.raises(openai.LengthFinishReasonError):
        await client.beta.chat.completions.parse(**CREATE, response_format=_Word)
    assert [(e.status, e.input_tokens) for e in events] == [("MAX_TOKENS", 12)]


def test_a_body_that_is_no_json(events):
    """The caller is raised, or given, what he is without us; the event knows no usage."""

    def outcome():
        client = sync_client(lambda r: answer(b"<html>gateway</html>"))
        try:
            return repr(client.chat.completions.create(**CREATE))
        except Exception as error:  # noqa: BLE001
            return type(error), str(error)

    ours = outcome()
    uninstrument_openai()
    assert ours == outcome()
    assert [e.usage_source for e in events] == ["none"]


def test_retries_are_one_event_that_counts_them(events, monkeypatch):
    """Two failures and an answer are one call with two retries; three failures are one error with two."""
    client = sync_client(lambda r: next(replies)).with_options(max_retries=2)
    monkeypatch.setattr(type(client), "_sleep_for_retry", lambda *args, **kwargs: None, raising=False)
    monkeypatch.setattr("time.sleep", lambda s: None)
    replies = iter([answer(_error(), 500), answer(_error(), 429), answer(CHAT)])
    client.chat.completions.create(**CREATE)
    replies = iter([answer(_error(), 500, x_should_retry="true") for _ in range(3)])
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**CREATE)
    assert [(e.status, e.retries, e.http_status) for e in events] == [("SUCCESS", 2, 200), ("ERROR", 2, 500)]


def test_neither_keys_nor_long_quotations_are_kept(events, caplog):
    """A provider that quotes the key or the prompt in its message finds neither on the event nor in a log."""
    secret, prompt = "sk-proj-abcdefghijklmnop", "my grandmother told me that the safe is behind the picture"
    message = f"Incorrect API key provided: {secret}. Prompt '{prompt}' at https://u:pw@host/x"
    with pytest.raises(openai.AuthenticationError):
        sync_client(lambda r: answer(_error(message=message), 401)).chat.completions.create(**CREATE)
    kept = events[0].error_message
    for private in (secret, prompt, "pw@"):
        assert private not in kept
        assert private not in caplog.text


def test_a_bug_of_ours_never_reaches_the_caller(events, monkeypatch, caplog):
    """Others raised out of create(): here the call goes on, and the bug is counted and logged."""

    def broken(*args, **kwargs):
        raise RuntimeError("Say this is a test")

    monkeypatch.setattr(calls, "read_answer", broken)
    assert sync_client(lambda r: answer(CHAT)).chat.completions.create(**CREATE).id == "chatcmpl-1"
    monkeypatch.setattr(request, "_body_of", broken)
    assert sync_client(lambda r: answer(CHAT)).chat.completions.create(**CREATE).id == "chatcmpl-1"
    monkeypatch.undo()
    monkeypatch.setattr(watch.Watch, "_read", broken)
    stream = sync_client(lambda r: streamed(chat_events("Hi"))).chat.completions.create(**CREATE, stream=True)
    assert [c.choices[0].delta.content for c in stream] == ["", "Hi", None]
    assert diagnostics.counts().keys() == {"bug_outcome", "bug_openai", "bug_openai_stream", "not_covered_host"}
    assert "Say this is a test" not in caplog.text
    assert len(events) == 2
    diagnostics.reset()


class _Broken(logging.Handler):
    """A host's own handler, whose service is down."""

    def emit(self, record):
        raise OSError(f"cannot send {record.levelname}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_log_handler_that_raises_never_reaches_the_caller(events, stream):
    """What we have to say gets lost with it; the call and its event do not."""
    handler, log = _Broken(), logging.getLogger("fluxgate_mw")
    usage = {"prompt_tokens": -5, "completion_tokens": 1}
    reply = chat_events("Hi", usage=usage) if stream else {**CHAT, "usage": usage}
    log.addHandler(handler)
    try:
        result = sync_client(lambda r: streamed(reply) if stream else answer(reply)).chat.completions.create(
            **CREATE, stream=stream
        )
        assert [c.choices[0].delta.content for c in result][1] == "Hi" if stream else result.id == "chatcmpl-1"
    finally:
        log.removeHandler(handler)
    assert [(e.status, e.output_tokens) for e in events] == [("SUCCESS", 1)]
    assert diagnostics.counts()["absurd_usage"]
