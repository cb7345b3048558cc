"""Errors of the client: the same object for the caller, and one event that says what happened and no secret."""

from __future__ import annotations

import asyncio
import json
import traceback

import openai
import pydantic
import pytest

from fluxgate_mw import tracking
from fluxgate_mw.openai.estimate import estimate_tokens
from tests.calls.clients import (
    ASKED,
    JSON,
    SSE,
    WAYS,
    Asked,
    Reply,
    Wire,
    completion,
    finish,
    httpx,
    recorded,
    shaping,
    sse,
)
from tests.calls.streaming import ENDLESS, STREAM, USAGE, counts

CHAT = Asked("chat.completions", ASKED)
CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    418: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}
KEY = "sk-proj-0123456789abcdefghijklmnop"
PROMPT = "a very private prompt that goes on and on and on and on"


def fault(message: str, **fields: object) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, **fields}}
    ).encode()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", CLASSES)
def test_each_status(status, way):
    """Every class of error reaches the caller as without us, and is one event with its status."""

    def refusing():
        return Wire(Reply(fault("It will not do", code="no_good"), status=status))

    without = getattr(CHAT, way)(refusing())
    with recorded() as events:
        got = getattr(CHAT, way)(refusing())
    assert got == without
    assert got[0]["class"] is CLASSES[status]
    [event] = events
    assert (event.status, event.http_status) == ("ERROR", status)
    assert (event.error_type, event.error_message) == (CLASSES[status].__name__, "It will not do")
    assert (event.usage_source, event.cost_nanos, event.input_tokens) == ("none", None, None)
    assert event.retries == 0


@pytest.mark.parametrize("status", CLASSES)
def test_each_status_of_a_stream(status):
    """A stream that is refused is an error at once."""
    with recorded() as events:
        [got] = STREAM.plain(Wire(Reply(fault("It will not do"), status=status)))
    assert got["class"] is CLASSES[status]
    assert [(event.status, event.http_status, event.stream) for event in events] == [("ERROR", status, True)]


def test_what_a_message_must_not_say():
    """Neither a key nor a long quotation of the prompt is kept; the caller's message is whole."""
    message = f"Incorrect API key provided: {KEY}. The input '{PROMPT}' is not allowed."
    with recorded() as events:
        [got] = CHAT.plain(Wire(Reply(fault(message), status=401)))
    assert PROMPT in got["message"]
    assert KEY in got["message"]
    kept = events[0].error_message
    assert kept.startswith("Incorrect API key provided: ")
    assert KEY not in kept
    assert "private" not in kept


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"[]", b'"no"', b"\xff", b'{"error": "text"}', b"{}"]
)
def test_a_refusal_that_says_nothing(body):
    """Whatever the body of a refusal is, the caller is raised the same and the event has its status."""

    def refusing():
        return Wire(Reply(body, status=502, headers={"content-type": "text/html"}))

    without = CHAT.plain(refusing())
    with recorded() as events:
        assert CHAT.plain(refusing()) == without
    assert (events[0].status, events[0].http_status) == ("ERROR", 502)


def test_a_refusal_of_the_content_filter_is_a_block():
    """Azure refuses a prompt with 400 and a code: that is a block, no failure."""
    with recorded() as events:
        CHAT.plain(Wire(Reply(fault("Filtered", code="content_filter"), status=400)))
    assert (events[0].status, events[0].http_status) == ("BLOCKED", 400)


