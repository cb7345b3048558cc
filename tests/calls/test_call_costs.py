"""What a call costs: by the caller's rates, the user's price list, the provider's word, or the published prices."""

from __future__ import annotations

import json
from decimal import Decimal, Inexact, localcontext

import openai
import pytest

from fluxgate_mw import FluxGate, FluxGateError, context, current, diagnostics, track, tracking
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, USAGE, answer, chat_events, event, http, streamed, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
PUBLISHED = 12 * 150 + 3 * 600
"""gpt-4o-mini: 0.15 and 0.60 USD for a million tokens, in nano-USD for 12 in and 3 out."""


def _cost(body, base_url="https://api.openai.com/v1", headers=None, **asked):
    client = sync_client(lambda r: answer(body, **(headers or {})), base_url=base_url)
    with capture_events() as events:
        client.chat.completions.create(**{**CREATE, **asked})
    (event,) = events
    return event.cost_nanos, event.price_version, event.unpriced_reason


def test_published_prices_are_integer_nanos(fg):
    """Twelve tokens in and three out at the published rates, exact."""
    assert _cost(CHAT)[0] == PUBLISHED


def test_cached_and_reasoning_tokens_are_inside_the_totals(fg):
    """langfuse/langfuse#5568, #10592, #12306, BerriAI/litellm#14849, PR#26919: never added on top of the totals."""
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 400},
        "completion_tokens_details": {"reasoning_tokens": 60},
    }
    assert _cost({**CHAT, "usage": usage})[0] == 600 * 150 + 400 * 75 + 100 * 600


def test_the_service_tier_of_the_answer_counts(fg):
    """A tier that the response names is what is billed, whatever was asked for."""
    body = {**CHAT, "model": "gpt-5-mini-2025-08-07"}
    usual = _cost(body)[0]
    flex = _cost({**body, "service_tier": "flex"}, service_tier="auto")[0]
    assert flex is not None
    assert 0 < flex < usual


def test_a_tier_without_a_price_leaves_the_cost_unknown(fg):
    """A model that is dearer when it is served with priority is not priced as if it were not."""
    body = {**CHAT, "model": "gpt-5-pro", "service_tier": "priority"}
    assert _cost(body) == (None, None, "no price for service tier 'priority'")


def test_a_tier_that_was_asked_for_counts_where_the_answer_names_none(fg):
    """Without a tier in the answer the request's own is taken."""
    body = {**CHAT, "model": "gpt-5-mini-2025-08-07"}
    assert _cost(body, service_tier="flex")[0] == _cost({**body, "service_tier": "flex"})[0]


def test_a_fine_tuned_model_has_rates_of_its_own(fg):
    """0.30 and 1.20 USD, twice the base model's; of a base model that is not known nothing is guessed."""
    assert _cost({**CHAT, "model": "ft:gpt-4o-mini-2024-07-18:acme::abc"})[0] == 12 * 300 + 3 * 1200
    cost, _, reason = _cost({**CHAT, "model": "ft:no-such-model:acme::abc"}, model="ft:no-such-model:acme::abc")
    assert (cost, reason) == (None, "unknown model 'ft:no-such-model:acme::abc' of openai")


_KINDS = {
    "as published": ("gpt-5", {}, (1000, 100), {}, 1000 * 1250 + 100 * 10_000),
    "flex": ("gpt-5", {"service_tier": "flex"}, (1000, 100), {}, 1000 * 625 + 100 * 5000),
    "priority": ("gpt-5", {"service_tier": "priority"}, (1000, 100), {}, 1000 * 2500 + 100 * 20_000),
    "batch": ("gpt-5", {"service_tier": "batch"}, (1000, 100), {}, 1000 * 625 + 100 * 5000),
    "an unknown tier": ("gpt-5", {"service_tier": "scale"}, (1000, 100), {}, 1000 * 1250 + 100 * 10_000),
    "flex, cached": ("gpt-5", {"service_tier": "flex"}, (1000, 0), {"cached_tokens": 400}, 600 * 625 + 400 * 62.5),
    "up to the step": ("gpt-5.4", {}, (272_000, 10), {}, 272_000 * 2500 + 10 * 15_000),
    "past the step": ("gpt-5.4", {}, (272_001, 10), {}, 272_001 * 5000 + 10 * 22_500),
    "past the step, flex": ("gpt-5.4", {"service_tier": "flex"}, (272_001, 10), {}, 272_001 * 2500 + 10 * 11_250),
    "audio in": ("gpt-audio", {}, (1000, 0), {"audio_tokens": 800}, 200 * 2500 + 800 * 32_000),
    "images in": ("gpt-image-1", {}, (1000, 100), {"image_tokens": 800}, 200 * 5000 + 800 * 10_000 + 100 * 40_000),
}


