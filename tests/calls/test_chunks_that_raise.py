"""A chunk over which the client raises ends its call as an error that says its kind, however the body comes."""

from __future__ import annotations

import asyncio
import gc

import openai
import pytest
from pydantic import BaseModel

from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, finish, recorded, sse
from tests.calls.streaming import STREAM, USAGE

REST = sse(chunk("!"), chunk(choices=finish()), chunk(choices=[], usage=USAGE))
ODD = {
    "no JSON": b"data: {oops\n\n",
    "no UTF-8": b'data: {"a": "\xff"}\n\n',
    "empty": b"data: \n\n",
    "no JSON beside a text": sse(chunk("Hi"), done=False).replace(b'"index":0', b'"index":oops'),
}
REFUSALS = {
    "an object": {"message": "no", "code": "busy"},
    "a text": "overloaded",
    "a list": ["overloaded"],
    "true": True,
}


@pytest.mark.parametrize("parts", ["one", "each"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("way", ["plain", "asynchronous"])
def test_a_chunk_that_the_client_raises_over(way, odd, parts):
    """The caller is raised something: the event is an error, and says which kind."""
    pieces = [sse(chunk("Hi"), done=False), ODD[odd], REST]
    reply = Reply(pieces if parts == "each" else b"".join(pieces), headers=SSE)
    with recorded() as events:
        got = getattr(STREAM, way)(Wire(reply))
        gc.collect()
    assert got[-1]["class"].__name__ in ("JSONDecodeError", "UnicodeDecodeError")
    [event] = events
    assert event.status == "ERROR"
    assert event.error_type


@pytest.mark.parametrize("parts", ["one", "each"])
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("way", ["plain", "asynchronous"])
def test_an_error_in_a_chunk_whatever_it_is(way, refusal, parts):
    """The client raises over any: the event is an error, estimated however the network packs what is behind it."""
    pieces = [sse(chunk("Hi"), done=False), sse({"error": REFUSALS[refusal]}, done=False), sse()]
    reply = Reply(pieces if parts == "each" else b"".join(pieces), headers=SSE)
    with recorded() as events:
        got = getattr(STREAM, way)(Wire(reply))
        gc.collect()
    assert got[-1]["class"] is openai.APIError
    [event] = events
    assert (event.status, event.usage_source) == ("ERROR", "estimated")
    assert event.error_type
    assert event.cost_nanos is not None


def test_an_empty_error_is_none():
    """A provider that sends an empty object of errors with each chunk has none; the client takes it so too."""
    reply = Reply(
        sse(chunk("Hi", error={}), chunk(choices=finish(), error={}), chunk(choices=[], usage=USAGE)), headers=SSE
    )
    with recorded() as events:
        list(Wire(reply).client().chat.completions.create(**ASKED, stream=True))
    assert [(event.status, event.error_type) for event in events] == [("SUCCESS", None)]


STRICT = sse(chunk("Hi"), {**chunk("!"), "choices": 5}, chunk(choices=finish()), chunk(choices=[], usage=USAGE))


@pytest.mark.parametrize("parts", ["one", "each"])
def test_what_a_strict_client_raises_over(parts):
    """What only the client's own reading finds wrong ends the call as the error that the caller gets."""
    pieces = [STRICT] if parts == "one" else [event + b"\n\n" for event in STRICT.split(b"\n\n")[:-1]]

    async def asked(wire):
        stream = await wire.async_client(_strict_response_validation=True).chat.completions.create(**ASKED, stream=True)
        async for _ in stream:
            pass

    with recorded() as events:
        client = Wire(Reply(pieces, headers=SSE)).client(_strict_response_validation=True)
        with pytest.raises(openai.APIResponseValidationError):
            list(client.chat.completions.create(**ASKED, stream=True))
        with pytest.raises(openai.APIResponseValidationError):
            asyncio.run(asked(Wire(Reply(pieces, headers=SSE))))
    assert [(event.status, event.error_type) for event in events] == [("ERROR", "APIResponseValidationError")] * 2


def _helper(client):
    return getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream


NO_CHOICES = [sse(chunk("Hi"), done=False), sse({**chunk("!"), "choices": None}, done=False), REST]


def test_a_chunk_that_a_helper_raises_over():
    """Where the error leaves the `with` of a stream helper, it is the call's: the helper closes nothing by itself."""

    def helped():
        client = Wire(Reply(NO_CHOICES, headers=SSE)).client()
        with _helper(client)(**ASKED) as stream:
            list(stream)

    async def ahelped():
        client = Wire(Reply(NO_CHOICES, headers=SSE)).async_client()
        async with _helper(client)(**ASKED) as stream:
            async for _ in stream:
                pass

    with recorded() as events:
        with pytest.raises(TypeError):
            helped()
        with pytest.raises(TypeError):
            asyncio.run(ahelped())
    assert [(event.status, event.error_type, event.usage_source) for event in events] == [
        ("ERROR", "TypeError", "estimated")
    ] * 2


def test_an_error_of_the_reader_is_not_the_helper_s():
    """Who raises by himself between two events gave the stream up."""
    client = Wire(Reply([sse(chunk("Hi"), done=False), REST], headers=SSE)).client()
    with recorded() as events, pytest.raises(ZeroDivisionError), _helper(client)(**ASKED) as stream:
        [1 / 0 for _ in stream]
    assert [(event.status, event.error_type) for event in events] == [("CANCELLED", None)]


class Odd:
    """Reads a stream by a method that is called as the client's is, and raises over what it is asked for."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __stream__(self, stream):
        with stream:
            raise ZeroDivisionError


def test_an_error_in_somebody_s_method_of_that_name():
    """It passes, and the stream was given up."""
    client = Wire(Reply([sse(chunk("Hi"), done=False), REST], headers=SSE)).client()
    with recorded() as events, pytest.raises(ZeroDivisionError):
        Odd().__stream__(client.chat.completions.create(**ASKED, stream=True))
    assert [(event.status, event.error_type) for event in events] == [("CANCELLED", None)]


class _Word(BaseModel):
    word: str


@pytest.mark.parametrize(
    ("reason", "status", "error"),
    [
        ("length", "MAX_TOKENS", "LengthFinishReasonError"),
        ("content_filter", "BLOCKED", "ContentFilterFinishReasonError"),
    ],
)
def test_an_answer_cut_short_that_a_helper_cannot_parse(reason, status, error):
    """The status is the answer's; the error is told beside it, as it is of a call that is no stream."""
    body = sse(chunk("{"), chunk(choices=finish(reason)), chunk(choices=[], usage=USAGE))
    client = Wire(Reply(body, headers=SSE)).client()
    with (
        recorded() as events,
        pytest.raises(getattr(openai, error)),
        _helper(client)(**ASKED, response_format=_Word) as stream,
    ):
        list(stream)
    assert [(event.status, event.error_type) for event in events] == [(status, error)]


def test_an_error_of_one_stream_is_not_another_s():
    """A stream that is left because another one broke was given up, and did not break itself."""
    left = Wire(Reply([sse(chunk("Hi"), done=False)] * 9, headers=SSE)).client()
    broken = Wire(Reply([sse(chunk("Hi"), done=False), b"data: {oops\n\n"], headers=SSE)).client()
    with recorded() as events:
        with pytest.raises(ValueError), left.chat.completions.create(**ASKED, stream=True) as stream:
            list(zip(stream, broken.chat.completions.create(**ASKED, stream=True), strict=True))
        gc.collect()
    assert sorted(event.status for event in events) == ["CANCELLED", "ERROR"]
