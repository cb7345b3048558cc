"""However a stream ends there is exactly one event of it, and it says how."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from contextlib import aclosing
from types import SimpleNamespace

import openai
import pytest

from fluxgate_mw import create_openai_cost_tracker, diagnostics, tracking
from fluxgate_mw.openai.estimate import estimate_tokens
from fluxgate_mw.recorder import Recorder
from fluxgate_mw.settings import Settings
from tests.calls.clients import ASKED, SSE, Asked, Body, Reply, Wire, chunk, completion, finish, httpx, recorded, sse
from tests.calls.streaming import AS_ASKED, ENDLESS, STREAM, TEXTS, USAGE, WITHOUT, counts


def given_up(events, *, status="CANCELLED", error_type=None, output=10):
    """Assert that exactly one event tells of a stream that was given up after one chunk."""
    [event] = events
    assert (event.status, event.usage_source) == (status, "estimated")
    assert event.error_type == error_type
    assert event.input_tokens == estimate_tokens(len("Say this is a test"))
    assert event.output_tokens == output
    assert event.http_status == 200
    assert event.cost_nanos is not None
    assert event.response_id == "chatcmpl-1"
    return event


def left_early(resource, **asked):
    """Return the event of a call that is left at its first chunk."""
    with recorded() as events:
        create = Asked(resource, {"model": "gpt-4o-mini", **asked, "stream": True})
        stream = create.of(Wire(Reply(ENDLESS, headers=SSE)).client())(**create.arguments)
        leave_by_close(stream)
    return events[0]


def test_a_prompt_of_tokens_that_is_left_early():
    """How long it is is known, with no estimate."""
    event = left_early("completions", prompt=[list(range(1000))], model="gpt-3.5-turbo-instruct")
    assert (event.usage_source, event.input_tokens) == ("estimated", 1000)
    assert event.cost_nanos is not None


@pytest.mark.parametrize("resource", ["chat.completions", "responses"])
def test_a_prompt_that_is_not_known_and_left_early(resource):
    """Neither an image's tokens are known nor what the service has stored: that is not 0, and no part has a cost."""
    image = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    asked = {
        "chat.completions": {"messages": [{"role": "user", "content": [image]}]},
        "responses": {"input": "And then?", "previous_response_id": "resp_1"},
    }
    event = left_early(resource, **asked[resource])
    assert (event.usage_source, event.input_tokens, event.output_tokens) == ("estimated", None, 10)
    assert (event.cost_nanos, event.unpriced_reason) == (None, "how long the prompt was is not known")


def leave_by_break(stream):
    for _ in stream:
        break
    stream.close()


def leave_by_with(stream):
    with stream:
        next(stream)


def leave_by_close(stream):
    next(stream)
    stream.close()
    stream.close()


def leave_by_response_close(stream):
    next(stream)
    stream.response.close()


def leave_by_error(stream):
    next(stream)
    with pytest.raises(ZeroDivisionError), stream:
        _ = 1 / 0


def test_a_stream_left_early_whose_event_the_sink_fails_over_once_it_has_it():
    """A bug of ours behind the call changes nothing of what the event says."""
    taken = []

    class Failing:
        def emit(self, event):
            raise AssertionError

        def defer(self, pending):
            taken.append(pending)
            raise RuntimeError

    fg = SimpleNamespace(recorder=Recorder(Settings(), Failing()))
    tracker = create_openai_cost_tracker(Wire(Reply(ENDLESS, headers=SSE)).client(), fg)
    leave_by_close(tracker.chat.completions.create(**ASKED, stream=True))
    given_up([pending.made() for pending in taken])
    assert diagnostics.counts() == {"bug_openai_stream": 1}
    diagnostics.reset()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_with, leave_by_close, leave_by_response_close, leave_by_error]
)
def test_a_stream_left_early(leave):
    """A reader who leaves ends the call at once, as cancelled, estimated (openlit#1454, openllmetry#4394)."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        leave(stream)
        given_up(events)
        assert wire.bodies[0].closed
        assert type(stream.response) is httpx.Response
        assert stream.fluxgate.status == "CANCELLED"
        del stream
        gc.collect()
    assert len(events) == 1


def test_a_stream_that_is_dropped():
    """A reader who forgets a stream ends the call when the stream is freed."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        next(stream)
        assert events == []
        del stream
        gc.collect()
        given_up(events)


