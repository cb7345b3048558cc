"""Faults that users of other instrumentations reported, each replayed against this one.

What the other modules of this folder cover in general is named there; here is what each report has of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json

import openai
import pydantic
import pytest

from fluxgate_mw import FluxGate, create_openai_cost_tracker, diagnostics, tracking
from fluxgate_mw.openai import answer, calls, patch, request, watch
from tests.calls.clients import (
    ASKED,
    SSE,
    Reply,
    Wire,
    chunk,
    completion,
    dumped,
    finish,
    httpx,
    recorded,
    shaping,
    sse,
)
from tests.calls.streaming import AS_ASKED, ENDLESS, TEXTS, USAGE, counts

ANSWER = json.dumps(completion()).encode()


class Shape(pydantic.BaseModel):
    """What an answer is parsed into."""

    word: str


def shaped() -> bytes:
    return sse(chunk('{"word":'), chunk('"blue"}'), chunk(choices=finish()), chunk(choices=[], usage=USAGE))


# Streams broken by a wrapper


@pytest.mark.anyio
async def test_langfuse_6368_the_stream_helper_leaves_as_it_should():
    """`__aexit__` of the helper closes the real response of the stream."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:
        async with shaping(wire.async_client()).stream(**ASKED) as stream:
            assert isinstance(stream._response, httpx.Response)
            async for event in stream:
                if event.type == "content.delta":
                    break
        assert wire.bodies[0].closed
    assert [event.status for event in events] == ["CANCELLED"]


@pytest.mark.anyio
async def test_langfuse_5685_a_streamed_shape():
    """A stream with a `response_format` parses as it does without us (langfuse#5361)."""
    wire = Wire(Reply(shaped(), headers=SSE))
    with recorded() as events:
        async with shaping(wire.async_client()).stream(**ASKED, response_format=Shape) as stream:
            completed = await stream.get_final_completion()
    assert completed.choices[0].message.parsed == Shape(word="blue")
    assert counts(events[0]) == (12, 5, 4, 2)


def test_langfuse_2129_a_stream_is_a_context_manager():
    """`with client.create(stream=True) as response` is what LangChain writes."""
    with recorded() as events, Wire(Reply(AS_ASKED, headers=SSE)).client() as client:
        with client.chat.completions.create(**ASKED, stream=True) as response:
            assert len(list(response)) == len(TEXTS) + 2
        assert response.response.is_closed
    assert len(events) == 1


def broken(*args, **kwargs):
    raise ValueError("ours")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (patch, "begin"),
        (request, "choose"),
        (request, "asks_for_usage"),
        (calls, "register"),
        (calls, "follow"),
        (calls, "read_answer"),
        (calls.OpenAICall, "outcome"),
        (calls.OpenAICall, "answered"),
        (calls.OpenAICall, "ended"),
        (calls.OpenAICall, "end"),
        (answer, "read_usage"),
        (watch, "split_events"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dd_trace_py_13700_a_fault_of_ours_is_ours(monkeypatch, owner, name, stream, kind):
    """Whatever breaks in us, the caller has his answer, and the fault is counted (logfire#1683, openlit)."""
    body, headers = (AS_ASKED, SSE) if stream else (ANSWER, {"content-type": "application/json"})
    wire = Wire(Reply([body[:50], body[50:]], headers=headers))
    with recorded():
        monkeypatch.setattr(owner, name, broken)
        if kind == "sync":
            got = wire.client().chat.completions.create(**ASKED, stream=stream)
            got = [dumped(each) for each in got] if stream else dumped(got)
        else:
            got = asyncio.run(asked_of(wire, stream))
    monkeypatch.undo()
    diagnostics.reset()
    if not stream:
        assert got == completion()
    else:
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in got if each["choices"]) == "".join(
            TEXTS
        )


async def asked_of(wire, stream):
    got = await wire.async_client().chat.completions.create(**ASKED, stream=stream)
    return [dumped(each) async for each in got] if stream else dumped(got)


def test_sentry_python_5890_raw_then_parsed():
    """LiteLLM asks raw and parses the stream: it gets the client's own legacy response and its own stream.

    getsentry/sentry-python PR#5913.
    """
    with recorded() as events:
        raw = (
            Wire(Reply(AS_ASKED, headers=SSE)).client().chat.completions.with_raw_response.create(**ASKED, stream=True)
        )
        assert type(raw).__name__ == "LegacyAPIResponse"
        stream = raw.parse()
        assert type(stream) is openai.Stream
        assert hasattr(stream, "_iterator")
        list(stream)
    assert len(events) == 1
    assert tracking(raw).tracking_id == events[0].event_id


ODD_PROMPTS = [
    None,
    [],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 7}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
    [{"role": "user", "content": "\ud800"}],
    [{7: "x"}],
    "text",
]


