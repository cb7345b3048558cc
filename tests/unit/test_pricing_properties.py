"""Prices against the library that they were made from: the same result for every model and any counts."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import ClauseRegex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxgate_mw.event import TokenUsage
from fluxgate_mw.pricing import Price, price
from fluxgate_mw.pricing.rates import Rates, cost_nanos

SPELLED = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
    "reasoning_output_tokens": "output_reasoning_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "cache_read_input_audio_tokens": "cache_audio_read_tokens",
    "input_image_tokens": "input_image_tokens",
    "output_image_tokens": "output_image_tokens",
    "audio_seconds": "audio_seconds",
}
PROVIDERS = {provider.id: provider for provider in providers}
TIERS = (None, None, "default", "flex", "priority", "fast", "batch", "auto")
TOKEN_PRICES = {"input_mtok", "output_mtok", "requests_kcount"}
EARLY, LATE = (datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None) for year in (2022, 2030))
UNPRICED = (LookupError, ValueError)


def theirs(provider: str, model: str, usage: TokenUsage, at: datetime, tier: str | None) -> int | None:
    """What `genai-prices` says, in nano-USD; None where it has no price or refuses the counts."""
    counts = {name: getattr(usage, ours) for ours, name in SPELLED.items()}
    context = {"service_tier": tier, "processing": tier} if tier == "batch" else {"service_tier": tier or ""}
    try:
        result = genai_prices.calc_price(
            genai_prices.Usage(**counts),
            model,
            provider_id=provider,
            genai_request_timestamp=at,
            price_context=context if tier else None,
        )
    except UNPRICED:
        return None
    published = {key for key, value in result.model_price.__dict__.items() if value is not None}
    counted = TOKEN_PRICES if usage.audio_seconds is None else {*TOKEN_PRICES, "audio_hours"}
    if published and not published & counted:
        return None
    return int(result.total_price.scaleb(9).to_integral_value(ROUND_HALF_EVEN))


def agrees(ours: Price, expected: int | None) -> bool:
    """Whether we say the same, or None where the library guesses.

    Its 0 may be for a count that nobody reported; it prices audio as text where it has no rate for audio, and a
    service tier by the usual rates where it has none for that tier.
    """
    if ours.reason == "the audio tokens of this model have no known price" or unpriced_tier(ours):
        return ours.cost_nanos is None
    if expected == 0 and ours.reason == "the tokens that are billed are not reported":
        return ours.cost_nanos is None
    return ours.cost_nanos == expected and (ours.reason is None) == (expected is not None)


def unpriced_tier(ours: Price) -> bool:
    """Whether we have no rates for the service tier."""
    return (ours.reason or "").startswith("no price for service tier ")


def random_usage(rng: random.Random) -> TokenUsage:
    """Counts of every kind, most of them consistent, some not, some not reported."""
    scale = rng.choice([10, 5_000, 300_000, 2_000_000])
    total_in, total_out = rng.randrange(scale), rng.randrange(scale)

    def part(total: int) -> int | None:
        return rng.choice([None, None, 0, rng.randrange(total // 3 + 1), rng.randrange(total + 2)])

    audio, read = part(total_in), part(total_in)
    return TokenUsage(
        input_tokens=rng.choice([total_in] * 9 + [None]),
        output_tokens=rng.choice([total_out] * 9 + [None]),
        cache_read_input_tokens=read,
        cache_creation_input_tokens=part(total_in // 3),
        reasoning_output_tokens=part(total_out),
        input_audio_tokens=audio,
        output_audio_tokens=part(total_out // 2),
        cache_read_input_audio_tokens=rng.choice([None, 0, part(min(audio or 0, read or 0))]),
        input_image_tokens=rng.choice([None, part(total_in // 3)]),
        output_image_tokens=part(total_out // 2),
        audio_seconds=rng.choice([None, None, 0, 7, 9.2, 600.004, rng.randrange(scale)]),
    )


@cache
def long_context_steps() -> tuple[int, ...]:
    """Every number of input tokens past which some price changes."""
    return tuple(sorted({int(start) for start in re.findall(r"Tier\(start=(\d+)", repr(providers))}))


@cache
def moments(provider: str) -> tuple[datetime, ...]:
    """Moments on both sides of every date and time of day that this provider's prices (and its lenders') name."""
    found = {datetime(2023, 1, 1, tzinfo=UTC), datetime(2026, 11, 23, 12, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)}
    names = [provider, *(PROVIDERS[provider].fallback_model_providers or ())]
    text = repr([PROVIDERS[name].models for name in names])
    for year, month, day in re.findall(r"datetime\.date\((\d+), (\d+), (\d+)\)", text):
        start = datetime(int(year), int(month), int(day), tzinfo=UTC)
        found |= {start, start - timedelta(microseconds=1)}
    for hour, minute in re.findall(r"datetime\.time\((\d+), (\d+)", text):
        edge = datetime(2026, 11, 23, int(hour), int(minute), tzinfo=UTC)
        found |= {edge, edge - timedelta(microseconds=1), edge.replace(tzinfo=None)}
    return tuple(sorted(found, key=repr))


def literals(clause: object) -> list[str]:
    """Every text that a clause of a match names, a regular expression's own source included."""
    if isinstance(clause, ClauseRegex):
        return [re.sub(r"[\\^$]|\(\?.", "", clause.regex.replace(r"\d{8}", "20250929"))]
    parts = getattr(clause, "or_", None) or getattr(clause, "and_", None)
    if parts is not None:
        return [text for part in parts for text in literals(part)]
    return list(vars(clause).values())