@pytest.mark.parametrize("kind", _KINDS)
def test_each_kind_of_rate(fg, kind):
    """By the rates of OpenAI's price page, in nano-USD a token."""
    model, tier, (total_in, total_out), inside, nanos = _KINDS[kind]
    usage = {"prompt_tokens": total_in, "completion_tokens": total_out, "prompt_tokens_details": inside}
    assert _cost({**CHAT, **tier, "model": model, "usage": usage})[0] == nanos


def test_audio_out(fg):
    """Spoken tokens are 64 USD a million, those of the text beside them 10."""
    usage = {"prompt_tokens": 0, "completion_tokens": 100, "completion_tokens_details": {"audio_tokens": 80}}
    assert _cost({**CHAT, "model": "gpt-audio", "usage": usage})[0] == 20 * 10_000 + 80 * 64_000


_DRAWN = {"input_tokens": 50, "output_tokens": 4160, "total_tokens": 4210}
_DRAWING = {"model": "gpt-image-1.5", "prompt": "a cat"}
_STREAM = openai.Stream[object]


@pytest.mark.parametrize("details", [{}, {"output_tokens_details": {"image_tokens": 4160, "text_tokens": 0}}])
def test_what_the_images_api_puts_out_are_image_tokens(fg, details):
    """32 USD a million, where its text would be 10; whether the answer tells them apart, and streamed or not."""
    usage = {**_DRAWN, **details}
    done = {"type": "image_generation.completed", "b64_json": "x", "usage": usage}
    with capture_events() as events:
        sync_client(lambda r: answer({"created": 1, "data": [], "usage": usage})).images.generate(**_DRAWING)
        streaming = sync_client(lambda r: streamed([event(done, "image_generation.completed")]))
        list(streaming.post("/images/generations", cast_to=object, body=_DRAWING, stream=True, stream_cls=_STREAM))
    assert [e.cost_nanos for e in events] == [50 * 5000 + 4160 * 32_000] * 2


@pytest.mark.parametrize("path", ["/responses/compact", "/decisions", "/images/generations"])
def test_half_a_usage_has_no_cost(fg, path):
    """Compactions, decisions and images have input and output, too: neither is 0 where it is not told."""
    client = sync_client(lambda r: answer({"id": "x", "created_at": 1, "usage": {"input_tokens": 1000}}))
    with capture_events() as events:
        client.post(path, cast_to=object, body={"model": "gpt-4o-mini"})
    assert [(e.cost_nanos, e.unpriced_reason) for e in events] == [(None, "the usage is incomplete")]


def test_what_has_no_output_is_priced_by_its_input(fg):
    """An embedding's usage has no output; by a table that has a rate for it, it costs its input all the same."""
    body = {"object": "list", "data": [], "model": "mistral-embed", "usage": {"prompt_tokens": 1000}}
    client = sync_client(lambda r: answer(body), base_url="https://api.mistral.ai/v1")
    with capture_events() as events:
        client.embeddings.create(model="mistral-embed", input="Hello", encoding_format="float")
    assert [(e.input_tokens, e.output_tokens, e.cost_nanos) for e in events] == [(1000, None, 100_000)]


def test_half_the_usage_of_a_transcription_has_no_cost(fg):
    """One that is billed by tokens has output, too."""
    usage = {"type": "tokens", "input_tokens": 1000}
    client = sync_client(lambda r: answer({"text": "x", "usage": usage}))
    with capture_events() as events:
        client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"x"))
    assert [(e.cost_nanos, e.unpriced_reason) for e in events] == [(None, "the usage is incomplete")]


