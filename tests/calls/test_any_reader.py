"""Whatever a stream brings and however its bytes come, break and are read: the reader gets what he gets without us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, dumped, finish, httpx, raised, recorded, shaping, sse
from tests.calls.streaming import TEXTS, USAGE

Sent = tuple[bytes, bytes]
"""One event as it is sent where usage was asked for, and where it was not."""


def _chunk(**fields: Any) -> Sent:
    return sse(chunk(**fields, usage=None), done=False), sse(chunk(**fields), done=False)


def _same(event: bytes) -> Sent:
    return event, event


_PLAIN = [_chunk(content=text) for text in ("", *TEXTS, "x" * 40, "\n\n", "data: ")]
_ODD = [
    _chunk(choices=[]),
    _chunk(content="Hi", obfuscation="aB3"),
    _chunk(choices=[{"index": 1, "delta": {"content": "two"}, "finish_reason": None}]),
    _same(b": a comment\n\n"),
    _same(b"event: ping\ndata: {}\n\n"),
    _same(b"\n"),
    _same(sse(chunk("u", usage=USAGE), done=False)),
    _same(sse({"error": {"message": "no", "code": "busy"}}, done=False)),
    _same(b"data: {no JSON\n\n"),
    _same(b"data: [DONE]\n\n"),
]
_ENDS = [_chunk(choices=finish(reason)) for reason in ("stop", "length", "content_filter")]
_LAST = (sse(chunk(choices=[], usage=USAGE), done=False), b"")


@st.composite
def _bodies(draw: st.DrawFn) -> list[Sent]:
    """The events of one body, the usage at its end or not, and `[DONE]` or not."""
    events = draw(st.lists(st.sampled_from(_PLAIN) | st.sampled_from(_PLAIN + _ODD), max_size=10))
    events += draw(st.lists(st.sampled_from(_ENDS), max_size=1))
    events += draw(st.sampled_from([[_LAST, _same(b"data: [DONE]\n\n")], [_LAST], [], [_same(b"data: {torn")]]))
    newline = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
    return [(asked.replace(b"\n", newline), plain.replace(b"\n", newline)) for asked, plain in events]


def _parts(body: Sequence[Sent], cuts: Sequence[float]) -> tuple[list[bytes], list[bytes]]:
    """Return both bodies cut at the same places: a whole number is behind that event, 2.5 amid the third."""
    asked, plain, asked_cuts, plain_cuts = b"", b"", [0], [0]
    for number, (with_usage, without) in enumerate(body):
        for cut in sorted({cut - number for cut in cuts if number < cut <= number + 1}):
            at = round(cut * len(without))
            plain_cuts.append(len(plain) + at)
            common = with_usage[:at] == without[:at] and at < len(without)
            asked_cuts.append(len(asked) + (at if common else at + len(with_usage) - len(without)))
        asked, plain = asked + with_usage, plain + without
    return _cut(asked, asked_cuts), _cut(plain, plain_cuts)


def _cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    return [part for start, end in pairwise([*places, len(body)]) if (part := body[start:end])]


class Hands:
    """One kind of client, held as if it were synchronous."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self.runner = runner

    def client(self, wire: Wire) -> Any:
        """Return a client of this kind."""
        return wire.client() if self.runner is None else wire.async_client()

    def got(self, value: Any) -> Any:
        """Return what a call of it gives in the end."""
        return value if self.runner is None else self.runner.run(_awaited(value))

    def entered(self, stack: ExitStack, manager: Any) -> Any:
        """Enter a manager, to be left with the stack."""
        if self.runner is None:
            return stack.enter_context(manager)
        stack.push(lambda *error: self.got(manager.__aexit__(*error)))
        return self.got(manager.__aenter__())

    def each(self, source: Any) -> Iterator[Any]:
        """Yield what the source yields."""
        if self.runner is None:
            yield from source
            return
        source, end = aiter(source), object()
        while (item := self.got(anext(source, end))) is not end:
            yield item


async def _awaited(value: Any) -> Any:
    return await value


@dataclass(frozen=True)
class Reader:
    """How somebody reads.

    Args:
        way: One of `WAYS`.
        leaves: After so many things he closes what he reads; None = he reads all.
        goes_on: He reads on all the same.
    """

    way: str
    leaves: int | None
    goes_on: bool

    def read(self, hands: Hands, wire: Wire) -> list[Any]:
        """Return what he gets, the error at its end included, and whether the connection was given back."""
        got: list[Any] = []
        try:
            with ExitStack() as stack:
                source, close = WAYS[self.way](hands, stack, hands.client(wire))
                each = hands.each(source)
                got.extend(map(dumped, islice(each, self.leaves)))
                if self.leaves is not None:
                    hands.got(close())
                if self.leaves is None or self.goes_on:
                    got.extend(map(dumped, each))
        except Exception as error:  # noqa: BLE001
            got.append(raised(error))
        return [*got, wire.bodies[0].closed]


def _stream(hands: Hands, _: ExitStack, client: Any) -> tuple[Any, Any]:
    stream = hands.got(client.chat.completions.create(**ASKED, stream=True))
    return stream, stream.close


def _raw(hands: Hands, _: ExitStack, client: Any) -> tuple[Any, Any]:
    stream = hands.got(client.chat.completions.with_raw_response.create(**ASKED, stream=True)).parse()
    return stream, stream.close


def _helper(hands: Hands, stack: ExitStack, client: Any) -> tuple[Any, Any]:
    stream = hands.entered(stack, shaping(client).stream(**ASKED))
    return stream, stream.close


def _response(name: str, *arguments: Any) -> Callable[..., tuple[Any, Any]]:
    def way(hands: Hands, stack: ExitStack, client: Any) -> tuple[Any, Any]:
        answers = client.chat.completions.with_streaming_response
        answer = hands.entered(stack, answers.create(**ASKED, stream=True))
        prefix = "" if hands.runner is None else "a"
        return getattr(answer.http_response, prefix + name)(*arguments), answer.close

    return way


WAYS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "stream": _stream,
    "raw": _raw,
    "helper": _helper,
    "lines": _response("iter_lines"),
    "bytes": _response("iter_bytes", 7),
    "raw bytes": _response("iter_raw", 64),
    "text": _response("iter_text", 9),
}

_CUTS = st.lists(st.sampled_from([step / 4 for step in range(48)]), max_size=12)
_READERS = st.builds(Reader, st.sampled_from([*WAYS]), st.none() | st.integers(0, 5), st.booleans())


@given(body=_bodies(), cuts=_CUTS, breaks=st.booleans(), reader=_READERS, asynchronous=st.booleans())
@settings(max_examples=300)
def test_any_reader_of_any_stream(body, cuts, breaks, reader, asynchronous):
    """He gets, and is raised, what he is without us, in the same pieces; and the call is one event."""
    asked, plain = _parts(body, cuts)
    error = httpx.ReadError("gone") if breaks else None

    def read(parts: list[bytes]) -> list[Any]:
        with ExitStack() as stack:
            hands = Hands(stack.enter_context(asyncio.Runner()) if asynchronous else None)
            return reader.read(hands, Wire(Reply(parts, headers=SSE, error=error)))

    without = read(plain)
    with recorded() as events:
        assert read(asked) == without
    assert len(events) == 1
