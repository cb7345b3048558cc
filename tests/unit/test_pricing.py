"""Prices: what is known, what is not, own rates, hosts, and the tables in the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from genai_prices.data_snapshot import get_snapshot
from hatchling.builders.wheel import WheelBuilder
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import TokenUsage
from fluxgate_mw.pricing import CostOverride, price, provider_of_host, table, table_version
from fluxgate_mw.pricing.compile import main, tables
from fluxgate_mw.pricing.hosts import HOSTS
from fluxgate_mw.pricing.rates import Rates
from fluxgate_mw.pricing.regions import uplift_percent
from fluxgate_mw.pricing.terms import Dated, Tariff, Terms, Variant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USAGE = TokenUsage(input_tokens=1000, output_tokens=100, cache_read_input_tokens=400, reasoning_output_tokens=30)
TABLES = resources.files("fluxgate_mw.pricing") / "tables"


def test_tables_are_what_the_library_gives_now(tmp_path):
    """The tables in the tree are byte for byte what the script makes, so they cannot go stale unseen."""
    (tmp_path / "gone.json").write_text("a provider that is no more")
    main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == tables() == {path.name: path.read_bytes() for path in TABLES.iterdir()}


def test_the_wheel_carries_every_table(tmp_path):
    """What is installed from the wheel has every provider's table and the index."""
    root = Path(__file__).parents[2]
    (wheel,) = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= {f"fluxgate_mw/pricing/tables/{path.name}" for path in TABLES.iterdir()}


def test_nothing_is_read_before_it_is_needed():
    """Importing reads no table and no `genai_prices`; a price reads the index and one provider's table."""
    script = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from datetime import datetime
