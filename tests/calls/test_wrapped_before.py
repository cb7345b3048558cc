"""What others have wrapped or replaced before us works as without us, and each call is one event all the same."""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FunctionType
from unittest import mock

import openai
import pytest
from openai._base_client import AsyncAPIClient, SyncAPIClient
from openai._resource import SyncAPIResource

from fluxgate_mw import FluxGate, context, create_openai_cost_tracker, diagnostics, instrument_openai, track, tracking
from fluxgate_mw.testing import capture_events
from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, completion, finish, httpx, recorded, sse

ANSWER = json.dumps(completion()).encode()


def replied():
    return Wire(Reply(ANSWER))


class Descriptor:
    """A wrapper as wrapt makes them: bound, it knows whose method it is; called bare, it takes nobody's."""

    def __init__(self, function, seen):
        self.function, self.seen = function, seen
        functools.update_wrapper(self, function)

    def __get__(self, instance, kind=None):
        return functools.partial(self._called, self.function.__get__(instance, kind), instance)

    def __call__(self, *args, **kwargs):
        return self._called(self.function, None, *args, **kwargs)

    def _called(self, wrapped, instance, *args, **kwargs):
        self.seen.append(instance)
        return wrapped(*args, **kwargs)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (httpx.Client, "send"),
        (SyncAPIClient, "request"),
        (SyncAPIClient, "_process_response"),
        (httpx.AsyncClient, "send"),
        (AsyncAPIClient, "request"),
        (AsyncAPIClient, "_process_response"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("tracked", [False, True])
def test_a_wrapper_that_is_a_descriptor_knows_its_instance(monkeypatch, owner, name, tracked):
    """As those of New Relic, Elastic and ddtrace are, which start first."""
    seen = []
    wire = replied()
    made = wire.client() if owner in (httpx.Client, SyncAPIClient) else wire.async_client()
    with monkeypatch.context() as others, ExitStack() as ours:
        others.setattr(owner, name, Descriptor(owner.__dict__[name], seen))
        events = ours.enter_context(recorded())
        client = create_openai_cost_tracker(made) if tracked else made
        answer = client.chat.completions.create(**ASKED)
        if asyncio.iscoroutine(answer):
            asyncio.run(_awaited(answer))
    assert len(events) == 1
    assert len(seen) == 1
    assert isinstance(seen[0], owner)


async def _awaited(value):
    return await value


@pytest.mark.parametrize("late", [False, True])
def test_an_http_client_that_was_replaced_by_a_subclass(monkeypatch, late):
    """As OpenTelemetry's instrumentation of httpx does; its library's own class is looked at all the same."""
    library = sys.modules[httpx.__name__]

    class Instrumented(library.Client):
        pass

    undo = instrument_openai()
    if not late:
        undo()
    monkeypatch.setattr(library, "Client", Instrumented)
    with recorded() as events:
        replied().client().chat.completions.create(**ASKED)
    undo()
    assert len(events) == 1
    assert not [kind for kind in diagnostics.counts() if kind.startswith("bug_")]


def test_what_is_no_class_in_a_library_s_place(monkeypatch):
    """Such an HTTP client is not looked at; nothing else is the worse for it."""
    client = replied().client()
    monkeypatch.setattr(sys.modules[httpx.__name__], "Client", mock.MagicMock())
    with recorded() as events:
        client.chat.completions.create(**ASKED)
    assert len(events) == 1


def test_a_patch_that_fails_midway_leaves_nothing(monkeypatch):
    """The very objects are back, whatever it was."""
    found = SyncAPIClient.request
    monkeypatch.setattr("fluxgate_mw.openai.derived.parsers", mock.Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        instrument_openai()
    assert SyncAPIClient.request is found


@pytest.mark.parametrize("tracked", [False, True])
def test_a_wrapper_that_hands_on_a_copy_of_the_options(monkeypatch, tracked):
    """As one does that adds a header: between two of ours it is one call still."""
    found = SyncAPIClient.request

    def request(self, cast_to, options, **kwargs):
        return patched(self, cast_to, options.model_copy(), **kwargs)

    first = instrument_openai()
    patched = SyncAPIClient.request
    with monkeypatch.context() as others:
        others.setattr(SyncAPIClient, "request", request)
        first()
        with recorded() as events:
            client = replied().client()
            client = create_openai_cost_tracker(client).with_context(feature="own") if tracked else client
            client.chat.completions.create(**ASKED)
    assert [event.feature for event in events] == ["own" if tracked else None]
    SyncAPIClient.request = found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_wrapper_below_that_sends_from_another_thread(monkeypatch, tracked, stream):
    """One POST is one event, of the context that asked for it."""
    found = SyncAPIClient.request

    def request(*args, **kwargs):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(found, *args, **kwargs).result()

    streamed = Reply(sse(chunk("Hi"), chunk(choices=finish())), headers=SSE)
    wire = Wire(streamed if stream else Reply(ANSWER))
    with monkeypatch.context() as others, ExitStack() as ours:
        others.setattr(SyncAPIClient, "request", request)
        events = ours.enter_context(recorded())
        client = create_openai_cost_tracker(wire.client()) if tracked else wire.client()
        with context(feature="own"):
            answer = client.chat.completions.create(**ASKED, stream=stream)
        if stream:
            list(answer)
    assert [(event.feature, event.status) for event in events] == [("own", "SUCCESS")]


def test_a_wrapper_below_that_gives_an_answer_again(monkeypatch):
    """What was sent once is one event."""
    found, kept = SyncAPIClient.request, []

    def request(*args, **kwargs):
        if not kept:
            kept.append(found(*args, **kwargs))
        return kept[0]

    client = replied().client()
    with monkeypatch.context() as others, ExitStack() as ours:
        others.setattr(SyncAPIClient, "request", request)
        events = ours.enter_context(recorded())
        answers = [client.chat.completions.create(**ASKED) for _ in range(3)]
    assert len(events) == 1
    assert {tracking(answer).tracking_id for answer in answers} == {events[0].event_id}


def _served(request):
    if request.method == "GET":
        return httpx.Response(200, json={"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "openai"})
    if request.url.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.1]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        body = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
        return httpx.Response(200, json=body)
    return httpx.Response(200, json=completion())


class Checked(openai.OpenAI):
    """Looks the model up before each call."""

    def request(self, cast_to, options, **kwargs):
        if options.method == "post":
            self.models.retrieve("gpt-4o-mini")
        return super().request(cast_to, options, **kwargs)


class Embeds(openai.OpenAI):
    """Embeds something before each chat."""

    def request(self, cast_to, options, **kwargs):
        if options.url == "/chat/completions":
            self.embeddings.create(input="x", model="text-embedding-3-small")
        return super().request(cast_to, options, **kwargs)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(("kind", "operations"), [(Checked, ["chat"]), (Embeds, ["embeddings", "chat"])])
def test_a_subclass_that_asks_for_something_else_first(kind, operations, tracked):
    """What it asks for is no part of the call, nor the call itself."""
    with recorded() as events:
        client = kind(api_key="k", http_client=httpx.Client(transport=httpx.MockTransport(_served)))
        client = create_openai_cost_tracker(client) if tracked else client
        client.chat.completions.create(**ASKED)
    assert [event.operation_name for event in events] == operations
    assert events[-1].input_tokens == 12


def test_a_wrapper_on_one_client_that_holds_what_was_there():
    """Its calls do not pass our `request`, and are recorded all the same."""
    client = replied().client()
    own = client.request
    client.request = functools.partial(own)
    with recorded() as events:
        client.chat.completions.create(**ASKED)
        client.chat.completions.create(**ASKED)
    assert [event.input_tokens for event in events] == [12, 12]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_wrapper_on_one_client_whose_answer_cannot_be_used(is_async):
    """What the client raises over an answer reaches the caller, and what the answer cost is recorded."""
    wire = Wire(Reply(json.dumps(completion(choices="none")).encode()))
    client = (wire.async_client if is_async else wire.client)(_strict_response_validation=True)
    client.request = functools.partial(client.request)

    def ask():
        asked = client.chat.completions.create(**ASKED)
        return asyncio.run(asked) if is_async else asked

    with recorded() as events, pytest.raises(openai.APIResponseValidationError):
        ask()
    assert [(e.status, e.error_type, e.http_status, e.input_tokens) for e in events] == [
        ("ERROR", "APIResponseValidationError", 200, 12)
    ]


def test_a_call_inside_of_track_where_an_undo_took_ours_away():
    """It is recorded beside the block's own."""
    found = SyncAPIClient.request
    client = replied().client()
    with recorded() as events:
        SyncAPIClient.request = found
        with track():
            client.chat.completions.create(**ASKED)
    assert [event.api_path for event in events] == ["/chat/completions", None]


def test_a_tracker_of_a_client_with_a_wrapper_of_its_own():
    """The wrapper sees nothing of it, which is noted; the call is recorded."""
    client = replied().client()
    own = client.request
    client.request = functools.partial(own)
    with capture_events() as events:
        tracker = create_openai_cost_tracker(client, FluxGate(instrument=False))
        for _ in range(3):
            tracker.chat.completions.create(**ASKED)
            tracker.completions.create(model="gpt-3.5-turbo-instruct", prompt="x")
    assert len(events) == 6
    assert diagnostics.counts()["tracker_without_wrappers"] == 1


def test_a_tracker_keeps_what_else_was_put_on_its_client():
    """Only what sends is left: a hook that prepares requests belongs to the view's calls, too."""
    client, prepared = replied().client(), []
    client._prepare_request = prepared.append
    create_openai_cost_tracker(client).chat.completions.create(**ASKED)
    assert len(prepared) == 1


class Helped(openai.OpenAI):
    """Has something of its own that holds it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.helper = mock.Mock(_client=self)


def test_a_tracker_leaves_what_a_subclass_has_of_its_own():
    """Only the client's own resources are made anew for a view."""
    client = replied().client(Helped)
    assert create_openai_cost_tracker(client).helper is client.helper


def test_a_tracker_of_a_view_keeps_its_context():
    """And its recorder, where no other is named."""
    first = create_openai_cost_tracker(replied().client(), FluxGate(instrument=False)).with_context(feature="own")
    with capture_events() as events:
        create_openai_cost_tracker(first).chat.completions.create(**ASKED)
    assert [event.feature for event in events] == ["own"]


def test_what_stands_for_a_resource_is_left_and_noted():
    """As PostHog's client has it: it works as without a tracker and sends through the client, not in silence."""

    class Own(openai.OpenAI):
        def __init__(self, **options):
            super().__init__(**options)
            self.chat = mock.Mock(completions=self.chat.completions)

    with capture_events() as events:
        tracker = create_openai_cost_tracker(replied().client(Own), FluxGate(instrument=False))
        answer = tracker.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content == "This is a test."
    assert (events, tracking(answer)) == ([], None)
    assert diagnostics.counts()["tracker_without_resource"] == 1


def test_what_is_no_answer_has_no_tracking():
    """However it answers to whatever it is asked for."""
    assert tracking(mock.MagicMock()) is None
    assert tracking(mock.Mock(spec=["_raw_stream"], _raw_stream=mock.MagicMock())) is None


def test_a_resource_class_tells_its_other_bases_of_itself():
    """`__init_subclass__` of the next in line is called, as without us."""
    known = []

    class Registry:
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            known.append(cls.__name__)

    with recorded():
        type("Registered", (SyncAPIResource, Registry), {})
    assert known == ["Registered"]


def test_a_client_class_of_ones_own_can_be_sent_to_another_process():
    """By value, as `cloudpickle` sends what a script or a notebook defines: with all that our wrapper on it holds."""

    class Own(openai.OpenAI):
        def request(self, *args, **kwargs):
            return super().request(*args, **kwargs)

    with recorded():
        held = [cell.cell_contents for cell in Own.request.__closure__]
    held = [value for value in held if not isinstance(value, FunctionType)]
    assert [pickle.loads(pickle.dumps(value)) for value in held] == held