@cache
def references(provider: str) -> tuple[str, ...]:
    """Names of models: every id and every text that matching looks for, of this provider and of its lenders."""
    names = [provider, *(PROVIDERS[provider].fallback_model_providers or ())]
    found = {text for name in names for model in PROVIDERS[name].models for text in (model.id, *literals(model.match))}
    return tuple(sorted(found))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_step_date_and_tier(provider):
    """On both sides of every long-context step, at every date and for every tier: the library's total."""
    usages = [
        TokenUsage(input_tokens=start + over, output_tokens=1001, cache_read_input_tokens=start // 2)
        for start in (5, *long_context_steps())
        for over in (0, 1)
    ]
    for model in PROVIDERS[provider].models:
        text = repr(model)
        steps = usages if "Tier(" in text else usages[:1]
        times = moments(provider) if "constraint=" in text else moments(provider)[:1]
        tiers = set(TIERS) if "PriceVariant" in text else {None}
        checked = [(usage, at, None) for usage in steps for at in times]
        checked += [(steps[-1], at, tier) for at in times for tier in tiers]
        for usage, at, tier in checked if len(checked) > 1 else ():
            ours = price(provider, model.id, usage, at=at, service_tier=tier)
            assert agrees(ours, theirs(provider, model.id, usage, at, tier)), (model.id, usage, at, tier)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_tier_is_unpriced_exactly_where_the_library_has_no_rates_for_it(provider):
    """For every model and moment: a tier that costs more or less elsewhere has its own rates, or no price at all."""
    usage = TokenUsage(input_tokens=1000, output_tokens=100)
    for name in (model.id for model in PROVIDERS[provider].models):
        model = PROVIDERS[provider].find_model(name)
        for at in moments(provider) if model else ():
            for tier in ("flex", "priority", "fast", "batch"):
                known = {"service_tier": tier} | ({"processing": tier} if tier == "batch" else {})
                rated = any(
                    variant.when.items() <= known.items()
                    and (variant.constraint is None or variant.constraint.active(at))
                    for variant in model.price_variants or ()
                )
                expected = not rated and (provider, tier) != ("groq", "flex")
                ours = price(provider, name, usage, at=at, service_tier=tier)
                assert unpriced_tier(ours) == expected, (name, at, tier)


SIMPLE = TokenUsage(input_tokens=1_000_003, output_tokens=777)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_model_costs_what_the_library_says(provider):
    """For every name of every model: the library's total to the nano-dollar, or None where it has none."""
    rng = random.Random(provider)
    for model in references(provider):
        for _ in range(6):
            usage, at, tier = random_usage(rng), rng.choice(moments(provider)), rng.choice(TIERS)
            ours = price(provider, model, usage, at=at, service_tier=tier)
            if usage.input_tokens is None and usage.output_tokens is None and usage.audio_seconds is None:
                assert ours.cost_nanos is None
                continue
            expected = theirs(provider, model, usage, at, tier)
            assert agrees(ours, expected), (model, usage, at, tier, ours)


@pytest.mark.parametrize("seconds", [0, 0.1, 9.2, 600, 86_400])
def test_models_that_are_billed_by_duration_cost_what_the_library_says(seconds):
    """Audio by the hour, of every such model, without any token."""
    usage = TokenUsage(audio_seconds=seconds)
    billed = [(name, m.id) for name in PROVIDERS for m in PROVIDERS[name].models if "audio_hours=" in repr(m)]
    assert ("openai", "whisper-1") in billed
    for provider, model in billed:
        assert agrees(price(provider, model, usage, at=NOW), theirs(provider, model, usage, NOW, None)), model


@pytest.mark.parametrize("provider", PROVIDERS)
def test_names_match_as_in_the_library(provider):
    """Upper case, dates, prefixes and endings that gateways put to a name mean the same model, or none, in both.

    But for the prefixes of Google's own APIs, which the library does not know: they change nothing.
    """
    rng = random.Random(provider)
    names = references(provider)
    for name in rng.sample(names, min(len(names), 60)):
        for spelled in (
            name.upper(),
            f"{name}-20260229",
            f"{name}-20251211",
            f"{name}-2025-12-11",
            f"{name}-latest",
            f"{name}:free",
            f"{provider}/{name}",
            f"us.{name}-v1:0",
            f"models/{name}",
            f"ft:{name}:org::id",
            f" {name}",
            name[:-1] or "x",
        ):
            known = spelled.removeprefix("google/").removeprefix("models/") if provider == "google" else spelled
            expected = theirs(provider, known, SIMPLE, NOW, None)
            assert price(provider, spelled, SIMPLE, at=NOW).cost_nanos == expected, spelled


@pytest.mark.parametrize(
    "model", ["gpt-4o", "openai/gpt-4o", "azure/gpt-4o", "xai/grok-4", "claude-sonnet-4-5", "no/such", "x"]
)
def test_litellm_names_the_provider_in_the_model(model):
    """A model of the gateway LiteLLM is priced as its prefix says, else by whose models are called so."""
    assert price("litellm", model, SIMPLE, at=NOW).cost_nanos == theirs("litellm", model, SIMPLE, NOW, None)


@pytest.mark.parametrize(
    "name",
    [
        *PROVIDERS,
        "OpenAI",
        " xai ",
        "together_ai",
        "amazon-bedrock",
        "vertex",
        "Google-VertexAI",
        "huggingface-groq",
        "none",
        "litellm",
    ],
)
def test_other_names_of_a_provider_are_the_librarys(name):
    """A provider is known by the names that the library knows it by."""
    for model in (
        "gpt-4o",
        "grok-4",
        "gemini-2.5-pro",
        "openai/gpt-oss-120b",
        "claude-sonnet-4-5",
        "mistral-small-latest",
    ):
        assert price(name, model, SIMPLE, at=NOW).cost_nanos == theirs(name, model, SIMPLE, NOW, None)


@settings(max_examples=120)
@given(data=st.data())
def test_any_model_any_counts_any_time(data):
    """Whatever is drawn: our cost is the library's, exact to the nano-dollar."""
    provider = data.draw(st.sampled_from(sorted(PROVIDERS)))
    model = data.draw(st.sampled_from(references(provider)))
    counts = st.none() | st.integers(0, 10**7)
    usage = data.draw(st.builds(TokenUsage, **dict.fromkeys(SPELLED, counts) | {"input_tokens": st.integers(0, 10**8)}))
    at = data.draw(st.datetimes(EARLY, LATE, timezones=st.none() | st.timezones()))
    tier = data.draw(st.sampled_from(TIERS))
    ours = price(provider, model, usage, at=at, service_tier=tier)
    assert agrees(ours, theirs(provider, model, usage, at, tier))


@given(rate=st.integers(0, 10**18), power=st.integers(6, 18))
@example(rate=500_000, power=6)
@example(rate=1_500_000, power=6)
@example(rate=2_500_001, power=6)
def test_rounding_is_half_to_even(rate, power):
    """One rounding, to the nearest whole number, of two as near to the even one."""
    sheet = ((0, Rates(input=rate, output=rate, per=10**power)),)
    exact = Decimal(rate) / 10**power
    assert cost_nanos(sheet, TokenUsage(input_tokens=1)) == exact.to_integral_value(ROUND_HALF_EVEN)
    both = cost_nanos(sheet, TokenUsage(input_tokens=1, output_tokens=2))
    assert both == (exact * 3).to_integral_value(ROUND_HALF_EVEN)


odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.decimals() | st.just(10**400)


@given(
    usage=st.builds(TokenUsage, **dict.fromkeys(SPELLED, odd)),
    model=st.sampled_from(["gpt-4o-mini", "gpt-audio", "gemini-2.5-pro", "whisper-1", "gpt-image-1", "nothing"]),
)
def test_odd_counts_never_raise(usage, model):
    """Negative, absurd and non-numeric counts give a cost that fits 64 bits or None with a reason, never an error."""
    for provider in ("openai", "google"):
        result = price(provider, model, usage, at=NOW)
        assert isinstance(result, Price)
        assert (result.cost_nanos is None) == (result.reason is not None)
        assert result.cost_nanos is None or 0 <= result.cost_nanos < 2**63
        counts = [getattr(usage, name) for name in SPELLED]
        if any(isinstance(count, int) and count < 0 for count in counts):
            assert result.cost_nanos is None
