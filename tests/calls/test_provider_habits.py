"""What single providers do in their own way: where they say usage and cost, and what they bill beside it."""

from __future__ import annotations

import json
import time

import openai
import pytest

from fluxgate_mw import FluxGate, context
from tests.calls.clients import (
    ASKED,
    SSE,
    WAYS,
    Asked,
    Reply,
    Wire,
    chunk,
    completion,
    dumped,
    finish,
    recorded,
    sse,
    typed,
)
from tests.calls.service import Service, answer, sync_client

USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
RESPONSE_USAGE = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": []}


@pytest.mark.parametrize("host", ["acme.openai.azure.com", "acme.services.ai.azure.com"])
def test_azures_v1_is_asked_for_usage(host):
    """Its address says which API a plain client calls, as no version does."""
    body = sse(chunk("Hi", usage=None), chunk(choices=finish(), usage=None), chunk(choices=[], usage=USAGE))
    wire = Wire(Reply(body, headers=SSE))
    with recorded() as events:
        list(wire.client(base_url=f"https://{host}/openai/v1/").chat.completions.create(**ASKED, stream=True))
    assert wire.sent[0]["stream_options"] == {"include_usage": True}
    assert (events[0].provider_name, events[0].input_tokens) == ("azure", 12)


def test_groqs_own_usage():
    """Groq's last chunk has `x_groq.usage`, asked or not (vercel/ai#1651): read, and left to the caller."""
    usage = {"queue_time": 0.1, "prompt_tokens": 23, "completion_tokens": 19, "total_tokens": 42}
    last = {**chunk(choices=finish(), model="llama-3.3-70b-versatile"), "x_groq": {"id": "req_1", "usage": usage}}
    asked = Asked("chat.completions", {**ASKED, "stream": True, "stream_options": {"include_usage": False}})
    with recorded() as events:
        got = asked.plain(Wire(Reply(sse(chunk("Hi"), last), headers=SSE)))
    assert got[-1]["x_groq"]["usage"] == usage
    assert (events[0].input_tokens, events[0].output_tokens) == (23, 19)


@pytest.mark.parametrize("beside", [{}, {"usage": None}], ids=["none beside it", "null beside it"])
@pytest.mark.parametrize("delta", [{}, {"content": "!"}], ids=["empty", "with the last text"])
def test_moonshots_usage_inside_of_the_choice(delta, beside):
    """Moonshot's last chunk has it in `choices[0].usage` (northes/go-moonshot#17, earendil-works/pi#2017)."""
    told = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "cached_tokens": 64}
    last = {"index": 0, "delta": delta, "usage": told, "finish_reason": "stop" if not delta else None}
    body = sse(chunk("Hi"), chunk("Hi"), chunk(choices=[last], model="kimi-k2-0905-preview", **beside))
    asked = Asked("chat.completions", {**ASKED, "model": "kimi-k2-0905-preview", "stream": True})
    client = Wire(Reply(body, headers=SSE)).client(base_url="https://api.moonshot.ai/v1")
    with recorded() as events:
        got = [dumped(each) for each in client.chat.completions.create(**asked.arguments)]
    assert got[-1]["choices"][0]["usage"] == told
    assert (events[0].input_tokens, events[0].output_tokens, events[0].cache_read_input_tokens) == (100, 30, 64)
    assert events[0].cost_nanos > 0


def test_zeros_after_the_usage():
    """A last chunk whose usage is all zeros makes no call free."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    body = sse(chunk("Hi"), chunk(choices=finish(), usage=USAGE), chunk(choices=[], usage=zeros))
    with recorded() as events:
        Asked("chat.completions", {**ASKED, "stream": True}).plain(Wire(Reply(body, headers=SSE)))
    assert (events[0].input_tokens, events[0].output_tokens, events[0].cost_nanos) == (12, 5, 4_800)


@pytest.mark.parametrize(
    ("model", "nanos", "reason"),
    [
        ("voxtral-small-latest", 400 + 635 * 400 + 13_533_333, None),
        ("voxtral-mini-latest", 10_150_000, None),
        ("mistral-large-latest", None, "no price of audio by the hour known"),
    ],
)
def test_what_mistral_heard_is_billed_by_its_length(model, nanos, reason):
    """The tokens of the prompt's audio, which the total alone shows, are no output, and cost nothing beside it."""
    usage = {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635}
    wire = Wire(Reply(json.dumps(completion(model=model, usage=usage)).encode()))
    with recorded() as events:
        wire.client(base_url="https://api.mistral.ai/v1").chat.completions.create(**{**ASKED, "model": model})
    [event] = events
    assert (event.input_tokens, event.output_tokens, event.input_audio_tokens) == (2629, 635, 2625)
    assert (event.cost_nanos, event.unpriced_reason) == (nanos, reason)


def test_the_cost_that_xai_reports_is_taken_over():
    """Ticks are taken over, as OpenRouter's USD are."""
    usage = {"prompt_tokens": 198, "completion_tokens": 90, "total_tokens": 288, "cost_in_usd_ticks": 2_709_000}
    wire = Wire(Reply(json.dumps(completion(model="grok-4-latest", usage=usage)).encode()))
    with recorded() as events:
        wire.client(base_url="https://api.x.ai/v1").chat.completions.create(**{**ASKED, "model": "grok-4-latest"})
    assert (events[0].cost_nanos, events[0].price_version) == (270_900, "provider")


