"""What is billed but does not pass the patch is counted, never recorded, and let through."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from unittest import mock

import openai
import openai.resources
import pytest
from openai._resource import AsyncAPIResource, SyncAPIResource

from fluxgate_mw import FluxGate, create_openai_cost_tracker, instrument_openai, track, uninstrument_openai
from tests.calls.mocks import CHAT, MESSAGES, answer, async_client, http, sync_client


def _notes(fg):
    return {kind: count for kind, count in fg.statistics().notes.items() if kind.startswith("not_covered")}


def test_a_websocket_is_counted(fg, events):
    """A realtime connection is counted when it is asked for, on classes imported before and after the patch."""
    client = sync_client(lambda r: answer(CHAT))
    resource = client.beta.realtime if hasattr(client.beta, "realtime") else client.realtime
    manager = resource.connect(model="gpt-4o-realtime-preview")
    assert type(manager).__name__ == "RealtimeConnectionManager"
    assert _notes(fg) == {"not_covered_websocket": 1}
    assert events == []


def _all_below(kind):
    for below in kind.__subclasses__():
        yield from (below, *_all_below(below))


def _connecting():
    """Return every resource of the installed client that opens websockets."""
    for module in pkgutil.walk_packages(openai.resources.__path__, "openai.resources."):
        importlib.import_module(module.name)
    resources = {*_all_below(SyncAPIResource), *_all_below(AsyncAPIResource)}
    return sorted((kind for kind in resources if hasattr(kind, "connect")), key=str)


@pytest.mark.parametrize("resource", _connecting(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_websocket_of_the_client_is_counted(fg, events, resource):
    """Sync and async, whichever release of the client has it."""
    asynchronous = issubclass(resource, AsyncAPIResource)
    client = (async_client if asynchronous else sync_client)(lambda r: answer(CHAT))
    parameters = inspect.signature(resource.connect).parameters.values()
    needed = [each.name for each in parameters if each.default is each.empty and each.name != "self"]
    manager = resource(client).connect(**dict.fromkeys(needed, "gpt-realtime"))
    assert hasattr(manager, "__aenter__" if asynchronous else "__enter__")
    assert (_notes(fg), events) == ({"not_covered_websocket": 1}, [])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/realtime/client_secrets", "not_covered_realtime"),
        ("/realtime/calls", "not_covered_realtime"),
        ("/threads/runs", "not_covered_assistants"),
        ("/threads/thread_1/runs", "not_covered_assistants"),
        ("/evals/eval_1/runs", "not_covered_evals"),
        ("/agents/sessions", "not_covered_agents"),
        ("/chatkit/sessions", "not_covered_chatkit"),
        ("/containers", "not_covered_containers"),
        ("/fine_tuning/alpha/graders/run", "not_covered_graders"),
        ("https://api.openai.com/v1/realtime/calls", "not_covered_realtime"),
    ],
)
def test_a_billed_post_that_is_no_call_is_counted(fg, events, path, kind):
    """A session or a run is billed elsewhere than in its answer: counted under its own name, and no event."""
    sync_client(lambda r: answer({})).post(path, cast_to=object, body={})
    assert _notes(fg) == {kind: 1}
    assert events == []


@pytest.mark.parametrize(
    "path",
    [
        "/files",
        "/threads",
        "/threads/thread_1/messages",
        "/vector_stores",
        "/responses/input_tokens",
        "/uploads",
        "/containers/cntr_1/files",
        "/fine_tuning/alpha/graders/validate",
        "/chatkit/sessions/s_1/cancel",
    ],
)
def test_a_post_that_is_not_billed_is_neither(fg, events, path):
    """What costs nothing by tokens is no event and no gap."""
    sync_client(lambda r: answer({})).post(path, cast_to=object, body={})
    assert (_notes(fg), events) == ({}, [])


@pytest.mark.parametrize("tracked", [False, True], ids=["the patch", "a tracker"])
def test_what_a_disabled_one_does_not_record_is_not_counted_either(tracked):
    """A call of the client is no call past it, though nobody wants it recorded."""
    fg = FluxGate(enabled=False)
    instrument_openai(fg)
    client = sync_client(lambda r: answer(CHAT))
    asked = create_openai_cost_tracker(client, fg) if tracked else client
    asked.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert _notes(fg) == {}


def test_a_batch_is_an_event_and_its_results_are_counted_as_not_covered(fg, events):
    """A batch is recorded when it is made, without usage, whatever zeros it reports, and the gap is counted."""
    zeros = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    batch = {
        "id": "b",
        "object": "batch",
        "status": "validating",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "f",
        "completion_window": "24h",
        "created_at": 1,
        "model": "gpt-5-2025-08-07",
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **zeros},
    }
    client = sync_client(lambda r: answer(batch))
    client.batches.create(input_file_id="f", endpoint="/v1/chat/completions", completion_window="24h")
    [event] = events
    assert (event.operation_name, event.usage_source, event.input_tokens) == ("batch", "none", None)
    assert (event.cost_nanos, event.unpriced_reason) == (None, "a batch's usage comes with its results")
    assert _notes(fg) == {"not_covered_batch_results": 1}


def test_a_provider_that_is_called_past_the_client_is_counted(fg, events):
    """A POST to a known provider with another client than openai's is counted; our own calls and others are not."""
    with http.Client(transport=http.MockTransport(lambda r: answer(CHAT))) as plain:
        plain.post("https://api.openai.com/v1/chat/completions", json={})
        plain.post("https://api.anthropic.com/v1/messages", json={})
        plain.post("https://shop.example/chat/completions", json={})
        plain.get("https://api.openai.com/v1/models")
        with track() as call:
            plain.post("https://api.anthropic.com/v1/messages", json={})
            call.usage(provider="anthropic", model="claude-3-5-haiku-latest", input_tokens=1, output_tokens=1)
    sync_client(lambda r: answer(CHAT)).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert _notes(fg) == {"not_covered_host": 2}
    assert len(events) == 2


