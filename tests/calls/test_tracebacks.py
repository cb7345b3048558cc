"""Where an exception was raised from, by its traceback: with us and without, but for our own frames."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

import fluxgate_mw
from tests.calls.clients import ASKED, SSE, Reply, Wire, completion, httpx, recorded, shaping
from tests.calls.streaming import ENDLESS

OURS = f"{Path(fluxgate_mw.__file__).parent}{os.sep}"
Cause = Callable[[], Reply]
REFUSED: dict[str, Cause] = {
    "status": lambda: Reply(b'{"error": {"message": "no"}}', status=404),
    "connection": lambda: Reply(refused=httpx.ConnectError("no route")),
    "time-out": lambda: Reply(refused=httpx.ReadTimeout("slow")),
    "interrupt": lambda: Reply(refused=KeyboardInterrupt()),
    "cancellation": lambda: Reply(refused=asyncio.CancelledError()),
    "of the host": lambda: Reply(refused=PermissionError("no")),
    "broken body": lambda: Reply([b'{"id": '], error=httpx.ReadError("reset")),
}
BROKEN: dict[str, Cause] = {
    "network": lambda: Reply(ENDLESS[:2], headers=SSE, error=httpx.ReadError("reset")),
    "interrupt": lambda: Reply(ENDLESS[:2], headers=SSE, error=KeyboardInterrupt()),
    "error event": lambda: Reply([*ENDLESS[:2], b'data: {"error": {"message": "overloaded"}}\n\n'], headers=SSE),
    "no JSON": lambda: Reply([*ENDLESS[:2], b"data: {no\n\n"], headers=SSE),
}


class Shape(pydantic.BaseModel):
    """What no answer here is."""

    number: int


def plain(wire: Wire) -> None:
    wire.client().chat.completions.create(**ASKED)


def raw(wire: Wire) -> None:
    wire.client().chat.completions.with_raw_response.create(**ASKED)


def streaming(wire: Wire) -> None:
    with wire.client().chat.completions.with_streaming_response.create(**ASKED) as response:
        response.parse()


def parsed(wire: Wire) -> None:
    shaping(wire.client()).parse(**ASKED, response_format=Shape)


def streamed(wire: Wire) -> None:
    for _ in wire.client().chat.completions.create(**ASKED, stream=True):
        pass


def asynchronous(wire: Wire) -> None:
    async def ask() -> None:
        await wire.async_client().chat.completions.create(**ASKED)

    run(ask())


def asynchronously_streamed(wire: Wire) -> None:
    async def ask() -> None:
        async for _ in await wire.async_client().chat.completions.create(**ASKED, stream=True):
            pass

    run(ask())


def run(coroutine: Any) -> None:
    """Run without a task of its own, so that an interrupt has no other way than up."""
    with asyncio.Runner() as runner:
        waiting = runner.get_loop().create_future()

        async def caught() -> None:
            try:
                await coroutine
            except BaseException as error:  # noqa: BLE001  (raised again below, where no loop is in between)
                waiting.set_result(error)

        runner.run(caught())
        raise waiting.result()


def told(ask: Callable[[Wire], None], cause: Cause) -> list[Any]:
    """Return class and frames of what is raised, and of every exception behind it: what a caller's log shows."""
    with pytest.raises(BaseException) as raised:
        ask(Wire(cause()))
    found: list[Any] = []
    error: BaseException | None = raised.value
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        found.append(type(error))
        found.append([(frame.filename, frame.lineno, frame.name) for frame in frames if OURS not in frame.filename])
        found.append((error.__suppress_context__, getattr(error, "__notes__", None)))
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("ask", [plain, raw, streaming, parsed, streamed, asynchronous, asynchronously_streamed])
@pytest.mark.parametrize("cause", REFUSED)
def test_of_what_is_refused(ask, cause):
    """Every frame but ours is at its place, in the exception and in those behind it."""
    without = told(ask, REFUSED[cause])
    with recorded() as events:
        assert told(ask, REFUSED[cause]) == without
    assert len(events) == 1


@pytest.mark.parametrize("ask", [streamed, asynchronously_streamed])
@pytest.mark.parametrize("cause", BROKEN)
def test_of_what_breaks_in_a_stream(ask, cause):
    """The same holds where our frames stand between the client and its network."""
    without = told(ask, BROKEN[cause])
    with recorded() as events:
        assert told(ask, BROKEN[cause]) == without
        gc.collect()  # openai 1.66 leaves the response open where its stream raises: it ends when it is freed
    assert len(events) == 1


def test_of_an_answer_that_does_not_fit():
    """What the client raises over an answer is raised from where it was."""
    body = json.dumps(completion()).encode()
    without = told(parsed, lambda: Reply(body))
    with recorded() as events:
        assert told(parsed, lambda: Reply(body)) == without
    assert without[0] is pydantic.ValidationError
    assert len(events) == 1


def test_our_frames_are_there_and_few():
    """Those that are ours can be told from the others by their file: at most two for one call."""
    with recorded(), pytest.raises(openai.NotFoundError) as raised:
        plain(Wire(REFUSED["status"]()))
    frames = [frame for frame in traceback.extract_tb(raised.value.__traceback__) if OURS in frame.filename]
    assert 1 <= len(frames) <= 2
