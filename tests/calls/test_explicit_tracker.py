"""The explicit form: a tracked view of one client."""

from __future__ import annotations

import asyncio
import copy
import json
from types import SimpleNamespace
from unittest import mock

import openai
import pytest

from fluxgate_mw import FluxGate, context, create_openai_cost_tracker, diagnostics, feature, tracking
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, answer, async_client, obliging, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
AZURE = {"azure_endpoint": "https://acme.openai.azure.com", "api_version": "2024-10-21"}


def _client(**options):
    return sync_client(lambda r: answer(CHAT), **options)


@pytest.fixture(params=[True, False], ids=["patch on", "patch off"])
def tracked(request):
    """A `FluxGate` with the global patch on and with it off, and its events."""
    fg = FluxGate(instrument=request.param)
    with capture_events() as events:
        yield fg, events


def test_one_event_a_call_with_the_patch_on_and_off(tracked):
    """The view counts once either way; the client itself counts only where the patch is on."""
    fg, events = tracked
    client = _client()
    tracker = create_openai_cost_tracker(client, fg)
    completion = tracker.chat.completions.create(**CREATE)
    assert len(events) == 1
    assert tracking(completion).tracking_id == events[0].event_id
    client.chat.completions.create(**CREATE)
    assert len(events) == (2 if fg.settings.instrument else 1)


def test_with_context_gives_a_new_view_merged_over_the_first(tracked):
    """Fields merge, metadata by key; the first view is never changed."""
    fg, events = tracked
    first = create_openai_cost_tracker(_client(), fg).with_context(feature="chat", user="u-1", metadata={"a": 1})
    second = first.with_context(user={"id": "u-2", "name": "Ann"}, metadata={"b": 2}, session_id="s", step="draft")
    second.chat.completions.create(**CREATE)
    first.chat.completions.create(**CREATE)
    told = [(e.feature, e.user.id, e.session_id, e.step, e.metadata, e.user_source) for e in events]
    assert told == [
        ("chat", "u-2", "s", "draft", {"a": 1, "b": 2}, "explicit"),
        ("chat", "u-1", None, None, {"a": 1}, "explicit"),
    ]


def test_the_view_wins_over_the_ambient_context_field_by_field(tracked):
    """What it leaves open comes from the surroundings."""
    fg, events = tracked
    view = create_openai_cost_tracker(_client(), fg).with_context(feature="own")
    with context(user="ambient", conversation_id="c-1", metadata={"m": 1}), feature("covered"):
        view.chat.completions.create(**CREATE)
    event = events[0]
    assert (event.feature, event.feature_source) == ("own", "explicit")
    assert (event.user.id, event.conversation_id, event.metadata) == ("ambient", "c-1", {"m": 1})


def test_resources_that_the_client_had_cached_go_through_the_view(tracked):
    """A client that was used before is no way around the view, raw and streaming resources included."""
    fg, events = tracked
    client = _client()
    cached = client.chat, client.chat.completions, client.with_raw_response, client.with_streaming_response
    assert cached
    view = create_openai_cost_tracker(client, fg).with_context(feature="own")
    view.chat.completions.create(**CREATE)
    view.with_raw_response.chat.completions.create(**CREATE)
    view.chat.completions.with_raw_response.create(**CREATE)
    with view.with_streaming_response.chat.completions.create(**CREATE) as response:
        response.read()
    assert [e.feature for e in events] == ["own"] * 4
    assert client.chat is cached[0]


def test_with_options_and_copy_are_still_views(tracked):
    """The client's own copies keep tracking, recorder and context."""
    fg, events = tracked
    view = create_openai_cost_tracker(_client(), fg).with_context(feature="own")
    view.with_options(timeout=3).chat.completions.create(**CREATE)
    view.copy(max_retries=1).with_context(step="s").chat.completions.create(**CREATE)
    assert [(e.feature, e.step) for e in events] == [("own", None), ("own", "s")]