@pytest.mark.parametrize("blank", [b"\n" * 64, b"\n" * 1000, b"\r\n \t" * 100], ids=["64", "1000", "mixed"])
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_after_empty_lines(way, blank):
    """DeepSeek sends empty lines for as long as it has no answer: what comes after them is read all the same.

    Source: https://api-docs.deepseek.com/quick_start/rate_limit (read 2026-11).
    """
    with recorded() as events:
        getattr(Asked("chat.completions", ASKED), way)(Wire(Reply(blank + json.dumps(completion()).encode())))
    assert (events[0].input_tokens, events[0].output_tokens) == (12, 5)
    assert events[0].cost_nanos is not None


@pytest.mark.parametrize("unfinished", ["", "null"])
@pytest.mark.parametrize("ended", [[], finish()], ids=["never told", "told"])
def test_a_choice_that_goes_on_by_an_empty_reason(unfinished, ended):
    """What some servers say in place of null is no finish reason (sglang#3912, ollama#4357, AIShell#350)."""
    goes_on = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": unfinished}
    body = sse(chunk(choices=[goes_on]), chunk(choices=[goes_on]), chunk(choices=ended))
    with recorded() as events:
        Asked("chat.completions", {**ASKED, "stream": True}).plain(Wire(Reply(body, headers=SSE)))
    assert (events[0].status, events[0].error_type) == ("SUCCESS", None)
    assert events[0].finish_reasons == (("stop",) if ended else ())


def response(kind):
    """Return an answer of the responses API that used a tool."""
    item = {"type": kind, "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "status": "completed",
        "output": [item, MESSAGE],
        "usage": RESPONSE_USAGE,
        "tools": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
    }


@pytest.mark.parametrize("kind", ["web_search_call", "file_search_call", "code_interpreter_call"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_that_is_billed_per_call_is_not_silently_free(kind, stream):
    """The tokens are known; the cost is not, and says why."""
    asked = Asked("responses", {"model": "gpt-4o-mini", "input": "hi", **({"stream": True} if stream else {})})
    body = typed({"type": "response.completed", "sequence_number": 1, "response": response(kind)})
    reply = Reply(body, headers=SSE) if stream else Reply(json.dumps(response(kind)).encode())
    with recorded() as events:
        asked.plain(Wire(reply))
    assert (events[0].input_tokens, events[0].cost_nanos) == (12, None)
    assert events[0].unpriced_reason == f"the call used {kind}, which is billed beside its tokens"


def test_who_has_rates_of_his_own_has_a_cost_all_the_same():
    """He who names his prices knows what is in them."""
    asked = Asked("responses", {"model": "gpt-4o-mini", "input": "hi"})
    rates = {"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}
    with recorded() as events, context(cost_override=rates):
        asked.plain(Wire(Reply(json.dumps(response("web_search_call")).encode())))
    assert (events[0].cost_nanos, events[0].unpriced_reason) == (18_000, None)


def test_a_call_without_such_a_tool_has_its_cost():
    """Functions and messages are paid by their tokens."""
    asked = Asked("responses", {"model": "gpt-4o-mini", "input": "hi"})
    with recorded() as events:
        asked.plain(Wire(Reply(json.dumps(response("function_call")).encode())))
    assert events[0].cost_nanos == 3_600


@pytest.mark.parametrize(
    ("model", "options"), [("gpt-4o-search-preview", {}), ("gpt-4o-mini", {"web_search_options": {}})]
)
def test_a_chat_that_searches_is_not_silently_free(model, options):
    """A search model bills each request beside its tokens, and so does a search that is asked for."""
    asked = Asked("chat.completions", {**ASKED, "model": model, **options})
    with recorded() as events:
        asked.plain(Wire(Reply(json.dumps(completion(model=model)).encode())))
    assert (events[0].input_tokens, events[0].cost_nanos) == (12, None)
    assert "billed beside its tokens" in events[0].unpriced_reason


def test_an_answer_that_strict_validation_refuses_keeps_its_usage():
    """The provider bills what the client then raises over."""
    client = Wire(Reply(json.dumps(completion(choices="none")).encode())).client(_strict_response_validation=True)
    with recorded() as events, pytest.raises(openai.APIResponseValidationError):
        client.chat.completions.create(**ASKED)
    assert (events[0].status, events[0].http_status, events[0].input_tokens) == ("ERROR", 200, 12)
    assert events[0].cost_nanos is not None


def test_an_answer_larger_than_the_queue_is_recorded(tmp_path):
    """An event is some hundred bytes, however many embeddings its answer held."""
    embeddings = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.123456789] * 20_000}],
        "usage": {"prompt_tokens": 20, "total_tokens": 20},
    }
    body = json.dumps(embeddings).encode()
    fg = FluxGate(spool_dir=tmp_path, queue_max_bytes=len(body) // 2)
    service = Service()
    service.answers["/embeddings"] = lambda _: answer(200, body, headers={"content-type": "application/json"})
    with fg:
        sync_client(service).post("/embeddings", body={"input": "x", "model": "m"}, cast_to=object)
        assert fg.flush(5)
        assert fg.statistics().dropped == {}
        assert fg.statistics().spooled == 1


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_comment_is_no_first_chunk(end):
    """By comments OpenRouter shows that it is there; the time to the first chunk is that to the first of the answer."""
    wire = Wire(Reply([b": OPENROUTER PROCESSING" + end, sse(chunk("Hi"), chunk(choices=finish()))], headers=SSE))
    completions = wire.client(base_url="https://openrouter.ai/api/v1").chat.completions
    with recorded() as events, completions.with_streaming_response.create(**ASKED, stream=True) as response:
        parts = response.iter_bytes()
        assert next(parts).startswith(b":")
        time.sleep(0.04)
        assert b"Hi" in b"".join(parts)
    assert 40 <= events[0].time_to_first_chunk_ms <= events[0].latency_ms
