"""What of a refusal is kept: what the provider says as its message, and no body that may echo the prompt.

FastAPI-based servers (vLLM, LiteLLM) answer 422 with the input in it, which older clients make the error's message.
Others repeat the prompt in the message itself: what they repeat of it is taken out.
"""

from __future__ import annotations

import asyncio
import html
import json
import time
from urllib.parse import quote

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw import diagnostics
from fluxgate_mw.openai.failure import MOST_CHARS, MOST_TEXTS, SHORTEST_ECHO, kept_message
from tests.calls.clients import ASKED, JSON, SSE, Asked, Reply, Wire, chunk, recorded, sse

BODIES = {
    "text": b"you asked: my secret",
    "html": b"<html><p>my secret</p></html>",
    "detail": json.dumps({"detail": [{"loc": ["body"], "msg": "bad", "input": "my secret"}]}).encode(),
    "a list": json.dumps(["my secret"]).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_body_of_a_refusal_is_no_message(name):
    """What is not said as an error's message is not kept as one."""
    with recorded() as events:
        Asked("chat.completions", ASKED).plain(Wire(Reply(BODIES[name], status=422)))
    assert events[0].http_status == 422
    assert "secret" not in (events[0].error_message or "")


SECRETS = {
    "short": "PIN 4471",
    "apostrophes": "I'm Bob's friend, it's about Ann's test; she'd kill me if they'd know I'd told",
    "both quotes": """He said "it's 4471" and left""",
    "lines": "my diary\n\tof \\ today: 4471",
    "other scripts": "\u00fcber \U0001f600 das Geheimnis \u2014 4471",
    "blanks around": "  my secret diary 4471\n",
    "long": "my secret diary says 4471 " * 500,
}
ECHOES = {
    "bare": "Could not process prompt: {}",
    "in quotes": "Invalid value: '{}'. Supported values are: 'a', 'b'.",
    "in curly quotes": "The prompt \u201c{}\u201d was refused",
    "twice": "{} is not {}",
}
FORMS = {
    "as it is": str,
    "as JSON": lambda text: json.dumps({"role": "user", "content": text}),
    "as JSON of UTF-8": lambda text: json.dumps([text], ensure_ascii=False),
    "as Python": lambda text: repr([{"role": "user", "content": text}]),
    "as JSON in JSON": lambda text: json.dumps(json.dumps([text])),
    "as HTML": html.escape,
    "in an address": lambda text: f"https://example.test/?q={quote(text)}",
    "with its blanks run together": lambda text: " ".join(text.split()),
    "stripped": str.strip,
}


def _is_told(secret, message):
    """Say whether any words of it are in a message."""
    return any(word in message for word in ("4471", "diary", "Bob", "told", "Geheimnis", secret[:8]))


def _said(kind, **part):
    return [{"role": "user", "content": [{"type": kind, **part}]}]


def _refused(arguments, message, resource="chat.completions", way="plain"):
    """Return what is kept of a refusal with this message."""
    fault = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    with recorded() as events:
        getattr(Asked(resource, arguments), way)(Wire(Reply(json.dumps(fault).encode(), status=400)))
    return events[0].error_message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("name", SECRETS)
def test_what_a_message_repeats_of_the_prompt_is_not_kept(name, echo, form):
    """However it quotes or escapes it; what it says beside stays."""
    secret = SECRETS[name]
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": secret}]
    said = ECHOES[echo].format(*[FORMS[form](secret)] * 2)
    kept = _refused({**ASKED, "messages": messages}, said)
    assert not _is_told(secret, kept)
    assert ECHOES[echo].partition("{}")[0] in kept


@pytest.mark.parametrize(
    ("resource", "arguments"),
    [
        ("chat.completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "my diary 4471"}]}]}),
        ("responses", {"input": "my diary 4471"}),
        ("responses", {"input": "Hi", "instructions": "my diary 4471"}),
        ("completions", {"prompt": ["Hi", "my diary 4471"]}),
        ("embeddings", {"input": ["Hi", "my diary 4471"]}),
        ("images.generate", {"prompt": "my diary 4471"}),
    ],
)
def test_a_prompt_of_any_kind_is_not_kept(resource, arguments):
    """Whatever a resource calls it."""
    call, message = {"model": "m", **arguments}, "This is not allowed: my diary 4471"
    if resource == "images.generate":
        fault = json.dumps({"error": {"message": message}}).encode()
        with recorded() as events, pytest.raises(Exception, match="4471"):
            Wire(Reply(fault, status=400)).client().images.generate(**call)
        assert events[0].error_message == "This is not allowed: …"
    else:
        assert _refused(call, message, resource) == "This is not allowed: …"


FILE = "files.example.test/bob-miller.png?signature=4471"
TOOL = {"type": "function", "function": {"name": "note_down", "description": "What Bob has", "parameters": {}}}


@pytest.mark.parametrize(
    ("resource", "arguments", "said", "kept"),
    [
        ("chat.completions", {"messages": _said("image_url", image_url={"url": FILE})}, FILE, "…"),
        ("chat.completions", {"messages": _said("file", file={"filename": "bob-miller.pdf"})}, "bob-miller.pdf", "…"),
        ("responses", {"input": _said("input_image", image_url=FILE)}, FILE, "…"),
        ("chat.completions", {**ASKED, "tools": [TOOL]}, "What Bob has", "…"),
        ("chat.completions", {**ASKED, "metadata": {"case": "Bob Miller"}}, "Bob Miller", "…"),
        ("chat.completions", {**ASKED, "tools": [TOOL]}, "note_down", "note_down"),
    ],
    ids=["image", "file", "image of the responses API", "tool", "metadata", "a function's name stays"],
)
def test_no_address_or_name_of_a_file_is_kept(resource, arguments, said, kept):
    """What the caller wrote beside his texts is his own too (openai/openai-python#2776 repeats an image's address)."""
    assert _refused({"model": "m", **arguments}, f"Cannot read {said} now", resource) == f"Cannot read {kept} now"


@pytest.mark.parametrize("way", ["plain", "asynchronous", "a stream"])
@pytest.mark.parametrize("key", ["my-vllm-token-1234567890", "0123456789abcdef0123456789abcdef"])
def test_the_key_that_was_sent_is_not_kept(key, way):
    """Whatever it looks like: providers repeat the key that they refuse."""
    fault = {"error": {"message": f"The key {key} is not known", "code": "no"}}
    replies = [Reply(json.dumps(fault).encode(), status=401), Reply(sse(chunk("Hi"), fault), headers=SSE)]
    wire = Wire(replies[way == "a stream"])

    def ask():
        if way == "asynchronous":
            asyncio.run(wire.async_client(api_key=key).chat.completions.create(**ASKED))
        list(wire.client(api_key=key).chat.completions.create(**ASKED, stream=way == "a stream"))

    with recorded() as events, pytest.raises(openai.APIError):
        ask()
    assert [event.error_message for event in events] == ["The key *** is not known"]


def test_the_key_of_an_azure_client_is_not_kept():
    """It has a header of its own."""
    fault = json.dumps({"error": {"message": "The key 0123456789abcdef is not known"}}).encode()
    wire = Wire(Reply(fault, status=401))
    azure = {
        "azure_endpoint": "https://acme.openai.azure.com",
        "api_version": "2025-01-01",
        "api_key": "0123456789abcdef",
    }
    with recorded() as events, pytest.raises(openai.AuthenticationError):
        wire.client(openai.AzureOpenAI, **azure).chat.completions.create(**ASKED)
    assert [event.error_message for event in events] == ["The key *** is not known"]


def test_the_beginning_of_a_text_is_not_kept_either():
    """A message that breaks the prompt off after a while repeats it all the same."""
    secret = "my secret diary says that the number is 4471"
    kept = _refused({**ASKED, "messages": [{"role": "user", "content": secret}]}, f"No: {secret[:30]}... is bad")
    assert kept == "No: …... is bad"


def test_what_is_repeated_by_chance_stays():
    """Short words of a prompt, and the model's name, are in a message for reasons of its own."""
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "model"}]}
    said = "The model `gpt-4o-mini` does not exist"
    assert _refused(asked, said) == said


