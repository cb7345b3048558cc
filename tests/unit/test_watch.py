"""What a `Watch` passes on and counts, chunk by chunk, is what decoding every event says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.openai import watch as watch_module
from fluxgate_mw.openai.answer import Answer
from fluxgate_mw.openai.plain import alike, plain_event
from fluxgate_mw.openai.sse import split_events
from fluxgate_mw.openai.watch import MOST_HELD_BYTES, MOST_LEARNED, Watch

_BASE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
_NULL = {"usage": None}
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


@given(st.lists(_chunks(), min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_any_split(chunks, newline, data):
    """However lines end and the bytes are cut, the caller gets them whole and in order."""
    body, plain = (b"".join(one).replace(b"\n", newline) for one in list(zip(*chunks, strict=True))[1:])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    watch = _watch(hide_usage=True)
    parts = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert b"".join(watch.feed(part) for part in parts if part) + watch.flush() == plain


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
            monkeypatch.setattr(Watch, "look", lambda *_: pytest.fail("an event was looked at"))
    assert passed == expected
    assert watch.answer.delivered_bytes == sum(len(text.encode()) for text in ["first", "second", *_SAID])


def _typed(text: str, number: int, layout: str, *, ascii_only: bool) -> bytes:
    """Return a text of the responses API as the service sent it at different times."""
    padding = "aZ0bY1cX2dW3"[: 1 + number % 12]
    fields: dict[str, Any] = {
        "type": "response.output_text.delta",
        "content_index": 0,
        "delta": text,
        "item_id": "msg_1",
    }
    if layout == "by name":
        fields |= {"logprobs": [], "obfuscation": padding, "output_index": 0, "sequence_number": number}
    elif layout == "numbered first":
        fields = {"type": fields["type"], "sequence_number": number, **fields, "logprobs": [], "obfuscation": padding}
    data = json.dumps(fields, separators=(",", ":"), ensure_ascii=ascii_only)
    return f"event: response.output_text.delta\ndata: {data}\n\n".encode()


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "utf-8"])
@pytest.mark.parametrize("layout", ["bare", "by name", "numbered first"])
def test_texts_of_the_responses_api_are_known_at_a_glance(monkeypatch, layout, ascii_only):
    """After the first text no event is decoded or searched any more, though each is numbered and padded."""
    watch = _watch(hide_usage=False)
    watch.feed(b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n')
    texts = ["first", *_SAID, "last"]
    events = [_typed(text, 3 + number, layout, ascii_only=ascii_only) for number, text in enumerate(texts)]
    watch.feed(events[0])
    monkeypatch.setattr(watch_module, "plain_event", lambda _: pytest.fail("an event was searched"))
    monkeypatch.setattr(Watch, "look", lambda *_: pytest.fail("an event was looked at"))
    assert all(watch.feed(event) is event for event in events[1:])
    assert watch.answer.delivered_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    "odd",
    [
        b'"sequence_number":4}\n\nevent: error\ndata: {"type":"error","message":"no"}\n\n',
        b'"sequence_number":4,"usage":{"input_tokens":1}}\n\n',
        b'"sequence_number":"4"}\n\n',
        b'"sequence_number":}\n\n',
    ],
    ids=["an error behind it", "usage", "another number", "no number"],
)
def test_what_is_numbered_otherwise_is_read(monkeypatch, odd):
    """A text with anything beside it that the one before did not have is looked at."""
    watch = _watch(hide_usage=False)
    watch.feed(b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n')
    event = _typed("a", 3, "by name", ascii_only=True)
    watch.feed(event)
    looked: list[bytes] = []
    monkeypatch.setattr(Watch, "look", lambda _, chunk: looked.append(chunk) or chunk)
    watch.feed(event)
    assert not looked
    watch.feed(event.replace(b'"sequence_number":3}\n\n', odd))
    assert len(looked) == 1


def test_choices_that_take_turns_are_all_known(monkeypatch):
    """Where several choices were asked for, the chunks of each are known after its first."""
    watch = _watch(hide_usage=True)
    rounds = [
        _event(
            {**_BASE, "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}], "usage": None}
        )
        for text in ("first", "second", "third")
        for index in (0, 1, 2)
    ]
    passed = [watch.feed(event) for event in rounds[:4]]
    monkeypatch.setattr(watch_module, "plain_event", lambda _: pytest.fail("an event was searched"))
    passed += [watch.feed(event) for event in rounds[4:]]
    assert passed == [event.replace(b',"usage":null', b"") for event in rounds]
    assert watch.answer.delivered_bytes == 3 * len("firstsecondthird")


def test_several_texts_in_one_part_are_known_one_by_one(monkeypatch):
    """What the network hands over at once is split, and no event of it is decoded."""
    watch = _watch(hide_usage=True)
    data = {**_BASE, "choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}], "usage": None}
    watch.feed(_event(data))
    watch.feed(_event(data))
    monkeypatch.setattr(watch_module, "plain_event", lambda _: pytest.fail("an event was searched"))
    part = _event(data) * 3
    assert watch.feed(part + part[:40]) == part.replace(b',"usage":null', b"")
    assert watch.feed(part[40:]) == part.replace(b',"usage":null', b"")
    assert watch.answer.delivered_bytes == 2 * 8


def test_a_stream_that_never_repeats_itself_is_not_learned_for_ever(monkeypatch):
    """Where each event has an id of its own, looking for what they share is given up; the texts are counted still."""
    learned: list[bytes] = []

    def counting(event: bytes, *args: Any, **kwargs: Any) -> Any:
        learned.append(event)
        return alike(event, *args, **kwargs)

    monkeypatch.setattr(watch_module, "alike", counting)
    watch = _watch(hide_usage=False)
    for number in range(MOST_LEARNED + 20):
        choice = {"index": 0, "delta": {"content": "ab"}, "finish_reason": None}
        watch.feed(_event({**_BASE, "id": f"chatcmpl-{number:04}", "choices": [choice]}))
    assert len(learned) == MOST_LEARNED
    assert watch.answer.delivered_bytes == 2 * (MOST_LEARNED + 20)


@pytest.mark.parametrize("hide_usage", [True, False], ids=["hidden", "shown"])
def test_an_event_in_many_parts_is_not_searched_from_its_beginning(monkeypatch, hide_usage):
    """A picture of megabytes comes in thousands of parts: what is held is looked at again at its end only."""
    searched: list[int] = []

    def counting(buffered: bytes) -> Any:
        searched.append(len(buffered))
        return split_events(buffered)

    monkeypatch.setattr(watch_module, "split_events", counting)
    watch = _watch(hide_usage=hide_usage)
    event = _event({"type": "image_generation.partial_image", "b64_json": "x" * 300_000})
    parts = [event[start : start + 1_000] for start in range(0, len(event), 1_000)]
    passed = b"".join([watch.feed(part) for part in parts]) + watch.flush()
    assert passed == event
    assert sum(searched) < 2 * len(event)


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
    counts = Answer()
    glance = alike(event, known, counts, hide_usage=False)
    assert glance is not None
    assert counts.delivered_bytes == 0
    assert glance(event) == event
    assert glance(odd) is None
    assert counts.delivered_bytes == 1
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
