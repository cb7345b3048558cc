"""How a call ended that raised, and what of an error's message is kept: nothing that it repeats of the prompt."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice, takewhile
from operator import eq
from typing import Any, Final
from urllib.parse import quote

import msgspec

from fluxgate_mw.call import is_given_up
from fluxgate_mw.openai.estimate import texts_in
from fluxgate_mw.recorder import guarded, safe_message
from fluxgate_mw.semconv import Status

__all__ = ["REFUSED", "Ending", "failure", "kept_message", "raised"]

REFUSED: Final = 400
"""HTTP statuses from here on are refusals."""

SHORTEST_ECHO: Final = 8
"""Fewer characters of a prompt are no echo of it: they are in a message by chance."""

SURE_ECHO: Final = 16
"""So many characters from the start of a text are an echo of it, though the rest be cut off."""

MOST_CHARS: Final = 3000
"""A message, and each text of a prompt, is looked at as far as this."""

MOST_TEXTS: Final = 5000
"""Of a call with more texts in its prompt no message is kept: looking for them all takes some ten milliseconds."""

_FILTERED: Final = ("content_filter", "content_policy_violation", "moderation_blocked")
_CUT: Final[Mapping[str, Status]] = {
    "LengthFinishReasonError": "MAX_TOKENS",
    "ContentFilterFinishReasonError": "BLOCKED",
}
"""What the client raises over an answer that it cannot parse because it was cut short. Source: openai 1.66 to 3.57."""
_PROMPTS: Final = ("messages", "input", "instructions", "prompt", "prediction", "suffix", "metadata", "stop")
_TOLD_BY: Final = ("tools", "functions", "response_format", "text")
"""Arguments in which only a description is the caller's own words."""
_WORDS_OF_THE_API: Final = frozenset({"role", "id", "type", "index", "detail"})
_CREDENTIALS: Final = ("authorization", "api-key")
"""Headers that hold one. Source: `auth_headers` of openai's clients and `AzureOpenAI._prepare_options` (3.57)."""
_INPUT: Final = re.compile(r"""["']input["']\s*:|\binput_value=""")
"""Before what pydantic shows of a value that it refuses, as servers that are built on FastAPI (vLLM, LiteLLM) answer.
Source: `input` of an error at https://docs.pydantic.dev/latest/errors/errors/ (read 2026-11)."""
_escaped: Final = (json.JSONEncoder().encode, json.JSONEncoder(ensure_ascii=False).encode, repr)
_ESCAPED_TWICE: Final = r"\\"
_BLANKS: Final = ("\n", "\t", "  ")
_NO_FIELDS: Final[Mapping[str, Any]] = {}


class Ending(msgspec.Struct, frozen=True):
    """How a call ended. Fields as in `Outcome`."""

    status: Status
    error_type: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    retries: int = 0


def raised(error: BaseException) -> Ending:
    """Return how a call ended that raised this, by nothing but its class."""
    return Ending("CANCELLED" if is_given_up(error) else "ERROR", type(error).__name__)


def failure(error: BaseException, asked: Mapping[str, Any], sent: object = None) -> Ending:
    """Return how a call ended that raised.

    The provider's message and the client's own are kept, cut short; a body that is no error's may hold the prompt.

    Args:
        error: Of anybody's making: what it has for the fields of the client's errors may be anything.
        asked: The body of the request.
        sent: The HTTP request itself, where it is known; else the error's own is looked at.
    """
    if is_given_up(error):
        return msgspec.structs.replace(raised(error), retries=_retries_of(sent))
    body = _field(error, "body")
    fields = body if isinstance(body, Mapping) else _NO_FIELDS
    status = _field(error, "status_code")
    http_status = status if isinstance(status, int) else None
    own = _field(error, "message") if (http_status or 0) < REFUSED else f"Error code: {http_status}"
    return Ending(
        "BLOCKED" if fields.get("code") in _FILTERED else _CUT.get(type(error).__name__, "ERROR"),
        type(error).__name__,
        kept_message(fields.get("message") or own, asked, sent or _field(error, "request")),
        http_status,
        _retries_of(_field(error, "request")) or _retries_of(sent),
    )


