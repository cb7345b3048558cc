"""Streams that several test modules replay: a chat with what asking for usage adds, and how bytes are cut."""

from __future__ import annotations

from itertools import pairwise

from tests.calls.clients import ASKED, Asked, chunk, finish, sse

__all__ = ["AS_ASKED", "ENDLESS", "STREAM", "TEXTS", "USAGE", "WITHOUT", "counts", "cut"]

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}
TEXTS = ("This", " is", ' a \u00e4\U0001f600 \\" test', ',"usage":null')
AS_ASKED = sse(
    chunk("", usage=None),
    *(chunk(text, usage=None) for text in TEXTS),
    chunk(choices=finish(), usage=None),
    chunk(choices=[], usage=USAGE),
)
WITHOUT = sse(chunk(""), *map(chunk, TEXTS), chunk(choices=finish()))
STREAM = Asked("chat.completions", {**ASKED, "stream": True})


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    """Return the body in parts, cut at these places."""
    edges = [0, *sorted({place % (len(body) + 1) for place in cuts}), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def counts(event):
    return (event.input_tokens, event.output_tokens, event.cache_read_input_tokens, event.reasoning_output_tokens)


ENDLESS = [sse(chunk("word " * 8), done=False)] * 50
