"""What compatible providers report, in the shapes in which they report it: tokens, status and cost of their events."""

from __future__ import annotations

import json

import pytest

from tests.calls.clients import ASKED, SSE, Asked, Reply, Wire, chunk, completion, finish, recorded, sse

GEMINI, MOONSHOT, MISTRAL = "gemini-2.5-pro", "kimi-k2-0905-preview", "mistral-large-latest"
SHAPES = {
    "DeepSeek": (
        "https://api.deepseek.com",
        "deepseek-chat",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 20},
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        (100, 30, 64, 20),
    ),
    "xAI": (
        "https://api.x.ai/v1",
        "grok-4",
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 130,
            "prompt_tokens_details": {"text_tokens": 100, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0},
            "num_sources_used": 0,
        },
        (100, 30, 64, 20),
    ),
    "Gemini": (
        "https://generativelanguage.googleapis.com/v1beta/openai/",
        GEMINI,
        {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 130},
        (100, 30, None, None),
    ),
    "Mistral": (
        "https://api.mistral.ai/v1",
        MISTRAL,
        {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "prompt_audio_seconds": None},
        (100, 30, None, None),
    ),
    "Groq": (
        "https://api.groq.com/openai/v1",
        "llama-3.3-70b-versatile",
        {
            "queue_time": 0.07,
            "prompt_tokens": 100,
            "prompt_time": 0.006,
            "completion_tokens": 30,
            "completion_time": 0.02,
            "total_tokens": 130,
            "total_time": 0.03,
        },
        (100, 30, None, None),
    ),
    "Together": (
        "https://api.together.xyz/v1",
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "cached_tokens": 0},
        (100, 30, 0, None),
    ),
    "Moonshot": (
        "https://api.moonshot.ai/v1",
        MOONSHOT,
        {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "cached_tokens": 64},
        (100, 30, 64, None),
    ),
    "Fireworks": (
        "https://api.fireworks.ai/inference/v1",
        "accounts/fireworks/models/deepseek-v3p2",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
        (100, 30, 64, None),
    ),
    "OpenRouter": (
        "https://openrouter.ai/api/v1",
        "openai/gpt-4o-mini",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "cost": 0.00012,
            "is_byok": False,
            "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0, "audio_tokens": 0},
            "cost_details": {"upstream_inference_cost": None},
            "completion_tokens_details": {"reasoning_tokens": 20, "image_tokens": 0},
        },
        (100, 30, 64, 20),
    ),
    "Perplexity": (
        "https://api.perplexity.ai",
        "sonar",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "search_context_size": "low",
            "cost": {
                "input_tokens_cost": 1e-4,
                "output_tokens_cost": 3e-5,
                "request_cost": 0.005,
                "total_cost": 0.00513,
            },
        },
        (100, 30, None, None),
    ),
    "Azure": (
        "https://acme.openai.azure.com/openai/v1/",
        "gpt-4o-mini",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0},
        },
        (100, 30, 64, 0),
    ),
}
REPORTED = {"OpenRouter": 120_000, "Perplexity": 5_130_000}
STREAM = Asked("chat.completions", {**ASKED, "stream": True})


def _counts(event):
    return (event.input_tokens, event.output_tokens, event.cache_read_input_tokens, event.reasoning_output_tokens)


def _at(wire, base_url):
    """Return a wire whose clients are the provider's."""
    client = wire.client
    wire.client = lambda **options: client(base_url=base_url, **options)
    return wire


def _costs_as_reported(event, name):
    reported = REPORTED.get(name)
    if reported is None:
        return event.cost_nanos > 0 and event.price_version.startswith("genai-prices")
    return (event.cost_nanos, event.price_version) == (reported, "provider")


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_provider_reports(name):
    """Tokens as it bills them, its name by the host, and a cost: its own where it reports one, else the published."""
    base_url, model, usage, counted = SHAPES[name]
    body = json.dumps(completion(model=model, usage=usage)).encode()
    ask = Asked("chat.completions", {**ASKED, "model": model})
    without = ask.plain(_at(Wire(Reply(body)), base_url))
    with recorded() as events:
        assert ask.plain(_at(Wire(Reply(body)), base_url)) == without
    [event] = events
    assert _counts(event) == counted
    assert (event.status, event.usage_source, event.response_model) == ("SUCCESS", "provider", model)
    assert _costs_as_reported(event, name)


UNASKED = ("DeepSeek", "Mistral", "Together", "Fireworks", "OpenRouter", "Perplexity", "Moonshot")
APART = ("xAI", "Groq")