def test_a_transcription_that_is_billed_by_its_length(fg):
    """Ten minutes at 0.006 USD; such an answer counts no tokens."""
    client = sync_client(lambda r: answer({"text": "x", "usage": {"type": "duration", "seconds": 600}}))
    with capture_events() as events:
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"x"))
    [transcribed] = events
    assert (transcribed.cost_nanos, transcribed.usage_source) == (60_000_000, "provider")
    assert (transcribed.input_tokens, transcribed.output_tokens) == (None, None)


def test_a_fee_for_the_request(fg):
    """Where the provider does not report the cost, its published fee is in it: 12 USD for a thousand requests."""
    cost, version, _ = _cost({**CHAT, "model": "sonar"}, "https://api.perplexity.ai")
    assert cost == 15 * 1000 + 12_000_000
    assert version.startswith("genai-prices")


def test_an_azure_deployment_is_priced_by_the_response_model(fg):
    """The deployment's name says nothing; the model in the answer does."""
    client = sync_client(
        lambda r: answer(CHAT),
        openai.AzureOpenAI,
        azure_endpoint="https://acme.openai.azure.com",
        api_version="2024-10-21",
    )
    with capture_events() as events:
        client.chat.completions.create(model="our-deployment", messages=MESSAGES)
    event = events[0]
    assert (event.provider_name, event.request_model, event.api_path) == (
        "azure",
        "our-deployment",
        "/chat/completions",
    )
    assert event.cost_nanos == PUBLISHED


def test_an_azure_deployment_that_is_called_as_a_model_is_not_priced_as_that(fg):
    """Where the model that answered is unknown so is the cost, unless the user prices the deployment."""
    client = sync_client(
        lambda r: answer({**CHAT, "model": "gpt-nowhere"}),
        openai.AzureOpenAI,
        azure_endpoint="https://acme.openai.azure.com",
        api_version="2024-10-21",
    )
    with capture_events() as events:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert (events[0].cost_nanos, events[0].unpriced_reason) == (None, "unknown model 'gpt-nowhere' of azure")


def test_a_price_list_may_name_an_azure_deployment(tmp_path):
    """It is the user's own name, and the user's own price."""
    text = "[[prices]]\nmodel = 'ours'\ninput_cost_per_1m_tokens = 1\noutput_cost_per_1m_tokens = 2"
    FluxGate(price_file=_price_file(tmp_path, text))
    assert _cost({**CHAT, "model": "gpt-nowhere"}, "https://acme.openai.azure.com/openai/v1", model="ours")[0] == 18_000


_AZURES_V1 = "https://acme.openai.azure.com/openai/v1"


_NAMELESS = {
    "images": lambda client: client.images.generate(model="gpt-4o", prompt="a cat"),
    "transcriptions": lambda client: client.audio.transcriptions.create(model="gpt-4o", file=("a.wav", b"x")),
}


