"""Usage blocks of every dialect, and of no dialect at all."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw import diagnostics
from fluxgate_mw.event import TokenUsage
from fluxgate_mw.openai.usage import (
    MOST,
    MOST_UNSEEN,
    billed_beside,
    continued,
    read_usage,
    reported_cost_nanos,
    usd_to_nanos,
    usual_usage,
)

CHAT = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10, "cached_tokens_details": {"audio_tokens": 4}},
    "completion_tokens_details": {
        "reasoning_tokens": 20,
        "audio_tokens": 5,
        "accepted_prediction_tokens": 3,
        "rejected_prediction_tokens": 1,
    },
}


def test_chat():
    """Chat completions count prompt and completion tokens, with what is inside them (langfuse#5568, langfuse#10592)."""
    assert read_usage(CHAT) == TokenUsage(
        input_tokens=100,
        output_tokens=40,
        cache_read_input_tokens=60,
        reasoning_output_tokens=20,
        input_audio_tokens=10,
        output_audio_tokens=5,
        cache_read_input_audio_tokens=4,
    )


def test_responses():
    """The responses API counts input and output tokens, cache writes too (genai-prices#486)."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 40,
        "total_tokens": 140,
        "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        "output_tokens_details": {"reasoning_tokens": 20},
    }
    assert read_usage(usage) == TokenUsage(
        input_tokens=100,
        output_tokens=40,
        cache_read_input_tokens=60,
        cache_creation_input_tokens=30,
        reasoning_output_tokens=20,
    )


def test_the_dialect_is_that_of_the_values():
    """Names with null are of no dialect."""
    nulls = {"prompt_tokens": None, "completion_tokens": None}
    assert read_usage({**nulls, "input_tokens": 10, "output_tokens": 2}) == TokenUsage(input_tokens=10, output_tokens=2)
    assert read_usage({**nulls, "type": "duration", "seconds": 9}) == TokenUsage(audio_seconds=9)
    assert read_usage(nulls) is None


def test_embeddings():
    """Embeddings have no output."""
    assert read_usage({"prompt_tokens": 8, "total_tokens": 8}) == TokenUsage(input_tokens=8)


def test_images():
    """Images count text and image tokens apart."""
    usage = {
        "input_tokens": 60,
        "output_tokens": 1000,
        "input_tokens_details": {"text_tokens": 20, "image_tokens": 40},
        "output_tokens_details": {"image_tokens": 1000, "text_tokens": 0},
    }
    read = read_usage(usage)
    assert (read.input_image_tokens, read.output_image_tokens) == (40, 1000)


def test_transcriptions():
    """Transcriptions are counted in tokens, audio inside, or in seconds."""
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "input_token_details": {"audio_tokens": 14}}
    assert read_usage(usage) == TokenUsage(input_tokens=14, output_tokens=45, input_audio_tokens=14)
    assert read_usage({"type": "duration", "seconds": 9.5}) == TokenUsage(audio_seconds=9.5)


@pytest.mark.parametrize("seconds", [-1, True, "9", None, 1e300, float("nan"), float("inf")])
def test_a_duration_that_cannot_be(seconds):
    """It is no usage."""
    assert read_usage({"type": "duration", "seconds": seconds}) is None


def test_deepseek():
    """DeepSeek tells its cache hits at the top."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 4}
    assert read_usage(usage).cache_read_input_tokens == 6


DATABRICKS = {
    "prompt_tokens": 4956,
    "completion_tokens": 1330,
    "total_tokens": 6286,
    "cache_read_input_tokens": 4000,
    "reasoning_tokens": 122,
}


def test_parts_beside_their_wholes():
    """Databricks tells what was cached and reasoned beside the totals that hold it; genai-prices reads it alike."""
    read = read_usage(DATABRICKS)
    assert read == TokenUsage(
        input_tokens=4956, output_tokens=1330, cache_read_input_tokens=4000, reasoning_output_tokens=122
    )
    model = "databricks-gemma-3-12b"
    theirs = extract_usage({"model": model, "usage": DATABRICKS}, provider_id="databricks").usage
    assert (theirs.input_tokens, theirs.cache_read_tokens) == (read.input_tokens, read.cache_read_input_tokens)
    assert (theirs.output_tokens, theirs.output_reasoning_tokens) == (read.output_tokens, read.reasoning_output_tokens)


@pytest.mark.parametrize(
    ("beside", "parts"),
    [
        ({"cache_read_input_tokens": 60, "cache_creation_input_tokens": 30}, (60, 30)),
        ({"cache_read_input_tokens": 60, "prompt_tokens_details": {"cached_tokens": 50}}, (50, None)),
        ({"cache_creation_input_tokens": 30, "prompt_tokens_details": {"cache_creation_tokens": 20}}, (None, 20)),
        ({"cache_read_input_tokens": 1253, "cache_creation_input_tokens": None}, (None, None)),
        ({"cache_read_input_tokens": 60, "total_tokens": 200}, (None, None)),
    ],
    ids=["LiteLLM", "read in the details", "written in the details", "larger than the whole", "outside, by the total"],
)
def test_cached_tokens_beside_the_prompt_that_holds_them(beside, parts):
    """They are parts of it where they fit, the details say nothing, and the total does not count them once more."""
    read = read_usage({"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140, **beside})
    assert (read.input_tokens, read.output_tokens) == (100, 40)
    assert (read.cache_read_input_tokens, read.cache_creation_input_tokens) == parts


def test_cached_tokens_beside_an_input_that_does_not_hold_them():
    """Anthropic's `input_tokens` is without them: they are no parts of it, though they would fit."""
    usage = {"input_tokens": 100, "output_tokens": 40, "cache_read_input_tokens": 60, "reasoning_tokens": 9}
    assert read_usage(usage) == TokenUsage(input_tokens=100, output_tokens=40)


@pytest.mark.parametrize("reasoning", [73_994, 5_000])
def test_reasoning_that_is_no_part_of_the_output(reasoning):
    """Perplexity's, over what its searches found, is outside of the completion, fit as it may, and no fault either."""
    usage = {"prompt_tokens": 33, "completion_tokens": 7163, "total_tokens": 7196, "reasoning_tokens": reasoning}
    searched = {"citation_tokens": 19_619, "num_search_queries": 21}
    assert read_usage({**usage, **searched}) == TokenUsage(input_tokens=33, output_tokens=7163)
    assert diagnostics.counts() == {}


def test_reasoning_beside_the_output():
    """Reasoning that xAI counts beside the output, and in the total only, is billed as output (vercel/ai#12425)."""
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399}
    read = read_usage({**usage, "completion_tokens_details": {"reasoning_tokens": 386}})
    assert (read.output_tokens, read.reasoning_output_tokens) == (387, 386)
    assert diagnostics.counts() == {}


SPOKEN = {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635}


def test_audio_that_only_the_total_shows():
    """Mistral counts the audio of a prompt in the total alone, and tells how long it was: no output is in it."""
    heard = TokenUsage(input_tokens=2629, output_tokens=635, input_audio_tokens=2625, input_audio_seconds=203)
    assert read_usage(SPOKEN) == heard
    without = {name: count for name, count in SPOKEN.items() if name != "total_tokens"}
    assert read_usage(without) == TokenUsage(input_tokens=4, output_tokens=635, input_audio_seconds=203)
    assert read_usage({"prompt_audio_seconds": 203}) == TokenUsage(audio_seconds=203)
    details = {"prompt_tokens_details": {"audio_tokens": 2625}}
    assert read_usage({**SPOKEN, **details}) == heard
    assert read_usage({**SPOKEN, **details, "prompt_tokens": 2629}) == heard
    assert read_usage({**SPOKEN, "prompt_tokens_details": {"audio_tokens": 3}}).input_tokens == 4
    assert diagnostics.counts() == {}


@pytest.mark.parametrize("seconds", [None, {}, 0, -1, True, "203"], ids=repr)
def test_no_audio_in_the_prompt(seconds):
    """Where none was heard, what only the total shows is output as anybody else's."""
    read = read_usage({"prompt_audio_seconds": seconds, "prompt_tokens": 4, "total_tokens": 50, "completion_tokens": 6})
    assert read == TokenUsage(input_tokens=4, output_tokens=46)


def test_thoughts_that_only_the_total_shows():
    """Gemini counts what it thought in the total alone, and bills it as output (Clarifai/clarifai-python#978)."""
    read = read_usage({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 105})
    assert read == TokenUsage(input_tokens=9, output_tokens=96)
    told = {"prompt_tokens": 9, "completion_tokens": 96, "total_tokens": 105}
    assert read_usage({**told, "completion_tokens_details": {"reasoning_tokens": 93}}).output_tokens == 96
    assert diagnostics.counts() == {}


@pytest.mark.parametrize(
    "beside",
    [
        {"total_tokens": 11},
        {"total_tokens": -1},
        {"total_tokens": "105"},
        {"total_tokens": 105, "completion_tokens_details": {"reasoning_tokens": 2}},
        {"total_tokens": 105, "cache_read_input_tokens": 93},
        {"total_tokens": 105, "cache_read_input_tokens": 93, "reasoning_tokens": 0},
    ],
    ids=repr,
)
def test_a_total_that_proves_nothing(beside):
    """A total that is too small, is none, or holds something else than output adds nothing."""
    assert read_usage({"prompt_tokens": 9, "completion_tokens": 3, **beside}).output_tokens == 3


def test_a_total_that_cannot_be():
    """What no answer can have is not counted, and noted."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    assert read_usage({**usage, "total_tokens": 12 + MOST_UNSEEN}).output_tokens == 3 + MOST_UNSEEN
    assert diagnostics.counts() == {}
    assert read_usage({**usage, "total_tokens": 13 + MOST_UNSEEN}).output_tokens == 3
    assert diagnostics.counts() == {"absurd_usage": 1}


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 19, "completion_tokens": 21, "total_tokens": 40, "cached_tokens": 10},
        {"prompt_tokens": 19, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 10}},
        {"prompt_tokens": 19, "completion_tokens": 21, "prompt_tokens_details": None, "prompt_cache_hit_tokens": 10},
        {"prompt_tokens": 19, "prompt_tokens_details": {"cached_tokens": None}, "prompt_cache_hit_tokens": 10},
        {"prompt_tokens": 19, "prompt_tokens_details": {"cached_tokens": 10}, "cached_tokens": 3},
        {"input_tokens": 19, "output_tokens": 21, "input_tokens_details": {"cache_read_input_tokens": 10}},
    ],
    ids=["Moonshot", "OpenAI", "DeepSeek", "DeepSeek's null", "both", "Perplexity"],
)
def test_where_cached_tokens_are_told(usage):
    """Inside the details, or beside the totals; the details win."""
    assert read_usage(usage).cache_read_input_tokens == 10


def test_nothing_is_added_on_top():
    """Cached and reasoning tokens never change a total (langfuse#12306, litellm#14849, litellm PR#26919)."""
    read = read_usage(CHAT)
    assert (read.input_tokens, read.output_tokens) == (CHAT["prompt_tokens"], CHAT["completion_tokens"])


@pytest.mark.parametrize("value", [-1, 1.5, float("inf"), float("nan"), True, "7", [7], {}, MOST + 1, 10**30], ids=repr)
def test_a_count_that_cannot_be(value):
    """It is unknown and counted, and the others stay."""
    assert read_usage({"prompt_tokens": value, "completion_tokens": 5}) == TokenUsage(output_tokens=5)
    assert diagnostics.counts()["absurd_usage"] == 1


def test_zero_is_no_unknown():
    """A reported zero stays one; what is not reported is None."""
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}
    assert read_usage(usage) == TokenUsage(input_tokens=0, output_tokens=0, cache_read_input_tokens=0)
    assert read_usage({}) is None
    assert diagnostics.counts() == {}


ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(0, 50), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
NAMES = sorted(
    {
        *CHAT,
        *CHAT["prompt_tokens_details"],
        *CHAT["completion_tokens_details"],
        "cache_write_tokens",
        "input_tokens",
        "output_tokens",
        "input_tokens_details",
        "output_tokens_details",
        "image_tokens",
        "prompt_cache_hit_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "reasoning_tokens",
    }
)
BLOCKS = st.recursive(ANY, lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6), max_leaves=12)


@given(st.dictionaries(st.sampled_from(NAMES), BLOCKS))
def test_no_subset_is_larger_than_its_total(block):
    """Whatever is reported, counts are whole, possible, and inside their totals."""
    read = read_usage(block)
    if read is not None:
        _has_no_part_larger_than_its_whole(read)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), BLOCKS), min_size=2, max_size=4))