@pytest.mark.parametrize("apart", [False, True], ids=["with the last piece", "in a chunk of its own"])
@pytest.mark.parametrize("name", UNASKED)
def test_a_provider_that_reports_unasked(name, apart):
    """Its stream is asked for nothing and hidden nothing of: the caller has the usage as without us, nulls included."""
    base_url, model, usage, counted = SHAPES[name]
    last = (
        [chunk(choices=finish(), model=model), chunk(choices=[], model=model)] if apart else [chunk(choices=finish())]
    )
    last[-1] |= {"usage": usage, "model": model}
    body = sse(chunk("", model=model, usage=None), chunk("Hi", model=model, usage=None), *last)
    without = STREAM.plain(_at(Wire(Reply(body, headers=SSE)), base_url))
    wire = _at(Wire(Reply(body, headers=SSE)), base_url)
    with recorded() as events:
        assert STREAM.plain(wire) == without
    assert "stream_options" not in wire.sent[0]
    assert ("usage" in without[0], without[-1]["usage"]["prompt_tokens"]) == (True, 100)
    assert [_counts(event) for event in events] == [counted]
    assert _costs_as_reported(events[0], name)


@pytest.mark.parametrize("name", APART)
def test_a_provider_that_reports_in_a_chunk_of_its_own(name):
    """It is asked for, read, and hidden from a caller who did not ask."""
    base_url, model, usage, counted = SHAPES[name]
    head = [chunk("", model=model), chunk("Hi", model=model), chunk(choices=finish(), model=model)]
    asked_for = sse(*head, chunk(choices=[], model=model, usage=usage))
    without = STREAM.plain(_at(Wire(Reply(sse(*head), headers=SSE)), base_url))
    wire = _at(Wire(Reply(asked_for, headers=SSE)), base_url)
    with recorded() as events:
        assert STREAM.plain(wire) == without
    assert wire.sent[0]["stream_options"] == {"include_usage": True}
    assert [_counts(event) for event in events] == [counted]
    assert _costs_as_reported(events[0], name)


def test_geminis_usage_on_every_chunk():
    """It reports usage so far with every piece, thoughts in the total only: the last counts, and nothing is asked."""
    base_url, model, usage, counted = SHAPES["Gemini"]
    far = [{"prompt_tokens": 100, "completion_tokens": seen, "total_tokens": 120 + seen} for seen in (1, 3)]
    pieces = [chunk(text, model=model, usage=so_far) for text, so_far in zip(("1", ", 2"), far, strict=True)]
    body = sse(*pieces, chunk(choices=finish("length"), model=model, usage=usage))
    without = STREAM.plain(_at(Wire(Reply(body, headers=SSE)), base_url))
    wire = _at(Wire(Reply(body, headers=SSE)), base_url)
    with recorded() as events:
        assert STREAM.plain(wire) == without
    assert "stream_options" not in wire.sent[0]
    assert [(_counts(event), event.status) for event in events] == [(counted, "MAX_TOKENS")]


def test_groqs_usage_beside_the_usage_that_is_asked_for():
    """Groq's own block on the chunk before is the caller's; what is asked for is read and hidden (vercel/ai#1651)."""
    base_url, model, usage, counted = SHAPES["Groq"]
    last = {**chunk(choices=finish(), model=model), "x_groq": {"id": "req_1", "usage": usage}}
    body = sse(chunk("Hi", model=model), last, chunk(choices=[], model=model, usage=usage))
    with recorded() as events:
        got = STREAM.plain(_at(Wire(Reply(body, headers=SSE)), base_url))
    assert (len(got), got[-1]["x_groq"]["usage"]) == (2, usage)
    assert [_counts(event) for event in events] == [counted]


def test_an_answer_of_perplexitys_responses():
    """Its agents report the whole cost, tools included, and cached tokens under a name of their own."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 30,
        "total_tokens": 130,
        "input_tokens_details": {"cache_read_input_tokens": 64},
        "cost": {
            "currency": "USD",
            "input_cost": 1e-4,
            "output_cost": 1e-4,
            "tool_calls_cost": 5e-3,
            "total_cost": 0.0052,
        },
    }
    body = {"id": "resp_1", "object": "response", "model": "openai/gpt-5.1", "status": "completed", "output": []}
    ask = Asked("responses", {"model": "openai/gpt-5.1", "input": "What is new?"})
    with recorded() as events:
        ask.plain(_at(Wire(Reply(json.dumps({**body, "usage": usage}).encode())), "https://api.perplexity.ai/v1"))
    assert [_counts(event) for event in events] == [(100, 30, 64, None)]
    assert (events[0].cost_nanos, events[0].price_version) == (5_200_000, "provider")


def test_a_provider_that_reports_nothing():
    """No usage is no guess: the counts are unknown, the cost too, and the event says why."""
    body = completion()
    del body["usage"]
    with recorded() as events:
        Asked("chat.completions", ASKED).plain(Wire(Reply(json.dumps(body).encode())))
    [event] = events
    assert (_counts(event), event.usage_source) == ((None, None, None, None), "none")
    assert (event.status, event.cost_nanos, event.unpriced_reason) == ("SUCCESS", None, "no usage")
