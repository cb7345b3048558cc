"""Read the usage blocks that OpenAI and compatible providers send into `TokenUsage`.

Source: the API reference of chat completions, responses, embeddings, images and transcriptions at
https://platform.openai.com/docs/api-reference (read 2026-11); DeepSeek's `prompt_cache_hit_tokens` at
https://api-docs.deepseek.com/guides/kv_cache (read 2026-11); `cached_tokens` beside the totals as Together answers
(recorded in llama-stack's `tests/integration/recordings`) and as clients of Moonshot read it; Perplexity's and
Databricks's names as in the extractors of genai-prices 0.2.3; what LiteLLM tells beside the totals at
https://docs.litellm.ai/docs/completion/prompt_caching (read 2026-12).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, Final

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.event import MONEY, NANOS_PER_USD, TokenUsage

__all__ = ["billed_beside", "continued", "read_usage", "reported_cost_nanos", "usd_to_nanos", "usual_usage"]

MOST: Final = 2**53
MOST_UNSEEN: Final = 2**20
"""More than any answer has: a total that exceeds its parts by more is wrong."""
_TICKS_PER_NANO: Final = 10
_CACHED_BESIDE: Final = ("prompt_cache_hit_tokens", "cached_tokens")
_INPUT_BESIDE: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUT_BESIDE: Final = ("citation_tokens", "num_search_queries")
"""Of who has these, what was reasoned is outside of the completion. Source: Perplexity in genai-prices 0.2.3."""
_TOOLS_USED: Final = ("num_sources_used", "num_server_side_tools_used")
_NO_DETAILS: Final[Mapping[str, Any]] = {}
_WHOLE_OF: Final[Mapping[str, str | None]] = {
    "input_tokens": None,
    "output_tokens": None,
    "audio_seconds": None,
    "input_audio_seconds": None,
    "cache_read_input_tokens": "input_tokens",
    "cache_creation_input_tokens": "input_tokens",
    "reasoning_output_tokens": "output_tokens",
    "input_audio_tokens": "input_tokens",
    "output_audio_tokens": "output_tokens",
    "cache_read_input_audio_tokens": "cache_read_input_tokens",
    "input_image_tokens": "input_tokens",
    "output_image_tokens": "output_tokens",
}
"""Inside of which count each of the others is; each stands behind its whole."""


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class _InputDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cached_tokens: _Tokens | None = None
    audio_tokens: _Tokens | None = None


class _OutputDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reasoning_tokens: _Tokens | None = None
    audio_tokens: _Tokens | None = None
    accepted_prediction_tokens: Any = None
    rejected_prediction_tokens: Any = None


class _UsualChat(msgspec.Struct, forbid_unknown_fields=True):
    """A usage block with nothing in it but what OpenAI itself sends for texts, as most are."""

    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    total_tokens: _Tokens
    prompt_tokens_details: _InputDetails = _InputDetails()
    completion_tokens_details: _OutputDetails = _OutputDetails()


class _UsualResponse(msgspec.Struct, forbid_unknown_fields=True):
    """The same in the dialect of the responses API, field by field."""

    input_tokens: _Tokens
    output_tokens: _Tokens
    total_tokens: _Tokens
    input_tokens_details: _InputDetails = _InputDetails()
    output_tokens_details: _OutputDetails = _OutputDetails()


def usual_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """Return what `read_usage` returns, in a fraction of its time; None for a block that wants its care.

    Nothing is billed beside the tokens of what is read here, and no cost is reported.
    """
    kind: type[Any] = _UsualChat if "prompt_tokens" in usage else _UsualResponse
    try:
        told = msgspec.convert(usage, kind)
    except msgspec.ValidationError:
        return None
    asked, answered, total, inside_in, inside_out = msgspec.structs.astuple(told)
    largest_in = max(inside_in.cached_tokens or 0, inside_in.audio_tokens or 0)
    largest_out = max(inside_out.reasoning_tokens or 0, inside_out.audio_tokens or 0)
    if total != asked + answered or largest_in > asked or largest_out > answered:
        return None
    return TokenUsage(
        input_tokens=asked,
        output_tokens=answered,
        cache_read_input_tokens=inside_in.cached_tokens,
        reasoning_output_tokens=inside_out.reasoning_tokens,
        input_audio_tokens=inside_in.audio_tokens,
        output_audio_tokens=inside_out.audio_tokens,
    )


def read_usage(usage: Mapping[str, Any]) -> TokenUsage | None:
    """Return the token counts of a usage block, in either dialect (`prompt_tokens` or `input_tokens`).

    Returns:
        None where it counts neither tokens nor, of some transcriptions, seconds.

    Guarantees: never raises; a count that is missing or absurd, and a part that is larger than its whole, is None,
    and the absurd ones are noted as `absurd_usage`.

    Example:
        >>> read_usage({"prompt_tokens": 9, "completion_tokens": 3}).output_tokens
        3
    """
    chat = _first(usage, "prompt_tokens", "completion_tokens") is not None
    total_in = _noted(usage.get("prompt_tokens" if chat else "input_tokens"))
    total_out = _noted(usage.get("completion_tokens" if chat else "output_tokens"))
    if total_in is None and total_out is None:
        return _duration(usage)
    inside_in = _details(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    inside_out = _details(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    unseen = _unseen(usage, total_in, total_out)
    beside = _beside(usage, unseen) if chat else _NO_DETAILS
    reasoning = _told(inside_out.get("reasoning_tokens"), beside.get("reasoning_tokens"))
    audio, heard = inside_in.get("audio_tokens"), _heard_seconds(usage)
    if heard is None:
        total_out = _with_unseen(usage, total_out, unseen, reasoning)
    elif total_in is not None and unseen > 0 and _count(audio) in (None, 0, unseen):
        total_in, audio = total_in + unseen, unseen
    read = _told(_first(inside_in, "cached_tokens", "cache_read_input_tokens"), _first(usage, *_CACHED_BESIDE))
    cached = _part(_told(read, beside.get("cache_read_input_tokens")), total_in)
    written = _first(inside_in, "cache_write_tokens", "cache_creation_tokens")
    cached_details = _details(inside_in, "cached_tokens_details")
    return TokenUsage(
        input_tokens=total_in,
        output_tokens=total_out,
        cache_read_input_tokens=cached,
        cache_creation_input_tokens=_part(_told(written, beside.get("cache_creation_input_tokens")), total_in),
        reasoning_output_tokens=_part(reasoning, total_out),
        input_audio_tokens=_part(audio, total_in),
        output_audio_tokens=_part(inside_out.get("audio_tokens"), total_out),
        cache_read_input_audio_tokens=_part(cached_details.get("audio_tokens"), cached),
        input_image_tokens=_part(inside_in.get("image_tokens"), total_in),
        output_image_tokens=_part(inside_out.get("image_tokens"), total_out),
        input_audio_seconds=heard,
    )


def continued(earlier: TokenUsage, later: TokenUsage) -> TokenUsage:
    """Return what two blocks of one answer say: what the later one does not count stays as the earlier one said.

    A total of zero counts nothing, and neither do the parts of one: `earlier` itself, where `later` has nothing else.

    >>> continued(TokenUsage(input_tokens=9), TokenUsage(input_tokens=0, output_tokens=3)).input_tokens
    9
    """
    said = {name: getattr(later, name) for name in _WHOLE_OF}
    if not any(said.values()):
        return earlier
    for name, whole in _WHOLE_OF.items():
        before = getattr(earlier, name)
        counted = said[name] or (said[name] == 0 and whole is not None and getattr(later, whole))
        if before is not None and not counted and (whole is None or before <= (said[whole] or 0)):
            said[name] = before
    return TokenUsage(**said)


def _duration(usage: Mapping[str, Any]) -> TokenUsage | None:
    """Return the usage of a model that is billed by the length of its input. Source: `UsageDuration` of openai 3.57."""
    told = _seconds(usage.get("seconds")) if usage.get("type") == "duration" else None
    seconds = _heard_seconds(usage) if told is None else told
    return None if seconds is None else TokenUsage(audio_seconds=seconds)


def _heard_seconds(usage: Mapping[str, Any]) -> float | None:
    """Return how long the audio was that Mistral heard in a prompt, whose tokens it counts in the total alone.

    Source: `promptAudioSeconds` of `MistralAIUsage` at https://api.koog.ai; a real answer in pydantic/genai-prices#591,
    whose details tell those tokens, too (read 2026-12).
    """
    return _seconds(usage.get("prompt_audio_seconds")) or None


def _seconds(value: Any) -> float | None:
    possible = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
    return value if possible else None


def _beside(usage: Mapping[str, Any], unseen: int) -> Mapping[str, Any]:
    """Return what a chat's usage tells at its top of parts of its totals.

    Where its total counts more than these, what was cached may be no part of the prompt.
    """
    names = () if unseen > 0 else _INPUT_BESIDE
    if not any(name in usage for name in _OUTPUT_BESIDE):
        names = (*names, "reasoning_tokens")
    return {name: usage.get(name) for name in names}


def _unseen(usage: Mapping[str, Any], total_in: int | None, total_out: int | None) -> int:
    """Return how many tokens only the total shows; less than 0 where it shows not even the others."""
    total = _count(usage.get("total_tokens"))
    unseen = 0 if total is None or total_in is None or total_out is None else total - total_in - total_out
    if unseen > MOST_UNSEEN:
        diagnostics.note("absurd_usage", "a provider reported a total far above its parts; it is not counted")
        return 0
    return unseen


def _with_unseen(usage: Mapping[str, Any], total_out: int | None, unseen: int, reasoning: Any) -> int | None:
    """Return the output with what a provider counts beside it and bills as output, which the total shows.

    xAI counts its reasoning so, and tells how much of it there was; Gemini its thoughts, and tells it nowhere else.

    Source: https://docs.x.ai/docs/key-information/consumption-and-rate-limits, as quoted in vercel/ai#12425; answers
    of Gemini at https://discuss.ai.google.dev/t/127400 and in Clarifai/clarifai-python#978 (read 2026-11).
    """
    beside = _count(reasoning)
    if total_out is None or unseen <= 0 or (not beside and any(usage.get(name) for name in _INPUT_BESIDE)):
        return total_out
    return total_out + unseen if beside in (None, 0, unseen) else total_out


def _details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    details = _first(usage, *names)
    return details if isinstance(details, dict) else _NO_DETAILS


def _first(block: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        value = block.get(name)
        if value is not None:
            return value
    return None


def _told(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST:
        return value
    return None


def _noted(value: Any) -> int | None:
    if type(value) is int and 0 <= value <= MOST:
        return value
    count = _count(value)
    if count is None and value is not None:
        diagnostics.note("absurd_usage", "a provider reported a token count that cannot be; it is taken as unknown")
    return count


def _part(value: Any, whole: int | None) -> int | None:
    if value is None or whole is None:
        return None
    if type(value) is int and 0 <= value <= whole:
        return value
    count = _noted(value)
    if count is not None and count > whole:
        diagnostics.note("absurd_usage", "a provider reported more tokens in a part than in the whole; left out")
        return None
    return count


def reported_cost_nanos(usage: Mapping[str, Any]) -> int | None:
    """Return what the usage block says that the call cost; None where it does not say.

    OpenRouter says USD, and with a key of one's own (`is_byok`) the gateway's fee and the provider's bill add up;
    Perplexity breaks the cost down, its fee for the request included; xAI says ticks, 10^10 of them a USD.

    Source: https://openrouter.ai/docs/use-cases/usage-accounting; Perplexity's schemas at
    https://schemas.apis.io/schemas/perplexity/perplexity-responsescost/; ticks in BerriAI/litellm#36281 and
    ENTERPILOT/GoModel#297 (read 2026-11).

    >>> reported_cost_nanos({"cost": 0.002}), reported_cost_nanos({"cost_in_usd_ticks": 2_709_000})
    (2000000, 270900)
    """
    if (ticks := _count(usage.get("cost_in_usd_ticks"))) is not None:
        return round(Fraction(ticks, _TICKS_PER_NANO))
    broken_down = _details(usage, "cost")
    cost = usd_to_nanos(broken_down.get("total_cost") if broken_down else usage.get("cost"))
    if cost is None or usage.get("is_byok") is not True:
        return cost
    upstream = usd_to_nanos(_details(usage, "cost_details").get("upstream_inference_cost"))
    return None if upstream is None else cost + upstream


def billed_beside(usage: Mapping[str, Any]) -> str | None:
    """Return what the usage block counts that is billed by the call or the search, beside the tokens; None for nothing.

    Source: xAI's tools at https://docs.x.ai/developers/pricing, as counted in BerriAI/litellm#30817 and #39441; the
    searches and citations of Perplexity's deep research at https://docs.perplexity.ai/getting-started/pricing (read
    2026-12).

    >>> billed_beside({"num_server_side_tools_used": 2}), billed_beside({"num_sources_used": 0})
    ('searches or tools', None)
    """
    counts = [usage.get(name) for name in _TOOLS_USED]
    counts += _details(usage, "server_side_tool_usage_details").values()
    if "citation_tokens" in usage:
        counts.append(usage.get("num_search_queries"))
    return "searches or tools" if any(map(_count, counts)) else None


def usd_to_nanos(value: Any) -> int | None:
    """Return USD, as a number or a numeral, in nano-USD; None for what is no amount."""
    if value is None or not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    nanos = MONEY.multiply(amount, NANOS_PER_USD).to_integral_value(ROUND_HALF_EVEN, MONEY)
    return int(nanos) if nanos.is_finite() and 0 <= nanos <= MOST else None
