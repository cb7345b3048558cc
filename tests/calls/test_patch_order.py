"""Beside other instrumentations, before and after us, in any order of undo."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import itertools

import openai
import pytest
from openai._base_client import AsyncAPIClient, SyncAPIClient

from fluxgate_mw import FluxGate, create_openai_cost_tracker, instrument_openai, uninstrument_openai
from fluxgate_mw.errors import InstrumentationError
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, RESPONSE, answer, chat_events, http, streamed, sync_client
from tests.calls.service import Service
from tests.calls.service import sync_client as service_client

FOUND = SyncAPIClient.__dict__["request"]


def test_a_client_of_unknown_shape_is_left_as_it_is(monkeypatch):
    """Nothing is patched where half of it could not be, and what to say is in the error."""
    with monkeypatch.context() as patched:
        patched.delattr(AsyncAPIClient, "request")
        with pytest.raises(InstrumentationError, match=r"AsyncAPIClient has no request method; nothing was patched"):
            instrument_openai()
        assert SyncAPIClient.__dict__["request"] is FOUND


class Other:
    """Another instrumentation that wraps the same method, as logfire and others do, and puts back what it found."""

    def __init__(self, owner=SyncAPIClient):
        self.owner = owner
        self.seen = 0
        self.found = None

    def instrument(self):
        self.found = self.owner.__dict__.get("request")
        inner = self.owner.request

        @functools.wraps(inner)
        def request(client, *args, **kwargs):
            self.seen += 1
            return inner(client, *args, **kwargs)

        self.owner.request = request

    def undo(self):
        if self.found is None:
            del self.owner.request
        else:
            self.owner.request = self.found


def _call():
    return sync_client(lambda r: answer(CHAT)).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)


@pytest.mark.parametrize("on_subclass", [False, True], ids=["base class", "subclass"])
@pytest.mark.parametrize("ours_first", [False, True], ids=["after us", "before us"])
@pytest.mark.parametrize("ours_undone_first", [False, True], ids=["undone last", "undone first"])
def test_any_order_sees_each_call_once_and_restores_the_objects_found(on_subclass, ours_first, ours_undone_first):
    """Both see a call once while both are on; after both are off and one more call, the very object is back."""
    other = Other(openai.OpenAI if on_subclass else SyncAPIClient)
    if ours_first:
        undo = instrument_openai()
        other.instrument()
    else:
        other.instrument()
        undo = instrument_openai()
    with capture_events() as events:
        _call()
        assert (len(events), other.seen) == (1, 1)
        if ours_undone_first:
            undo()
            _call()
            assert (len(events), other.seen) == (1, 2)
            other.undo()
        else:
            other.undo()
            undo()
        _call()
    assert len(events) == 1
    assert SyncAPIClient.__dict__["request"] is FOUND
    assert "request" not in openai.OpenAI.__dict__


def test_every_order_of_our_own_undos_leaves_the_patch_until_the_last():
    """Each undo takes back its own request, twice is once, and the last one restores."""
    for order in itertools.permutations(range(3)):
        undos = [instrument_openai() for _ in range(3)]
        for left, index in enumerate(order):
            assert SyncAPIClient.__dict__["request"] is not FOUND, left
            undos[index]()
            undos[index]()
        assert SyncAPIClient.__dict__["request"] is FOUND


def test_uninstrument_removes_the_patch_whoever_asked():
    """A later undo or stop is then a no-op, and does not undo a newer request."""
    undo, fg = instrument_openai(), FluxGate()
    uninstrument_openai()
    assert SyncAPIClient.__dict__["request"] is FOUND
    newer = instrument_openai()
    undo()
    fg.stop()
    assert SyncAPIClient.__dict__["request"] is not FOUND
    newer()
    assert SyncAPIClient.__dict__["request"] is FOUND


def _swapped(response, names):
    """Swap the response's class as another instrumentation would, noting what it sees."""
    base = type(response)

    class Swapped(base):
        def iter_bytes(self, *args, **kwargs):
            names.append("seen")
            return super().iter_bytes(*args, **kwargs)

    response.__class__ = Swapped
    return base


