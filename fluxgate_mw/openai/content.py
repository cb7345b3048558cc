"""Prompts and answers as texts to keep, where the user asked for them; never looked at otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fluxgate_mw.recorder import guarded

__all__ = ["asked_content", "delivered_content", "whole_content"]

_ASKED: Final = ("instructions", "messages", "input", "prompt")
_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode
_ANSWERED: Final = ("choices", "output", "text", "results")


def asked_content(body: Mapping[str, Any]) -> bytes | None:
    """Return what of a request was asked, as the JSON that it is now; None for nothing."""
    asked = {name: body[name] for name in _ASKED if body.get(name)}
    return guarded("content", _encode, asked) if asked else None


def whole_content(body: bytes) -> Any:
    """Return what of a JSON answer is the answer, as plain data; None for nothing."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = _tolerated(body)
    if not isinstance(decoded, dict):
        return None
    return {name: decoded[name] for name in _ANSWERED if decoded.get(name)} or None


def _tolerated(body: bytes) -> Any:
    """Return what the client makes of it, who asks `json`: half a pair of surrogates is a text to that."""
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        return None


def delivered_content(texts: Mapping[str, str]) -> Any:
    """Return what a stream delivered, as plain data: a single text as it is, several by their places; None for none."""
    return texts if len(texts) > 1 else next(iter(texts.values()), None)
