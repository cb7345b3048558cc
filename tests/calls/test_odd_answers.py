"""Odd answers: the caller gets what he would have got, and the event says no more than is known."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.cut import encode_within
from fluxgate_mw.event import decode_event
from tests.calls.clients import ASKED, JSON, SSE, WAYS, Asked, Reply, Wire, chunk, completion, finish, recorded, sse
from tests.calls.streaming import AS_ASKED, STREAM, USAGE, WITHOUT, counts

CHAT = Asked("chat.completions", ASKED)
SHOWN = Asked("chat.completions", {**STREAM.arguments, "stream_options": {"include_usage": True}})
TEXT = {"content-type": "text/plain"}
HTML = {"content-type": "text/html; charset=utf-8"}


def compared(ask, reply):
    """Return the one event of a call, after the caller got what he gets without us."""
    without = ask(Wire(reply()))
    with recorded() as events:
        got = ask(Wire(reply()))
    assert got == without
    [event] = events
    assert decode_event(encode_within(event, 1_000_000)) == event
    assert not [kind for kind in diagnostics.counts() if kind.startswith("bug_")], diagnostics.counts()
    return event


BODIES = {
    "no choices": (completion(choices=[]), (12, 5)),
    "choices=None": (completion(choices=None), (12, 5)),
    "choices is text": (completion(choices="none"), (12, 5)),
    "choices of numbers": (completion(choices=[1, None]), (12, 5)),
    "index=None": (completion(choices=[{"index": None, "message": None, "finish_reason": "stop"}]), (12, 5)),
    "finish_reason is a number": (completion(choices=[{"index": 0, "finish_reason": 7}]), (12, 5)),
    "no usage": ({key: value for key, value in completion().items() if key != "usage"}, (None, None)),
    "usage=None": (completion(usage=None), (None, None)),
    "usage is a list": (completion(usage=[1, 2]), (None, None)),
    "usage is text": (completion(usage="lots"), (None, None)),
    "usage is empty": (completion(usage={}), (None, None)),
    "negative": (completion(usage={"prompt_tokens": -12, "completion_tokens": 5}), (None, 5)),
    "absurd": (completion(usage={"prompt_tokens": 2**60, "completion_tokens": 5}), (None, 5)),
    "beyond any integer": (completion(usage={"prompt_tokens": 10**40, "completion_tokens": 5}), (None, 5)),
    "a fraction": (completion(usage={"prompt_tokens": 1.5, "completion_tokens": 5}), (None, 5)),
    "a whole float": (completion(usage={"prompt_tokens": 12.0, "completion_tokens": 5}), (12, 5)),
    "infinite": (completion(usage={"prompt_tokens": 1e400, "completion_tokens": 5}), (None, 5)),
    "bool": (completion(usage={"prompt_tokens": True, "completion_tokens": 5}), (None, 5)),
    "numerals": (completion(usage={"prompt_tokens": "12", "completion_tokens": 5}), (None, 5)),
    "model is a number": (completion(model=5), (12, 5)),
    "id is a number": (completion(id=5), (12, 5)),
    "id is a list": (completion(id=[5]), (12, 5)),
    "service_tier is a list": (completion(service_tier=["flex"]), (12, 5)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BODIES)
def test_a_field_that_is_not_as_it_should_be(name, way):
    """The rest of the answer is still read (sentry-python PR#6216, dd-trace-py#9283, litellm#36426)."""
    body, tokens = BODIES[name]
    event = compared(getattr(CHAT, way), lambda: Reply(json.dumps(body).encode()))
    assert (event.input_tokens, event.output_tokens) == tokens
    assert event.usage_source == ("none" if tokens == (None, None) else "provider")
    assert event.http_status == 200
    if None in tokens:
        assert event.cost_nanos is None
        assert event.unpriced_reason


@pytest.mark.parametrize("name", BODIES)
def test_a_stream_whose_fields_are_not_as_they_should_be(name):
    """The same holds for chunks."""
    body, tokens = BODIES[name]
    event = compared(SHOWN.plain, lambda: Reply(sse(chunk("Hi"), body, chunk(choices=finish())), headers=SSE))
    assert (event.input_tokens, event.output_tokens) == tokens


CONTENTS = {
    "nothing": b"",
    "blank": b"  \n",
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "half": json.dumps(completion()).encode()[:-40],
    "trailing": json.dumps(completion()).encode() + b"}",
    "a list": b"[1, 2]",
    "a number": b"12",
    "null": b"null",
    "not UTF-8": b'{"id": "\xff\xfe", "model": "gpt-4o-mini"}',
    "UTF-16": json.dumps(completion()).encode("utf-16"),
    "a mark": b"\xef\xbb\xbf" + json.dumps(completion()).encode(),
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "NaN": b'{"id": "x", "usage": {"prompt_tokens": NaN}}',
    "twice": b'{"usage": {"prompt_tokens": 1}, "usage": {"prompt_tokens": 2, "completion_tokens": 3}}',
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("headers", [JSON, TEXT, HTML, SSE, {}], ids=["json", "text", "html", "sse", "none"])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_body_that_is_no_answer(name, headers, way):
    """Bodies that cannot be read, under whatever content type, reach the caller as they are."""
    event = compared(getattr(CHAT, way), lambda: Reply(CONTENTS[name], headers=headers))
    assert event.http_status == 200
    if name not in ("twice", "a mark", "trailing", "UTF-16"):
        assert counts(event) == (None, None, None, None)
        assert event.cost_nanos is None


@pytest.mark.parametrize("headers", [JSON, TEXT, {}], ids=["json", "text", "none"])
@pytest.mark.parametrize("way", ["plain", "asynchronous"])
def test_a_stream_that_calls_itself_something_else(headers, way):
    """A stream under a wrong content type is read as the caller reads it."""
    without = STREAM.plain(Wire(Reply(WITHOUT, headers=SSE)))
    with recorded() as events:
        assert getattr(STREAM, way)(Wire(Reply(AS_ASKED, headers=headers))) == without
    assert counts(events[0]) == (12, 5, 4, 2)


@pytest.mark.parametrize("way", ["plain", "raw", "asynchronous"])
def test_an_answer_where_a_stream_was_asked(way):
    """A provider that ignores `stream` and answers whole is not misread, and the caller gets what he would."""
    event = compared(getattr(STREAM, way), lambda: Reply(json.dumps(completion()).encode()))
    assert (event.input_tokens, event.output_tokens) in ((12, 5), (None, None))


@pytest.mark.parametrize("way", ["plain", "raw", "asynchronous"])
def test_a_stream_where_an_answer_was_asked(way):
    """A provider that streams unasked is read where its bytes are there."""
    event = compared(getattr(CHAT, way), lambda: Reply(sse(chunk("Hi"), chunk(usage=USAGE)), headers=SSE))
    assert event.status in ("SUCCESS", "ERROR")


def packed(body, encoding):
    if encoding == "gzip":
        return gzip.compress(body)
    compressor = zlib.compressobj()
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("way", WAYS)
def test_packed_bodies(way, encoding):
    """Usage is read from what the client unpacks, whole or as a stream."""
    coded = {"content-encoding": encoding}
    answer = packed(json.dumps(completion()).encode(), encoding)
    event = compared(getattr(CHAT, way), lambda: Reply(answer, headers={**JSON, **coded}))
    assert (event.input_tokens, event.output_tokens) == (12, 5)
    stream = packed(AS_ASKED, encoding)
    parts = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    without = getattr(STREAM, way)(Wire(Reply(packed(WITHOUT, encoding), headers={**SSE, **coded})))
    with recorded() as events:
        assert getattr(STREAM, way)(Wire(Reply(parts, headers={**SSE, **coded}))) == without
    assert counts(events[0]) == (12, 5, 4, 2)


@pytest.mark.parametrize("way", ["plain", "asynchronous"])
def test_a_packed_body_that_is_broken(way):
    """A body that cannot be unpacked raises what it raises without us, and is an error."""
    event = compared(getattr(CHAT, way), lambda: Reply(b"no gzip", headers={**JSON, "content-encoding": "gzip"}))
    assert event.status == "ERROR"
    assert event.error_type


ODD_CHUNKS = {
    "choices=None": chunk(choices=None),
    "choices missing": {key: value for key, value in chunk().items() if key != "choices"},
    "index=None": chunk(choices=[{"index": None, "delta": {"content": "x"}, "finish_reason": None}]),
    "delta=None": chunk(choices=[{"index": 0, "delta": None, "finish_reason": None}]),
    "no choices": chunk(choices=[]),
    "null": b"null",
    "a number": b"7",
    "a list": b"[]",
    "text": b'"hello"',
    "an empty object": b"{}",
    "no JSON": b"{oops",
    "not UTF-8": b'{"a": "\xff"}',
    "type is a number": chunk("x", type=5),
    "response is text": chunk("x", response="text"),
    "a keep-alive": b"",
}


@pytest.mark.parametrize("way", ["plain", "asynchronous", "raw"])
@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_an_odd_chunk(name, way):
    """A chunk of no known shape reaches the caller, or raises in his client, as without us (dd-trace-py#9283)."""
    odd = ODD_CHUNKS[name]
    rest = (chunk("Hi"), odd, chunk("!"), chunk(choices=finish()))
    without = getattr(STREAM, way)(Wire(Reply(sse(*rest), headers=SSE)))
    with recorded() as events:
        got = getattr(STREAM, way)(Wire(Reply(sse(*rest, chunk(choices=[], usage=USAGE)), headers=SSE)))
    assert got == without
    [event] = events
    raised = isinstance(got[-1], dict) and "class" in got[-1]
    if raised:
        assert (event.status, event.error_type is None) == ("ERROR", False)
    else:
        assert counts(event) == (12, 5, 4, 2)
    assert event.response_id == "chatcmpl-1"


@pytest.mark.parametrize("fields", ["event: ping\n", ": comment\n", "id: 7\nretry: 10\n", "data:\n"])
def test_other_lines_of_a_stream(fields):
    """Comments, ids and named events stand in a stream without harm."""
    with_line = WITHOUT.replace(b"\n\n", b"\n\n" + fields.encode() + b"\n", 1)
    ours = AS_ASKED.replace(b"\n\n", b"\n\n" + fields.encode() + b"\n", 1)
    without = STREAM.plain(Wire(Reply(with_line, headers=SSE)))
    with recorded() as events:
        assert STREAM.plain(Wire(Reply(ours, headers=SSE))) == without
    assert len(events) == 1


def test_a_part_that_is_larger_than_its_whole():
    """A subset that cannot be is left out, counted, and the totals stay."""
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 500}}
    event = compared(CHAT.plain, lambda: Reply(json.dumps(completion(usage=usage)).encode()))
    assert counts(event) == (12, 5, None, 2)
    assert diagnostics.counts()["absurd_usage"]


