"""A stream that is still open when its process ends is one event, priced and delivered like any other."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event
from fluxgate_mw.openai.estimate import estimate_tokens

PROGRAM = """
import asyncio, contextvars, functools, multiprocessing, os, signal, sys, threading, types

from fluxgate_mw import FluxGate
from tests.calls.clients import ASKED, SSE, Reply, Wire, chunk, sse

fg = FluxGate(spool_dir=sys.argv[1])
parts = [sse(chunk("word "), done=False)] * 5


def began():
    stream = Wire(Reply(parts, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
    next(stream)
    return stream


async def abegan():
    wire = Wire(Reply(parts, headers=SSE, forever=True))
    stream = await wire.async_client().chat.completions.create(**ASKED, stream=True)
    return stream, [await anext(stream) for _ in range(1)]


async def reads_for_ever():
    stream, _ = await abegan()
    began_to_read.set()
    async for _ in stream:
        pass


async def lives(lifespan):
    async with lifespan:
        pass


match sys.argv[2]:
    case "global":
        held = began()
    case "asynchronous global":
        held = asyncio.run(abegan())
    case "module":
        held = types.ModuleType("held")
        sys.modules["held"], held.stream = held, began()
    case "context variable":
        contextvars.ContextVar("held").set(began())
    case "cache":
        functools.cache(began)()
    case "daemon thread":
        reached = threading.Event()

        def reads():
            stream = began()
            reached.set()
            threading.Event().wait()

        threading.Thread(target=reads, daemon=True).start()
        reached.wait()
    case "pending task":
        loop, began_to_read = asyncio.new_event_loop(), asyncio.Event()
        held = loop.create_task(reads_for_ever())
        loop.run_until_complete(began_to_read.wait())
    case "child of multiprocessing":

        def holds():
            global held
            held = began()

        child = multiprocessing.get_context("fork").Process(target=holds)
        child.start()
        child.join()
    case "uncaught error":
        for _ in began():
            raise SystemExit
    case "signal after the lifespan":
        held = began()
        asyncio.run(lives(fg.lifespan(None)))
        os.kill(os.getpid(), signal.SIGTERM)
    case "signal after the user's own lifespan":
        held = began()
        asyncio.run(lives(fg.lifespan_with(fg.lifespan)(None)))
        os.kill(os.getpid(), signal.SIGTERM)
"""
READ_BYTES = {
    "global": 5,
    "asynchronous global": 5,
    "module": 5,
    "context variable": 5,
    "cache": 5,
    "daemon thread": 5,
    "pending task": 15,
    "child of multiprocessing": 5,
    "uncaught error": 10,
}
READ_BEFORE_A_SIGNAL = {"signal after the lifespan": 5, "signal after the user's own lifespan": 5}
"""Source: `Server.capture_signals` of uvicorn, which raises what it caught again once it has shut down."""


@pytest.mark.parametrize("held", READ_BYTES | READ_BEFORE_A_SIGNAL)
def test_a_stream_that_is_open_at_the_end(tmp_path, held):
    """Whoever holds it, its event says that it was left and what that cost."""
    command = [sys.executable, "-c", PROGRAM, tmp_path, held]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == (-signal.SIGTERM if held in READ_BEFORE_A_SIGNAL else 0)
    assert "fluxgate-mw" not in done.stderr
    entries = Spool(tmp_path).read_nowait(10)
    [event] = [decode_event(data) for entry in entries for data in unpack(entry.payload)]
    assert (event.status, event.usage_source) == ("CANCELLED", "estimated")
    assert event.output_tokens == estimate_tokens((READ_BYTES | READ_BEFORE_A_SIGNAL)[held])
    assert event.cost_nanos is not None