@pytest.mark.anyio
async def test_async_calls_past_the_client_are_counted(fg):
    """The asynchronous HTTP client too; nothing is counted once the patch is off."""
    transport = http.MockTransport(lambda r: answer(CHAT))
    async with http.AsyncClient(transport=transport) as plain:
        await plain.post("https://api.openai.com/v1/chat/completions", json={})
        await async_client(lambda r: answer(CHAT)).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        uninstrument_openai()
        await plain.post("https://api.openai.com/v1/chat/completions", json={})
    assert _notes(fg) == {"not_covered_host": 1}


LATE = """
import importlib, sys
import openai
from fluxgate_mw import FluxGate, uninstrument_openai
from tests.calls.mocks import CHAT, MESSAGES, answer, sync_client
late = "httpx" if "httpx" not in sys.modules else "httpx2"
fg = FluxGate()
http = importlib.import_module(late)
found = http.Client.send
sync_client(lambda request: answer(CHAT)).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
covered = http.Client.send is not found
with http.Client(transport=http.MockTransport(lambda request: http.Response(200, json={}))) as client:
    client.post("https://api.anthropic.com/v1/messages", json={})
uninstrument_openai()
print(fg.statistics().notes.get("not_covered_host"), covered, http.Client.send is found)
"""


def test_an_http_client_that_is_imported_after_the_patch_is_looked_at_too():
    """From the next call of the openai client on, and the undo leaves nothing behind."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", "True"]


def test_an_openai_call_inside_a_tracked_block_is_an_event_of_its_own(events):
    """`track()` around code that calls OpenAI hides nothing."""
    client = sync_client(lambda r: answer(CHAT), openai.OpenAI)
    with track():
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert [e.request_model for e in events] == ["gpt-4o-mini", None]


def test_an_async_method_that_is_looked_at_is_one_still(fg):
    """`unittest.mock` makes of it what can be awaited, as without us, and who asks `inspect` is told the same."""
    send = http.AsyncClient.send
    assert inspect.iscoroutinefunction(send)
    assert not inspect.iscoroutinefunction(http.Client.send)
    with mock.patch.object(http.AsyncClient, "send") as mocked:
        assert isinstance(mocked, mock.AsyncMock)
    assert http.AsyncClient.send is send