def _retries_of(request: object) -> int:
    """Return how often the client had sent a request before, as the last one says; 0 where there is none."""
    headers = _field(request, "headers")
    retries = headers.get("x-stainless-retry-count") if isinstance(headers, Mapping) else None
    return int(retries) if isinstance(retries, str) and retries.isdecimal() else 0


def _field(thing: object, name: str) -> Any:
    """Return an attribute of somebody's object; None where it has none, or raises over it."""
    with suppress(Exception):
        return getattr(thing, name, None)
    return None


def kept_message(message: object, asked: Mapping[str, Any], sent: object = None) -> str | None:
    """Return what of an error's message is kept: `safe_message` of what it does not repeat of the prompt or the key.

    Taken out is each text of the prompt of eight or more characters, as it stands or escaped, and of a longer one also
    its first sixteen characters and whatever follows them; and what a message says that the input was.

    Args:
        message: None, or what is no text, is no message.
        asked: The body of the request; only read, and nothing in it that can be read only once.
        sent: The HTTP request, whose key is taken out too; None where it is not known.

    Returns:
        None for no message.

    Guarantees: never raises; reads no more of a message or a text than `MOST_CHARS`.
    """
    return guarded("error_message", _kept, message, asked, sent) if isinstance(message, str) and message else None


def _kept(message: str, asked: Mapping[str, Any], sent: object) -> str | None:
    kept = message[:MOST_CHARS]
    for secret in _secrets(sent):
        kept = kept.replace(secret, "***")
    if (shown := _INPUT.search(kept)) is not None:
        kept = kept[: shown.end()] + "…"
    texts = [*islice(_own_words(asked), MOST_TEXTS + 1)]
    if len(texts) > MOST_TEXTS:
        return None
    for text in sorted({text[:MOST_CHARS].strip() for text in texts}, key=len, reverse=True):
        if len(text) >= SHORTEST_ECHO:
            for echo in _echoes(text, kept):
                kept = _without(kept, echo)
    return safe_message(kept)


def _secrets(sent: object) -> list[str]:
    """Return the credentials that a request was sent with."""
    headers = _field(sent, "headers")
    values = [headers.get(name) for name in _CREDENTIALS] if isinstance(headers, Mapping) else []
    return [secret for value in values if value and len(secret := value.rpartition(" ")[2]) >= SHORTEST_ECHO]


def _own_words(asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a request that are not words of the API: what is said, addresses and names of files too."""
    for name in _PROMPTS:
        yield from texts_in(asked.get(name), _is_own)
    for name in _TOLD_BY:
        yield from _descriptions(asked.get(name))


def _is_own(_holder: dict[Any, Any], key: Any) -> bool:
    return key not in _WORDS_OF_THE_API


def _descriptions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from texts_in(part, _is_own) if key == "description" else _descriptions(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _descriptions(part)


def _echoes(text: str, message: str) -> set[str]:
    """Return how a text may be repeated in a message: as it stands, escaped, or with its blanks run together."""
    echoes = {text, *(escape(text)[1:-1] for escape in _escaped)}
    if "&" in message:
        echoes.add(html.escape(text))
    if "%" in message:
        echoes.add(quote(text))
    if _ESCAPED_TWICE in message:
        echoes.add(_escaped[0](_escaped[0](text))[3:-3])
    if any(blanks in text for blanks in _BLANKS):
        echoes.add(" ".join(text.split()))
    return echoes


def _without(message: str, echo: str) -> str:
    start = echo[:SURE_ECHO]
    at = message.find(start)
    while at >= 0:
        repeated = len([*takewhile(bool, map(eq, message[at:], echo))])
        message = f"{message[:at]}…{message[at + repeated :]}"
        at = message.find(start, at + 1)
    return message