@pytest.mark.parametrize(
    ("error", "raises"),
    [
        (httpx.ConnectError("no route"), openai.APIConnectionError),
        (httpx.ReadError("reset"), openai.APIConnectionError),
        (httpx.RemoteProtocolError("nonsense"), openai.APIConnectionError),
        (httpx.ConnectTimeout("slow"), openai.APITimeoutError),
        (httpx.ReadTimeout("slow"), openai.APITimeoutError),
        (httpx.PoolTimeout("busy"), openai.APITimeoutError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
@pytest.mark.parametrize("way", ["plain", "asynchronous", "raw"])
def test_a_network_without_an_answer(error, raises, way):
    """Connection errors and timeouts have no status; they are events all the same."""
    without = getattr(CHAT, way)(Wire(Reply(refused=error)))
    with recorded() as events:
        got = getattr(CHAT, way)(Wire(Reply(refused=error)))
    assert got == without
    assert got[0]["class"] is raises
    [event] = events
    assert (event.status, event.http_status, event.error_type) == ("ERROR", None, raises.__name__)
    assert event.usage_source == "none"


def quick(wire: Wire, **options: object) -> openai.OpenAI:
    """Return a client that tries three times and does not wait."""
    return wire.client(max_retries=3, **options)


NOW = {**JSON, "retry-after-ms": "1"}


def test_retries_are_one_call():
    """However often the client tries, it is one event, with its retries and the last answer's status."""
    wire = Wire(*[Reply(fault("busy"), status=429, headers=NOW)] * 2, Reply(json.dumps(completion()).encode()))
    with recorded() as events, quick(wire) as client:
        assert client.chat.completions.create(**ASKED).usage.prompt_tokens == 12
    [event] = events
    assert (event.status, event.retries, event.http_status) == ("SUCCESS", 2, 200)
    assert len(wire.requests) == 3


def test_retries_in_vain():
    """The last refusal is the call's."""
    wire = Wire(*[Reply(fault("busy"), status=500, headers=NOW)] * 4)
    with recorded() as events, quick(wire) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASKED)
    [event] = events
    assert (event.status, event.retries, event.http_status) == ("ERROR", 3, 500)


def test_retries_of_a_stream():
    """A stream that begins at the second try has one retry."""
    body = sse({"id": "x", "object": "chat.completion.chunk", "choices": finish()})
    wire = Wire(Reply(fault("busy"), status=429, headers=NOW), Reply(body, headers=SSE))
    with recorded() as events, quick(wire) as client:
        list(client.chat.completions.create(**ASKED, stream=True))
    assert [(event.status, event.retries, event.http_status) for event in events] == [("SUCCESS", 1, 200)]


def test_a_network_that_fails_after_retries():
    """Retries are known where no answer came too."""
    wire = Wire(*[Reply(fault("busy"), status=429, headers=NOW)] * 3, Reply(refused=httpx.ConnectError("gone")))
    with recorded() as events, quick(wire) as client, pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**ASKED)
    assert [(event.retries, event.http_status) for event in events] == [(3, None)]


def test_retries_of_what_says_nothing_of_its_request():
    """Whatever a transport raises, and whenever the caller gives up, what was sent again is counted."""

    async def cancelled(wire):
        client = wire.async_client(max_retries=3)
        asked = asyncio.ensure_future(client.chat.completions.create(**ASKED))
        await wire.reached.wait()
        wire.reached.clear()
        await wire.reached.wait()
        asked.cancel()
        await asked

    busy = Reply(fault("busy"), status=429, headers=NOW)
    with recorded() as events:
        client = Wire(busy, Reply(refused=RuntimeError("odd"))).client(max_retries=1)
        with pytest.raises((RuntimeError, openai.APIConnectionError)):
            client.chat.completions.create(**ASKED)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancelled(Wire(busy, Reply(b"{", forever=True))))
    assert [(event.status, event.retries) for event in events] == [("ERROR", 1), ("CANCELLED", 1)]


def test_the_same_object_and_traceback():
    """The client's own exception passes, with its cause and its frames up to the transport's."""
    error = httpx.ConnectError("no route")
    with recorded() as events, pytest.raises(openai.APIConnectionError) as raised:
        Wire(Reply(refused=error)).client().chat.completions.create(**ASKED)
    assert raised.value.__cause__ is error
    assert raised.value.__context__ is error
    assert events[0].error_type == "APIConnectionError"
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[0] == "test_the_same_object_and_traceback"
    assert names[-1] in ("request", "_request")


def test_an_exception_of_the_host_in_the_transport():
    """What is not of the client passes too; its class is kept, its message, which may hold anything, is not."""
    error = PermissionError(f"quoting {PROMPT}")
    without = CHAT.plain(Wire(Reply(refused=error)))
    with recorded() as events:
        assert CHAT.plain(Wire(Reply(refused=error))) == without
    assert events[0].status == "ERROR"
    assert "private" not in (events[0].error_message or "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)], ids=["KeyboardInterrupt", "SystemExit"])
def test_the_end_of_the_process_passes(error):
    """Ctrl-C in a call is not held up, and the call is recorded as given up."""
    with recorded() as events, pytest.raises(type(error)) as raised:
        Wire(Reply(refused=error)).client().chat.completions.create(**ASKED)
    assert raised.value is error
    [event] = events
    assert (event.status, event.error_type) == ("CANCELLED", type(error).__name__)
    assert event.error_message is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)], ids=["KeyboardInterrupt", "SystemExit"])