from fluxgate_mw.event import TokenUsage
from fluxgate_mw import pricing
read = lambda: sorted({name.rpartition("/")[2] for name in opened if name.endswith(".json")})
before = read()
pricing.price("groq", "llama-3.1-8b-instant", TokenUsage(input_tokens=1), at=datetime.now())
print(json.dumps([before, read(), [name for name in sys.modules if name.startswith(("genai_prices", "pydantic"))]]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[], ["groq.json", "index.json"], []]


def test_the_first_prices_may_be_asked_for_at_once():
    """Many threads that price the first call of a process each get the price, and the process goes on."""
    script = """
import sys, threading
from datetime import datetime
from fluxgate_mw import pricing
from fluxgate_mw.event import TokenUsage
pricing.price
start, costs = threading.Barrier(8), []
def ask():
    start.wait()
    costs.append(pricing.price("openai", "gpt-4o-mini", TokenUsage(1000, 0), at=datetime.now()).cost_nanos)
threads = [threading.Thread(target=ask) for _ in range(8)]
sys.setswitchinterval(1e-6)
for thread in threads: thread.start()
for thread in threads: thread.join()
print(costs)
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == [150_000] * 8


def test_a_known_price_names_its_table():
    """A cost is whole nano-USD and says which prices it was made from; parts are never added on top of totals."""
    result = price("openai", "gpt-4o-mini", USAGE, at=NOW)
    assert result.cost_nanos == 600 * 150 + 400 * 75 + 100 * 600
    assert result.price_version == table_version() == "genai-prices 0.2.3"
    assert result.reason is None


@pytest.mark.parametrize(
    ("provider", "model", "usage", "reason"),
    [
        ("openai", "gpt-99-nano", USAGE, "unknown model 'gpt-99-nano' of openai"),
        ("openai", None, USAGE, "unknown model"),
        ("openai", "", USAGE, "unknown model"),
        ("openai", "gpt-4o" * 500, USAGE, "unknown model"),
        (None, "gpt-4o", USAGE, "unknown provider"),
        ("llm.example.org", "gpt-4o", USAGE, "unknown provider 'llm.example.org'"),
        ("openai.example.org", "gpt-4o", USAGE, "unknown provider 'openai.example.org'"),
        ("localhost:8080", "gpt-4o", USAGE, "unknown provider 'localhost:8080'"),
        ("openai", "gpt-4o", TokenUsage(), "no usage"),
        ("openai", "gpt-4o", TokenUsage(cache_read_input_tokens=4), "no usage"),
        (
            "openai",
            "text-embedding-3-small",
            TokenUsage(output_tokens=0),
            "the tokens that are billed are not reported",
        ),
        (
            "openai",
            "gpt-4o",
            TokenUsage(input_tokens=1, output_tokens=1, cache_read_input_tokens=2),
            "invalid usage: cached tokens exceed the input",
        ),
        (
            "openai",
            "gpt-4o",
            TokenUsage(input_tokens=-1, output_tokens=1),
            "invalid usage: the input tokens are below 0",
        ),
        ("openai", "gpt-4o", TokenUsage(input_tokens=2**70), "invalid usage: the counts are absurd"),
        (
            "openai",
            "whisper-1",
            USAGE,
            "priced by audio_hours and input_audio_hours, which the usage does not count",
        ),
        *(
            ("openai", "GPT-4o-audio-preview", counts, "the audio tokens of this model have no known price")
            for counts in (
                TokenUsage(input_tokens=100, output_tokens=9, input_audio_tokens=50),
                TokenUsage(input_tokens=100, output_tokens=9, output_audio_tokens=9),
            )
        ),
    ],
)
def test_unknown_is_none_with_a_reason(provider, model, usage, reason):
    """Where price or usage is not known the cost is None, never 0, and the reason is in words."""
    result = price(provider, model, usage, at=NOW)
    assert (result.cost_nanos, result.price_version, result.reason) == (None, None, reason)


def test_audio_that_the_tables_price_as_text_is_priced_by_the_users_rates_only():
    """The text of such a model is priced; its audio where the user says what the model costs."""
    text = TokenUsage(input_tokens=1_000_000, output_tokens=0)
    assert price("openai", "gpt-4o-mini-audio-preview", text, at=NOW).cost_nanos == 150_000_000
    spoken, own = msgspec.structs.replace(text, input_audio_tokens=1_000_000), CostOverride(10, 20)
    assert price("openai", "gpt-4o-mini-audio-preview", spoken, at=NOW, override=own).cost_nanos == 10_000_000_000


def test_a_free_model_costs_nothing():
    """A model that is published as free costs 0, which is known."""
    assert price("openrouter", "mistralai/mistral-7b-instruct:free", USAGE, at=NOW).cost_nanos == 0


def test_audio_by_the_hour():
    """Ten minutes of whisper-1 at 0.36 USD an hour; of a model that is billed by tokens, seconds say nothing."""
    spoken = TokenUsage(audio_seconds=600)
    assert price("openai", "whisper-1", spoken, at=NOW).cost_nanos == 60_000_000
    assert price("openai", "gpt-4o-transcribe", spoken, at=NOW).cost_nanos is None
    assert price("openai", "tts-1", spoken, at=NOW).cost_nanos is None
    assert price("groq", "whisper-large-v3", TokenUsage(audio_seconds=float("nan")), at=NOW).cost_nanos is None
    own = CostOverride(cache_read_cost_per_1m_tokens=1)
    assert price(None, "own", spoken, at=NOW, override=own).reason == "no price of audio by the hour known"
    assert price("openai", "whisper-1", spoken, at=NOW, override=own).cost_nanos == 60_000_000


def test_audio_that_is_counted_in_tokens_and_billed_by_the_hour():
    """Its tokens cost nothing beside its hours, 0.24 USD each; who has no price of an hour has none of it."""
    usage = TokenUsage(input_tokens=2629, output_tokens=635, input_audio_tokens=2625, input_audio_seconds=203)
    text = TokenUsage(input_tokens=4, output_tokens=635)
    by_tokens = price("mistral", "voxtral-small-latest", text, at=NOW).cost_nanos
    spoken = price("mistral", "voxtral-small-latest", usage, at=NOW)
    assert spoken.cost_nanos == by_tokens + 13_533_333
    assert price("mistral", "voxtral-mini-latest", usage, at=NOW).cost_nanos == 10_150_000
    untold = TokenUsage(input_tokens=2629, output_tokens=635, input_audio_seconds=203)
    unknown = price("mistral", "voxtral-small-latest", untold, at=NOW)
    assert (unknown.cost_nanos, unknown.reason) == (None, "how many of the input tokens were audio is not known")
    assert price("mistral", "voxtral-mini-latest", untold, at=NOW).cost_nanos == 10_150_000
    for model in ("mistral-large-latest", "no model at all"):
        assert price("mistral", model, usage, at=NOW).cost_nanos is None
    own = CostOverride(input_cost_per_1m_tokens=1, output_cost_per_1m_tokens=2)
    alone = price(None, "own", usage, at=NOW, override=own)
    assert (alone.cost_nanos, alone.reason) == (None, "no price of audio by the hour known")
    both = price("mistral", "voxtral-small-latest", usage, at=NOW, override=own)
    assert both.cost_nanos == 4_000 + 1_270_000 + 13_533_333


def test_a_request_has_its_fee():
    """A published fee per request is added once."""
    plain = price("perplexity", "sonar", TokenUsage(input_tokens=0, output_tokens=0), at=NOW)
    assert plain.cost_nanos == 12_000_000


@pytest.mark.parametrize(
    ("spelled", "same_as"),
    [
        ("GPT-4o-Mini", "gpt-4o-mini"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-5.2-20251211", "gpt-5.2-2025-12-11"),
        ("openai/gpt-4o", None),
        ("gpt-4o-2031-01-01", None),
        ("ft:gpt-4.1-mini-2025-04-14:org::id", None),
    ],
)
def test_spellings_of_a_model(spelled, same_as):
    """Case and compact dates do not matter; a gateway's prefix, an odd date or an unlisted fine-tune is unknown."""
    ours = price("openai", spelled, USAGE, at=NOW).cost_nanos
    assert ours == (same_as and price("openai", same_as, USAGE, at=NOW).cost_nanos)


@pytest.mark.parametrize("spelled", ["google/gemini-2.5-pro", "models/gemini-2.5-pro", "Google/Gemini-2.5-Pro"])
def test_googles_own_spellings(spelled):
    """Vertex AI and the Gemini API put a prefix before a model's name; another provider's is no such thing."""
    assert price("google", spelled, USAGE, at=NOW) == price("google", "gemini-2.5-pro", USAGE, at=NOW)
    assert price("google", "openai/gemini-2.5-pro", USAGE, at=NOW).cost_nanos is None
    assert price("openai", "models/gpt-4o-mini", USAGE, at=NOW).cost_nanos is None


def test_a_fine_tune_has_its_own_price():
    """A fine-tuned model is dearer than its base where the table lists it."""
    tuned = price("openai", "ft:gpt-4o-mini-2024-07-18:org::id", USAGE, at=NOW).cost_nanos
    assert tuned > price("openai", "gpt-4o-mini", USAGE, at=NOW).cost_nanos


def test_a_reseller_has_the_makers_price():
    """Azure sells OpenAI's models at OpenAI's prices; what it takes for service tiers the table does not say."""
    own, resold = (price(name, "gpt-5.2", USAGE, at=NOW) for name in ("openai", "azure"))
    flex = price("azure", "gpt-5.2", USAGE, at=NOW, service_tier="flex")
    assert own.cost_nanos == resold.cost_nanos
    assert (flex.cost_nanos, flex.reason) == (None, "no price for service tier 'flex'")
    assert price("openai", "gpt-5.2", USAGE, at=NOW, service_tier="flex").cost_nanos < own.cost_nanos


@pytest.mark.parametrize("tier", ["default", "auto", "standard", "on_demand", "scale", None])
def test_usual_tiers_have_the_usual_price(tier):
    """Whatever a provider calls its usual tier."""
    assert price("azure", "gpt-5.2", USAGE, at=NOW, service_tier=tier) == price("azure", "gpt-5.2", USAGE, at=NOW)


def test_groqs_flex_costs_the_same():
    """It is sold at the usual price, by Groq's own page."""
    usual, flex = (price("groq", "llama-3.1-8b-instant", USAGE, at=NOW, service_tier=tier) for tier in (None, "flex"))
    assert usual.cost_nanos == flex.cost_nanos is not None


def test_own_rates_price_a_tier_that_has_none():
    """They say what the call costs; what they leave out is not taken from another tier."""
    both, one = CostOverride(1, 2), CostOverride(1)
    priced = [price("azure", "gpt-5.2", USAGE, at=NOW, service_tier="priority", override=own) for own in (both, one)]
    assert [result.cost_nanos for result in priced] == [1000 * 1000 + 100 * 2000, None]


@pytest.mark.parametrize("name", ["azure.ai.openai", "az.ai.openai", "azure"])
def test_names_of_opentelemetry_are_known(name):
    """A provider as OpenTelemetry spells it, with dots, is no host."""
    assert price(name, "gpt-4o", USAGE, at=NOW).cost_nanos is not None


def test_the_zone_of_a_time_does_not_matter():
    """The same moment in any zone has the same price, on both sides of midnight UTC; another may have another."""
    seen = set()
    for hour in range(0, 48, 3):
        at = datetime(2026, 9, 1, tzinfo=UTC) + timedelta(hours=hour)
        costs = {
            price("deepseek", "deepseek-chat", USAGE, at=moment).cost_nanos
            for moment in (at, at.replace(tzinfo=None), at.astimezone(timezone(timedelta(hours=-9, minutes=-30))))
        }
        assert len(costs) == 1
        seen |= costs
    assert seen == {150_000, 300_000}


def test_the_first_row_of_a_table_wins():
    """Of two rows that a name means the first counts, whether it spells the name out or matches a pattern."""
    rows = [
        table.ModelRow(("a-1",), msgspec.Raw(b"{}")),
        table.ModelRow((), msgspec.Raw(b"{}"), ("^", "a-")),
        table.ModelRow(("a-2", "b"), msgspec.Raw(b"{}")),
    ]
    found = table.Table(tuple(rows))
    assert [found.row(name) for name in ("a-1", "a-2", "a-3", "b", "c")] == [rows[0], rows[1], rows[1], rows[2], None]


def test_the_first_variant_wins():
    """Of two variants that give a rate for the same kind of request the first counts, rate by rate."""
    variants = tuple(
        Variant({"service_tier": "flex"}, ((0, rates),)) for rates in (Rates(input=2), Rates(input=3, output=4))
    )
    tariff = Tariff(Terms((Dated(((0, Rates(input=5, output=5)),)),), variants), "test")
    assert tariff.sheet(NOW, "flex") == ((0, Rates(input=2, output=4)),)
    assert tariff.sheet(NOW, None) == tariff.sheet(NOW, "other") == ((0, Rates(input=5, output=5)),)


def test_answers_kept_are_bounded():
    """However many names a host asks for, no more than a fixed number of answers stays in memory."""
    for number in range(table._MAX_RESOLVED + 50):
        price("groq", f"no-such-{number}", USAGE, at=NOW)
    price("groq", "x" * (table._MAX_NAME + 1), USAGE, at=NOW)
    assert len(table._resolved) <= table._MAX_RESOLVED
    assert max(len(name or "") for _, name in table._resolved) <= table._MAX_NAME


@pytest.mark.parametrize(
    ("model", "percent"),
    [
        ("gpt-5.4", 10),
        ("gpt-5.4-mini-2026-03-17", 10),
        ("gpt-5-5", 10),
        ("GPT-6.1-Terra", 10),
        ("gpt-image-2", 10),
        ("gpt-4o-mini-2024-07-18", 0),
        ("gpt-5", 0),
        ("gpt-5-chat-latest", 0),
        ("gpt-5.3-codex", 0),
        ("o3", 0),
        ("text-embedding-3-small", 0),
        ("ft:gpt-4.1-mini-2025-04-14:acme:2026-09-09:id", 0),
    ],
)
def test_an_endpoint_of_a_region_raises_the_price_of_newer_models(model, percent):
    """By 10 % for those released since 2026-03-05, in every kind of rate; rounded once."""
    usual, there = (price("openai", model, USAGE, at=NOW, regional=regional) for regional in (False, True))
    if usual.cost_nanos is not None:
        assert there.cost_nanos == round(Fraction(usual.cost_nanos * (100 + percent), 100))
        assert there.price_version == usual.price_version + (", regional +10 %" if percent else "")
    assert uplift_percent(model) == percent


def test_an_uplift_that_is_not_known_leaves_the_cost_unknown():
    """A name that has moved from model to model, or has no known day, may cost more at a region's endpoint."""
    result = price("openai", "chat-latest", USAGE, at=NOW, regional=True)
    reason = "what a regional endpoint adds to the price of 'chat-latest' is not known"
    assert (result.cost_nanos, result.reason) == (None, reason)
    own = CostOverride(1, 2)
    assert price("openai", "chat-latest", USAGE, at=NOW, regional=True, override=own).cost_nanos == 1_200_000


def test_own_rates_are_not_raised():
    """They are what the user pays, at whatever endpoint; what they leave out is the published rate there."""
    result = price("openai", "gpt-5.4", USAGE, at=NOW, regional=True, override=CostOverride(1, 2, 0))
    assert result.cost_nanos == 600 * 1000 + 100 * 2000
    half = price("openai", "gpt-5.4", USAGE, at=NOW, regional=True, override=CostOverride(1, None, 0))
    assert half.cost_nanos == 600 * 1000 + 100 * 15_000 * 110 // 100


def test_own_rates_alone():
    """Own rates price a model that nobody knows: parts at their own rate, else at their total's."""
    override = CostOverride(input_cost_per_1m_tokens=2, output_cost_per_1m_tokens="10")
    result = price(None, "in-house", USAGE, at=NOW, override=override)
    assert result.cost_nanos == 1000 * 2000 + 100 * 10_000
    assert result.price_version == "cost_override"
    full = CostOverride(2, 10, cache_read_cost_per_1m_tokens=0.5, reasoning_cost_per_1m_tokens=Decimal(20))
    assert (
        price(None, None, USAGE, at=NOW, override=full).cost_nanos == 600 * 2000 + 400 * 500 + 70 * 10_000 + 30 * 20_000
    )


def test_own_rates_over_the_tables():
    """What an override leaves out is taken from the table, and the version says both."""
    override = CostOverride(cache_read_cost_per_1m_tokens="0.01")
    result = price("openai", "gpt-4o-mini", USAGE, at=NOW, override=override)
    assert result.cost_nanos == 600 * 150 + 400 * 10 + 100 * 600
    assert result.price_version == "cost_override, genai-prices 0.2.3"


@pytest.mark.parametrize(
    ("usage", "nanos"),
    [
        (TokenUsage(input_tokens=10), 10_000),
        (TokenUsage(input_tokens=10, output_tokens=0), 10_000),
        (TokenUsage(input_tokens=10, output_tokens=1), None),
        (TokenUsage(output_tokens=5), None),
        (TokenUsage(input_tokens=5, cache_read_input_tokens=6, output_tokens=0), 5_000),
    ],
)
def test_a_missing_rate_matters_only_where_its_tokens_are(usage, nanos):
    """With own rates for input alone, output tokens make the cost unknown and no output tokens do not."""
    override = CostOverride(input_cost_per_1m_tokens=1)
    assert price("nobody", "model", usage, at=NOW, override=override).cost_nanos == nanos


rates = st.none() | st.decimals(0, 1000, places=9)


@given(
    override=st.builds(CostOverride, rates, rates, rates, rates, rates),
    usage=st.builds(TokenUsage, *[st.none() | st.integers(0, 10**6)] * 10),
)
def test_own_rates_never_raise_and_never_pass_the_dearest(override, usage):
    """Whatever the rates and counts: None with a reason, or at most every token at the dearest rate."""
    for model in ("gpt-4o-mini", "no-such"):
        result = price("openai", model, usage, at=NOW, override=override)
        assert (result.cost_nanos is None) == (result.reason is not None)
        if result.cost_nanos is not None:
            tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
            dearest = max(Decimal(1), *(getattr(override, key) or 0 for key in override.__struct_fields__))
            assert 0 <= result.cost_nanos <= dearest * tokens * 1000 + 1


def test_an_override_keeps_numbers_exact():
    """A float means its shortest decimal, not its binary neighbour."""
    override = CostOverride.from_mapping({"input_cost_per_1m_tokens": 0.1, "output_cost_per_1m_tokens": "0.3"})
    assert override == CostOverride(Decimal("0.1"), Decimal("0.3"))
    assert price(None, None, TokenUsage(input_tokens=3, output_tokens=0), at=NOW, override=override).cost_nanos == 300


_TOO_LONG = pytest.param(10**5000, id="more digits than Python spells out")


@pytest.mark.parametrize("value", [True, "much", "", -1, float("nan"), float("inf"), "1e999999", _TOO_LONG, [1], b"1"])
def test_a_bad_rate_is_named(value):
    """A value that is no rate is an error that names its key, whichever way the override is made."""
    with pytest.raises(ConfigurationError, match="output_cost_per_1m_tokens: expected a number from 0"):
        CostOverride.from_mapping({"output_cost_per_1m_tokens": value})
    with pytest.raises(ConfigurationError, match="output_cost_per_1m_tokens: expected a number from 0"):
        CostOverride(output_cost_per_1m_tokens=value)


@pytest.mark.parametrize("key", ["inputCostPer1MTokens", "input", 3])
def test_an_unknown_rate_is_named(key):
    """A key that is none is an error that names it and the keys that are."""
    with pytest.raises(ConfigurationError, match=f"{key}: expected input_cost_per_1m_tokens, "):
        CostOverride.from_mapping({key: 1})


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("eu.api.openai.com:443", "openai"),
        ("API.OpenAI.com.", "openai"),
        ("mine.openai.azure.com", "azure"),
        ("mine.services.ai.azure.com", "azure"),
        ("mine.cognitiveservices.azure.com", "azure"),
        ("mine.eastus2.models.ai.azure.com", "azure"),
        ("mine.azure-api.net", "azure"),
        ("mine.westeurope.inference.ml.azure.com", "mine.westeurope.inference.ml.azure.com"),
        ("vm.westeurope.cloudapp.azure.com", "vm.westeurope.cloudapp.azure.com"),
        ("inference.baseten.co", "baseten"),
        ("model-abc123.api.baseten.co", "model-abc123.api.baseten.co"),
        ("api.groq.com", "groq"),
        ("api.together.xyz", "together"),
        ("api.x.ai", "x-ai"),
        ("llmbox.ai", "llmbox.ai"),
        ("openrouter.ai", "openrouter"),
        ("api.mistral.ai", "mistral"),
        ("europe-west1-aiplatform.googleapis.com", "google"),
        ("bedrock-runtime.eu-central-1.amazonaws.com", "aws"),
        ("ec2-1-2-3-4.compute.amazonaws.com", "ec2-1-2-3-4.compute.amazonaws.com"),
        ("api.openai.com.evil.example", "api.openai.com.evil.example"),
        ("notopenai.com", "notopenai.com"),
        ("Proxy.Internal:4000", "proxy.internal:4000"),
        ("[::1]:8000", "[::1]:8000"),
        ("", ""),
    ],
)
def test_provider_of_a_host(host, provider):
    """A host belongs to a provider by whole labels from the right; one that is not known stands for itself."""
    assert provider_of_host(host) == provider


def test_hosts_agree_with_the_library():
    """Every provider we name has a table, and every host that the library knows by itself is the same one to us."""
    known = {row.id: row for row in table.index().providers}
    assert set(HOSTS.values()) <= known.keys()
    for domain, provider in HOSTS.items():
        for host in (domain, f"api.{domain}"):
            try:
                found = get_snapshot().find_provider(None, None, f"https://{host}/").id
            except LookupError:
                continue
            assert provider_of_host(host) == found == provider
