"""Requests by hand, `client.post(...)` and `client.get(...)`, with whatever address they are given."""

from __future__ import annotations

import json

import openai
import pytest

from tests.calls.mocks import CHAT, MESSAGES, RESPONSE, answer, obliging, sync_client

ASKED = {"model": "gpt-4o-mini", "messages": MESSAGES}
QUEUED = {**RESPONSE, "status": "queued", "background": True, "output": [], "usage": None}


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.groq.com/openai/v1/chat/completions", "groq"),
        ("https://openrouter.ai/api/v1/chat/completions", "openrouter"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "google"),
        ("https://api.deepseek.com/chat/completions?trace=1", "deepseek"),
        ("https://llm.example.com:8443/v1/chat/completions", "llm.example.com"),
        ("/chat/completions", "openai"),
        ("chat/completions", "openai"),
    ],
)
def test_a_whole_address_is_recorded_as_the_provider_that_it_names(fg, events, url, provider):
    """It wins over the client's own address; nothing is counted as called past the client."""
    sync_client(lambda r: answer(CHAT)).post(url, cast_to=object, body=dict(ASKED))
    assert [(e.provider_name, e.api_path, e.input_tokens) for e in events] == [(provider, "/chat/completions", 12)]
    assert fg.statistics().notes == {}


def test_the_path_of_a_base_address_may_stand_in_the_request(fg, events):
    """A client of a bare host that is asked with the whole path makes the same call."""
    client = sync_client(lambda r: answer(CHAT), base_url="https://generativelanguage.googleapis.com")
    client.post("/v1beta/openai/chat/completions", cast_to=object, body=dict(ASKED))
    assert [(e.provider_name, e.api_path) for e in events] == [("google", "/chat/completions")]
    assert fg.statistics().notes == {}


@pytest.mark.parametrize("stream", [False, True])
def test_azures_whole_address_on_a_plain_client(events, stream):
    """Its v1 API is known by the address that is asked, and its stream is asked for usage."""
    seen = []

    def handle(request):
        seen.append(request.content)
        return obliging("Hi")(request) if stream else answer(CHAT)

    url = "https://mine.openai.azure.com/openai/v1/chat/completions"
    body = {**ASKED, "stream": True} if stream else ASKED
    asked = {"stream": True, "stream_cls": openai.Stream[object]} if stream else {}
    answered = sync_client(handle).post(url, cast_to=object, body=dict(body), **asked)
    assert len(list(answered)) == (3 if stream else len(CHAT))
    assert (b"include_usage" in seen[0]) is stream
    assert [(e.provider_name, e.input_tokens) for e in events] == [("azure", 12)]


def test_a_stream_whose_body_is_given_beside_is_asked_for_usage_there(events):
    """Where there is no `body`, `extra_json` is all of it."""
    options = {"extra_json": {**ASKED, "stream": True}}
    asked = {"cast_to": object, "stream": True, "stream_cls": openai.Stream[object]}
    answered = sync_client(obliging("Hi")).post("/chat/completions", options=options, **asked)
    assert len(list(answered)) == 3
    assert [(e.request_model, e.input_tokens) for e in events] == [("gpt-4o-mini", 12)]


def test_a_stream_that_is_asked_for_in_bytes_is_recorded(events):
    """What is no JSON of the client's cannot ask for usage; the call is one all the same."""
    content = json.dumps({**ASKED, "stream": True}).encode()
    asked = {"cast_to": object, "stream": True, "stream_cls": openai.Stream[object]}
    answered = sync_client(obliging("Hi")).post("/chat/completions", content=content, **asked)
    assert len(list(answered)) == 3
    assert [(e.status, e.response_model, e.usage_source) for e in events] == [("SUCCESS", CHAT["model"], "none")]


@pytest.mark.parametrize("url", ["responses/resp_1", "/responses/resp_1", "https://api.openai.com/v1/responses/resp_1"])
def test_a_background_create_is_completed_by_a_get_however_it_is_spelled(events, url):
    """With a whole address, with or without a slash."""
    client = sync_client(lambda r: answer(QUEUED if r.method == "POST" else RESPONSE))
    client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    client.get(url, cast_to=object)
    assert [(e.input_tokens, e.output_tokens) for e in events] == [(12, 3)]