@pytest.mark.parametrize("messages", ODD_PROMPTS, ids=repr)
def test_sentry_python_5277_counting_never_raises(messages):
    """Prompts of any shape are counted as far as they are text; nothing is raised in us (sentry-python#5538)."""

    def ask():
        stream = (
            Wire(Reply(ENDLESS, headers=SSE))
            .client()
            .chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
        )
        next(stream)
        stream.close()

    outcomes = []
    for attempt in (False, True):
        try:
            if attempt:
                with recorded() as events:
                    ask()
                assert events[0].usage_source == "estimated"
            else:
                ask()
            outcomes.append(None)
        except Exception as error:  # noqa: BLE001  (what the client itself raises over such a prompt)
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.anyio
async def test_opentelemetry_python_contrib_4751_the_connection_is_given_back():
    """An asynchronous stream that is closed early releases its connection, with nothing left unawaited."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded():
        stream = await wire.async_client().chat.completions.create(**ASKED, stream=True)
        await anext(stream)
        await stream.close()
        assert wire.bodies[0].closed
        del stream
        gc.collect()


def test_kagent_2313_off_is_off():
    """Switched off, nothing is recorded; told not to instrument, nothing is patched."""
    before = openai.OpenAI.request
    FluxGate(instrument=False)
    assert openai.OpenAI.request is before
    with recorded() as events:
        FluxGate(enabled=False)
        Wire(Reply(ANSWER)).client().chat.completions.create(**ASKED)
    assert events == []


# Raw responses


def test_logfire_62_a_raw_response_has_what_it_has():
    """Status, headers, text, parsed model and the response itself (openllmetry#535, newrelic PR#1138, otel#4002).

    open-telemetry/opentelemetry-python-contrib PR#4017.
    """
    reply = Reply(ANSWER, headers={"content-type": "application/json", "x-request-id": "req_1"})
    with recorded() as events:
        raw = Wire(reply).client().chat.completions.with_raw_response.create(**ASKED)
        assert (raw.status_code, raw.request_id, raw.retries_taken) == (200, "req_1", 0)
        assert raw.headers["x-request-id"] == "req_1"
        assert raw.content == ANSWER
        assert isinstance(raw.http_response, httpx.Response)
        assert type(raw.http_response) is httpx.Response
        assert dumped(raw.parse()) == completion()
    assert len(events) == 1


def test_azure_sdk_48646_raw_and_stream():
    """A raw response of a stream still has its headers and its `parse` (agent-framework PR#7705)."""
    with recorded() as events:
        raw = Wire(Reply(AS_ASKED, headers={**SSE, "x-ms-region": "w"})).client()
        raw = raw.chat.completions.with_raw_response.create(**ASKED, stream=True)
        assert raw.headers["x-ms-region"] == "w"
        assert len(list(raw.parse())) == len(TEXTS) + 2
    assert len(events) == 1


MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}


@pytest.mark.anyio
async def test_logfire_1347_what_is_no_call():
    """`models.list()` goes through the same method: it pages as without us and is no spend."""
    wire = Wire(Reply(json.dumps(MODELS).encode()))
    with recorded() as events:
        assert [model.id async for model in wire.async_client().models.list()] == ["m"]
        assert [model.id for model in wire.client().models.list()] == ["m"]
        assert wire.client().models.retrieve("m") is not None
    assert events == []


# Usage and cost


def test_litellm_40100_a_streamed_call_costs():
    """A streamed Azure call costs what its usage costs (litellm#37923, langfuse#4027, litellm#5632, logfire#1280)."""
    azure = {"api_version": "2024-10-21", "azure_endpoint": "https://unit.openai.azure.com"}
    reply = Reply(AS_ASKED, headers=SSE)
    with recorded() as events, Wire(reply).client(openai.AzureOpenAI, **azure) as client:
        list(client.chat.completions.create(**ASKED, stream=True))
    with recorded() as plain, Wire(Reply(json.dumps(completion(usage=USAGE)).encode())).client() as client:
        client.chat.completions.create(**ASKED)
    assert events[0].cost_nanos == plain[0].cost_nanos == 8 * 150 + 4 * 75 + 5 * 600


def test_langfuse_2112_only_what_is_sent_is_counted():
    """An answer that a framework takes from its own cache is no call."""
    cache: dict[str, openai.BaseModel] = {}
    wire = Wire(Reply(ANSWER))
    with recorded() as events, wire.client() as client:
        for _ in range(3):
            if "prompt" not in cache:
                cache["prompt"] = client.chat.completions.create(**ASKED)
    assert len(events) == len(wire.requests) == 1


# Counted once


@pytest.mark.parametrize("tracked", [False, True], ids=["patch", "patch and tracker"])
def test_litellm_14340_one_call_one_event(tracked):
    """A stream is one event, in sync and async clients, with the tracker and the patch on (litellm#15740, #5118).

    lmnr-ai/lmnr-python PR#177.
    """
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        client, aclient = wire.client(), wire.async_client()
        if tracked:
            client, aclient = create_openai_cost_tracker(client), create_openai_cost_tracker(aclient)
        list(client.chat.completions.create(**ASKED, stream=True))

        async def run():
            return [each async for each in await aclient.chat.completions.create(**ASKED, stream=True)]

        asyncio.run(run())
    assert len(events) == len(wire.requests) == 2
    assert len({event.event_id for event in events}) == 2


def test_langfuse_3956_two_requests_are_two_events():
    """A call that is made while another's stream is read is its own, and neither is summed into the other."""
    wire = Wire(Reply(AS_ASKED, headers=SSE), Reply(ANSWER), Reply(AS_ASKED, headers=SSE))
    with recorded() as events, wire.client() as client:
        outer = client.chat.completions.create(**ASKED, stream=True)
        next(outer)
        client.chat.completions.create(**ASKED)
        list(outer)
    assert [(event.stream, event.input_tokens) for event in events] == [(False, 12), (True, 12)]


def test_two_answers_of_one_id_are_two_events():
    """A provider that gives every answer the same id does not make two calls one."""
    with recorded() as events, Wire(Reply(ANSWER)).client() as client:
        client.chat.completions.create(**ASKED)
        client.chat.completions.create(**ASKED)
    assert [event.response_id for event in events] == ["chatcmpl-1"] * 2
    assert len({event.event_id for event in events}) == 2
