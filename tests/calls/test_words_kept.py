"""No word of a prompt or an answer is in an event or a log, whatever goes wrong, unless it was asked for."""

from __future__ import annotations

import gc
import json
import logging

import pytest

from fluxgate_mw import FluxGate, diagnostics
from fluxgate_mw.event import encode_event
from fluxgate_mw.openai import answer, calls, patch, watch
from tests.calls.clients import ASKED, SSE, WAYS, Asked, Reply, Wire, chunk, completion, finish, httpx, recorded, sse
from tests.calls.streaming import USAGE

ASKED_WORD, ANSWERED_WORD = "Rumpelstilzchen", "Schneewittchen"
PROMPT = f"My name is {ASKED_WORD} and nobody in the kingdom must ever know of it"
REFUSAL = {
    "error": {"message": f"You wrote '{PROMPT}', which is refused", "type": "invalid", "param": PROMPT, "code": 7}
}
SPOKEN = [chunk(f"{ANSWERED_WORD} "), chunk("is my name")]
TOOL = {
    "index": 0,
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": f'{{"x": "{ANSWERED_WORD}"}}'},
}
CASES = {
    "an answer": lambda: Reply(json.dumps(completion(choices=[_choice()])).encode()),
    "a refusal that quotes": lambda: Reply(json.dumps(REFUSAL).encode(), status=400),
    "a refusal that is no JSON": lambda: Reply(PROMPT.encode(), status=500),
    "a refusal that says it its own way": lambda: Reply(json.dumps({"detail": [PROMPT]}).encode(), status=422),
    "half an answer": lambda: Reply(json.dumps(completion(choices=[_choice()])).encode()[:-30]),
    "a broken body": lambda: Reply([b'{"a": "', PROMPT.encode()], error=httpx.ReadError(PROMPT)),
    "no connection": lambda: Reply(refused=httpx.ConnectError(PROMPT)),
    "an error of the host": lambda: Reply(refused=ValueError(PROMPT)),
    "an odd answer": lambda: Reply(json.dumps({"choices": ANSWERED_WORD, "usage": [PROMPT], "status": 3}).encode()),
}
STREAMS = {
    "a stream": lambda: Reply(sse(*SPOKEN, chunk(choices=finish()), chunk(choices=[], usage=USAGE)), headers=SSE),
    "tools": lambda: Reply(sse(chunk(choices=[{"index": 0, "delta": {"tool_calls": [TOOL]}}])), headers=SSE),
    "a stream that breaks": lambda: Reply([sse(*SPOKEN, done=False)], headers=SSE, error=httpx.ReadError(PROMPT)),
    "a stream that stops": lambda: Reply([sse(*SPOKEN, done=False)], headers=SSE),
    "an error that quotes": lambda: Reply([sse(*SPOKEN, REFUSAL)], headers=SSE),
    "an odd piece": lambda: Reply([sse(*SPOKEN, f'{{"x": "{ANSWERED_WORD}'.encode())], headers=SSE),
}


def _choice():
    message = {"role": "assistant", "content": f"{ANSWERED_WORD} is my name", "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}


def _asked(**more):
    return Asked("chat.completions", {**ASKED, "messages": [{"role": "user", "content": PROMPT}], **more})


def _words(events, caplog):
    said = caplog.text + " ".join(str(vars(record)) for record in caplog.records)
    told = b"".join(map(encode_event, events)).decode("utf-8", "replace")
    return [word for word in (ASKED_WORD, ANSWERED_WORD) if word in said + told]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*CASES, *STREAMS])
def test_no_word_is_kept(caplog, name, way):
    """Neither on the event nor in a record of ours at any level."""
    asked, reply = (_asked(), CASES[name]) if name in CASES else (_asked(stream=True), STREAMS[name])
    with caplog.at_level(logging.DEBUG, logger="fluxgate_mw"), recorded() as events:
        getattr(asked, way)(Wire(reply()))
        gc.collect()
    assert len(events) == 1
    assert _words(events, _Ours(caplog)) == []


class _Ours:
    """Of what was logged, our own."""

    def __init__(self, caplog):
        self.records = [record for record in caplog.records if record.name.startswith("fluxgate_mw")]
        self.text = "\n".join(record.getMessage() for record in self.records)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(answer, "read_usage"), (watch, "split_events"), (calls, "register"), (patch, "begin")],
)
def test_no_word_is_in_what_is_said_of_a_bug_of_ours(monkeypatch, caplog, owner, name, stream):
    """An exception of ours may quote what it was at: its message is not logged, only its class and place."""

    def broken(*args, **_):
        raise ValueError(f"{PROMPT} {ANSWERED_WORD} {args!r}")

    monkeypatch.setattr(owner, name, broken)
    with caplog.at_level(logging.DEBUG, logger="fluxgate_mw"), recorded() as events:
        asked, reply = (_asked(stream=True), STREAMS["a stream"]) if stream else (_asked(), CASES["an answer"])
        asked.plain(Wire(reply()))
        gc.collect()
    assert _words(events, _Ours(caplog)) == []
    diagnostics.reset()


def test_content_that_is_asked_for_is_in_no_log(caplog):
    """Where it is kept it is in the event alone."""
    FluxGate(capture_content=True)
    with caplog.at_level(logging.DEBUG, logger="fluxgate_mw"), recorded() as events:
        _asked().plain(Wire(CASES["an answer"]()))
    assert _words(events, _Ours(caplog)) == [ASKED_WORD, ANSWERED_WORD]
    assert _words([], _Ours(caplog)) == []