@pytest.mark.anyio
async def test_async_and_azure_clients(tracked):
    """Every kind of client, plain and streamed."""
    fg, events = tracked
    handler = lambda r: answer(CHAT)  # noqa: E731
    await create_openai_cost_tracker(async_client(handler), fg).chat.completions.create(**CREATE)
    azure = async_client(handler, openai.AsyncAzureOpenAI, **AZURE)
    await create_openai_cost_tracker(azure, fg).with_context(feature="a").chat.completions.create(**CREATE)
    sync_azure = sync_client(handler, openai.AzureOpenAI, **AZURE)
    create_openai_cost_tracker(sync_azure, fg).chat.completions.create(**CREATE)
    streaming = async_client(obliging("Hi"))
    stream = await create_openai_cost_tracker(streaming, fg).chat.completions.create(**CREATE, stream=True)
    assert len([chunk async for chunk in stream]) == 3
    assert [e.provider_name for e in events] == ["openai", "azure", "azure", "openai"]
    assert [e.input_tokens for e in events] == [12] * 4


def test_a_views_type_and_state_are_the_clients(tracked):
    """It is an instance of the client's class with the same connection, key and address."""
    fg, _ = tracked

    class Own(openai.OpenAI):
        """A user's subclass."""

        def answer(self):
            return self.chat.completions.create(**CREATE).choices[0].message.content

    client = sync_client(lambda r: answer(CHAT), Own)
    view = create_openai_cost_tracker(client, fg)
    assert isinstance(view, Own)
    assert (view.api_key, view.base_url, view._client) == (client.api_key, client.base_url, client._client)
    assert view.answer() == "Hello there."


def test_events_go_to_the_trackers_own_fluxgate():
    """With several `FluxGate`s the explicit one gets the event, not the newest."""
    taken = {}
    fgs = [FluxGate(service=name, instrument=False) for name in ("first", "second")]
    for fg in fgs:
        fg.recorder.sink = _Taking(taken.setdefault(fg.settings.service, []))
    create_openai_cost_tracker(_client(), fgs[0]).chat.completions.create(**CREATE)
    create_openai_cost_tracker(_client()).chat.completions.create(**CREATE)
    assert {name: [e.service for e in events] for name, events in taken.items()} == {
        "first": ["first"],
        "second": ["second"],
    }


class _Taking:
    def __init__(self, events):
        self.emit = events.append


def test_a_disabled_fluxgate_is_silent():
    """Nothing is recorded, and the call is what it is."""
    fg = FluxGate(enabled=False)
    with capture_events() as events:
        assert create_openai_cost_tracker(_client(), fg).chat.completions.create(**CREATE).id == "chatcmpl-1"
    assert events == []


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (openai.OpenAI, "the class OpenAI"),
        (openai, "a module"),
        (None, "a NoneType"),
        ("sk-key", "a str"),
        (object(), "a object"),
    ],
)
def test_what_is_no_client_is_refused_at_once(given, what):
    """It says what is expected, and leaves nothing behind: a view of a class kept every later patch from being made."""
    with pytest.raises(ConfigurationError, match=rf"expected a client, such as OpenAI\(\), not {what}$"):
        create_openai_cost_tracker(given)
    FluxGate().stop()


class _Looking:
    """Looks like a client."""

    chat = SimpleNamespace(completions=SimpleNamespace(create=lambda **_: "answer"))


@pytest.mark.parametrize(
    "stand_in",
    [_Looking(), SimpleNamespace(chat=_Looking.chat), mock.MagicMock(), mock.MagicMock(spec=openai.OpenAI)],
    ids=["an object", "a namespace", "a mock", "a mock of a client"],
)
def test_a_stand_in_of_a_users_own_tests_passes(stand_in):
    """What only looks like a client is taken as it is; that nothing of it is tracked is noted."""
    if isinstance(stand_in, mock.MagicMock):
        stand_in.chat = _Looking.chat
    view = create_openai_cost_tracker(stand_in).with_context(user="u-1", feature="own")
    assert view.chat.completions.create(**CREATE) == copy.copy(view).chat.completions.create(**CREATE) == "answer"
    assert diagnostics.counts() == {"tracker_without_client": 1}


def test_a_stand_in_is_entered_and_left_as_itself():
    """Sync and async."""
    stand_in = mock.MagicMock()
    view = create_openai_cost_tracker(stand_in)

    async def entered():
        async with view as same:
            return same

    with view as same:
        assert same is view
    assert asyncio.run(entered()) is view
    stand_in.__exit__.assert_called_once_with(None, None, None)
    stand_in.__aexit__.assert_awaited_once_with(None, None, None)


