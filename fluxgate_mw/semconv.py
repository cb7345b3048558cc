"""The spelling of OpenTelemetry's GenAI attributes, in one place, and the closed vocabularies of an event.

The registry is still in development and its names move; nothing else in the package spells one.

Source: https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/ (read 2026-11).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

__all__ = [
    "ATTRIBUTES",
    "FeatureSource",
    "Status",
    "UsageSource",
    "UserSource",
]

Status = Literal[
    "SUCCESS",
    "ERROR",
    "BLOCKED",
    "MAX_TOKENS",
    "CONTENT_FILTER",
    "RECITATION",
    "MALFORMED_REQUEST",
    "CANCELLED",
]
"""How a call ended: FluxGate's own words, and `CANCELLED` for a call that the caller gave up."""

FeatureSource = Literal["decorator", "context", "resolver", "route", "explicit", "none"]
UserSource = Literal[
    "explicit",
    "context",
    "identify",
    "scope",
    "state",
    "framework",
    "resolver",
    "parameter",
    "header",
    "none",
]
UsageSource = Literal["provider", "estimated", "none"]

ATTRIBUTES: Final = MappingProxyType(
    {
        "provider_name": "gen_ai.provider.name",
        "operation_name": "gen_ai.operation.name",
        "request_model": "gen_ai.request.model",
        "response_model": "gen_ai.response.model",
        "response_id": "gen_ai.response.id",
        "finish_reasons": "gen_ai.response.finish_reasons",
        "input_tokens": "gen_ai.usage.input_tokens",
        "output_tokens": "gen_ai.usage.output_tokens",
        "cache_read_input_tokens": "gen_ai.usage.cache_read.input_tokens",
        "cache_creation_input_tokens": "gen_ai.usage.cache_creation.input_tokens",
        "reasoning_output_tokens": "gen_ai.usage.reasoning.output_tokens",
        "conversation_id": "gen_ai.conversation.id",
        "stream": "gen_ai.request.stream",
        "error_type": "error.type",
        "user_id": "user.id",
        "session_id": "session.id",
        "route": "http.route",
        "http_method": "http.request.method",
        "http_status": "http.response.status_code",
        "service": "service.name",
        "environment": "deployment.environment.name",
    },
)
"""Event field to attribute name, for exporters. A field that is not here has no attribute in the registry."""
