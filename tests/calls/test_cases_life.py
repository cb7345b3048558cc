"""Faults that users reported of calls side by side, of the end of their process, of memory and of prices, replayed."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref

import openai
import pytest

from fluxgate_mw import FluxGate, context, current, feature
from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import UsageEvent, decode_event, encode_event
from tests.calls.clients import ASKED, SSE, Reply, Wire, completion, recorded
from tests.calls.streaming import AS_ASKED, STREAM

ANSWER = json.dumps(completion()).encode()
AZURE = {"azure_endpoint": "https://acme.openai.azure.com", "api_version": "2024-10-21"}


# Side by side


@pytest.mark.anyio
async def test_langfuse_3471_calls_side_by_side():
    """A hundred calls of one Azure client at once, half of them streamed, are a hundred events, each with its user."""
    plain = Wire(Reply(ANSWER)).async_client(openai.AsyncAzureOpenAI, **AZURE)
    streamed = Wire(Reply(AS_ASKED, headers=SSE)).async_client(openai.AsyncAzureOpenAI, **AZURE)

    async def ask(number: int) -> None:
        with context(user=f"u-{number}"):
            if number % 2:
                await plain.chat.completions.create(**ASKED)
            else:
                async for _ in await streamed.chat.completions.create(**ASKED, stream=True):
                    await asyncio.sleep(0)

    with recorded() as events:
        await asyncio.gather(*map(ask, range(100)))
    assert {(event.user.id, event.stream) for event in events} == {(f"u-{n}", n % 2 == 0) for n in range(100)}
    assert len({event.event_id for event in events}) == 100
    assert {event.provider_name for event in events} == {"azure"}


@pytest.mark.anyio
async def test_sentry_python_3823_a_relay_that_is_an_async_generator():
    """A call that a relay makes and reads across its steps is its own, whoever steps it, and ends when it does."""
    client = Wire(Reply(AS_ASKED, headers=SSE)).async_client()

    @feature("relay")
    async def relay():
        async for chunk in await client.chat.completions.create(**ASKED, stream=True):
            yield chunk

    with recorded() as events:
        async for _ in relay():
            assert current().feature is None
    assert [(event.feature, event.status, event.input_tokens) for event in events] == [("relay", "SUCCESS", 12)]


@pytest.mark.anyio
async def test_openllmetry_2195_a_synchronous_client_inside_a_loop(tmp_path):
    """A synchronous call, its tracking and a flush work in a coroutine as they do outside: no loop is run in a loop."""
    client = Wire(Reply(ANSWER)).client()
    with FluxGate(spool_dir=tmp_path) as fg:
        completed = client.chat.completions.create(**ASKED)
        assert completed.fluxgate.cost_nanos > 0
        assert fg.flush(5)
        assert await fg.aflush(5)
        assert fg.statistics().spooled == 1


# The end of a process


def test_langfuse_3292_a_function_that_is_frozen_after_its_answer(tmp_path):
    """A handler that flushes before it answers leaves nothing to a thread that may never run again."""
    with FluxGate(spool_dir=tmp_path, emit_interval_s=60) as fg:
        for invocation in range(1, 4):
            Wire(Reply(ANSWER)).client().chat.completions.create(**ASKED)
            assert fg.flush(5)
            assert (fg.statistics().queued, fg.statistics().spooled) == (0, invocation)


def test_langfuse_11104_a_flush_while_the_thread_is_frozen(tmp_path):
    """`flush` says no when its time is over, whatever the delivery hangs in, and the events arrive once it goes on."""
    hanging, go_on = threading.Event(), threading.Event()

    class Frozen(Spool):
        def append_nowait(self, payload: bytes) -> None:
            hanging.set()
            assert go_on.wait(20)
            super().append_nowait(payload)

    emitter = Emitter(spool=lambda: Frozen(tmp_path))
    emitter.emit(UsageEvent())
    assert hanging.wait(10)
    try:
        assert not emitter.flush(0.05)
        assert emitter.statistics().queued == 1
    finally:
        go_on.set()
    assert emitter.stop(10)
    assert emitter.statistics().spooled == 1


# Memory


def test_litellm_6404_memory_does_not_grow_with_streams():
    """Half a thousand streams, read or left, leave nothing behind that ten do not (litellm#8620, litellm#12685)."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    client = wire.client()

    def objects_after(streams: int) -> int:
        with recorded() as events:
            for number in range(streams):
                with client.chat.completions.create(**ASKED, stream=True) as stream:
                    assert len(list(stream) if number % 2 else [next(iter(stream))]) in (1, 6)
            assert len(events) == streams
        del stream, events
        for kept in (wire.sent, wire.requests, wire.bodies):
            kept.clear()
        gc.collect()
        return len(gc.get_objects())

    objects_after(20)
    few = objects_after(10)
    assert abs(objects_after(510) - few) < 50


def test_openai_python_865_a_client_for_each_call():
    """Clients, their copies and their answers are gone when their user lets go of them (openai-python#1361)."""
    with recorded() as events:
        gone = []
        for _ in range(3):
            client = Wire(Reply(ANSWER)).client()
            copy = client.with_options(timeout=3)
            gone += [weakref.ref(client), weakref.ref(copy), weakref.ref(copy.chat.completions.create(**ASKED))]
        del client, copy
        gc.collect()
        assert [reference() for reference in gone] == [None] * 9
    assert len(events) == 3


# Prices


def test_genai_prices_703_an_event_knows_its_prices():
    """What it was priced by is on the event and stays there; without a price there is none."""
    with recorded() as events:
        STREAM.plain(Wire(Reply(AS_ASKED, headers=SSE)))
        Wire(Reply(ANSWER)).client(base_url="https://llm.example/v1").chat.completions.create(**ASKED)
    priced, unpriced = (decode_event(encode_event(event)) for event in events)
    assert (priced.cost_nanos > 0, priced.price_version.split()[0]) == (True, "genai-prices")
    assert (unpriced.cost_nanos, unpriced.price_version) == (None, None)
