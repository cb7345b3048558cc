"""What a tracked view has of its client: the options of this moment, and every kind of call."""

from __future__ import annotations

import functools
import json
from typing import ClassVar

import openai
import pytest

from fluxgate_mw import FluxGate, create_openai_cost_tracker, diagnostics, tracking
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, RESPONSE, answer, async_client, obliging, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
AZURE = {"azure_endpoint": "https://acme.openai.azure.com", "api_version": "2024-10-21"}
VECTORS = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}
QUEUED = {**RESPONSE, "status": "queued", "background": True, "output": [], "usage": None}


@pytest.fixture(params=[True, False], ids=["patch on", "patch off"])
def tracked(request):
    """A `FluxGate` with the global patch on and with it off, and its events."""
    fg = FluxGate(instrument=request.param)
    with capture_events() as events:
        yield fg, events


class Service:
    """Answers everything, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, request):
        self.asked.append(request)
        if "embeddings" in request.url.path:
            return answer(VECTORS)
        if "responses" in request.url.path:
            background = request.method == "POST" and json.loads(request.content).get("background")
            return answer(QUEUED if background else RESPONSE)
        return obliging("Hi")(request) if json.loads(request.content).get("stream") else answer(CHAT)

    def told(self, header):
        return [request.headers.get(header) for request in self.asked]


@pytest.fixture
def service():
    return Service()


def test_a_clients_options_of_this_moment_are_its_views(tracked, service):
    """A key, an organization and an address that are changed later hold for the tracker and every view, used or not."""
    fg, events = tracked
    client = sync_client(service)
    tracker = create_openai_cost_tracker(client, fg)
    tracker.chat.completions.create(**CREATE)
    view = tracker.with_context(feature="f")
    client.api_key, client.organization, client.base_url = "sk-rotated", "org-2", "https://eu.example.com/v1"
    client.timeout, client.max_retries = 7, 5
    for sending in (client, tracker, view):
        sending.chat.completions.create(**CREATE)
    assert service.told("authorization")[1:] == ["Bearer sk-rotated"] * 3
    assert service.told("openai-organization")[1:] == ["org-2"] * 3
    assert [request.url.host for request in service.asked[1:]] == ["eu.example.com"] * 3
    assert (view.api_key, view.timeout, tracker.max_retries) == ("sk-rotated", 7, 5)
    assert len(events) == (4 if fg.settings.instrument else 3)
    assert events[-1].provider_name == "eu.example.com"


@pytest.mark.anyio
async def test_an_azure_clients_token_of_this_moment_is_its_views(tracked, service):
    """As with any other; async too."""
    fg, _ = tracked
    client = async_client(service, openai.AsyncAzureOpenAI, **AZURE)
    view = create_openai_cost_tracker(client, fg).with_context(feature="f")
    client.api_key = "rotated"
    await view.chat.completions.create(**CREATE)
    assert service.told("api-key") == ["rotated"]


def test_what_is_set_on_a_view_is_set_on_the_client(tracked, service):
    """They are one; options of one's own are what `with_options` is for, which leaves both as they are."""
    fg, _ = tracked
    client = sync_client(service)
    view = create_openai_cost_tracker(client, fg).with_context(feature="f")
    other = view.with_options(api_key="sk-other")
    view.api_key = "sk-new"
    assert (client.api_key, other.api_key) == ("sk-new", "sk-other")
    assert other.with_context(step="s").api_key == "sk-other"
    other.with_context(step="s").chat.completions.create(**CREATE)
    assert service.told("authorization") == ["Bearer sk-other"]


class OwnRequest(openai.OpenAI):
    """A subclass that sends in its own way."""

    sent: ClassVar[list[str]] = []

    def request(self, cast_to, options, **kwargs):
        self.sent.append(options.url)
        return super().request(cast_to, options, **kwargs)


def test_a_subclass_with_its_own_request_is_used_once_a_call(tracked, service):
    """By the client's class, and recorded once."""
    fg, events = tracked
    OwnRequest.sent.clear()
    view = create_openai_cost_tracker(sync_client(service, OwnRequest), fg).with_context(feature="f")
    view.chat.completions.create(**CREATE)
    assert OwnRequest.sent == ["/chat/completions"]
    assert [event.feature for event in events] == ["f"]


_ARGUMENTS = {"model": "gpt-4o-mini", "input": "Hi"}
_OTHERS = {
    "responses": lambda c: c.responses.create(**_ARGUMENTS),
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input="Hi"),
    "parse": lambda c: c.beta.chat.completions.parse(**CREATE),
}


@pytest.mark.parametrize("use", _OTHERS)
def test_other_calls_of_a_view(tracked, service, use):
    """One event each, with the view's context and the usage."""
    fg, events = tracked
    view = create_openai_cost_tracker(sync_client(service), fg).with_context(feature="f")
    assert tracking(_OTHERS[use](view)).tracking_id == events[0].event_id
    (event,) = events
    assert (event.feature, event.input_tokens) == ("f", 7 if use == "embeddings" else 12)
    assert event.cost_nanos is not None


def test_a_background_create_of_a_view_ends_with_its_answer(tracked, service):
    """It is one call, of the view that made it, whichever view retrieves it."""
    fg, events = tracked
    tracker = create_openai_cost_tracker(sync_client(service), fg)
    made = tracker.with_context(feature="reports").responses.create(**_ARGUMENTS, extra_body={"background": True})
    assert events == []
    tracker.responses.retrieve(made.id)
    tracker.responses.retrieve(made.id)
    assert [(event.feature, event.input_tokens, event.status) for event in events] == [("reports", 12, "SUCCESS")]


def test_what_is_switched_off_is_not_recorded_elsewhere(service):
    """A tracker of a `FluxGate` that is not enabled records nothing, though another's patch is on."""
    FluxGate()
    off = FluxGate(enabled=False, instrument=False)
    FluxGate()
    client = sync_client(service)
    view = create_openai_cost_tracker(client, off).with_context(feature="f", user="u")
    with capture_events() as events:
        completion = view.chat.completions.create(**CREATE)
        list(view.chat.completions.create(**CREATE, stream=True))
        assert tracking(completion) is None
        assert events == []
        client.chat.completions.create(**CREATE)
        assert len(events) == 1


@pytest.mark.anyio
async def test_what_is_switched_off_is_not_recorded_of_an_async_client_either(service):
    """Its errors pass as well."""
    FluxGate()
    off = FluxGate(enabled=False, instrument=False)
    FluxGate()
    with capture_events() as events:
        await create_openai_cost_tracker(async_client(service), off).chat.completions.create(**CREATE)
        refusing = async_client(lambda r: answer({"error": {"message": "no"}}, 400))
        with pytest.raises(openai.BadRequestError):
            await create_openai_cost_tracker(refusing, off).chat.completions.create(**CREATE)
    assert events == []


def test_a_wrapper_on_the_clients_instance_is_said_to_see_nothing(service):
    """What others put on the instance of a resource is the client's alone; the tracker's call is made and recorded."""
    client = sync_client(service)
    plain = create_openai_cost_tracker(client, FluxGate(instrument=False))
    assert plain.chat.completions.with_raw_response is not client.chat.completions.with_raw_response
    create_openai_cost_tracker(client, FluxGate(instrument=False))
    assert "tracker_without_wrappers" not in diagnostics.counts()
    client.chat.completions.create = functools.partial(client.chat.completions.create)
    with capture_events() as events:
        create_openai_cost_tracker(client, FluxGate(instrument=False)).chat.completions.create(**CREATE)
    assert len(events) == 1
    assert diagnostics.counts()["tracker_without_wrappers"] == 1