@pytest.mark.parametrize("asked", _NAMELESS)
def test_the_name_of_an_azure_deployment_is_no_price_where_the_answer_names_no_model(fg, asked):
    """Images and transcriptions name none: what a deployment is called says nothing of what it costs."""
    usage = {"type": "tokens", "input_tokens": 50, "output_tokens": 10, "total_tokens": 60}
    client = sync_client(lambda r: answer({"created": 1, "data": [], "text": "x", "usage": usage}), base_url=_AZURES_V1)
    with capture_events() as events:
        _NAMELESS[asked](client)
        with context(cost_override={"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}):
            _NAMELESS[asked](client)
        with context(cost_override={"input_cost_per_1m_tokens": 1}):
            _NAMELESS[asked](client)
    assert [(e.provider_name, e.request_model, e.input_tokens) for e in events] == [("azure", "gpt-4o", 50)] * 3
    assert [(e.cost_nanos, e.unpriced_reason) for e in events] == [
        (None, "unknown model"),
        (50 * 1000 + 10 * 2000, None),
        (None, "no output price known"),
    ]


def test_a_price_list_may_name_an_azure_deployment_whose_answers_name_no_model(tmp_path):
    """It is the user's own name, and the user's own price."""
    text = "[[prices]]\nmodel = 'gpt-4o'\ninput_cost_per_1m_tokens = 1\noutput_cost_per_1m_tokens = 2"
    FluxGate(price_file=_price_file(tmp_path, text))
    usage = {"input_tokens": 50, "output_tokens": 10, "total_tokens": 60}
    client = sync_client(lambda r: answer({"created": 1, "data": [], "usage": usage}), base_url=_AZURES_V1)
    with capture_events() as events:
        _NAMELESS["images"](client)
    assert [e.cost_nanos for e in events] == [50 * 1000 + 10 * 2000]


def test_a_stream_of_azure_that_breaks_before_it_names_its_model_has_no_cost(fg):
    """What was delivered is estimated; by whose rates is not known."""
    first = event({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]})
    client = sync_client(lambda r: streamed([first, http.ReadError("gone")]), base_url=_AZURES_V1)
    with capture_events() as events, pytest.raises((http.ReadError, openai.APIConnectionError)):
        list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
    assert [(e.response_model, e.usage_source) for e in events] == [(None, "estimated")]
    assert [(e.cost_nanos, e.unpriced_reason) for e in events] == [(None, "unknown model")]


@pytest.mark.parametrize("host", ["llm.corp.example", "10.0.0.7:8443", "[fd00::7]:8443"])
def test_an_azure_client_behind_a_gateway_is_azure(fg, host):
    """The company's own host in front of Azure does not make the model unknown."""
    client = sync_client(
        lambda r: answer(CHAT), openai.AzureOpenAI, base_url=f"https://{host}/openai", api_version="2024-10-21"
    )
    with capture_events() as events:
        client.chat.completions.create(model="our-deployment", messages=MESSAGES)
    assert (events[0].provider_name, events[0].cost_nanos) == ("azure", PUBLISHED)


def test_the_cost_that_openrouter_reports_is_taken_over(fg):
    """`usage.cost` is USD, exact to the nano, and the price version says that the provider told it."""
    body = {**CHAT, "model": "some/model", "usage": {**USAGE, "cost": 0.000123456}}
    assert _cost(body, "https://openrouter.ai/api/v1") == (123_456, "provider", None)


def test_a_key_of_ones_own_adds_the_upstream_bill(fg):
    """With BYOK OpenRouter reports its fee apart from what the provider bills."""
    usage = {**USAGE, "cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}
    assert _cost({**CHAT, "usage": usage}, "https://openrouter.ai/api/v1")[0] == 21_000_000


@pytest.mark.parametrize("odd", [-1, "free", True, float("1e300"), {"total": 1}, None])
def test_a_reported_cost_that_is_no_amount_is_not_taken(fg, odd):
    """An odd `cost` leaves the published price."""
    assert _cost({**CHAT, "usage": {**USAGE, "cost": odd}})[0] == PUBLISHED


def test_the_header_of_a_litellm_proxy_is_taken_over(fg):
    """A proxy on an unknown host says the cost in a header."""
    headers = {"x_litellm_response_cost": "2.4e-05"}
    assert _cost(CHAT, "http://proxy.corp.example:4000", headers) == (24_000, "provider", None)


def test_a_stream_takes_over_a_reported_cost(fg):
    """The last chunk's cost, and the header of a stream."""
    events_sent = chat_events("Hi", usage={**USAGE, "cost": 0.5})
    with capture_events() as events:
        list(sync_client(lambda r: streamed(events_sent)).chat.completions.create(**CREATE, stream=True))
        headed = streamed(chat_events("Hi"), **{"x-litellm-response-cost": "0.25"})
        client = sync_client(lambda r: headed, base_url="http://proxy.example")
        list(client.chat.completions.create(**CREATE, stream=True))
    assert [(e.cost_nanos, e.price_version) for e in events] == [(500_000_000, "provider"), (250_000_000, "provider")]


def test_an_override_beats_everything(fg, tmp_path):
    """The caller's own rates win over the price list and over what the provider reports."""
    with context(cost_override={"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}):
        cost, version, _ = _cost({**CHAT, "usage": {**USAGE, "cost": 9}})
    assert cost == 12 * 1000 + 3 * 2000
    assert version.startswith("cost_override")


def test_the_applications_decimals_change_no_cost(fg):
    """It may keep three digits, and raise over those that are lost: ours are exact, and nothing of it is raised."""
    usage = {"prompt_tokens": 123_457, "completion_tokens": 3, "total_tokens": 123_460}
    client = sync_client(lambda r: answer({**CHAT, "usage": usage}))
    with localcontext(prec=3) as own:
        own.traps[Inexact] = True
        assert _cost({**CHAT, "usage": {**USAGE, "cost": 0.00123456789}})[0] == 1_234_568
        with context(cost_override={"input_cost_per_1m_tokens": "1.2345", "output_cost_per_1m_tokens": 7}):
            assert _cost({**CHAT, "usage": usage})[0] == 152_428_666  # 123457 * 1234.5 + 3 * 7000, half to even
        with capture_events() as events:
            told = tracking(client.chat.completions.create(**CREATE))
    nanos = 123_457 * 150 + 3 * 600
    assert (told.cost_nanos, events[0].cost_nanos, told.cost) == (nanos, nanos, Decimal(nanos).scaleb(-9))


def test_an_override_prices_an_unknown_model_of_an_unknown_host(fg):
    """Where nothing is published the override alone counts."""
    with context(cost_override={"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}):
        assert _cost({**CHAT, "model": "own"}, "http://vllm.example/v1", model="own")[0] == 12 * 1000 + 3 * 2000


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**CHAT, "model": "never-heard-of"}, "unknown model 'gpt-nowhere' of openai"),
        ({**CHAT, "usage": None}, "no usage"),
        ({**CHAT, "usage": {"prompt_tokens": 9, "completion_tokens": -1}}, "the usage is incomplete"),
        ({**CHAT, "usage": {"prompt_tokens": 10**30, "completion_tokens": "x"}}, "no usage"),
    ],
)
def test_an_unknown_cost_is_none_with_the_reason(fg, body, reason):
    """Neither an unknown model nor a usage that cannot be ever costs 0."""
    assert _cost(body, model="gpt-nowhere") == (None, None, reason)


def test_an_unknown_host_has_no_price_and_says_so(fg):
    """A host that is not known is recorded under its own name."""
    assert _cost(CHAT, "http://vllm.example/v1") == (None, None, "unknown provider 'vllm.example'")


def test_the_region_is_still_the_provider_and_a_part_of_a_name_is_not(fg):
    """The real SDK takes "llmbox.ai" for xAI; a host is matched by whole labels."""
    client = sync_client(lambda r: answer(CHAT), base_url="https://eu.api.openai.com/v1")
    other = sync_client(lambda r: answer(CHAT), base_url="https://llmbox.ai/v1")
    with capture_events() as events:
        client.chat.completions.create(**CREATE)
        other.chat.completions.create(**CREATE)
    assert [e.provider_name for e in events] == ["openai", "llmbox.ai"]


@pytest.mark.parametrize("region", ["eu", "us", "jp"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_endpoint_of_a_region_costs_more(fg, region, stream):
    """10 % for a newer model, in streams too; an older one has its usual price."""
    body, events_sent = {**CHAT, "model": "gpt-5.4"}, chat_events("Hi", usage=USAGE)
    newer = [part.replace(b"gpt-4o-mini-2024-07-18", b"gpt-5.4") for part in events_sent]
    base_url = f"https://{region}.api.openai.com/v1"
    client = sync_client(lambda r: streamed(newer) if stream else answer(body), base_url=base_url)
    with capture_events() as events:
        result = client.chat.completions.create(**{**CREATE, "model": "gpt-5.4"}, stream=stream)
        _ = list(result) if stream else None
    assert [e.cost_nanos for e in events] == [(12 * 2500 + 3 * 15_000) * 110 // 100]
    assert events[0].price_version.endswith(", regional +10 %")
    assert _cost(CHAT, base_url)[0] == PUBLISHED


_PRICES = """
[[prices]]
model = "gpt-4o-mini*"
provider = "openai"
input_cost_per_1m_tokens = 1
output_cost_per_1m_tokens = 1

[[prices]]
model = "gpt-4o-mini*"
from = 2026-01-01
until = 2126-01-01
input_cost_per_1m_tokens = "0.5"
output_cost_per_1m_tokens = 2

[[prices]]
model = "own-model"
until = 2020-01-01
input_cost_per_1m_tokens = 1
"""


def _price_file(tmp_path, text, name="prices.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_price_list_beats_the_published_prices_within_its_dates(tmp_path):
    """Of the entries that hold the last counts; one that has ended does not; a reported cost loses to it."""
    FluxGate(price_file=_price_file(tmp_path, _PRICES))
    cost, version, _ = _cost({**CHAT, "usage": {**USAGE, "cost": 9}})
    assert cost == 12 * 500 + 3 * 2000
    assert version.startswith("price_file")
    assert _cost({**CHAT, "model": "own-model"}, model="own-model")[0] is None


def test_a_price_list_spells_providers_and_models_in_any_case(tmp_path):
    """Who writes `OpenAI` means the provider that is recorded as `openai`."""
    text = "[[prices]]\nprovider = 'OpenAI'\nmodel = 'GPT-4o-mini*'\ninput_cost_per_1m_tokens = 1\n"
    FluxGate(price_file=_price_file(tmp_path, text))
    assert _cost(CHAT)[0] == 12 * 1000 + 3 * 600
    assert _cost(CHAT, "https://api.groq.com/openai/v1")[0] is None


@pytest.mark.parametrize(
    ("named", "base_url"),
    [
        ("xai", "https://api.x.ai/v1"),
        ("X_AI", "https://api.x.ai/v1"),
        ("together_ai", "https://api.together.xyz/v1"),
        ("azure.ai.openai", "https://acme.openai.azure.com/openai/v1"),
    ],
)
def test_a_price_list_may_name_a_provider_as_the_tables_do(tmp_path, named, base_url):
    """By another name of the provider that is recorded; of no other provider."""
    text = (
        f"[[prices]]\nprovider = '{named}'\nmodel = 'ours'\ninput_cost_per_1m_tokens = 1\noutput_cost_per_1m_tokens = 2"
    )
    FluxGate(price_file=_price_file(tmp_path, text))
    assert _cost({**CHAT, "model": "ours"}, base_url)[0] == 12 * 1000 + 3 * 2000
    assert _cost({**CHAT, "model": "ours"}, "https://api.groq.com/openai/v1", model="ours")[0] is None


def test_a_price_list_is_for_a_call_that_is_tracked_by_another_name(tmp_path):
    """`xai` and `x-ai` are the same provider, whichever of them the application writes."""
    FluxGate(
        price_file=_price_file(tmp_path, "[[prices]]\nprovider = 'x-ai'\nmodel = 'o'\ninput_cost_per_1m_tokens = 1")
    )
    with capture_events() as events, track() as call:
        call.usage(provider="xai", model="o", input_tokens=12)
    assert [e.cost_nanos for e in events] == [12 * 1000]


def test_a_provider_of_the_users_own_stays_his_own_in_a_price_list(tmp_path):
    """A name that has a provider's in it, such as `openai-proxy`, is not that provider's."""
    text = "[[prices]]\nprovider = 'openai-proxy'\nmodel = 'gpt-4o-mini*'\ninput_cost_per_1m_tokens = 0\n"
    text += "output_cost_per_1m_tokens = 0"
    FluxGate(price_file=_price_file(tmp_path, text), provider_hosts={"proxy.example": "openai-proxy"})
    assert [_cost(CHAT, url)[0] for url in ("https://proxy.example/v1", "https://api.openai.com/v1")] == [0, PUBLISHED]


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("proxy.example:443", "https://proxy.example/v1"),
        ("proxy.example:443", "https://proxy.example:443/v1"),
        ("127.0.0.1:80", "http://127.0.0.1/v1"),
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("[::1]", "http://[::1]:8080/v1"),
        ("::1", "http://[::1]:8080/v1"),
    ],
)
def test_a_host_that_is_named_with_its_usual_port_or_as_ipv6_is_that_provider(named, address):
    """An address does not keep the port that its scheme has anyway, nor the brackets."""
    FluxGate(provider_hosts=f"{named}=openai")
    assert _cost(CHAT, address)[0] == PUBLISHED


def test_a_price_list_may_be_json(tmp_path):
    """The same in JSON, with dates as text."""
    entry = {
        "model": "gpt-4o-mini",
        "from": "2024-01-01",
        "input_cost_per_1m_tokens": 3,
        "output_cost_per_1m_tokens": 0,
    }
    FluxGate(price_file=_price_file(tmp_path, json.dumps({"prices": [entry]}), "prices.json"))
    assert _cost(CHAT)[0] == 12 * 3000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "prices.toml"),
        ("x = 1", "expected a list named prices"),
        ("[[prices]]\nprovider = 'openai'", r"prices\[0\]: expected an entry that names its model"),
        ("[[prices]]\nmodel = 'm'\ninput = 1", r"prices\[0\]: input: expected input_cost_per_1m_tokens"),
        ("[[prices]]\nmodel = 'm'\nfrom = 'soon'", r"prices\[0\]: from: expected a date"),
        ("[[prices]]\nmodel = 'm'\nprovider = 1", "provider: expected a name"),
        (
            "[[prices]]\nmodel = 'gpt-*-mini'\ninput_cost_per_1m_tokens = 1",
            r"prices\[0\]: model: expected \* at the end only",
        ),
        (f"prices = {'[' * 100_000}", "nested too deeply"),
        ("[[prices]]\nmodel = 'm'", r"prices\[0\]: expected a rate, such as input_cost_per_1m_tokens"),
        (
            "[[prices]]\nmodel = 'm'\nfrom = 2027-01-01\nuntil = 2027-01-01\ninput_cost_per_1m_tokens = 1",
            r"prices\[0\]: until: expected a date later than from \(2027-01-01\)",
        ),
    ],
)
def test_a_wrong_price_list_fails_at_start_and_says_what_is_wrong(tmp_path, text, says):
    """One line that names the file, the entry and what is expected."""
    with pytest.raises(FluxGateError, match=says):
        FluxGate(price_file=_price_file(tmp_path, text))
    with pytest.raises(FluxGateError, match=rf"No such file or directory: {tmp_path}/nowhere\.toml"):
        FluxGate(price_file=tmp_path / "nowhere.toml")


def test_a_price_list_in_json_that_is_nested_too_deeply_fails_as_a_wrong_one(tmp_path):
    """What the parser cannot follow is a wrong file."""
    with pytest.raises(FluxGateError, match=r"price_file \(FLUXGATE_PRICE_FILE\): prices\.json: nested too deeply"):
        FluxGate(price_file=_price_file(tmp_path, "[" * 1_000_000, "prices.json"))


def test_an_empty_name_of_a_price_list_is_none(monkeypatch):
    """As an empty variable is."""
    monkeypatch.setenv("FLUXGATE_PRICE_FILE", "")
    assert FluxGate(price_file="").settings.price_file is None


@pytest.mark.parametrize("odd", [5, "rates", [1, 2], object()])
def test_an_override_that_is_no_mapping_leaves_the_cost_unknown(fg, odd):
    """As one with a wrong key does: it is noted, the call is made, and nobody's rates are guessed."""
    with context(cost_override=odd):
        assert _cost(CHAT) == (None, None, "invalid cost_override")
    assert diagnostics.counts() == {"cost_override": 1}


def test_the_cost_adds_up_outside_of_requests_to_nothing(fg):
    """`current()` counts the calls of a request only."""
    _cost(CHAT)
    assert (current().calls, current().cost_nanos) == (0, 0)
