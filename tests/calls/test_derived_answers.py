"""What is made of an answer belongs to its call: parsed raw responses, and what a stream helper makes in the end."""

from __future__ import annotations

import asyncio

import pytest
from openai._legacy_response import LegacyAPIResponse
from openai._response import APIResponse, AsyncAPIResponse
from openai.lib.streaming.chat import ChatCompletionStream
from openai.lib.streaming.responses import AsyncResponseStream

from fluxgate_mw import instrument_openai, track, tracking
from tests.calls.mocks import (
    CHAT,
    MESSAGES,
    RESPONSE,
    USAGE,
    answer,
    async_client,
    chat_events,
    event,
    streamed,
    sync_client,
)

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
METHODS = [
    (LegacyAPIResponse, "parse"),
    (APIResponse, "parse"),
    (AsyncAPIResponse, "parse"),
    (ChatCompletionStream, "get_final_completion"),
    (AsyncResponseStream, "get_final_response"),
]


def chat_stream(_request):
    return streamed(chat_events("Hi", usage=USAGE))


def response_stream(_request):
    """A whole answer of the responses API in three events."""
    item = {**RESPONSE["output"][0], "content": []}
    text = {"type": "output_text", "text": "", "annotations": []}
    steps = [
        {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", "output_index": 0, "content_index": 0, "item_id": "m", "part": text},
        {"type": "response.completed", "response": RESPONSE},
    ]
    numbered = [{**step, "sequence_number": number} for number, step in enumerate(steps)]
    return streamed([event(step, step["type"]) for step in numbered])


def is_of(found, events) -> None:
    """The object is known to the one call there was."""
    [recorded] = events
    assert tracking(found).tracking_id == recorded.event_id
    assert found.fluxgate == tracking(found)


def test_a_raw_response_and_what_it_is_parsed_into(events):
    """Both tell the same, however often it is parsed."""
    raw = sync_client(lambda r: answer(CHAT)).chat.completions.with_raw_response.create(**CREATE)
    parsed = raw.parse()
    assert raw.parse() is parsed
    is_of(parsed, events)
    is_of(raw, events)


def test_a_streaming_response_and_what_it_is_parsed_into(events):
    """The parsed answer is known once its body is read."""
    client = sync_client(lambda r: answer(CHAT))
    with client.chat.completions.with_streaming_response.create(**CREATE) as response:
        parsed = response.parse()
    is_of(parsed, events)


def test_an_async_streaming_response_and_what_it_is_parsed_into(events):
    """As the synchronous one."""

    async def ask():
        client = async_client(lambda r: answer(CHAT))
        async with client.chat.completions.with_streaming_response.create(**CREATE) as response:
            return await response.parse()

    is_of(asyncio.run(ask()), events)


def test_a_raw_response_of_a_stream(events):
    """The stream that it is parsed into is known at its end."""
    raw = sync_client(chat_stream).chat.completions.with_raw_response.create(**CREATE, stream=True)
    stream = raw.parse()
    assert tracking(stream) is None
    assert [chunk.choices[0].delta.content for chunk in stream] == ["", "Hi", None]
    is_of(stream, events)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_chat_helper_makes_in_the_end(events, kind):
    """`get_final_completion()` gives an answer that is known, also when its stream is gone."""

    def completions(client):
        return client.chat.completions if hasattr(client.chat.completions, "stream") else client.beta.chat.completions

    def ask():
        with completions(sync_client(chat_stream)).stream(**CREATE) as stream:
            return stream.get_final_completion()

    async def ask_async():
        async with completions(async_client(chat_stream)).stream(**CREATE) as stream:
            return await stream.get_final_completion()

    completion = ask() if kind == "sync" else asyncio.run(ask_async())
    assert completion.choices[0].message.content == "Hi"
    is_of(completion, events)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_response_helper_makes_in_the_end(events, kind):
    """`get_final_response()` likewise."""

    def ask():
        with sync_client(response_stream).responses.stream(model="gpt-4o-mini", input="Hi") as stream:
            return stream.get_final_response()

    async def ask_async():
        async with async_client(response_stream).responses.stream(model="gpt-4o-mini", input="Hi") as stream:
            return await stream.get_final_response()

    response = ask() if kind == "sync" else asyncio.run(ask_async())
    is_of(response, events)


def test_undone_the_methods_are_the_very_ones_found(fg):
    """Those of helpers that were imported meanwhile, too."""
    fg.stop()
    found = [owner.__dict__[name] for owner, name in METHODS]
    undo = instrument_openai(fg)
    assert all(owner.__dict__[name] is not method for (owner, name), method in zip(METHODS, found, strict=True))
    undo()
    assert [owner.__dict__[name] for owner, name in METHODS] == found


def test_a_raw_response_that_is_parsed_inside_of_another_call(events):
    """What is parsed while something else is tracked belongs to what it was made of."""
    raw = sync_client(lambda r: answer(CHAT)).chat.completions.with_raw_response.create(**CREATE)
    with track():
        parsed = raw.parse()
    assert tracking(parsed).tracking_id == tracking(raw).tracking_id


def test_what_belongs_to_nobody_stays_unknown(events):
    """A raw response of a request that is no call is parsed as ever."""
    models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}
    parsed = sync_client(lambda r: answer(models)).models.with_raw_response.list().parse()
    assert [model.id for model in parsed] == ["m"]
    assert tracking(parsed) is None
    assert events == []
