"""Read the usage blocks that OpenAI and compatible providers send into `TokenUsage`.

Source: the API reference of chat completions, responses, embeddings, images and transcriptions at
https://platform.openai.com/docs/api-reference (read 2026-11); DeepSeek's `prompt_cache_hit_tokens` at
https://api-docs.deepseek.com/guides/kv_cache (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fluxgate_mw.event import TokenUsage

__all__ = ["read_usage"]

MOST: Final = 2**53
_NO_DETAILS: Final[Mapping[str, Any]] = {}


def read_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """Return the token counts of a usage block, in either dialect (`prompt_tokens` or `input_tokens`).

    Guarantees: never raises; a count that is missing or absurd, and a part that is larger than its whole, is None.

    Example:
        >>> read_usage({"prompt_tokens": 9, "completion_tokens": -1}).output_tokens is None
        True
    """
    chat = "prompt_tokens" in usage or "completion_tokens" in usage
    total_in = _count(usage.get("prompt_tokens" if chat else "input_tokens"))
    total_out = _count(usage.get("completion_tokens" if chat else "output_tokens"))
    inside_in = _details(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    inside_out = _details(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    cached = _part(inside_in.get("cached_tokens", usage.get("prompt_cache_hit_tokens")), total_in)
    cached_details = _details(inside_in, "cached_tokens_details")
    return TokenUsage(
        input_tokens=total_in,
        output_tokens=total_out,
        cache_read_input_tokens=cached,
        cache_creation_input_tokens=_part(_first(inside_in, "cache_write_tokens", "cache_creation_tokens"), total_in),
        reasoning_output_tokens=_part(inside_out.get("reasoning_tokens"), total_out),
        input_audio_tokens=_part(inside_in.get("audio_tokens"), total_in),
        output_audio_tokens=_part(inside_out.get("audio_tokens"), total_out),
        cache_read_input_audio_tokens=_part(cached_details.get("audio_tokens"), cached),
        input_image_tokens=_part(inside_in.get("image_tokens"), total_in),
        output_image_tokens=_part(inside_out.get("image_tokens"), total_out),
    )


def _details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    details = _first(usage, *names)
    return details if isinstance(details, Mapping) else _NO_DETAILS


def _first(block: Mapping[str, Any], *names: str) -> Any:
    return next((block[name] for name in names if block.get(name) is not None), None)


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST:
        return value
    return None


def _part(value: Any, whole: int | None) -> int | None:
    count = _count(value)
    return None if count is None or whole is None or count > whole else count