def test_nor_is_one_of_several_blocks(blocks):
    """Neither is it in what several blocks say together."""
    known = None
    for read in filter(None, map(read_usage, blocks)):
        known = read if known is None else continued(known, read)
        _has_no_part_larger_than_its_whole(known)


ODD = st.sampled_from([None, True, 2.0, -1, 10, MOST, MOST + 1, "3", {}, {"cached_tokens": 3}, {"text_tokens": 3}])
ODD_NAMES = st.sampled_from([*NAMES, "total_tokens", "cost", "citation_tokens"])


@st.composite
def almost_usual(draw):
    """Draw a block as OpenAI sends it, in either dialect, with up to two things in it that are odd."""
    asked, answered = draw(st.sampled_from([("prompt", "completion"), ("input", "output")]))
    tokens_in, tokens_out = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    parts = st.integers(0, 9)
    block = {
        f"{asked}_tokens": tokens_in,
        f"{answered}_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        f"{asked}_tokens_details": draw(st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens"]), parts)),
        f"{answered}_tokens_details": draw(
            st.dictionaries(st.sampled_from(["reasoning_tokens", "rejected_prediction_tokens"]), parts)
        ),
    }
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(block)) | ODD_NAMES)
        block[name] = draw(ODD)
    return block


@given(almost_usual())
def test_the_quick_way_is_the_long_one(block):
    """What is read the quick way is what the long one reads, and says nothing that only the long one looks for."""
    quick = usual_usage(block)
    if quick is not None:
        assert quick == read_usage(block)
        assert billed_beside(block) is None
        assert reported_cost_nanos(block) is None