def test_a_stream_that_is_never_read():
    """A stream that nobody reads costs its prompt; its event comes when it is freed (litellm#14457)."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        assert tracking(stream) is None
        del stream
        gc.collect()
    [event] = events
    assert (event.status, event.usage_source, event.output_tokens) == ("CANCELLED", "estimated", 0)
    assert event.time_to_first_chunk_ms is None


def test_a_stream_that_is_read_twice():
    """Reading a stream again gives nothing more and no second event."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        assert len(list(stream)) == len(TEXTS) + 2
        assert list(stream) == []
        stream.close()
    assert len(events) == 1


def test_a_stream_read_by_turns():
    """`break` and read on is one stream; its event comes at the end."""
    wire = Wire(Reply(AS_ASKED, headers=SSE))
    with recorded() as events:
        stream = wire.client().chat.completions.create(**ASKED, stream=True)
        first = next(stream)
        for _ in stream:
            break
        rest = list(stream)
        assert len([first, *rest]) == len(TEXTS) + 1
    assert len(events) == 1
    assert events[0].status == "SUCCESS"


@pytest.mark.anyio
@pytest.mark.parametrize("leave", ["close", "with", "aclose of the response"])
async def test_an_asynchronous_stream_left_early(leave):
    """`close`, `async with` and the response's `aclose` end the call at once (langfuse#3188, langfuse#5361)."""
    wire = Wire(Reply(ENDLESS, headers=SSE))
    with recorded() as events:
        stream = await wire.async_client().chat.completions.create(**ASKED, stream=True)
        if leave == "with":
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
            await (stream.close() if leave == "close" else stream.response.aclose())
        given_up(events)
        assert wire.bodies[0].closed
        assert type(stream.response) is httpx.Response


@pytest.mark.anyio
@pytest.mark.parametrize("size", [None, 10])
@pytest.mark.parametrize("reading", ["aiter_bytes", "aiter_raw"])
async def test_a_reader_that_is_closed_gives_the_connection_back_when_it_does_without_us(reading, size):
    """httpx2 does so at once: `aclosing(response.aiter_bytes())` leaves no open connection behind."""

    async def closed():
        wire = Wire(Reply(ENDLESS, headers=SSE))
        stream = await wire.async_client().chat.completions.create(**ASKED, stream=True)
        async with aclosing(getattr(stream.response, reading)(size)) as parts:
            await anext(parts)
        return stream.response.is_closed, wire.bodies[0].closed

    without = await closed()
    with recorded() as events:
        assert await closed() == without
    assert len(events) == 1


@pytest.mark.anyio
async def test_a_cancelled_reader():
    """Cancellation passes to the task and ends the call as cancelled (litellm#35958).

    BerriAI/litellm PR#30630, #33736, #36008.
    """
    wire = Wire(Reply(ENDLESS[:1], headers=SSE, forever=True))
    read = asyncio.Event()

    async def reader():
        async for _ in await wire.async_client().chat.completions.create(**ASKED, stream=True):
            read.set()

    with recorded() as events:
        task = asyncio.create_task(reader())
        await read.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        given_up(events, error_type="CancelledError")


@pytest.mark.anyio
async def test_a_reader_who_loses_patience():
    """`wait_for` raises its own `TimeoutError`, nothing is swallowed (dd-trace-py#10191)."""
    wire = Wire(Reply(ENDLESS[:1], headers=SSE, forever=True))

    async def reader():
        return [each async for each in await wire.async_client().chat.completions.create(**ASKED, stream=True)]

    with recorded() as events:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader(), 0.05)
        given_up(events, error_type="CancelledError")


