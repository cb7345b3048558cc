"""The errors that the loopback provider answers with, in the shape of the real service's.

Source: the service's answers of November 2024 to April 2026; see tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from fluxgate_mw.demo.answers import Ask
from fluxgate_mw.demo.chat_shapes import error_body

__all__ = ["Failure", "failure_of"]

_RETRY_AFTER_MS: Final = "30"


class Failure(msgspec.Struct, frozen=True):
    """An error as it is answered."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = MappingProxyType({})


def failure_of(ask: Ask) -> Failure | None:
    """Return the error to answer a call with, or None to answer in earnest."""
    if not ask.authorized:
        return _unauthorized(ask)
    if ask.model.startswith("missing-"):
        return _no_such_model(ask)
    needed = "messages" if ask.path == "/chat/completions" else "input"
    absent = next((name for name in ("model", needed) if not ask.body.get(name)), None)
    if absent is not None:
        return _bad_request(f"Missing required parameter: '{absent}'.", absent)
    made = _ALWAYS.get(ask.behaviour) or (_AT_FIRST.get(ask.behaviour) if ask.retry_count == 0 else None)
    return made(ask) if made else None


def _unauthorized(_: Ask) -> Failure:
    message = "Incorrect API key provided: wrong. You can find your API key at https://platform.openai.com/account."
    return Failure(401, error_body(message, "invalid_request_error", code="invalid_api_key"))


def _no_such_model(ask: Ask) -> Failure:
    message = f"The model `{ask.model}` does not exist or you do not have access to it."
    return Failure(404, error_body(message, "invalid_request_error", code="model_not_found"))


def _bad_request(message: str, param: str) -> Failure:
    return Failure(400, error_body(message, "invalid_request_error", param=param))


def _bad_temperature(_: Ask) -> Failure:
    return _bad_request("Invalid value for 'temperature': expected a number up to 2.", "temperature")


def _rate_limit(header: str, value: str) -> Callable[[Ask], Failure]:
    def make(ask: Ask) -> Failure:
        message = f"Rate limit reached for {ask.model} in organization org-demo on requests per min (RPM): Limit 500."
        return Failure(429, error_body(message, "requests", code="rate_limit_exceeded"), {header: value})

    return make


def _server_error(_: Ask) -> Failure:
    message = "The server had an error while processing your request. Sorry about that!"
    return Failure(500, error_body(message, "server_error"), {"retry-after-ms": _RETRY_AFTER_MS})


_ALWAYS: Final[Mapping[str, Callable[[Ask], Failure]]] = MappingProxyType(
    {
        "error-400": _bad_temperature,
        "error-401": _unauthorized,
        "error-404": _no_such_model,
        "error-429": _rate_limit("retry-after-ms", _RETRY_AFTER_MS),
        "error-500": _server_error,
    },
)
_AT_FIRST: Final[Mapping[str, Callable[[Ask], Failure]]] = MappingProxyType(
    {
        "rate-limit": _rate_limit("retry-after-ms", _RETRY_AFTER_MS),
        "rate-limit-seconds": _rate_limit("retry-after", "1"),
        "server-error": _server_error,
    },
)
