"""A response made in the background is one call: it ends with the GET that brings its answer."""

from __future__ import annotations

import atexit
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AzureOpenAI, NotFoundError, Stream

from fluxgate_mw import (
    FluxGate,
    context,
    create_openai_cost_tracker,
    diagnostics,
    instrument_openai,
    tracking,
    uninstrument_openai,
)
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event
from fluxgate_mw.openai import unfinished
from fluxgate_mw.testing import capture_events
from tests.calls.mocks import RESPONSE, answer, async_client, event, streamed, sync_client

_HERE = Path(__file__).parents[2]
QUEUED = {**RESPONSE, "status": "queued", "background": True, "output": [], "usage": None}


def _service(states: list[str]) -> Any:
    """Return a handler: the POST is queued, each GET gives the next state."""
    left = iter(states)

    def handle(request: Any) -> Any:
        if request.method == "POST" and request.url.path.endswith("/cancel"):
            return answer({**QUEUED, "status": "cancelled"})
        if request.method == "POST":
            return answer(QUEUED)
        state = next(left)
        return answer(RESPONSE if state == "completed" else {**QUEUED, "status": state})

    return handle


def test_the_get_that_completes_it_gives_the_usage_once(events):
    """The create's event comes with the answer, carries its usage, and later GETs add nothing."""
    client = sync_client(_service(["in_progress", "completed", "completed"]))
    with context(feature="reports", user="u-1"):
        created = client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    assert events == []
    assert tracking(created) is None
    retrieved = [client.responses.retrieve(created.id) for _ in range(3)]
    assert [(e.input_tokens, e.output_tokens, e.status) for e in events] == [(12, 3, "SUCCESS")]
    assert (events[0].feature, events[0].user.id, events[0].api_path) == ("reports", "u-1", "/responses")
    assert events[0].cost_nanos is not None
    assert tracking(created).tracking_id == events[0].event_id
    assert [tracking(one) for one in retrieved] == [None, tracking(created), None]


def test_what_was_sent_is_not_kept_while_it_is_waited_for(events):
    """It may be as large as a prompt is, and the answer hours away."""
    sent = []

    def handle(request):
        sent.append(weakref.ref(request))
        return answer(QUEUED)

    sync_client(handle).responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    gc.collect()
    assert unfinished.any_open()
    assert [request() for request in sent] == [None]
    uninstrument_openai()
    assert len(events) == 1


def test_what_it_answers_is_kept_where_that_is_asked_for():
    """The content of a background response is that of the GET that completes it."""
    FluxGate(capture_content=True)
    with capture_events() as events:
        client = sync_client(_service(["completed"]))
        client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
        client.responses.retrieve("resp_1")
    assert "Hi" in events[0].input_content
    assert "Hello there." in events[0].output_content


@pytest.mark.anyio
async def test_an_async_client_completes_it_too(events):
    """As with a synchronous client."""
    client = async_client(_service(["completed"]))
    created = await client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    await client.responses.retrieve(created.id)
    assert [e.input_tokens for e in events] == [12]


@pytest.mark.anyio
async def test_azures_completes_too(events):
    """A background create of Azure, sync and async, ends with its GET, which has no deployment in its path."""
    options = {"azure_endpoint": "https://mine.openai.azure.com", "api_version": "2025-03-01-preview"}
    asked = {"model": "ours", "input": "Hi", "extra_body": {"background": True}}
    client = sync_client(_service(["in_progress", "completed"]), AzureOpenAI, **options)
    client.responses.create(**asked)
    for _ in range(2):
        client.responses.retrieve("resp_1")
    aclient = async_client(_service(["completed"]), AsyncAzureOpenAI, azure_deployment="ours", **options)
    await aclient.responses.create(**asked)
    await aclient.responses.retrieve("resp_1")
    assert [(e.provider_name, e.input_tokens, e.output_tokens) for e in events] == [("azure", 12, 3)] * 2


def test_a_streamed_get_completes_it(events):
    """A GET that streams the answer ends the call with its last event."""
    ends = [event({"type": "response.completed", "sequence_number": 1, "response": RESPONSE}, "response.completed")]
    client = sync_client(lambda r: answer(QUEUED) if r.method == "POST" else streamed(ends))
    client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    list(client.get("/responses/resp_1", cast_to=object, stream=True, stream_cls=Stream[object]))
    assert [e.input_tokens for e in events] == [12]


def test_cancelling_it_ends_it(events):
    """A cancelled response is one event that says so, and the cancel itself is none."""
    client = sync_client(_service([]))
    created = client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    client.post(f"/responses/{created.id}/cancel", cast_to=object)
    assert [(e.status, e.cost_nanos) for e in events] == [("CANCELLED", None)]


def test_a_stream_left_early_stays_open_until_it_is_retrieved(events):
    """The service goes on with a background response whose stream was left; its usage comes with the GET."""
    starts = [event({"type": "response.created", "sequence_number": 0, "response": QUEUED}, "response.created")] * 2
    client = sync_client(lambda r: streamed(starts) if r.method == "POST" else answer(RESPONSE))
    stream = client.responses.create(model="gpt-4o-mini", input="Hi", stream=True, extra_body={"background": True})
    next(iter(stream))
    stream.close()
    assert events == []
    client.get("/responses/resp_1", cast_to=object)
    assert [(e.input_tokens, e.usage_source) for e in events] == [(12, "provider")]


