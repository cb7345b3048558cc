"""Streams: the caller reads what he would read without us, whatever we ask for beside it."""

from __future__ import annotations

import asyncio
import pickle

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxgate_mw import uninstrument_openai
from tests.calls.clients import ASKED, SSE, Asked, Reply, Wire, chunk, dumped, finish, httpx, recorded, shaping, sse
from tests.calls.streaming import AS_ASKED, STREAM, TEXTS, USAGE, WITHOUT, counts, cut


@given(cuts=st.lists(st.integers(0, 10_000), max_size=40), newline=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=60)
def test_any_split_into_parts(cuts, newline):
    """However the bytes are cut, the chunks are those of a stream that nobody asked for usage (langfuse#2833)."""
    body = AS_ASKED.replace(b"\n", newline.encode())
    without = STREAM.plain(Wire(Reply([WITHOUT], headers=SSE)))
    for way in (STREAM.plain, STREAM.asynchronous):
        wire = Wire(Reply(cut(body, cuts), headers=SSE))
        with recorded() as events:
            assert way(wire) == without
        [event] = events
        assert counts(event) == (12, 5, 4, 2)
        assert (event.status, event.usage_source, event.finish_reasons) == ("SUCCESS", "provider", ("stop",))
        assert wire.sent[0]["stream_options"] == {"include_usage": True}


def test_every_byte_a_part():
    """A body that comes byte by byte, characters torn apart, reads as a whole one does."""
    without = STREAM.plain(Wire(Reply([WITHOUT], headers=SSE)))
    with recorded() as events:
        assert STREAM.plain(Wire(Reply([bytes([byte]) for byte in AS_ASKED], headers=SSE))) == without
    assert counts(events[0]) == (12, 5, 4, 2)


@given(cuts=st.lists(st.integers(0, 10_000), max_size=20), newline=st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=40)
def test_what_the_caller_asked_for_is_his(cuts, newline):
    """A caller who asks for usage himself gets every chunk of it, and we read it along (litellm#6633)."""
    body = AS_ASKED.replace(b"\n", newline.encode())
    ask = Asked("chat.completions", {**STREAM.arguments, "stream_options": {"include_usage": True}})
    without = ask.plain(Wire(Reply(cut(body, cuts), headers=SSE)))
    with recorded() as events:
        assert ask.plain(Wire(Reply(cut(body, cuts), headers=SSE))) == without
    if newline != "\r":
        assert without[-1]["usage"]["completion_tokens"] == 5
    assert counts(events[0]) == (12, 5, 4, 2)


def test_a_caller_who_wants_no_usage_is_not_overruled():
    """`include_usage: False` is sent as it is; what nobody reports is unknown, and said to be."""
    ask = Asked("chat.completions", {**STREAM.arguments, "stream_options": {"include_usage": False}})
    wire = Wire(Reply(WITHOUT, headers=SSE))
    with recorded() as events:
        ask.plain(wire)
    assert wire.sent[0]["stream_options"] == {"include_usage": False}
    assert events[0].usage_source == "none"
    assert events[0].status == "SUCCESS"