def test_an_error_object_with_status_200():
    """A gateway that answers an error with 200 is an error, with its message."""
    fault = {"error": {"message": "Upstream is down", "code": "upstream_error"}}
    event = compared(CHAT.plain, lambda: Reply(json.dumps(fault).encode()))
    assert (event.status, event.http_status) == ("ERROR", 200)
    assert (event.error_type, event.error_message) == ("upstream_error", "Upstream is down")
    assert event.cost_nanos is None


def test_a_huge_event():
    """An event past what we hold is passed on; the call ends with what is known."""
    big = "x" * (9 * 1024 * 1024)
    whole = sse(chunk("Hi"), chunk(big), chunk(choices=finish()))
    parts = [whole[start : start + 2**20] for start in range(0, len(whole), 2**20)]
    without = STREAM.plain(Wire(Reply(whole, headers=SSE)))
    with recorded() as events:
        got = STREAM.plain(Wire(Reply(parts, headers=SSE)))
    assert got == without
    [event] = events
    assert event.response_id == "chatcmpl-1"
    assert event.input_tokens is None or event.usage_source == "estimated"


@given(st.binary(max_size=200), st.sampled_from([JSON, SSE, TEXT]), st.booleans(), st.integers(1, 50))
@settings(max_examples=80)
def test_any_bytes_at_all(body, headers, stream, size):
    """Whatever the bytes are, the caller's world is the same, and there is one event of it."""
    ask = SHOWN.plain if stream else CHAT.plain
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    compared(ask, lambda: Reply(parts, headers=headers))


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from([*completion(), *USAGE, "delta", "type", "response", "error"]), inner),
        ),
        max_leaves=12,
    ),
    st.booleans(),
)
@settings(max_examples=120)
def test_any_document_at_all(document, stream):
    """Any JSON in the place of any field harms nobody."""
    content = json.dumps(document).encode()
    if stream:
        compared(SHOWN.plain, lambda: Reply(sse(content), headers=SSE))
    else:
        compared(CHAT.plain, lambda: Reply(content))


def test_a_chat_whose_chunks_have_a_type():
    """A chunk with choices is one of a chat, whatever type it names: its reasons, texts and usage count as such."""
    chunks = [
        chunk("Hi", type="message"),
        chunk(" there", type="message"),
        chunk(choices=finish("length"), type="info"),
    ]
    body = sse(*chunks, chunk(choices=[], usage=USAGE, type="usage"))
    with recorded() as events:
        read = list(Wire(Reply(body, headers=SSE)).client().chat.completions.create(**ASKED, stream=True))
        cut = Reply([sse(chunks[0], done=False), body], headers=SSE)
        stream = Wire(cut).client().chat.completions.create(**ASKED, stream=True)
        next(stream)
        stream.close()
    assert len(read) == 3
    assert [(event.status, event.usage_source) for event in events] == [
        ("MAX_TOKENS", "provider"),
        ("CANCELLED", "estimated"),
    ]
    assert [event.output_tokens for event in events] == [5, 1]