def network_errors():
    return [httpx.ReadError("broken"), httpx.RemoteProtocolError("peer closed"), httpx.ReadTimeout("slow")]


@pytest.mark.parametrize("error", network_errors(), ids=lambda error: type(error).__name__)
def test_a_network_that_breaks(error):
    """The caller is raised what he is raised without us; the event is an error with what was delivered."""

    def broken():
        return Wire(Reply(ENDLESS[:1], headers=SSE, error=error))

    without = STREAM.plain(broken())
    for way in (STREAM.plain, STREAM.asynchronous):
        with recorded() as events:
            assert way(broken()) == without
        event = given_up(events, status="ERROR", error_type=type(error).__name__)
        assert event.error_message is None or "sk-" not in event.error_message


def test_an_error_event_in_the_stream():
    """An error that the service sends in a stream is raised as without us and recorded with its code."""
    fault = {"error": {"message": "The server had an error", "type": "server_error", "code": "overloaded"}}
    body = sse(chunk("word " * 8), fault, done=False)
    without = STREAM.plain(Wire(Reply(body, headers=SSE)))
    with recorded() as events:
        assert STREAM.plain(Wire(Reply(body, headers=SSE))) == without
    [event] = events
    assert (event.status, event.error_message) == ("ERROR", "The server had an error")
    assert (event.input_tokens, event.output_tokens) == (5, 10)
    assert event.error_type


NULL = b',"usage":null'
TORN = {
    "in its text": ([WITHOUT[:-30]], [WITHOUT[:-30]]),
    "behind its usage": ([AS_ASKED[: AS_ASKED.index(NULL) + len(NULL)]], [WITHOUT[: AS_ASKED.index(NULL)]]),
}
"""What has come of an event when the body breaks: where usage was asked for, and where not."""


@pytest.mark.parametrize("size", [None, 0, 7])
@pytest.mark.parametrize("reading", ["iter_bytes", "iter_raw", "iter_text"])
@pytest.mark.parametrize("torn", TORN)
def test_the_parts_before_a_break(torn, reading, size):
    """Who reads them himself gets all that came, and then the error, as without us."""
    asked_for, parts = TORN[torn]

    def read(got):
        completions = Wire(Reply(parts, headers=SSE, error=httpx.ReadError("gone"))).client().chat.completions
        with completions.with_streaming_response.create(**ASKED, stream=True) as response:
            got.extend(getattr(response.http_response, reading)(size))

    async def aread(got):
        completions = Wire(Reply(parts, headers=SSE, error=httpx.ReadError("gone"))).async_client().chat.completions
        async with completions.with_streaming_response.create(**ASKED, stream=True) as response:
            async for part in getattr(response.http_response, f"a{reading}")(size):
                got.append(part)

    def told(read, *, run=lambda result: result):
        got = []
        with pytest.raises((httpx.ReadError, ValueError)) as error:
            run(read(got))
        return got[0][:0].join(got) if got else None, error.type, error.value.args

    without = told(read), told(aread, run=asyncio.run)
    parts = asked_for
    with recorded() as events:
        assert (told(read), told(aread, run=asyncio.run)) == without
    assert len(events) == 2


MID_EVENT = [AS_ASKED[:250], AS_ASKED[250:]]
"""Cut in the middle of the second event."""