def test_the_end_of_the_process_in_a_stream(error):
    """Ctrl-C between two chunks ends the call as given up, with what was delivered."""
    with recorded() as events, pytest.raises(type(error)) as raised:
        list(Wire(Reply(ENDLESS[:1], headers=SSE, error=error)).client().chat.completions.create(**ASKED, stream=True))
    assert raised.value is error
    [event] = events
    assert (event.status, event.usage_source, event.output_tokens) == ("CANCELLED", "estimated", 10)


@pytest.mark.anyio
async def test_a_cancelled_call():
    """Cancellation while the answer is awaited passes, and the call is recorded as given up (litellm#13245)."""
    wire = Wire(Reply(forever=True))
    with recorded() as events:
        task = asyncio.create_task(wire.async_client().chat.completions.create(**ASKED))
        await wire.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    [event] = events
    assert (event.status, event.error_type) == ("CANCELLED", "CancelledError")


@pytest.mark.anyio
async def test_a_call_that_takes_too_long():
    """`wait_for` raises `TimeoutError`; nothing is swallowed and None is not returned (dd-trace-py#10191)."""
    wire = Wire(Reply(forever=True))
    with recorded() as events, pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.async_client().chat.completions.create(**ASKED), 0.05)
    assert [event.status for event in events] == ["CANCELLED"]


class Shape(pydantic.BaseModel):
    """What an answer is parsed into."""

    word: str


def answered(reason: str, content: str = '{"word"') -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    return json.dumps(completion(choices=[choice], usage=USAGE)).encode()


@pytest.mark.parametrize(
    ("reason", "raises", "status"),
    [
        ("length", openai.LengthFinishReasonError, "MAX_TOKENS"),
        ("content_filter", openai.ContentFilterFinishReasonError, "BLOCKED"),
    ],
)
def test_an_answer_that_cannot_be_parsed_has_its_usage(reason, raises, status):
    """`parse()` raises over an answer that was paid for: its usage is kept."""
    with recorded() as events, pytest.raises(raises):
        shaping(Wire(Reply(answered(reason))).client()).parse(**ASKED, response_format=Shape)
    [event] = events
    assert (event.status, event.http_status, event.finish_reasons) == (status, 200, (reason,))
    assert counts(event) == (12, 5, 4, 2)
    assert event.cost_nanos is not None


def test_an_answer_of_another_shape_has_its_usage():
    """An answer that does not fit the caller's model was paid for too."""
    with recorded() as events, pytest.raises(pydantic.ValidationError):
        shaping(Wire(Reply(answered("stop", '{"word": 1}'))).client()).parse(**ASKED, response_format=Shape)
    [event] = events
    assert counts(event) == (12, 5, 4, 2)
    assert event.http_status == 200


def test_a_parsed_answer():
    """`parse()` gives the caller's model, and its completion is tracked."""
    with recorded() as events:
        wire = Wire(Reply(answered("stop", '{"word": "blue"}')))
        parsed = shaping(wire.client()).parse(**ASKED, response_format=Shape)
    assert parsed.choices[0].message.parsed == Shape(word="blue")
    assert tracking(parsed).tracking_id == events[0].event_id


def test_a_bad_argument_is_no_call():
    """What never leaves the client is no call."""
    wire = Wire(Reply(json.dumps(completion()).encode()))
    with recorded() as events, pytest.raises(TypeError):
        wire.client().chat.completions.create(model="gpt-4o-mini", no_such_argument=1)
    assert events == []
    assert wire.requests == []


def test_a_broken_body_of_an_answer():
    """A body that breaks off while it is read is an error with the service's status unknown to the caller."""

    def breaking():
        return Wire(Reply([b'{"id": "x", '], error=httpx.ReadError("reset")))

    without = CHAT.plain(breaking())
    with recorded() as events:
        assert CHAT.plain(breaking()) == without
    assert [event.status for event in events] == ["ERROR"]


def test_an_estimate_is_no_report():
    """An error before any answer estimates nothing: nothing is known to have been used."""
    assert estimate_tokens(0) == 0
    with recorded() as events:
        STREAM.plain(Wire(Reply(refused=httpx.ConnectError("no route"))))
    assert [(event.usage_source, event.input_tokens) for event in events] == [("none", None)]
