"""What a call that waits for its delivery holds on to is what the bound of the queue counts."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import tracemalloc
import weakref
from contextlib import suppress

import openai
import pytest

from fluxgate_mw import FluxGate
from tests.calls.clients import ASKED, JSON, Reply, Wire, completion, recorded

HEADERS = {**JSON, **{f"x-ratelimit-of-a-kind-{n}": f"a value of some length, number {n}" for n in range(20)}}


class Waiting:
    """A sink that keeps what waits."""

    def __init__(self):
        self.pending = []

    def emit(self, event):
        raise AssertionError("made at once")

    def defer(self, pending):
        self.pending.append(pending)


def test_what_waits_is_counted_as_it_is():
    """The bound by bytes is one of memory, within a factor of two."""
    fg = FluxGate()
    sink = fg.recorder.sink = Waiting()
    wire = Wire(Reply(json.dumps(completion()).encode(), headers=HEADERS))
    client = wire.client()

    def ask(times: int) -> None:
        for _ in range(times):
            client.chat.completions.create(**ASKED)
            wire.requests.clear(), wire.sent.clear(), wire.bodies.clear()

    ask(20)
    sink.pending.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ask(200)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        fg.stop()
    counted = sum(pending.size_bytes for pending in sink.pending)
    assert len(sink.pending) == 200
    assert held < 2 * counted, f"{held // 200} bytes held, {counted // 200} counted"


class Upload(io.BytesIO):
    """A file that can be referred to weakly."""


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 400])
async def test_a_connection_that_stays_open_keeps_no_upload(status):
    """A connection remembers the context that opened it; what that call sent goes with the call."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        await reader.readuntil(b"--\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}" % status)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = openai.AsyncOpenAI(api_key="sk-unused", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    with recorded():
        upload = Upload(b"a batch")
        known = weakref.ref(upload)
        with suppress(openai.BadRequestError):
            await client.files.create(file=upload, purpose="batch")
        del upload
        gc.collect()
        assert known() is None
    await client.close()
    writers[0].close()
    await writers[0].wait_closed()
    server.close()
    await server.wait_closed()
