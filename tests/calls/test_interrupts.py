"""Ctrl-C, and a job's time limit, while it is we who are at work: it passes, and the call is recorded all the same.

Such a moment is some microseconds of a call; a signal takes no notice of that.
"""

from __future__ import annotations

import gc
import json
import signal
from types import SimpleNamespace

import pytest

from fluxgate_mw import FluxGate, context
from fluxgate_mw.call import Call
from fluxgate_mw.openai import calls, follow, patch
from fluxgate_mw.openai.calls import OpenAICall
from fluxgate_mw.openai.watch import Watch
from fluxgate_mw.recorder import in_hand
from tests.calls.clients import ASKED, SSE, Reply, Wire, completion, httpx, recorded
from tests.calls.streaming import AS_ASKED, ENDLESS

ANSWER = json.dumps(completion()).encode()
PLAIN = (
    (OpenAICall, "_heard"),
    (OpenAICall, "_let_go"),
    (Call, "end"),
    (OpenAICall, "is_made_quickly"),
    (calls, "register"),
)
STREAMED = (OpenAICall, "_heard"), (calls, "Watch"), (calls, "follow"), (calls, "register")


class TimeLimit(Exception):
    """As celery's `SoftTimeLimitExceeded` and RQ's `JobTimeoutException`."""


@pytest.fixture(params=[KeyboardInterrupt, TimeLimit])
def interrupt(request, monkeypatch):
    """Return what lets a signal come where a function of ours is called, once; and what its handler raises."""

    def handler(*_):
        raise request.param

    gc.collect()  # a stream that another test has left ends here
    before = signal.signal(signal.SIGALRM, handler)

    def comes_in(owner, name):
        original = getattr(owner, name)

        def interrupted(*args, **kwargs):
            monkeypatch.setattr(owner, name, original)
            signal.raise_signal(signal.SIGALRM)

        monkeypatch.setattr(owner, name, interrupted)

    yield comes_in, request.param
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("place", PLAIN, ids=lambda place: place[1])
def test_over_an_answer(interrupt, place):
    """What was asked for has been answered, and is billed: one event, whoever waited for it."""
    comes_in, raised = interrupt
    client = Wire(Reply(ANSWER)).client()
    with recorded() as events, context(feature="job"):
        comes_in(*place)
        with pytest.raises(raised):
            client.chat.completions.create(**ASKED)
    assert [event.feature for event in events] == ["job"]
    assert in_hand.get() is None


def test_after_a_call_has_ended(interrupt):
    """Its event, which is still to be made by the delivery, says what was answered."""
    comes_in, raised = interrupt
    fg, pending = FluxGate(), []
    fg.recorder.sink = SimpleNamespace(defer=pending.append)
    comes_in(calls, "register")
    with pytest.raises(raised):
        Wire(Reply(ANSWER)).client().chat.completions.create(**ASKED)
    [event] = [call.made() for call in pending]
    assert (event.status, event.http_status, event.usage_source) == ("SUCCESS", 200, "provider")
    fg.stop()


@pytest.mark.parametrize("place", STREAMED, ids=lambda place: place[1])
def test_over_the_beginning_of_a_stream(interrupt, place):
    """Nobody will read the stream; the call has ended."""
    comes_in, raised = interrupt
    client = Wire(Reply(ENDLESS, headers=SSE)).client()
    with recorded() as events:
        comes_in(*place)
        with pytest.raises(raised):
            client.chat.completions.create(**ASKED, stream=True)
        assert len(events) == 1


@pytest.mark.parametrize("place", [(OpenAICall, "_ended"), (OpenAICall, "_finish"), (OpenAICall, "_let_go")])
def test_over_the_end_of_a_stream(interrupt, place):
    """The stream was read to its end: its usage is known, and told."""
    comes_in, raised = interrupt
    with recorded() as events:
        stream = Wire(Reply(AS_ASKED, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        comes_in(*place)
        with pytest.raises(raised):
            list(stream)
        [event] = events
    assert event.usage_source == "provider"


@pytest.mark.parametrize("place", [(follow, "_broke"), (Watch, "_read_last")], ids=lambda place: place[1])
def test_over_a_stream_that_broke_off(interrupt, place):
    """What came before is looked at then; the call has ended all the same."""
    comes_in, raised = interrupt
    broken = Reply([*ENDLESS[:2], ENDLESS[2][:9]], headers=SSE, error=httpx.ReadError("reset"))
    with recorded() as events:
        stream = Wire(broken).client().chat.completions.create(**ASKED, stream=True)
        comes_in(*place)
        with pytest.raises(raised):
            list(stream)
        assert len(events) == 1


@pytest.mark.parametrize("place", [(OpenAICall, "_finish"), (patch, "is_told")], ids=lambda place: place[1])
def test_over_an_error(interrupt, place):
    """The client has raised already: that is what the event tells."""
    comes_in, raised = interrupt
    client = Wire(Reply(b'{"error":{"message":"no"}}', status=400)).client()
    with recorded() as events:
        comes_in(*place)
        with pytest.raises(raised):
            client.chat.completions.create(**ASKED)
    assert [(event.status, event.error_type) for event in events] == [("ERROR", "BadRequestError")]


class _Hand:
    """The variable that says which call is in hand: the signal comes when it is set for the second time."""

    get = in_hand.get

    def __init__(self):
        self.left = 2

    def set(self, call):
        in_hand.set(call)
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGALRM)


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_between_the_answer_and_us(interrupt, monkeypatch, asynchronous):
    """The client has returned, to nobody."""
    _, raised = interrupt
    wire = Wire(Reply(ANSWER))

    async def ask():
        if asynchronous:
            await wire.async_client().chat.completions.create(**ASKED)
        else:
            wire.client().chat.completions.create(**ASKED)

    with recorded() as events:
        monkeypatch.setattr(patch, "in_hand", _Hand())
        with pytest.raises(raised):
            await ask()
    assert len(events) == 1


def test_before_anything_is_sent(interrupt):
    """Then there is no call: nobody is asked."""
    comes_in, raised = interrupt
    wire = Wire(Reply(ANSWER))
    client = wire.client()
    with recorded() as events:
        comes_in(patch, "begin")
        with pytest.raises(raised):
            client.chat.completions.create(**ASKED)
    assert (events, wire.requests) == ([], [])