@pytest.mark.parametrize("they_undo", [False, True], ids=["they stay", "they put back"])
def test_a_response_whose_class_another_swaps_after_us(they_undo, events):
    """Both see the stream, it ends as one event, and the class that they put back is the one they found."""
    names = []
    stream = sync_client(lambda r: streamed(chat_events("Hi"))).chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True
    )
    base = _swapped(stream.response, names)
    if they_undo:
        stream.response.__class__ = base
    assert [c.choices[0].delta.content for c in stream] == ["", "Hi", None]
    assert len(names) == (0 if they_undo else 1)
    assert [e.status for e in events] == ["SUCCESS"]


def test_a_response_whose_class_another_swapped_before_us_and_puts_back_under_us(events):
    """Where they take our class away with theirs, the stream works on and ends as exactly one event."""
    found = {}
    inner = SyncAPIClient.__dict__["_process_response"]

    def swapping(client, **kwargs):
        found["base"] = _swapped(kwargs["response"], [])
        return inner(client, **kwargs)

    client = sync_client(lambda r: streamed(chat_events("Hi")))
    client._process_response = functools.partial(swapping, client)
    stream = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
    stream.response.__class__ = found["base"]
    assert len(list(stream)) == 3
    del stream
    gc.collect()
    assert len(events) == 1


def test_a_stream_in_flight_when_the_patch_is_taken_back(events):
    """It goes on, ends as its event, and its response is of the library's own class afterwards."""
    stream = sync_client(lambda r: streamed(chat_events("a", "b"))).chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True
    )
    next(stream)
    uninstrument_openai()
    assert len(list(stream)) == 3
    assert [e.status for e in events] == ["SUCCESS"]
    assert type(stream.response).__module__.startswith("httpx")
    assert type(stream.response).__dict__.get("__reduce_ex__") is None


@pytest.mark.parametrize("patched", [True, False], ids=["with the patch", "without"])
def test_a_tracker_counts_once_beside_another_instrumentation(patched):
    """A tracked view, the patch and another wrapper together see one call once each."""
    other = Other()
    other.instrument()
    fg = FluxGate(instrument=patched)
    tracker = create_openai_cost_tracker(sync_client(lambda r: answer(CHAT)), fg)
    with capture_events() as events:
        tracker.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert (len(events), other.seen) == (1, 1)
    fg.stop()
    other.undo()


class Gateway(openai.OpenAI):
    """A subclass with a `request` of its own."""

    def request(self, *args, **kwargs):
        return super().request(*args, **kwargs)


def test_a_subclass_with_its_own_request_defined_before_or_after_the_patch(events):
    """It is one event a call either way."""

    class Late(openai.OpenAI):
        def request(self, *args, **kwargs):
            return super().request(*args, **kwargs)

    for kind in (Gateway, Late):
        client = sync_client(lambda r: answer(CHAT), kind)
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert len(events) == 2


def test_a_call_made_by_another_client_inside_a_call_is_an_event_of_its_own(events):
    """A transport that asks another model first makes two calls: two POSTs are two events."""
    inner = sync_client(lambda r: answer(CHAT))

    def asking(request):
        inner.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        return answer(CHAT)

    sync_client(asking).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert [e.request_model for e in events] == ["gpt-4o", "gpt-4o-mini"]


def test_a_call_that_is_given_up_inside_of_another_takes_nothing_from_it(events):
    """Whose task is gone is finalised wherever that happens: inside of a call of another context, for one."""

    async def closing(request):
        given_up.close()
        return answer(CHAT)

    async def waiting(request):
        await asyncio.Event().wait()

    def asked(handler):
        client = http.AsyncClient(transport=http.MockTransport(handler))
        completions = openai.AsyncOpenAI(api_key="sk-unused", max_retries=0, http_client=client).chat.completions
        return completions.create(model="gpt-4o-mini", messages=MESSAGES)

    async def both():
        contextvars.copy_context().run(given_up.send, None)
        await asked(closing)

    given_up = asked(waiting)
    asyncio.run(both())
    assert [(e.status, e.http_status, e.input_tokens) for e in events] == [
        ("CANCELLED", None, None),
        ("SUCCESS", 200, 12),
    ]