def test_other_stream_options_are_kept_on_a_copy():
    """What the caller asks of the stream beside usage is sent too, and his own dictionary is as it was."""
    options = {"include_obfuscation": False}
    ask = Asked("chat.completions", {**STREAM.arguments, "stream_options": options})
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        ask.plain(wire)
    assert wire.sent[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert options == {"include_obfuscation": False}
    assert counts(events[0]) == (12, 5, 4, 2)


def test_an_unknown_host_is_asked_for_nothing():
    """A host that is not known to take `stream_options` gets the caller's request and nothing else."""
    wire = Wire(Reply(WITHOUT, headers=SSE))
    with recorded() as events, wire.client(base_url="https://llm.example.test/v1") as client:
        list(client.chat.completions.create(**ASKED, stream=True))
    assert "stream_options" not in wire.sent[0]
    assert events[0].provider_name == "llm.example.test"
    assert events[0].cost_nanos is None


def test_azures_first_chunk_without_choices_is_passed_on():
    """A chunk without choices that is not the usage is the caller's (logfire#64)."""
    first = chunk(choices=[], prompt_filter_results=[{"prompt_index": 0}], model="")
    body = sse(first, chunk("Hi"), chunk(choices=finish()), chunk(choices=[], usage=USAGE))
    wire = Wire(Reply(body, headers=SSE))
    azure = {"api_version": "2024-10-21", "azure_endpoint": "https://unit.openai.azure.com"}
    with recorded() as events, wire.client(openai.AzureOpenAI, **azure) as client:
        got = [dumped(each) for each in client.chat.completions.create(**ASKED, stream=True)]
    assert got == [first, chunk("Hi"), chunk(choices=finish())]
    assert events[0].provider_name == "azure"
    assert events[0].response_model == "gpt-4o-mini-2024-07-18"
    assert counts(events[0]) == (12, 5, 4, 2)


def test_of_usage_on_every_chunk_the_last_counts():
    """Providers that report usage so far on each chunk are counted once (litellm#5118, litellm#1787)."""
    so_far = [{"prompt_tokens": 12, "completion_tokens": number, "total_tokens": 12 + number} for number in range(1, 5)]
    last = chunk(choices=finish(), usage=so_far[-1])
    body = sse(*(chunk("x", usage=usage) for usage in so_far), last)
    with recorded() as events:
        got = STREAM.plain(Wire(Reply(body, headers=SSE)))
    assert [each["usage"]["completion_tokens"] for each in got] == [1, 2, 3, 4, 4]
    assert (events[0].input_tokens, events[0].output_tokens) == (12, 4)
    assert len(events) == 1


def test_several_choices_and_tool_calls():
    """Every choice and every piece of a tool call reaches the caller; the gravest finish says how the call ended."""
    call = {"index": 0, "id": "call_1", "function": {"arguments": "", "name": "weather"}, "type": "function"}
    pieces = [{"index": 0, "function": {"arguments": part}} for part in ('{"city', '": "Bern"}')]
    deltas = [{"tool_calls": [each]} for each in (call, *pieces)]
    chunks = [
        *(chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas),
        chunk(choices=[{"index": 1, "delta": {"content": "hm"}, "finish_reason": None}]),
        chunk(choices=finish("tool_calls", 0)),
        chunk(choices=finish("length", 1)),
    ]
    ask = Asked("chat.completions", {**STREAM.arguments, "n": 2})
    without = ask.plain(Wire(Reply(sse(*chunks), headers=SSE)))
    with recorded() as events:
        got = ask.plain(Wire(Reply(sse(*chunks, chunk(choices=[], usage=USAGE)), headers=SSE)))
    assert got == without
    assert events[0].finish_reasons == ("tool_calls", "length")
    assert events[0].status == "MAX_TOKENS"


@pytest.mark.parametrize(
    ("reasons", "status"),
    [
        (["stop"], "SUCCESS"),
        (["tool_calls"], "SUCCESS"),
        (["function_call"], "SUCCESS"),
        (["length"], "MAX_TOKENS"),
        (["content_filter"], "BLOCKED"),
        (["stop", "content_filter"], "BLOCKED"),
        (["insufficient_system_resource"], "ERROR"),
    ],
)
def test_how_a_stream_ended(reasons, status):
    """Finish reasons map as FluxGate's do."""
    body = sse(chunk("Hi"), *(chunk(choices=finish(reason)) for reason in reasons), chunk(choices=[], usage=USAGE))
    with recorded() as events:
        STREAM.plain(Wire(Reply(body, headers=SSE)))
    assert (events[0].status, events[0].finish_reasons) == (status, tuple(reasons))


def test_time_to_the_first_chunk():
    """A stream tells when its first bytes came, a plain answer does not."""
    with recorded() as events:
        STREAM.plain(Wire(Reply(AS_ASKED, headers=SSE)))
    [event] = events
    assert event.stream
    assert 0 < event.time_to_first_chunk_ms <= event.latency_ms


def test_the_response_of_a_stream():
    """`.response` is a real response, of the library's own class after the end (langfuse#6368, langfuse PR#1409)."""
    wire = Wire(Reply(AS_ASKED, headers={**SSE, "x-request-id": "req_1"}))
    with recorded():
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        assert isinstance(stream.response, httpx.Response)
        assert stream.response.headers["x-request-id"] == "req_1"
        assert stream.response.status_code == 200
        assert type(stream.response).__name__ == "Response"
        with stream as entered:
            assert entered is stream
            list(entered)
        assert type(stream.response) is httpx.Response
        assert stream.response.is_closed


def test_a_response_in_flight_pickles_as_the_librarys_own():
    """A copy made in another process knows nothing of us."""
    with recorded():
        stream = Wire(Reply(AS_ASKED, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        next(stream)
        pickled = pickle.dumps(stream.response)
        assert b"fluxgate" not in pickled
        list(stream)
        assert type(pickle.loads(pickled)) is httpx.Response


def test_a_response_in_flight_outlives_the_patch():
    """A stream begun with the patch on reads to its end, and is recorded, after the patch is gone."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        next(stream)
        uninstrument_openai()
        assert len(list(stream)) == len(TEXTS) + 1
    assert counts(events[0]) == (12, 5, 4, 2)


def test_raw_lines_of_a_stream():
    """A caller who reads the lines himself reads them without what we asked for."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with (
        recorded() as events,
        wire.client().chat.completions.with_streaming_response.create(**ASKED, stream=True) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
    assert "\n".join(lines) == WITHOUT.decode().replace("\n\n", "\n").rstrip("\n")
    assert counts(events[0]) == (12, 5, 4, 2)


@pytest.mark.parametrize("reading", ["iter_bytes", "iter_raw"])
@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_parts_of_the_size_that_was_asked_for(reading, size):
    """Who reads the body in parts of one size gets them so, though something is hidden from him."""

    def parts(body):
        completions = Wire(Reply(cut(body, [50, 333]), headers=SSE)).client().chat.completions
        with completions.with_streaming_response.create(**ASKED, stream=True) as response:
            return list(getattr(response.http_response, reading)(size))

    async def aparts(body):
        completions = Wire(Reply(cut(body, [50, 333]), headers=SSE)).async_client().chat.completions
        async with completions.with_streaming_response.create(**ASKED, stream=True) as response:
            return [part async for part in getattr(response.http_response, f"a{reading}")(size)]

    without = parts(WITHOUT)
    with recorded() as events:
        assert parts(AS_ASKED) == asyncio.run(aparts(AS_ASKED)) == without
    assert [counts(event) for event in events] == [(12, 5, 4, 2)] * 2


def test_the_stream_helper():
    """`chat.completions.stream` gives its events and its completion, and is one call (langfuse#6368, #5685)."""

    def run(wire):
        with shaping(wire.client()).stream(**ASKED) as stream:
            kinds = [event.type for event in stream]
            return kinds, stream.get_final_completion().choices[0].message.content, stream._response.status_code

    without = run(Wire(Reply(WITHOUT, headers=SSE)))
    with recorded() as events:
        assert run(Wire(Reply(AS_ASKED, headers=SSE))) == without
    assert (len(events), counts(events[0])) == (1, (12, 5, 4, 2))


@pytest.mark.anyio
async def test_the_asynchronous_stream_helper():
    """`async with stream(...)` leaves as it does without us, `until_done` too (langfuse#6368)."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        async with shaping(wire.async_client()).stream(**ASKED) as stream:
            await stream.until_done()
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "".join(TEXTS)
    assert (len(events), counts(events[0])) == (1, (12, 5, 4, 2))


def test_what_a_chunk_holds_does_not_fool_us():
    """Text that looks like our marks (usage, finish reasons, `[DONE]`, blank lines) stays text."""
    tricky = [
        '"usage":{"prompt_tokens":1}',
        "\n\ndata: [DONE]\n\n",
        '"finish_reason":"length"',
        ',"usage":null}',
        "\r\n\r\n",
    ]
    chunks = [*map(chunk, tricky), chunk(choices=finish())]
    asked = [chunk(text, usage=None) for text in tricky] + [chunk(choices=finish(), usage=None)]
    without = STREAM.plain(Wire(Reply(sse(*chunks), headers=SSE)))
    with recorded() as events:
        assert STREAM.plain(Wire(Reply(sse(*asked, chunk(choices=[], usage=USAGE)), headers=SSE))) == without
    assert without == chunks
    assert (events[0].status, counts(events[0])) == ("SUCCESS", (12, 5, 4, 2))


@given(st.lists(st.text(max_size=12), max_size=12), st.booleans(), st.sampled_from([1, 2]))
@settings(max_examples=60)
def test_a_part_for_each_event(texts, shown, choices):
    """As services send them, an event a part, whatever the texts are: the same chunks, the same counts."""
    indexes = [number % choices for number in range(len(texts))]
    plain = [
        chunk(choices=[{"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}])
        for index, text in zip(indexes, texts, strict=True)
    ]
    ends = [chunk(choices=finish(index=index)) for index in range(choices)]
    without = STREAM.plain(Wire(Reply(sse(*plain, *ends), headers=SSE)))
    parts = [sse({**each, "usage": None}, done=False) for each in [*plain, *ends]]
    parts.append(sse(chunk(choices=[], usage=USAGE)))
    asked = {"stream_options": {"include_usage": True}} if shown else {}
    ask = Asked("chat.completions", {**STREAM.arguments, **asked})
    with recorded() as events:
        got = ask.plain(Wire(Reply(parts, headers=SSE)))
    if shown:
        assert [each.pop("usage") for each in got] == [None] * (len(got) - 1) + [USAGE]
        got = got[:-1]
    assert got == without
    assert (events[0].status, counts(events[0])) == ("SUCCESS", (12, 5, 4, 2))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=40)
def test_what_was_delivered_is_estimated(texts, read):
    """However much is read before the reader leaves, as much is estimated: the bytes of the texts that had come."""
    parts = [sse({**chunk(text), "usage": None}, done=False) for text in texts]
    with recorded() as events:
        stream = Wire(Reply(parts, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        for _ in range(min(read, len(texts))):
            next(stream)
        stream.close()
    delivered = sum(len(text.encode()) for text in texts[:read])
    assert events[0].output_tokens == -(-delivered // 4)


LEGACY = Asked("completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "Say this is a test", "stream": True})


def _legacy(text, reason=None, **fields):
    choices = [] if text is None else [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}]
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}
    return {**head, "choices": choices, **fields}


@pytest.mark.parametrize("way", ["plain", "raw", "asynchronous"])
@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
@settings(max_examples=25)
def test_a_legacy_completions_stream(way, cuts):
    """Asked for usage, it gives the caller the chunks that it gives unasked, and us the counts."""
    texts = ("This", ' is "usage":null', ",")
    unasked = sse(*map(_legacy, texts), _legacy("", "stop"))
    nulls = [_legacy(text, usage=None) for text in texts]
    asked = sse(*nulls, _legacy("", "stop", usage=None), _legacy(None, usage=USAGE))
    without = getattr(LEGACY, way)(Wire(Reply(unasked, headers=SSE)))
    wire = Wire(Reply(cut(asked, cuts), headers=SSE))
    with recorded() as events:
        assert getattr(LEGACY, way)(wire) == without
    assert wire.sent[0]["stream_options"] == {"include_usage": True}
    assert [(event.operation_name, event.status, counts(event)) for event in events] == [
        ("text_completion", "SUCCESS", (12, 5, 4, 2))
    ]


@pytest.mark.parametrize("way", ["plain", "raw", "asynchronous"])
def test_azures_stream_that_is_asked(way):
    """Its filter results before and between stand where they stood, its usage chunk does not reach the caller."""
    filtered = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}]
    first = chunk(choices=[], prompt_filter_results=filtered, model="", id="")
    later = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": None, "content_filter_results": {}}], id="")
    unasked = sse(first, chunk("Hi"), later, chunk(choices=finish()))
    nulls = [{**each, "usage": None} for each in (first, chunk("Hi"), later, chunk(choices=finish()))]
    asked = sse(*nulls, chunk(choices=[], usage=USAGE))
    without = getattr(STREAM, way)(Wire(Reply(unasked, headers=SSE)))
    with recorded() as events:
        assert getattr(STREAM, way)(Wire(Reply(asked, headers=SSE))) == without
    assert [(event.response_id, event.status, counts(event)) for event in events] == [
        ("chatcmpl-1", "SUCCESS", (12, 5, 4, 2))
    ]
