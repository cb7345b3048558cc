"""A chunk over which the client raises ends its call as an error that says its kind, however the body comes."""

from __future__ import annotations

import gc

import pytest

from tests.calls.clients import SSE, Reply, Wire, chunk, finish, recorded, sse
from tests.calls.streaming import STREAM, USAGE

REST = sse(chunk("!"), chunk(choices=finish()), chunk(choices=[], usage=USAGE))
ODD = {"no JSON": b"data: {oops\n\n", "no UTF-8": b'data: {"a": "\xff"}\n\n', "empty": b"data: \n\n"}


@pytest.mark.parametrize("parts", ["one", "each"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("way", ["plain", "asynchronous"])
def test_a_chunk_that_the_client_raises_over(way, odd, parts):
    """The caller is raised something: the event is an error, and says which kind."""
    pieces = [sse(chunk("Hi"), done=False), ODD[odd], REST]
    reply = Reply(pieces if parts == "each" else b"".join(pieces), headers=SSE)
    with recorded() as events:
        got = getattr(STREAM, way)(Wire(reply))
        gc.collect()
    assert got[-1]["class"].__name__ in ("JSONDecodeError", "UnicodeDecodeError")
    [event] = events
    assert event.status == "ERROR"
    assert event.error_type
