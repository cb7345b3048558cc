"""What a `Watch` passes on and counts, chunk by chunk, is what decoding every event says."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.openai.watch import MOST_HELD_BYTES, Watch

_BASE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
_TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"', "\\", "\n\n", '"}', '","usage":null', "ü", '"delta":{"content":"']
)


def _event(data: Any, *, ascii_only: bool = False) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n\n"


@st.composite
def _chunks(draw: Any) -> tuple[str, bytes, bytes]:
    """One event as it is sent where usage was asked for, and as it is sent where it was not, with its text."""
    text = draw(_TEXTS.filter(lambda t: t.isprintable() or "\n" in t))
    delta: dict[str, Any] = draw(
        st.sampled_from([{"content": text}, {"content": text, "refusal": None}, {"role": "assistant", "content": text}])
    )
    choice = {"index": draw(st.sampled_from([0, 1])), "delta": delta, "finish_reason": None}
    padding = draw(st.sampled_from([{}, {"obfuscation": "xyz"}, {"obfuscation": "a"}]))
    first = draw(st.booleans())
    null = {"usage": None}
    plain = {**_BASE, "choices": [choice], **padding}
    asked = {**_BASE, **null, "choices": [choice], **padding} if first else {**plain, **null}
    ascii_only = draw(st.booleans())
    return text, _event(asked, ascii_only=ascii_only), _event(plain, ascii_only=ascii_only)


def _watch(*, hide_usage: bool) -> Watch:
    return Watch(lambda *_: None, lambda: None, sse=True, hide_usage=hide_usage)


@given(st.lists(_chunks(), max_size=12))
def test_chunks_of_one_event_each(chunks):
    """Every chunk comes out as it is sent where usage was not asked for, and every text is counted once."""
    watch = _watch(hide_usage=True)
    assert [watch.feed(asked) for _, asked, _ in chunks] == [plain for _, _, plain in chunks]
    assert watch.answer.delivered_bytes == sum(len(text.encode("utf-8", "surrogatepass")) for text, _, _ in chunks)


@given(st.lists(_chunks(), max_size=12))
def test_chunks_are_untouched_where_nothing_was_asked_for(chunks):
    """The very bytes pass, and the texts are counted all the same."""
    watch = _watch(hide_usage=False)
    for text, asked, _ in chunks:
        counted = watch.answer.delivered_bytes
        assert watch.feed(asked) is asked
        assert watch.answer.delivered_bytes == counted + len(text.encode("utf-8", "surrogatepass"))


@given(st.lists(_chunks(), min_size=1, max_size=8), st.data())
def test_any_split(chunks, data):
    """However the bytes are cut, the caller gets them whole and in order."""
    body = b"".join(asked for _, asked, _ in chunks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    watch = _watch(hide_usage=True)
    parts = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    passed = b"".join(watch.feed(part) for part in parts if part) + watch.flush()
    assert passed == b"".join(plain for _, _, plain in chunks)


def test_an_answer_that_is_too_large_passes_unread():
    """Past the limit the bytes go through as they come, nothing is held back, and that is no bug of ours."""
    watch = _watch(hide_usage=True)
    start, rest = b"data: " + b"x" * (MOST_HELD_BYTES - 100), b"y" * 200
    assert watch.feed(start) == b""
    assert watch.feed(rest) == start + rest
    assert watch.feed(b"z") == b"z"
    assert watch.flush() == b""


def test_a_watch_ends_once():
    """The first end counts, whoever tells of another."""
    ends: list[Any] = []
    watch = Watch(lambda *told: ends.append(told), lambda: None, sse=True, hide_usage=False)
    watch.finish(exhausted=True)
    watch.finish(ValueError())
    assert [told[1:] for told in ends] == [(None, True)]