@pytest.mark.parametrize("reading", ["read", "iter_raw", "iter_lines"])
def test_who_may_not_read_a_stream_does_not_end_it(reading):
    """Reading beside the reader raises, as without us; the reader loses no byte by it, and the call no usage."""
    with recorded() as events:
        stream = Wire(Reply(MID_EVENT, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        read = [next(stream)]
        with pytest.raises(httpx.StreamConsumed):
            b"".join(getattr(stream.response, reading)())
        read += stream
    assert [chunk.choices[0].delta.content for chunk in read] == ["", *TEXTS, None]
    assert [(event.status, counts(event)) for event in events] == [("SUCCESS", (12, 5, 4, 2))]


@pytest.mark.anyio
@pytest.mark.parametrize("reading", ["read", "aread"])
async def test_who_may_not_read_an_asynchronous_stream_does_not_end_it(reading):
    """Nor does who reads it as if it were of the other kind."""
    with recorded() as events:
        stream = await Wire(Reply(MID_EVENT, headers=SSE)).async_client().chat.completions.create(**ASKED, stream=True)
        read = [await anext(stream)]
        with pytest.raises(httpx.StreamConsumed):
            await _tried(stream.response, reading)
        read += [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in read] == ["", *TEXTS, None]
    assert [(event.status, counts(event)) for event in events] == [("SUCCESS", (12, 5, 4, 2))]


async def _tried(response, reading):
    return await response.aread() if reading == "aread" else response.read()


@pytest.mark.parametrize("late", [False, True])
def test_a_reader_that_is_never_used_takes_nothing_from_the_other(late):
    """Of two readers of one answer the one that reads is followed, whichever was made first."""
    wire = Wire(Reply(json.dumps(completion()).encode()))
    with recorded() as events, wire.client().chat.completions.with_streaming_response.create(**ASKED) as answer:
        readers = [answer.http_response.iter_bytes() for _ in range(2)]
        assert json.loads(b"".join(readers[late])) == completion()
    assert [(event.status, event.input_tokens) for event in events] == [("SUCCESS", 12)]


def test_a_body_that_goes_on_after_its_end():
    """Who closes a stream and reads on gets what its transport still gives, torn as it may be."""

    def texts(parts):
        stream = Wire(Reply(parts, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        first = next(stream)
        stream.close()
        return [chunk.model_dump() for chunk in (first, *stream)]

    without = texts([WITHOUT[:250], WITHOUT[250:]])
    with recorded() as events:
        assert texts(MID_EVENT) == without
    assert [event.status for event in events] == ["CANCELLED"]


def test_a_stream_without_done():
    """A stream that ends after its finish reason is whole, `[DONE]` or not."""
    body = sse(chunk("Hi"), chunk(choices=finish()), chunk(choices=[], usage=USAGE), done=False)
    with recorded() as events:
        assert len(STREAM.plain(Wire(Reply(body, headers=SSE)))) == 2
    assert (events[0].status, counts(events[0])) == ("SUCCESS", (12, 5, 4, 2))


def test_a_stream_that_stops_in_the_middle():
    """A body that ends before any finish reason is an error of the service, estimated."""
    with recorded() as events:
        assert len(STREAM.plain(Wire(Reply(ENDLESS[:1], headers=SSE)))) == 1
    given_up(events, status="ERROR", error_type="IncompleteStream")


def test_lines_that_end_in_carriage_returns_alone():
    """The last event of such a body is known to be whole when the body ends."""
    body, without = (sent.replace(b"\n", b"\r") for sent in (AS_ASKED, WITHOUT))
    ended = body.index(b"data: [DONE]")

    def read(sent):
        completions = Wire(Reply([sent], headers=SSE)).client().chat.completions
        with completions.with_streaming_response.create(**ASKED, stream=True) as response:
            return response.read()

    with recorded() as events:
        assert read(body[:ended]) == without[: without.index(b"data: [DONE]")]
    assert [(event.status, counts(event)) for event in events] == [("SUCCESS", (12, 5, 4, 2))]


def test_an_event_without_its_blank_line_at_the_end():
    """What stands after the last blank line reaches the caller as without us."""
    body = WITHOUT[:-1]
    without = STREAM.plain(Wire(Reply([body], headers=SSE)))
    with recorded() as events:
        assert STREAM.plain(Wire(Reply([body], headers=SSE))) == without
    assert events[0].status == "SUCCESS"


def _spoken(wire):
    speech = wire.client().audio.speech.with_streaming_response
    return speech.create(model="tts-1", voice="alloy", input="Hello")


SOUND = {"headers": {"content-type": "audio/mpeg"}}


def test_sound_that_breaks_off():
    """What is spoken while it is read ends as its reader sees it end, not when its headers come."""
    with recorded() as events, _spoken(Wire(Reply([b"so"], error=httpx.ReadError("gone"), **SOUND))) as sound:
        assert events == []
        with pytest.raises(httpx.ReadError):
            sound.read()
    assert [(event.status, event.error_type, event.http_status) for event in events] == [("ERROR", "ReadError", 200)]


def test_how_long_sound_takes():
    """Its latency is that of the whole, and its first chunk has a time."""
    with recorded() as events, _spoken(Wire(Reply([b"so", b"und"], **SOUND))) as sound:
        parts = sound.iter_bytes()
        assert (next(parts), events) == (b"so", [])
        time.sleep(0.02)
        assert b"".join(parts) == b"und"
    [event] = events
    assert event.status == "SUCCESS"
    assert event.time_to_first_chunk_ms + 20 <= event.latency_ms


def test_sound_that_is_left_early():
    """Who closes it before its end has cancelled it."""
    with recorded() as events, _spoken(Wire(Reply([b"so", b"und"], **SOUND))) as sound:
        next(sound.iter_bytes())
    assert [event.status for event in events] == ["CANCELLED"]


class Stalled(Body):
    """A body that says no more after its first parts, until its connection is closed under its reader."""

    def __init__(self) -> None:
        super().__init__(ENDLESS[:1], httpx.ReadError("Bad file descriptor"))
        self.waited_for, self.shut = threading.Event(), threading.Event()

    def __iter__(self):
        """Give the parts, wait, and raise."""
        yield from self.parts
        self.waited_for.set()
        self.shut.wait(10)
        raise self.error

    async def __aiter__(self):
        """Do the same for an asynchronous reader."""
        for part in self.parts:
            yield part
        self.waited_for.set()
        while not self.shut.is_set():  # noqa: ASYNC110  (both kinds wait for the same)
            await asyncio.sleep(0)
        raise self.error

    def close(self) -> None:
        """Close it."""
        self.shut.set()

    async def aclose(self) -> None:
        """Close it."""
        self.shut.set()

    def client(self, kind, http_kind):
        """Return a client that is given this body."""
        transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=SSE, stream=self))
        return kind(api_key="sk-unused", max_retries=0, http_client=http_kind(transport=transport))


@pytest.mark.parametrize("close", [lambda stream: stream.close(), lambda stream: stream.response.close()])
def test_a_stream_that_is_stopped_from_another_thread(close):
    """The reader gets the client's error as without us; whoever closed it wanted no more of it: no error."""
    body = Stalled()

    def stop(stream):
        body.waited_for.wait(10)
        close(stream)

    with recorded() as events:
        stream = body.client(openai.OpenAI, httpx.Client).chat.completions.create(**ASKED, stream=True)
        stopping = threading.Thread(target=stop, args=(stream,))
        stopping.start()
        with pytest.raises((httpx.ReadError, openai.APIConnectionError)):
            list(stream)
        stopping.join()
        given_up(events)


@pytest.mark.anyio
async def test_an_asynchronous_stream_that_is_stopped_from_another_task():
    """The same in an event loop."""
    body = Stalled()
    with recorded() as events:
        client = body.client(openai.AsyncOpenAI, httpx.AsyncClient)
        stream = await client.chat.completions.create(**ASKED, stream=True)

        async def read():
            return [each async for each in stream]

        reading = asyncio.create_task(read())
        while not body.waited_for.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        await stream.close()
        with pytest.raises((httpx.ReadError, openai.APIConnectionError)):
            await reading
        given_up(events)
