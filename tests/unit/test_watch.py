"""What a `Watch` passes on and counts, chunk by chunk, is what decoding every event says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.openai import watch as watch_module
from fluxgate_mw.openai.plain import alike, plain_event
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
    last = {**_BASE, "choices": [choice], **null, **padding} if draw(st.booleans()) else {**plain, **null}
    asked = {**_BASE, **null, "choices": [choice], **padding} if first else last
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


_SAID = ["Hi", " there", "\n\n", ' "quoted"', "grüß", "你好", "\U0001f600", "a\\b", "", "},", "x" * 500]


@pytest.mark.parametrize("hide_usage", [True, False], ids=["hidden", "shown"])
@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "utf-8"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "bare"])
def test_a_stream_of_texts_is_known_at_a_glance(monkeypatch, hide_usage, ascii_only, padded):
    """After the first text no event is decoded or searched any more, in whatever language, padded as OpenAI does."""
    watch, passed, expected = _watch(hide_usage=hide_usage), [], []
    for number, text in enumerate(["first", "second", *_SAID]):
        data: dict[str, Any] = {**_BASE, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        padding = {"obfuscation": "aZ0"[: 1 + number % 3] * 5} if padded else {}
        asked = _event({**data, "usage": None, **padding}, ascii_only=ascii_only)
        expected.append(_event({**data, **padding}, ascii_only=ascii_only) if hide_usage else asked)
        passed.append(watch.feed(asked))
        if number == 1:
            monkeypatch.setattr(watch_module, "plain_event", lambda _: pytest.fail("an event was searched"))
            monkeypatch.setattr(Watch, "_read", lambda *_: pytest.fail("an event was decoded"))
    assert passed == expected
    assert watch.answer.delivered_bytes == sum(len(text.encode()) for text in ["first", "second", *_SAID])


@pytest.mark.parametrize(
    "other",
    [
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"usage": None, "error": {"message": "no"}},
        {"usage": None, "obfuscation": 'a","usage":{"prompt_tokens":1,"completion_tokens":2},"b":"'},
        {"usage": None, "obfuscation": "a", "more": 1},
    ],
    ids=["usage", "error", "a quote in the padding", "a field more"],
)
def test_a_glance_takes_nothing_else_for_a_text(other):
    """An event that brings more than the ones before it is read, however alike it begins."""
    watch, quick = _watch(hide_usage=True), _watch(hide_usage=True)
    data = {**_BASE, "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    usual, unusual = _event({**data, "usage": None, "obfuscation": "xyz"}), _event({**data, **other})
    for _ in range(3):
        quick.feed(usual)
    assert quick.feed(unusual) == watch.feed(unusual)
    assert quick.answer.usage == watch.answer.usage
    assert quick.answer.error_type == watch.answer.error_type


@pytest.mark.parametrize(
    "second", [b'"unfinished', b'"a" "b"', b'"\\x"', b'"\xff"', b'"a\nb"', b'\n"a"', b"null", b'"\\ud83d"']
)
def test_a_glance_takes_nothing_odd_for_a_text(second):
    """What is no JSON string, or none that UTF-8 can spell, is left to the one who decodes it."""
    data = {**_BASE, "choices": [{"index": 0, "delta": {"content": "@"}, "finish_reason": None}], "usage": None}
    watch, event = _watch(hide_usage=False), _event(data)
    watch.feed(event)
    watch.feed(event)
    counted = watch.answer.delivered_bytes
    odd = event.replace(b'"@"', second)
    known = plain_event(event)
    assert known is not None
    glance = alike(event, known, hide_usage=False)
    assert glance is not None
    assert glance(event) == (event, 1)
    assert glance(odd) is None
    assert plain_event(odd) is None
    assert watch.feed(odd) is odd
    assert watch.answer.delivered_bytes in (counted, counted + 3)


def test_two_events_in_one_chunk_are_two():
    """A chunk that begins as a text and ends as one may be several."""
    data = {**_BASE, "choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}]}
    asked, plain = _event({**data, "usage": None, "obfuscation": "xy"}), _event({**data, "obfuscation": "xy"})
    watch = _watch(hide_usage=True)
    assert [watch.feed(part) for part in (asked, asked, asked * 2)] == [plain, plain, plain * 2]
    assert watch.answer.delivered_bytes == 8


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
