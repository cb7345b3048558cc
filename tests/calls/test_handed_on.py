"""A subclass whose `request` asks another client, or asks several times: each POST is one event, and no more."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from fluxgate_mw import FluxGate, create_openai_cost_tracker, tracking
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import CHAT, MESSAGES, answer, async_client, dumped, http, obliging, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
GROQ = "https://api.groq.com/openai/v1"


class Routed(openai.OpenAI):
    """Hands on to another client whatever it is asked."""

    inner: openai.OpenAI

    def request(self, cast_to, options, **kwargs):
        return self.inner.request(cast_to, options, **kwargs)


class AsyncRouted(openai.AsyncOpenAI):
    """Does the same, asynchronously."""

    inner: openai.AsyncOpenAI

    async def request(self, cast_to, options, **kwargs):
        return await self.inner.request(cast_to, options, **kwargs)


class Fallback(openai.OpenAI):
    """Asks another provider where the first one fails."""

    def request(self, cast_to, options, **kwargs):
        try:
            return super().request(cast_to, options, **kwargs)
        except openai.APIStatusError:
            return self.with_options(base_url=GROQ).request(cast_to, options, **kwargs)


class Insistent(openai.OpenAI):
    """Asks again by itself."""

    def request(self, cast_to, options, **kwargs):
        try:
            return super().request(cast_to, options, **kwargs)
        except openai.APIStatusError:
            return super().request(cast_to, options, **kwargs)


class Threaded(openai.OpenAI):
    """Asks from a thread of its own, which knows nothing of the context."""

    def request(self, *args, **kwargs):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().request, *args, **kwargs).result()


class Hedged(openai.AsyncOpenAI):
    """Asks twice at once."""

    async def request(self, *args, **kwargs):
        first, _ = await asyncio.gather(super().request(*args, **kwargs), super().request(*args, **kwargs))
        return first


class Cached(openai.OpenAI):
    """Gives again what was answered before."""

    kept = None

    def request(self, *args, **kwargs):
        self.kept = self.kept or super().request(*args, **kwargs)
        return self.kept


def _routed(handler, kind=Routed, client=sync_client):
    outer = client(lambda r: pytest.fail("the outer client sends nothing"), kind)
    outer.inner = client(handler, base_url=GROQ)
    return outer


def _read(answered, *, stream):
    """Read what the caller gets: the three chunks of "Hi", or the completion."""
    if stream:
        assert [c["choices"][0]["delta"].get("content") for c in dumped(answered)] == ["", "Hi", None]
    else:
        assert answered.model_dump(exclude_unset=True) == CHAT


def _told(events):
    return [(e.provider_name, e.status, e.http_status, e.input_tokens, e.output_tokens) for e in events]


def _fails_at(host, then):
    return lambda r: answer({"error": {"message": "no"}}, 500) if host in str(r.url) else then(r)


def test_what_is_handed_on_is_one_event_of_the_client_that_sends(events):
    """One POST is one event, by the provider that was asked, and what the caller gets knows it."""
    completion = _routed(lambda r: answer(CHAT)).chat.completions.create(**CREATE)
    assert _told(events) == [("groq", "SUCCESS", 200, 12, 3)]
    assert tracking(completion).tracking_id == events[0].event_id


@pytest.mark.anyio
async def test_what_an_async_client_hands_on_is_one_event(events):
    """As with a synchronous client."""
    await _routed(lambda r: answer(CHAT), AsyncRouted, async_client).chat.completions.create(**CREATE)
    assert _told(events) == [("groq", "SUCCESS", 200, 12, 3)]


def test_a_plain_text_that_is_handed_on_is_one_event(events):
    """Also where the answer is a `str`, which cannot say whose it is."""
    client = _routed(lambda r: http.Response(200, headers={"content-type": "text/plain"}, text="Hello"))
    asked = {"model": "whisper-1", "file": ("a.wav", b"sound"), "response_format": "text"}
    assert client.audio.transcriptions.create(**asked) == "Hello"
    assert [(e.operation_name, e.provider_name) for e in events] == [("transcription", "groq")]


def test_what_fails_where_it_was_handed_on_is_one_event(events):
    """The error is recorded once."""
    with pytest.raises(openai.InternalServerError):
        _routed(_fails_at("groq", obliging)).chat.completions.create(**CREATE)
    assert _told(events) == [("groq", "ERROR", 500, None, None)]


def test_a_stream_that_is_handed_on_is_one_event_and_the_caller_sees_no_more_of_it(events):
    """Its usage is asked for and hidden by the client that sends; the caller gets what he gets without us."""
    chunks = _routed(obliging("Hello", " there")).chat.completions.create(**CREATE, stream=True)
    shown = dumped(chunks)
    assert [c["choices"][0]["delta"].get("content") for c in shown] == ["", "Hello", " there", None]
    assert [(e.input_tokens, e.usage_source) for e in events] == [(12, "provider")]


@pytest.mark.parametrize("own", [{}, {"stream_options": {"include_obfuscation": False}}])
def test_a_provider_that_is_handed_a_stream_is_asked_for_usage_only_where_it_accepts_that(events, own):
    """What was asked of the first provider on the caller's behalf is not asked of one that may refuse it."""
    seen = []

    def handle(request):
        seen.append(json.loads(request.content).get("stream_options"))
        return obliging("Hi")(request)

    client = _routed(handle)
    client.inner = client.inner.with_options(base_url="https://api.deepseek.com")
    assert len(list(client.chat.completions.create(**CREATE, stream=True, **own))) == 3
    assert seen == [own.get("stream_options")]
    assert [e.provider_name for e in events] == ["deepseek"]