def test_what_is_never_retrieved_ends_with_the_patch(events):
    """When the patch is taken back every open call ends, with its usage not known, and is counted so."""
    client = sync_client(_service([]))
    client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    uninstrument_openai()
    assert [(e.usage_source, e.cost_nanos, e.unpriced_reason) for e in events] == [("none", None, "no usage")]
    assert events[0].response_id == "resp_1"
    assert diagnostics.counts()["not_covered_background"] == 1


@pytest.mark.parametrize("patched", [True, False], ids=["patch on", "patch off"])
def test_a_trackers_create_does_not_end_with_the_patch(events, patched):
    """It is the tracker's, who is there with and without a patch, whoever undoes his."""
    client = sync_client(_service(["completed"]))
    if not patched:
        uninstrument_openai()
    tracker = create_openai_cost_tracker(client, FluxGate(instrument=False))
    tracker.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    instrument_openai()()
    uninstrument_openai()
    assert events == []
    tracker.responses.retrieve("resp_1")
    assert [(e.input_tokens, e.output_tokens) for e in events] == [(12, 3)]


def test_two_creates_are_two_events_whatever_their_ids(events):
    """Two POSTs that are answered with one id are two events."""
    client = sync_client(_service(["completed"]))
    for _ in range(2):
        client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    client.responses.retrieve("resp_1")
    assert sorted((e.usage_source, e.response_id) for e in events) == [("none", "resp_1"), ("provider", "resp_1")]


def test_so_many_are_kept_open_and_no_more(events, monkeypatch):
    """Past the limit the oldest ends with its usage not known."""
    monkeypatch.setattr(unfinished, "MOST_OPEN", 2)
    names = iter("abc")
    client = sync_client(lambda r: answer({**QUEUED, "id": next(names)}))
    for _ in range(3):
        client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    assert [e.response_id for e in events] == ["a"]
    uninstrument_openai()
    assert len(events) == 3


def test_a_get_of_someone_elses_response_is_no_event(events):
    """A GET is no spend: not before, not while another call is open."""
    client = sync_client(_service(["completed", "completed"]))
    client.responses.retrieve("resp_1")
    other = sync_client(lambda r: answer({**QUEUED, "id": "resp_2"}))
    other.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    client.responses.retrieve("resp_1")
    assert events == []


def test_a_failed_get_leaves_it_open(events):
    """An error of the GET reaches the caller, and the call can still be completed."""
    replies = iter([answer(QUEUED), answer({"error": {"message": "none"}}, 404), answer(RESPONSE)])
    client = sync_client(lambda r: next(replies))
    client.responses.create(model="gpt-4o-mini", input="Hi", extra_body={"background": True})
    with pytest.raises(NotFoundError):
        client.responses.retrieve("resp_1")
    client.responses.retrieve("resp_1")
    assert [e.input_tokens for e in events] == [12]


def test_a_plain_create_that_says_background_false_is_told_at_once(events):
    """Only a background create waits; another's odd status does not hold its event back."""
    client = sync_client(lambda r: answer({**RESPONSE, "status": "in_progress"}))
    client.responses.create(model="gpt-4o-mini", input="Hi")
    assert len(events) == 1
    assert json.loads(json.dumps(events[0].input_tokens)) == 12


class _Waiting:
    """A call that waits for its answer, to no end."""

    def give_up(self) -> None:
        """End without a word."""


def test_a_process_of_many_background_creates_registers_once():
    """Python keeps a place for each exit hook that was ever registered, and looks through them all."""
    unfinished.hold("resp_1", _Waiting())
    before = atexit._ncallbacks()
    for _ in range(100):
        unfinished.release("resp_1")
        unfinished.hold("resp_1", _Waiting())
    unfinished.release("resp_1")
    assert atexit._ncallbacks() == before


_EXITING = """
import multiprocessing, os, sys
from fluxgate_mw import FluxGate
from tests.calls.mocks import RESPONSE, answer, sync_client

fg = FluxGate(spool_dir=sys.argv[1])
queued = {**RESPONSE, "status": "queued", "background": True, "output": [], "usage": None}
def create(name):
    client = sync_client(lambda r: answer({**queued, "id": name}))
    client.responses.create(model=name, input="Hi", extra_body={"background": True})
create("before")
child = os.fork()
create("after" if child else "in the child")
if child:
    assert os.waitpid(child, 0)[1] == 0
    worker = multiprocessing.get_context("fork").Process(target=create, args=("in a worker",))
    worker.start()
    worker.join()
"""


def test_what_is_never_retrieved_ends_with_its_process(tmp_path):
    """Each process, a forked one too, tells of the calls that are its own."""
    subprocess.run([sys.executable, "-c", _EXITING, str(tmp_path)], check=True, timeout=15, cwd=_HERE)
    found = [decode_event(data) for entry in Spool(tmp_path).read_nowait(100) for data in unpack(entry.payload)]
    assert sorted(event.request_model for event in found) == ["after", "before", "in a worker", "in the child"]
    assert {event.unpriced_reason for event in found} == {"no usage"}
