"""Errors of anybody's making: whatever they are like, the call that they end is one event, and they pass unchanged."""

from __future__ import annotations

import gc

import openai
import pytest

from fluxgate_mw import diagnostics
from fluxgate_mw.openai import calls
from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, httpx, recorded, sse

PARTS = [sse(chunk("Hi"), done=False)] * 3


class _NoRequest(BaseException):
    """Its `request` is none."""

    request = "GET /"


class _Refusing(BaseException):
    """It raises over whatever it is asked for."""

    @property
    def request(self):
        raise RuntimeError("no request")

    body = message = status_code = request


class _Numbers(BaseException):
    """Its fields are none of those of the client's errors."""

    status_code = "404"
    message = 7
    body = ("a", "b")
    request = httpx.Response(200)


class _Lists(BaseException):
    """Nor are these."""

    def __init__(self):
        super().__init__()
        self.status_code = [404]
        self.body = {"code": ["x"], "message": {"a": 1}}


ODD = [_NoRequest, _Refusing, _Numbers, _Lists]


@pytest.mark.parametrize("kind", ODD)
def test_a_call_that_an_odd_error_ends(kind):
    """It is an error by the name of what was raised, which the caller gets."""
    error = kind()
    with recorded() as events, pytest.raises(kind) as caught:
        Wire(Reply(refused=error)).client().chat.completions.create(**ASKED)
    assert caught.value is error
    assert [(e.status, e.error_type, e.http_status) for e in events] == [("ERROR", kind.__name__, None)]
    assert events[0].error_message is None


@pytest.mark.parametrize("kind", ODD)
def test_a_stream_that_an_odd_error_breaks(kind):
    """It is the same, with what was delivered."""
    with recorded() as events:
        stream = Wire(Reply(PARTS, headers=SSE, error=kind())).client().chat.completions.create(**ASKED, stream=True)
        with pytest.raises(kind):
            list(stream)
    [event] = events
    assert (event.status, event.error_type) == ("ERROR", kind.__name__)
    assert (event.usage_source, event.output_tokens) == ("estimated", 2)


def test_an_error_without_its_request_breaks_a_stream():
    """One of httpx's that no request was set of raises over it."""
    error = httpx.ReadError("reset")
    with recorded() as events:
        stream = Wire(Reply(PARTS, headers=SSE, error=error)).client().chat.completions.create(**ASKED, stream=True)
        with pytest.raises(Exception, match=r"reset|Connection error"):
            list(stream)
    assert [(e.status, e.error_type) for e in events] == [("ERROR", "ReadError")]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "ERROR"), (KeyboardInterrupt(), "CANCELLED")], ids=["error", "interrupt"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["call", "stream"])
def test_a_bug_of_ours_over_an_error_costs_no_event(monkeypatch, stream, error, status):
    """Where we fail to learn how the call ended it still ended, and by what."""

    def broken(*args):
        raise RuntimeError

    monkeypatch.setattr(calls, "failure", broken)
    reply = Reply(PARTS, headers=SSE, error=error) if stream else Reply(refused=error)
    asked = {**ASKED, "stream": stream}
    with recorded() as events, pytest.raises((type(error), openai.APIConnectionError)):
        list(Wire(reply).client().chat.completions.create(**asked))
    [event] = events
    assert event.status == status
    assert event.cost_nanos is None
    diagnostics.reset()


def test_a_bug_of_ours_over_an_answer_costs_no_event(monkeypatch):
    """A stream whose end we fail to understand ends with what is known of it."""
    broken_off = Wire(Reply(PARTS, headers=SSE)).client()

    def broken(*args, **_):
        raise RuntimeError

    monkeypatch.setattr(calls.OpenAICall, "_waits", broken)
    with recorded() as events:
        list(broken_off.chat.completions.create(**ASKED, stream=True))
        gc.collect()
    [event] = events
    assert (event.response_id, event.cost_nanos) == ("chatcmpl-1", None)
    assert diagnostics.counts()["bug_openai_stream"] == 1
    diagnostics.reset()