@pytest.mark.parametrize("patched", [True, False], ids=["patch on", "patch off"])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_made_by_the_same_client_inside_a_call_is_an_event_of_its_own(patched, tracked, stream):
    """A guard in the client's own `_prepare_options` makes two POSTs, and so does one in a hook of its HTTP client."""

    class Guarded(openai.OpenAI):
        def _prepare_options(self, options):
            if options.url == "/chat/completions":
                self.moderations.create(input="is this harmful?", model="omni-moderation-latest")
            return super()._prepare_options(options)

    fg = FluxGate(instrument=patched)
    service = Service()
    client = service_client(service, Guarded)
    client = create_openai_cost_tracker(client, fg) if tracked else client
    with capture_events() as events:
        answered = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=stream)
        assert [path for _, path, _ in service.requests] == ["/moderations", "/chat/completions"]
        assert not stream or list(answered)
    expected = [("moderation", None), ("chat", 20)] if patched or tracked else []
    assert [(e.operation_name, e.input_tokens) for e in events] == expected
    fg.stop()


def test_what_is_got_inside_a_call_is_not_its_answer(events):
    """A call that fails after a hook of its client has got another's answer has not that one's usage."""

    class Looking(openai.OpenAI):
        def _prepare_options(self, options):
            if options.method == "post":
                self.responses.retrieve("resp_1")
            return super()._prepare_options(options)

    def serve(request):
        if request.method == "POST":
            raise http.ConnectError("refused")
        return answer(RESPONSE)

    with pytest.raises(openai.APIConnectionError):
        sync_client(serve, Looking).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert [(e.status, e.http_status, e.input_tokens, e.usage_source) for e in events] == [
        ("ERROR", None, None, "none")
    ]


def _traced(function):
    @functools.wraps(function)
    def traced(*args, **kwargs):
        return function(*args, **kwargs)

    return traced


def _events_of(count, client):
    with capture_events() as events:
        for _ in range(count):
            assert len(list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))) == 3
    return events


def _served(**options):
    return FluxGate(**options), sync_client(lambda r: streamed(chat_events("Hi")))


def test_an_undo_that_takes_the_outermost_layer_for_its_own_takes_its_own():
    """An undo as ddtrace's puts back what the outermost wrapper says it wraps: calls stay whole, all is restored."""
    found = SyncAPIClient.__dict__["_process_response"]
    SyncAPIClient._process_response = _traced(found)
    fg, client = _served()
    SyncAPIClient._process_response = SyncAPIClient._process_response.__wrapped__
    assert [(event.status, event.http_status) for event in _events_of(2, client)] == [("SUCCESS", 200)] * 2
    fg.stop()
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True).close()
    assert SyncAPIClient.__dict__["_process_response"] is found


def test_an_undo_that_puts_what_was_inherited_on_the_class_takes_no_call_away():
    """An undo as logfire's sets the method that it found below ours on the client's class: each call is an event."""
    openai.OpenAI.request = _traced(openai.OpenAI.request)
    fg, client = _served()
    openai.OpenAI.request = FOUND
    assert len(_events_of(2, client)) == 2
    fg.stop()
    assert len(_events_of(1, client)) == 0
    assert openai.OpenAI.request is FOUND
    del openai.OpenAI.request


@pytest.mark.parametrize("name", ["request", "_process_response"])
def test_ours_that_another_leaves_behind_is_gone_after_the_next_call(name):
    """What it found was ours, on a class above: once we are off, the next call puts back what was there before us."""
    found = getattr(openai.OpenAI, name)
    fg, client = _served()
    setattr(openai.OpenAI, name, getattr(openai.OpenAI, name))
    fg.stop()
    assert len(_events_of(1, client)) == 0
    assert getattr(openai.OpenAI, name) is found
    delattr(openai.OpenAI, name)