@pytest.mark.parametrize("dialect", [("prompt", "completion"), ("input", "output")], ids="-".join)
def test_the_quick_way_is_taken(dialect):
    """It is there for what OpenAI sends, in either dialect."""
    asked, answered = dialect
    block = {
        f"{asked}_tokens": 9,
        f"{answered}_tokens": 3,
        "total_tokens": 12,
        f"{asked}_tokens_details": {"cached_tokens": 4},
        f"{answered}_tokens_details": {"reasoning_tokens": 2},
    }
    assert usual_usage(block) == TokenUsage(9, 3, cache_read_input_tokens=4, reasoning_output_tokens=2)
    for absurd in ({"total_tokens": 13}, {f"{asked}_tokens": True}, {f"{answered}_tokens": -1}, {"cost": 1}):
        assert usual_usage(block | absurd) is None
    assert usual_usage(block | {f"{asked}_tokens_details": {"cached_tokens": 10}}) is None


def test_no_field_is_lost_between_blocks():
    """Every count of an earlier block is there after a later one that has none of it."""
    everything = TokenUsage(**dict.fromkeys(TokenUsage.__struct_fields__, 7))
    assert continued(everything, TokenUsage(input_tokens=8)) == msgspec.structs.replace(everything, input_tokens=8)


def test_a_zero_counts_where_its_whole_is_counted():
    """Nothing was cached, says the later block; one that counts nothing at all says nothing of it."""
    earlier = TokenUsage(input_tokens=100, output_tokens=2, cache_read_input_tokens=60)
    later = TokenUsage(input_tokens=120, output_tokens=9, cache_read_input_tokens=0)
    assert continued(earlier, later) == later
    uncounted = TokenUsage(input_tokens=0, output_tokens=9, cache_read_input_tokens=0)
    assert continued(earlier, uncounted) == TokenUsage(input_tokens=100, output_tokens=9, cache_read_input_tokens=60)