def test_a_cost_override_of_the_view(tracked):
    """Rates given to the view price its calls."""
    fg, events = tracked
    view = create_openai_cost_tracker(_client(), fg).with_context(
        cost_override={"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 1}
    )
    view.chat.completions.create(**CREATE)
    assert events[0].cost_nanos == 15_000


_KINDS = {
    "OpenAI": (openai.OpenAI, {}),
    "AzureOpenAI": (openai.AzureOpenAI, AZURE),
    "AsyncOpenAI": (openai.AsyncOpenAI, {}),
    "AsyncAzureOpenAI": (openai.AsyncAzureOpenAI, AZURE),
}


def _streamed(client):
    for _ in client.chat.completions.create(**CREATE, stream=True):
        pass


def _streamed_raw(client):
    for _ in client.chat.completions.with_raw_response.create(**CREATE, stream=True).parse():
        pass


def _streaming(client):
    with client.chat.completions.with_streaming_response.create(**CREATE) as response:
        response.parse()


def _left(client):
    with client.chat.completions.create(**CREATE, stream=True) as stream:
        next(iter(stream))


async def _astreamed(client):
    async for _ in await client.chat.completions.create(**CREATE, stream=True):
        pass


async def _astreamed_raw(client):
    async for _ in (await client.chat.completions.with_raw_response.create(**CREATE, stream=True)).parse():
        pass


async def _astreaming(client):
    async with client.chat.completions.with_streaming_response.create(**CREATE) as response:
        await response.parse()


async def _aleft(client):
    async with await client.chat.completions.create(**CREATE, stream=True) as stream:
        await anext(aiter(stream))


_USES = {
    "plain": (lambda c: c.chat.completions.create(**CREATE),) * 2,
    "raw": (lambda c: c.chat.completions.with_raw_response.create(**CREATE),) * 2,
    "a copy": (lambda c: c.with_options(timeout=9).chat.completions.create(**CREATE),) * 2,
    "raw of all": (lambda c: c.with_raw_response.chat.completions.create(**CREATE),) * 2,
    "streamed": (_streamed, _astreamed),
    "streamed raw": (_streamed_raw, _astreamed_raw),
    "streaming": (_streaming, _astreaming),
    "left early": (_left, _aleft),
}


def _either(request):
    return obliging("Hi", "there")(request) if json.loads(request.content).get("stream") else answer(CHAT)


@pytest.mark.anyio
@pytest.mark.parametrize("use", _USES)
@pytest.mark.parametrize("kind", _KINDS)
async def test_every_kind_of_client_in_every_use(tracked, kind, use):
    """One event, with the view's context, by a host's provider; the client that is wrapped stays its own."""
    fg, events = tracked
    client_type, options = _KINDS[kind]
    is_async = kind.startswith("Async")
    client = (async_client if is_async else sync_client)(_either, client_type, **options)
    view = create_openai_cost_tracker(client, fg).with_context(feature="f", user="u")
    assert isinstance(view, client_type)
    used = _USES[use][is_async](view)
    if is_async:
        await used
    [event] = events
    assert (event.feature, event.user.id, event.feature_source, event.user_source) == ("f", "u", "explicit", "explicit")
    assert event.provider_name == ("azure" if options else "openai")
    assert event.status == ("CANCELLED" if use == "left early" else "SUCCESS")
    assert event.usage_source == ("estimated" if use == "left early" else "provider")
    assert type(client) is client_type


class Retrying(openai.OpenAI):
    """A subclass that asks again by itself."""

    def request(self, *args, **kwargs):
        try:
            return super().request(*args, **kwargs)
        except openai.APIStatusError:
            return super().request(*args, **kwargs)


def test_a_subclass_that_asks_again_is_two_events_of_its_view(tracked):
    """Each POST is an event with the view's context, the failed one too."""
    fg, events = tracked
    replies = iter([answer({}, 500), answer(CHAT)])
    view = create_openai_cost_tracker(sync_client(lambda r: next(replies), Retrying), fg).with_context(feature="own")
    view.chat.completions.create(**CREATE)
    assert [(e.feature, e.status, e.input_tokens) for e in events] == [("own", "ERROR", None), ("own", "SUCCESS", 12)]