@pytest.mark.parametrize(
    "said",
    [
        json.dumps([{"type": "string_type", "loc": ["body"], "msg": "bad", "input": {"content": "diary 4471"}}]),
        "[{'type': 'missing', 'input': 'diary 4471'}]",
        "1 validation error for Request\n  bad [type=string_type, input_value='diary 4471', input_type=str]",
    ],
    ids=["JSON", "Python", "pydantic's text"],
)
def test_what_a_message_says_that_the_input_was_is_not_kept(said):
    """Servers on FastAPI show what they refuse, which need not be as it was sent."""
    kept = _refused(ASKED, said)
    assert "diary" not in kept
    assert "type" in kept


@pytest.mark.parametrize("way", ["plain", "asynchronous", "raw"])
@pytest.mark.parametrize("place", ["a stream", "an answer", "an answer laid out"])
def test_what_an_answer_of_status_200_repeats_is_not_kept(place, way):
    """An error that comes as an answer, or in a stream, is kept as carefully."""
    fault = {"error": {"message": "Refused: Say this is a test", "code": "no"}}
    body = json.dumps(fault, indent=2 if place == "an answer laid out" else None).encode()
    streamed = place == "a stream"
    reply = Reply(sse(chunk("Hi"), body), headers=SSE) if streamed else Reply(body, headers=JSON)
    with recorded() as events:
        getattr(Asked("chat.completions", {**ASKED, **({"stream": True} if streamed else {})}), way)(Wire(reply))
    [event] = events
    assert (event.status, event.error_type, event.error_message) == ("ERROR", "no", "Refused: …")


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "laid out"])
@pytest.mark.parametrize("way", ["plain", "asynchronous", "raw"])
def test_why_a_response_failed_is_kept(way, indent):
    """It says so after its id and status, and with its message."""
    fault = {"error": {"code": "server_error", "message": "Refused: Say this is a test"}}
    head = {"id": f"resp_{'0' * 50}", "object": "response", "created_at": 1, "status": "failed", "background": False}
    body = {**head, **fault, "model": "m", "output": []}
    with recorded() as events:
        getattr(Asked("responses", {"model": "m", "input": "Say this is a test"}), way)(
            Wire(Reply(json.dumps(body, indent=indent).encode(), headers=JSON))
        )
    assert [(e.status, e.error_type, e.error_message) for e in events] == [("ERROR", "server_error", "Refused: …")]