def _has_no_part_larger_than_its_whole(read):
    for name in TokenUsage.__struct_fields__:
        count = getattr(read, name)
        assert count is None or (type(count) is int and 0 <= count <= MOST)
        total = {"i": read.input_tokens, "c": read.input_tokens, "o": read.output_tokens, "r": read.output_tokens}
        assert count is None or count <= total[name[0]]


@given(st.lists(st.integers(0, 10_000), min_size=3, max_size=3))
def test_what_was_said_is_what_is_read(numbers):
    """A block that makes sense is read without loss, through JSON."""
    reasoning, cached, _ = low, middle, high = sorted(numbers)
    assert all(left <= right for left, right in pairwise((low, middle, high)))
    usage = {
        "prompt_tokens": high,
        "completion_tokens": middle,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    assert read_usage(json.loads(json.dumps(usage))) == TokenUsage(
        input_tokens=high, output_tokens=middle, cache_read_input_tokens=cached, reasoning_output_tokens=reasoning
    )


@pytest.mark.parametrize(
    ("given_usd", "nanos"),
    [
        (0.0000012, 1200),
        (1, 1_000_000_000),
        ("0.00123", 1_230_000),
        (0, 0),
        (1e-10, 0),
        (-1, None),
        (True, None),
        ("free", None),
        ("1e999999", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        ([1], None),
    ],
)
def test_amounts(given_usd, nanos):
    """USD as providers write it, in whole nano-USD; what is no amount is unknown."""
    assert usd_to_nanos(given_usd) == nanos
    assert reported_cost_nanos({"cost": given_usd}) == nanos


def test_a_key_of_ones_own():
    """With one's own key the gateway's fee and the provider's bill add up."""
    usage = {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}
    assert reported_cost_nanos(usage) == 21_000_000
    assert reported_cost_nanos({**usage, "cost_details": {}}) is None


def test_a_cost_that_is_broken_down():
    """Perplexity reports what tokens and search cost, and their total, which counts."""
    parts = {"input_tokens_cost": 2.4e-05, "output_tokens_cost": 0.006585, "request_cost": 0.006}
    assert reported_cost_nanos({"cost": {**parts, "total_cost": 0.012609}}) == 12_609_000
    assert reported_cost_nanos({"cost": parts}) is None
    assert reported_cost_nanos({"cost": {}}) is None


@pytest.mark.parametrize(
    ("ticks", "nanos"), [(2_709_000, 270_900), (0, 0), (5, 0), (15, 2), (16, 2), (-1, None), ("7", None), (True, None)]
)
def test_a_cost_in_ticks(ticks, nanos):
    """Ticks of xAI are a ten-thousandth of a micro-USD, rounded half to even (BerriAI/litellm#36281)."""
    assert reported_cost_nanos({"cost_in_usd_ticks": ticks}) == nanos