def test_a_wrapper_that_had_taken_the_librarys_own_request_before_us_is_asked_for_usage(monkeypatch):
    """Then the last wrapper of ours is never asked: the stream's usage is asked for further out."""
    found = openai.OpenAI.request

    def request(client, *args, **kwargs):
        return found(client, *args, **kwargs)

    monkeypatch.setattr(openai.OpenAI, "request", request, raising=False)
    fg = FluxGate()
    with capture_events() as events:
        assert len(list(sync_client(obliging("Hi")).chat.completions.create(**CREATE, stream=True))) == 3
    assert [(e.input_tokens, e.usage_source) for e in events] == [(12, "provider")]
    fg.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_is_two_events(events, stream):
    """The first POST is recorded as it failed, the second one as the other provider's answer."""
    client = sync_client(_fails_at("openai.com", _either), Fallback)
    answered = client.chat.completions.create(**CREATE, stream=stream)
    _read(answered, stream=stream)
    assert _told(events) == [("openai", "ERROR", 500, None, None), ("groq", "SUCCESS", 200, 12, 3)]


def test_a_subclass_that_asks_again_is_two_events(events):
    """Two POSTs are two events, whoever repeats."""
    replies = iter([answer({}, 500), answer(CHAT)])
    sync_client(lambda r: next(replies), Insistent).chat.completions.create(**CREATE)
    assert _told(events) == [("openai", "ERROR", 500, None, None), ("openai", "SUCCESS", 200, 12, 3)]


def test_a_call_that_fails_after_another_client_was_asked_inside_of_it_is_an_event_too(events):
    """A transport that asks a model first makes two POSTs, though the second one brings no answer."""
    guard = sync_client(lambda r: answer(CHAT))

    def asking(request):
        guard.chat.completions.create(**CREATE)
        return answer({}, 500)

    with pytest.raises(openai.InternalServerError):
        sync_client(asking).chat.completions.create(**CREATE)
    assert [e.status for e in events] == ["SUCCESS", "ERROR"]


@pytest.mark.parametrize("patched", [True, False], ids=["patch on", "patch off"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tracker_over_a_client_that_hands_on_is_one_event_with_the_views_context(patched, stream):
    """Whoever sends, the call is the view's, and its stream is what it is without us."""
    fg = FluxGate(instrument=patched)
    view = create_openai_cost_tracker(_routed(_either), fg).with_context(feature="own")
    with capture_events() as events:
        answered = view.chat.completions.create(**CREATE, stream=stream)
        _read(answered, stream=stream)
    assert [(e.feature, e.input_tokens, e.usage_source) for e in events] == [("own", 12, "provider")]
    fg.stop()


@pytest.mark.parametrize("patched", [True, False], ids=["patch on", "patch off"])
def test_a_tracker_over_a_fallback_keeps_its_context(patched):
    """The copy that asks the other provider is a view too."""
    fg = FluxGate(instrument=patched)
    view = create_openai_cost_tracker(sync_client(_fails_at("openai.com", _either), Fallback), fg)
    with capture_events() as events:
        view.with_context(feature="own").chat.completions.create(**CREATE)
    assert {e.feature for e in events} == {"own"}
    assert [(e.provider_name, e.status) for e in events][-1] == ("groq", "SUCCESS")
    fg.stop()


def _either(request):
    return obliging("Hi")(request) if json.loads(request.content).get("stream") else answer(CHAT)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("patched", [True, False])
def test_what_is_asked_twice_at_once_is_two_events(tracked, patched):
    """Two POSTs are two events, though they have the same arguments and are on their way together."""
    fg, posts = FluxGate(instrument=patched), []

    def handle(request):
        posts.append(request)
        return answer(CHAT)

    client = async_client(handle, Hedged)
    client = create_openai_cost_tracker(client, fg) if tracked else client
    with capture_events() as events:
        answered = asyncio.run(client.chat.completions.create(**CREATE))
    assert len(posts) == 2
    assert [e.input_tokens for e in events] == ([12, 12] if tracked or patched else [])
    assert not events or tracking(answered).tracking_id in {e.event_id for e in events}
    assert len({e.event_id for e in events}) == len(events)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_asked_from_another_thread_is_one_event(fg, events, stream, tracked):
    """One POST is one event, also where the thread that sends it does not know of the call."""
    client = sync_client(_either, Threaded)
    client = create_openai_cost_tracker(client, fg) if tracked else client
    answered = client.chat.completions.create(**CREATE, stream=stream)
    _read(answered, stream=stream)
    assert [(e.status, e.input_tokens) for e in events] == [("SUCCESS", 12)]
    assert tracking(answered).tracking_id == events[0].event_id


@pytest.mark.parametrize("tracked", [False, True])
def test_what_fails_in_another_thread_is_one_event(fg, events, tracked):
    """And so is one that is refused."""
    client = sync_client(lambda r: answer({}, 500), Threaded)
    client = create_openai_cost_tracker(client, fg) if tracked else client
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**CREATE)
    assert [(e.status, e.http_status) for e in events] == [("ERROR", 500)]


@pytest.mark.parametrize("tracked", [False, True])
def test_an_answer_that_a_client_gives_again_is_no_other_call(fg, events, tracked):
    """What comes from a subclass's own cache costs nothing (langfuse#2112)."""
    client = sync_client(lambda r: answer(CHAT), Cached)
    client = create_openai_cost_tracker(client, fg) if tracked else client
    first, second = (client.chat.completions.create(**CREATE) for _ in range(2))
    assert first is second
    assert [e.input_tokens for e in events] == [12]