def test_an_error_that_is_found_in_an_answer_later_has_no_message():
    """Where it is said after very much else, what was asked is forgotten by the time it is read."""
    body = {"id": "resp_1", "object": "response", "status": "failed", "instructions": "x" * 1024}
    fault = {"error": {"code": "server_error", "message": "Refused: Say this is a test"}}
    with recorded() as events:
        Asked("responses", {"model": "m", "input": "Say this is a test"}).plain(
            Wire(Reply(json.dumps({**body, **fault}).encode()))
        )
    assert [(e.status, e.error_type, e.error_message) for e in events] == [("ERROR", "server_error", None)]


def test_a_message_over_what_can_be_read_only_once():
    """A generator in the body is not read, nor anything else that is no text, list or dictionary."""
    left = iter([{"role": "user", "content": "first"}])
    assert kept_message("It is bad", {"messages": left, "input": object(), "prompt": b"bytes"}) == "It is bad"
    assert len(list(left)) == 1


def test_a_prompt_of_any_length_takes_little_time():
    """A long text is compared by its beginning; of a prompt of very many texts nothing is kept."""
    began_at = time.process_time()
    assert kept_message("bad: " + "x" * 10**6, {"input": "x" * 10**7}) == "bad: …"
    assert kept_message("It is bad", {"input": [[1, 2, 3] * 10_000] * 10}) == "It is bad"
    assert (
        kept_message("Text number 7 is bad", {"input": [f"Text number {n}" for n in range(MOST_TEXTS)]}) == "… is bad"
    )
    assert kept_message("It is bad", {"input": ["It is a text"] * (MOST_TEXTS + 1)}) is None
    assert time.process_time() - began_at < 1


@given(
    st.text(min_size=SHORTEST_ECHO, max_size=60).map(str.strip).filter(lambda text: len(text) >= SHORTEST_ECHO),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_no_text_that_is_repeated_is_kept(secret, before, after):
    """Whatever text it is, and whatever stands around it."""
    kept = kept_message(before + secret + after, {"messages": [{"role": "user", "content": secret}]})
    assert secret not in kept
    assert len(kept) <= MOST_CHARS
    assert diagnostics.counts() == {}
