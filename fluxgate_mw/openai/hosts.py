"""Which API paths are calls, and which providers accept to be asked for usage in a stream.

Source: OpenAI API reference, https://platform.openai.com/docs/api-reference (read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["OPERATIONS", "asks_for_usage", "operation_of", "uncovered_kind"]

OPERATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/chat/completions": "chat",
        "/completions": "text_completion",
        "/responses": "chat",
        "/responses/compact": "compaction",
        "/decisions": "decision",
        "/embeddings": "embeddings",
        "/images/generations": "image_generation",
        "/images/edits": "image_generation",
        "/images/variations": "image_generation",
        "/audio/speech": "speech",
        "/audio/transcriptions": "transcription",
        "/audio/translations": "translation",
        "/moderations": "moderation",
        "/batches": "batch",
        "/fine_tuning/jobs": "fine_tuning",
        "/videos": "video_generation",
        "/videos/edits": "video_generation",
        "/videos/extensions": "video_generation",
    }
)
"""Path below the client's base address to the operation's name; a POST to any other path is no billed call."""

_REMIX: Final = re.compile(r"/videos/[^/]+/remix")
_BASE: Final = re.compile(r"(?:https?://[^/]+)?(?:(?:/[^/]+)*/(?:v\d\w*|openai|deployments/[^/]+))?(/.+)")
"""A host, and the path of a base address, as `/v1`, `/api/v1`, `/v1beta/openai` or `/openai/deployments/NAME`; the rest
is below it."""

_UNCOVERED: Final = (
    (re.compile(r"/(?:realtime|live)(?:/|$)"), "not_covered_realtime"),
    (re.compile(r"/threads(?:/[^/]+)?/runs$"), "not_covered_assistants"),
    (re.compile(r"/agents/(?:sessions|automations)"), "not_covered_agents"),
    (re.compile(r"/evals/[^/]+/runs$"), "not_covered_evals"),
    (re.compile(r"/chatkit/sessions$"), "not_covered_chatkit"),
    (re.compile(r"/containers$"), "not_covered_containers"),
    (re.compile(r"/fine_tuning/alpha/graders/run$"), "not_covered_graders"),
)


def operation_of(path: str) -> tuple[str, str] | None:
    """Return the operation that a POST to this path is, and the path as `OPERATIONS` spells it; None for no call.

    Args:
        path: As given to the client's `post`: below the base address, or a whole address.

    >>> operation_of("https://api.openai.com/v1/chat/completions"), operation_of("/files")
    (('chat', '/chat/completions'), None)
    """
    below = _below(path)
    operation = "video_generation" if _REMIX.fullmatch(below) else OPERATIONS.get(below)
    return None if operation is None else (operation, below)


def uncovered_kind(path: str) -> str | None:
    """Return under which name a POST is counted that is billed but not recorded as a call; None for no such one."""
    below = _below(path)
    return next((kind for pattern, kind in _UNCOVERED if pattern.match(below)), None)


def _below(path: str) -> str:
    match = _BASE.fullmatch(path if path.startswith(("/", "http")) else f"/{path}")
    return "" if match is None else match[1].rstrip("/")


_STREAM_OPTIONS_PATHS: Final = frozenset({"/chat/completions", "/completions"})

_REPORTS_WHEN_ASKED: Final = frozenset({"openai", "groq", "x-ai"})
"""Providers that report a stream's usage when they are asked for it, in a chunk of its own.

Source (read 2026-11): openai/openai-openapi#248; withceleste/celeste-python#351, which tells of Groq's reference;
BerriAI/litellm#17136 for xAI.

Others report unasked. Asked, they would answer in another shape than the caller's, or refuse: OpenRouter
(https://openrouter.ai/docs/client-sdks/python/components/chatstreamoptions: the option has no effect), Gemini with
every piece (https://discuss.ai.google.dev/t/127400), DeepSeek, Together and Fireworks with the piece that ends the
choice (answers recorded in llama-stack's `tests/integration/recordings`, 2025-09, and of DeepSeek, 2025-07).
"""

_AZURE_SINCE: Final = "2024-09-01-preview"
"""The first Azure API version with `stream_options`. Source: Azure OpenAI REST API reference, "What's new"."""


def asks_for_usage(provider: str, path: str, api_version: str | None) -> bool:
    """Say whether a stream of this provider may be asked for usage on the caller's behalf.

    Args:
        provider: As the recorder names it.
        path: Below the base address.
        api_version: Of Azure; None elsewhere.
    """
    if path not in _STREAM_OPTIONS_PATHS:
        return False
    if provider == "azure":
        return api_version is not None and (api_version[:10] >= _AZURE_SINCE[:10] or not api_version[:1].isdigit())
    return provider in _REPORTS_WHEN_ASKED
