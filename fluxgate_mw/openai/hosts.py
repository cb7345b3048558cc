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
_VERSION: Final = re.compile(r"(?:https?://[^/]+)?(?:/openai)?(?:/deployments/[^/]+)?(?:/v\d+)?(/.+)")

_UNCOVERED: Final = (
    (re.compile(r"/(?:realtime|live)(?:/|$)"), "not_covered_realtime"),
    (re.compile(r"/threads(?:/[^/]+)?/runs$"), "not_covered_assistants"),
    (re.compile(r"/agents/(?:sessions|automations)"), "not_covered_agents"),
    (re.compile(r"/evals/[^/]+/runs$"), "not_covered_evals"),
    (re.compile(r"/chatkit/sessions$"), "not_covered_chatkit"),
)


def operation_of(path: str) -> tuple[str, str] | None:
    """Return the operation that a POST to this path is, and the path as `OPERATIONS` spells it; None for no call.

    Args:
        path: As given to the client's `post`: below the base address, or a whole address.

    >>> operation_of("https://api.openai.com/v1/chat/completions"), operation_of("/files")
    (('chat', '/chat/completions'), None)
    """
    match = _VERSION.fullmatch(path if path.startswith(("/", "http")) else f"/{path}")
    below = "" if match is None else match[1].rstrip("/")
    operation = "video_generation" if _REMIX.fullmatch(below) else OPERATIONS.get(below)
    return None if operation is None else (operation, below)


def uncovered_kind(path: str) -> str | None:
    """Return under which name a POST is counted that is billed but not recorded as a call; None for no such one."""
    return next((kind for pattern, kind in _UNCOVERED if pattern.match(path)), None)


_STREAM_OPTIONS_PATHS: Final = frozenset({"/chat/completions", "/completions"})

_ACCEPTS_STREAM_OPTIONS: Final = frozenset(
    {"openai", "groq", "together", "fireworks", "deepseek", "openrouter", "x-ai"}
)
"""Providers whose references document `stream_options.include_usage` for chat completions (read 2026-11)."""

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
    return provider in _ACCEPTS_STREAM_OPTIONS
