"""Faults that users reported of calls left early, and of clients on other HTTP libraries, replayed."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import openai
import pytest

from fluxgate_mw.openai import follow
from fluxgate_mw.openai import tracking as side_table
from tests.calls.clients import ASKED, SSE, Reply, Wire, completion, dumped, httpx, recorded
from tests.calls.streaming import AS_ASKED, ENDLESS, WITHOUT, counts
from tests.openai_server import running_openai

ANSWER = json.dumps(completion()).encode()


# Left early


async def settled(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        gc.collect()
        await asyncio.sleep(0.001)


@pytest.mark.anyio
async def test_litellm_14457_a_visitor_who_leaves():
    """A generator that relays a stream and is closed by the server ends the call at once (litellm#13245, #35958)."""
    wire = Wire(Reply(ENDLESS, headers=SSE))

    async def relay() -> AsyncIterator[str]:
        async with await wire.async_client().chat.completions.create(**ASKED, stream=True) as stream:
            async for each in stream:
                yield each.choices[0].delta.content

    with recorded() as events:
        relaying = relay()
        await anext(relaying)
        await relaying.aclose()
        assert [(event.status, event.output_tokens) for event in events] == [("CANCELLED", 10)]


@pytest.mark.anyio
async def test_openlit_1454_an_asynchronous_stream_that_is_dropped():
    """A reader who breaks off and forgets the stream leaves one event behind."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:

        async def read_one():
            async for _ in await wire.async_client().chat.completions.create(**ASKED, stream=True):
                break

        await read_one()
        await settled(lambda: events)
    assert [(event.status, event.usage_source) for event in events] == [("CANCELLED", "estimated")]


def test_openlit_1460_nothing_is_left_of_a_finished_stream():
    """Neither the side table nor the watch keeps anything of what is over."""
    gc.collect()
    before = (len(side_table._calls), len(follow._watched))
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events, wire.client() as client:
        for _ in range(30):
            list(client.chat.completions.create(**ASKED, stream=True))
        client.chat.completions.create(**ASKED, stream=True).close()
    gc.collect()
    assert len(events) == 31
    assert (len(side_table._calls), len(follow._watched)) == before


# openai 3 stands on httpx2

WITHOUT_HTTPX = """
import sys
sys.modules["httpx"] = None
import fluxgate_mw
from fluxgate_mw import FluxGate, instrument_openai
instrument_openai()()
print("patched")
"""


def test_opentelemetry_python_contrib_4953_no_library_is_imported_for_the_client():
    """Nothing of ours needs httpx where the client has another library (openinference PR#3576).

    open-telemetry/opentelemetry-python-contrib PR#4954.
    """
    if httpx.__name__ == "httpx":
        wanted = sys.modules["httpx"]
        assert wanted is httpx
        return
    ran = subprocess.run([sys.executable, "-c", WITHOUT_HTTPX], capture_output=True, text=True, timeout=50, check=False)
    assert (ran.returncode, ran.stdout) == (0, "patched\n"), ran.stderr


def test_openai_python_3375_a_client_of_the_older_library():
    """A client of httpx, given to an openai that stands on httpx2, is read as well (neuro-san#1379)."""
    older = pytest.importorskip("httpx", reason="openai before 3 has only this one")

    class Stream(older.SyncByteStream):
        """A body of the older library."""

        def __init__(self, body):
            self.body = body

        def __iter__(self):
            yield self.body[:40]
            yield self.body[40:]

    replies = [(AS_ASKED, SSE), (ANSWER, {"content-type": "application/json"})]

    def handle(request):
        body, headers = replies.pop(0)
        return older.Response(200, headers=headers, stream=Stream(body))

    without = [dumped(each) for each in without_us()]
    http_client = older.Client(transport=older.MockTransport(handle))
    with recorded() as events:
        client = openai.OpenAI(api_key="sk-unused", http_client=http_client)
        stream = client.chat.completions.create(**ASKED, stream=True)
        assert [dumped(each) for each in stream] == without
        assert type(stream.response) is older.Response
        assert dumped(client.chat.completions.create(**ASKED)) == completion()
    assert [counts(event)[:2] for event in events] == [(12, 5), (12, 5)]


def without_us():
    return list(Wire(Reply(WITHOUT, headers=SSE)).client().chat.completions.create(**ASKED, stream=True))


def test_openai_python_1144_the_clients_own_transport(tmp_path):
    """The client's own class over a real connection: nothing is missed, and the other side's book agrees."""
    with running_openai(tmp_path) as server, recorded() as events:
        with openai.OpenAI(api_key="sk-unused", base_url=server.base_url) as client:
            client.chat.completions.create(**ASKED)
            stream = client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
            list(stream)
        rows = server.rows(2)
    assert [event.http_status for event in events] == [200, 200]
    assert [(event.input_tokens, event.output_tokens) for event in events] == [
        (row.prompt_tokens, row.completion_tokens) for row in rows
    ]
