"""The caller's arguments are his: never changed, never consumed; results are what they are without us."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from fluxgate_mw import tracking, uninstrument_openai
from fluxgate_mw.openai import follow
from fluxgate_mw.openai import tracking as table
from tests.calls.mocks import (
    CHAT,
    MESSAGES,
    RESPONSE,
    USAGE,
    answer,
    chat_events,
    dumped,
    streamed,
    sync_client,
    wants_usage,
)


def _asked(call):
    """Return what the service was sent."""
    sent = []

    def handle(request):
        sent.append(json.loads(request.content))
        if sent[-1].get("stream"):
            return streamed(chat_events("Hi", usage=USAGE if wants_usage(request) else None))
        return answer(RESPONSE if request.url.path.endswith("responses") else CHAT)

    result = call(sync_client(handle))
    if isinstance(result, openai.Stream):
        list(result)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_generator_of_messages_reaches_the_api_whole(events, stream):
    """A generator is read once, by the client, as without us; also where usage is asked for on a copy."""
    messages = [{"role": "user", "content": str(number)} for number in range(5)]

    def call(client):
        return client.chat.completions.create(model="gpt-4o-mini", messages=(m for m in messages), stream=stream)

    assert _asked(call)[0]["messages"] == messages
    assert len(events) == 1


def test_a_generator_of_inputs_is_treated_as_without_us(events):
    """The responses API's `input` too: whatever the client does with a generator, we change nothing about it."""

    def call(client):
        try:
            return client.responses.create(model="gpt-4o-mini", input=({"role": "user", "content": c} for c in "abc"))
        except TypeError as error:
            return repr(error)

    ours = _asked(call)
    uninstrument_openai()
    assert ours == _asked(call)


def test_dicts_of_the_caller_are_never_changed(events):
    """`stream_options`, `messages`, headers and the extra body are what they were, and may be used again."""
    given = {
        "messages": [{"role": "user", "content": "Hi"}],
        "stream_options": {"include_obfuscation": False},
        "extra_body": {"seed": 1},
        "extra_headers": {"x-own": "1"},
        "metadata": {"a": "b"},
    }
    before = copy.deepcopy(given)
    sent = _asked(lambda c: c.chat.completions.create(model="gpt-4o-mini", stream=True, **given))
    assert given == before
    assert sent[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize("said", [{"include_usage": True}, {"include_usage": False}])
def test_what_the_caller_says_in_the_extra_body_is_said(events, said):
    """`stream_options` in `extra_body` wins: it is sent as it is, and the usage chunk he asked for is his."""

    def call(client):
        chunks = client.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_body={"stream_options": said}
        )
        return dumped(chunks)

    seen = []

    def handle(request):
        seen.append(json.loads(request.content)["stream_options"])
        return streamed(chat_events("Hi", usage=USAGE if wants_usage(request) else None))

    ours = call(sync_client(handle))
    uninstrument_openai()
    assert ours == call(sync_client(handle))
    assert seen == [said, said]
    assert [e.usage_source for e in events] == ["provider" if said["include_usage"] else "none"]


def test_options_in_the_extra_body_that_do_not_say_are_completed_there(events):
    """Other stream options in `extra_body` are kept and usage is asked for beside them."""
    extra = {"stream_options": {"include_obfuscation": False}}
    sent = _asked(
        lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_body=extra)
    )
    assert sent[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert extra == {"stream_options": {"include_obfuscation": False}}
    assert [e.input_tokens for e in events] == [12]


def test_a_model_given_in_the_extra_body_is_the_model(events):
    """What is sent is what is recorded."""
    _asked(lambda c: c.chat.completions.create(model="x", messages=MESSAGES, extra_body={"model": "gpt-4o"}))
    assert events[0].request_model == "gpt-4o"


def _results():
    client = sync_client(lambda r: answer(RESPONSE if r.url.path.endswith("responses") else CHAT, x_request_id="req_1"))
    return [
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES),
        client.responses.create(model="gpt-4o-mini", input="Hi"),
    ]


def _told(result):
    return (
        type(result),
        result.model_dump(),
        result.model_dump(exclude_unset=True),
        result.model_dump_json(),
        repr(result),
        result._request_id,
        sorted(vars(result)),
        result.model_extra,
        pickle.dumps(result),
        copy.copy(result) == result,
        copy.deepcopy(result) == result,
        type(result).model_json_schema(),
        result.model_copy() == result,
    )


def test_results_are_what_they_are_without_us(events):
    """Type, dump, repr, equality, copies, pickle bytes, schema, extra fields and request id."""
    ours = _results()
    told = [_told(result) for result in ours]
    assert [tracking(result).status for result in ours] == ["SUCCESS", "SUCCESS"]
    assert [result.fluxgate for result in ours] == [tracking(result) for result in ours]
    uninstrument_openai()
    bare = _results()
    assert told == [_told(result) for result in bare]
    assert ours == bare


def test_the_attribute_is_read_only_and_untracked_objects_have_none(events):
    """Only our own answers have it; setting it is refused in words."""
    result = _results()[0]
    with pytest.raises(AttributeError, match="read-only"):
        result.fluxgate = 1
    assert copy.copy(result).fluxgate is None
    assert result.choices[0].fluxgate is None


def test_a_pickled_result_is_read_where_we_are_not_installed(events, tmp_path):
    """A process without fluxgate_mw unpickles it and dumps the same."""
    result = _results()[0]
    path = tmp_path / "result.pickle"
    path.write_bytes(pickle.dumps(result))
    folders = [folder for folder in sys.path if folder and Path(folder).resolve() != Path.cwd()]
    code = (
        "import sys, pickle, json\n"
        f"sys.path[:] = {folders!r}\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('fluxgate'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        f"result = pickle.loads(open({str(path)!r}, 'rb').read())\n"
        "assert not any(m.startswith('fluxgate') for m in sys.modules)\n"
        "assert not hasattr(result, 'fluxgate')\n"
        "print(result.model_dump_json())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == json.loads(result.model_dump_json())


def test_raw_responses_keep_everything(events):
    """Headers, status, text, `parse()`, `http_response` and `retries_taken` of a raw response, and its tracking."""

    def raw():
        client = sync_client(lambda r: answer(CHAT, x_own="1"))
        return client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES)

    def told(r):
        parsed = r.parse()
        return dict(r.headers), r.status_code, r.text, parsed, r.http_request.url, r.retries_taken, type(r)

    ours = raw()
    assert ours.fluxgate.status == "SUCCESS"
    facts = told(ours)
    uninstrument_openai()
    assert facts == told(raw())
    assert len(events) == 1


def test_nothing_is_kept_of_a_result_that_is_gone(events):
    """The side table forgets an answer with the answer."""
    gc.collect()
    before = set(table._calls)
    results = _results()
    stream = sync_client(lambda r: streamed(chat_events("Hi"))).chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True
    )
    list(stream)
    assert len(set(table._calls) - before) == 3
    del results, stream
    gc.collect()
    assert set(table._calls) <= before
    assert not follow._watched
