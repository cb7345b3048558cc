"""`track()`: a call of any provider, by hand."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest

from fluxgate_mw import FluxGate, context, diagnostics, feature, track, tracking
from fluxgate_mw.event import decode_event, encode_event
from fluxgate_mw.recorder import in_hand
from fluxgate_mw.testing import capture_events

CLAUDE = {"provider": "anthropic", "model": "claude-3-5-haiku-20241022"}


@pytest.fixture
def events():
    """The events of this test."""
    with capture_events() as captured:
        yield captured
    assert in_hand.get() is None


def test_usage_is_recorded_and_priced(events):
    """Counts as they were reported, the cost of the table, user and feature of the surroundings, a latency."""
    before = time.perf_counter()
    with context(user="u-1", feature="search", metadata={"tenant": "t"}), track() as call:
        call.usage(**CLAUDE, input_tokens=1000, output_tokens=100, cache_read_input_tokens=200)
        assert call.tracking is None
    took_ms = (time.perf_counter() - before) * 1000
    (event,) = events
    assert (event.provider_name, event.request_model, event.response_model) == (
        "anthropic",
        CLAUDE["model"],
        CLAUDE["model"],
    )
    assert (event.input_tokens, event.output_tokens, event.cache_read_input_tokens) == (1000, 100, 200)
    assert (event.user.id, event.feature, event.metadata) == ("u-1", "search", {"tenant": "t"})
    assert (event.status, event.usage_source, event.error_type) == ("SUCCESS", "provider", None)
    assert event.cost_nanos == 800 * 800 + 200 * 80 + 100 * 4000
    assert 0 < event.latency_ms < took_ms
    assert call.tracking.tracking_id == event.event_id
    assert call.tracking.cost_nanos == event.cost_nanos


def test_without_usage_there_is_still_one_event(events):
    """Its usage is `none` and its cost unknown."""
    with track():
        pass
    assert [(event.usage_source, event.cost_nanos, event.status) for event in events] == [("none", None, "SUCCESS")]


def test_usage_without_any_count_is_none(events):
    """The provider and the model are kept."""
    with track() as call:
        call.usage(**CLAUDE)
    assert [(event.usage_source, event.provider_name) for event in events] == [("none", "anthropic")]


def test_the_last_report_counts(events):
    """Streams report again and again."""
    with track() as call:
        call.usage(**CLAUDE, input_tokens=1)
        call.usage(**CLAUDE, input_tokens=2, output_tokens=1, status="MAX_TOKENS")
    assert [(event.input_tokens, event.status) for event in events] == [(2, "MAX_TOKENS")]


def test_a_report_after_the_end_changes_nothing_and_is_counted():
    """Also of an event that is made later than it: the delivery makes it."""
    pending = []
    FluxGate(instrument=False).recorder.sink = SimpleNamespace(defer=pending.append)
    with track() as call:
        call.usage(**CLAUDE, input_tokens=2)
    call.usage(provider="google", model="gemini-2.5-pro", input_tokens=3)
    event = pending[0].made()
    assert (event.provider_name, event.request_model, event.response_model, event.input_tokens) == (
        CLAUDE["provider"],
        CLAUDE["model"],
        CLAUDE["model"],
        2,
    )
    assert diagnostics.counts() == {"track_usage_late": 1}


def test_an_error_is_recorded_and_is_the_same_object(events):
    """With the usage known so far and a message without secrets."""
    error = ValueError("refused for sk-abcdefghijklmnop")
    with pytest.raises(ValueError, match="refused") as raised, track() as call:  # noqa: PT012
        call.usage(**CLAUDE, input_tokens=5)
        raise error
    assert raised.value is error
    (event,) = events
    assert (event.status, event.error_type, event.input_tokens) == ("ERROR", "ValueError", 5)
    assert event.error_message == "refused for ***"


class UnspeakableError(Exception):
    """One that has no text."""

    def __str__(self) -> str:
        raise RuntimeError


def test_an_error_without_a_text_is_recorded_too(events):
    """An exception whose text cannot be had loses its message, not its event."""
    with pytest.raises(UnspeakableError), track():
        raise UnspeakableError
    assert [(event.status, event.error_type, event.error_message) for event in events] == [
        ("ERROR", "UnspeakableError", None)
    ]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_giving_up_is_cancelled(events, kind):
    """And passes."""
    with pytest.raises(kind), track():
        raise kind
    assert [(event.status, event.error_type) for event in events] == [("CANCELLED", kind.__name__)]


@pytest.mark.anyio
async def test_a_cancelled_task_is_one_event(events):
    """`asyncio.timeout` and `Task.cancel` go on as without us."""

    @track()
    async def ask():
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ask()
    assert [event.status for event in events] == ["CANCELLED"]


def test_decorating_keeps_the_function(events):
    """Name, signature and kind; each call is one event."""

    @track()
    @feature("search")
    def ask(text: str, *, times: int = 1) -> str:
        """Ask."""
        return text * times

    assert ask("a", times=2) == "aa"
    assert ask("b") == "b"
    assert (ask.__name__, ask.__doc__, list(inspect.signature(ask).parameters)) == ("ask", "Ask.", ["text", "times"])
    assert len(events) == 2


@pytest.mark.anyio
async def test_decorating_an_async_function(events):
    """It stays one, and its errors pass."""

    @track()
    async def ask(text: str) -> str:
        await asyncio.sleep(0)
        return {"known": "answer"}[text]

    assert inspect.iscoroutinefunction(ask)
    assert await ask("known") == "answer"
    with pytest.raises(KeyError):
        await ask("unknown")
    assert [event.status for event in events] == ["SUCCESS", "ERROR"]


def test_a_decorated_generator_is_a_call_until_it_ends(events):
    """Its steps, what is sent to it and what it returns are its own; closed early it is cancelled."""

    @track()
    def words(count):
        sent = []
        for number in range(count):
            sent.append((yield number))  # noqa: PERF401  (no comprehension yields)
        return sent

    def outer():
        return (yield from words(2))

    steps = outer()
    assert next(steps) == 0
    assert events == []
    assert steps.send("a") == 1
    with pytest.raises(StopIteration) as stop:
        steps.send("b")
    assert stop.value.value == ["a", "b"]
    begun = words(3)
    next(begun)
    begun.close()
    assert [event.status for event in events] == ["SUCCESS", "CANCELLED"]
    assert inspect.isgeneratorfunction(words)


@pytest.mark.anyio
async def test_a_decorated_async_generator_is_a_call_until_it_ends(events):
    """Broken off, it is closed at once, inside its call."""
    closed = []

    @track()
    async def words(count):
        try:
            for number in range(count):
                yield number
        finally:
            closed.append(count)

    assert [number async for number in words(2)] == [0, 1]
    async with aclosing(words(3)) as broken_off:
        assert await anext(broken_off) == 0
    assert closed == [2, 3]
    assert [event.status for event in events] == ["SUCCESS", "CANCELLED"]
    assert inspect.isasyncgenfunction(words)


@pytest.mark.anyio
async def test_what_is_sent_and_thrown_reaches_a_decorated_async_generator(events):
    """It answers what it is sent, and may go on after what is thrown into it."""

    @track()
    async def echo():
        heard = None
        while heard != "enough":
            try:
                heard = yield heard
            except KeyError as error:
                heard = error.args[0]

    steps = echo()
    assert await anext(steps) is None
    assert await steps.asend("hello") == "hello"
    assert await steps.athrow(KeyError("thrown")) == "thrown"
    with pytest.raises(StopAsyncIteration):
        await steps.asend("enough")
    assert [event.status for event in events] == ["SUCCESS"]


@pytest.mark.anyio
async def test_decorated_context_managers_see_their_blocks_error(events):
    """One that takes it over is a success, one that lets it pass is an error; sync and async."""

    @track()
    def taking(kind):
        try:
            yield 1
        except kind:
            return

    @track()
    async def ataking(kind):
        try:
            yield 1
        except kind:
            return

    async def entered(manager):
        async with asynccontextmanager(ataking)(manager):
            raise ValueError

    with contextmanager(taking)(ValueError):
        raise ValueError
    await entered(ValueError)
    with pytest.raises(ValueError), contextmanager(taking)(KeyError):
        raise ValueError
    with pytest.raises(ValueError):
        await entered(KeyError)
    assert [event.status for event in events] == ["SUCCESS", "SUCCESS", "ERROR", "ERROR"]


class Service:
    """Every kind of callable that is not a plain function."""

    @track()
    @staticmethod
    def static():
        return "static"

    @track()
    @classmethod
    def of_class(cls):
        return cls

    async def __call__(self):
        return await _asked()


async def _asked():
    await asyncio.sleep(0.02)
    raise LookupError


@functools.wraps(_asked)
def _wrapped():
    return _asked()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target", [_wrapped, Service(), functools.partial(_asked)], ids=["a wrapper", "an object", "a partial"]
)
async def test_whatever_gives_a_coroutine_is_a_call_until_that_ends(events, target):
    """Whether it is a coroutine function itself or not: one event, with the latency and the error."""
    with pytest.raises(LookupError):
        await track()(target)()
    (event,) = events
    assert (event.status, event.error_type) == ("ERROR", "LookupError")
    assert event.latency_ms >= 15


@pytest.mark.anyio
async def test_a_coroutine_that_is_only_made_is_no_call(events):
    """Nothing is recorded, and nothing left open, until somebody awaits it, in whatever task."""
    made = track()(_wrapped)()
    assert in_hand.get() is None
    assert events == []
    with pytest.raises(LookupError):
        await asyncio.create_task(made)
    assert len(events) == 1


@pytest.mark.anyio
async def test_a_plain_function_that_returns_a_generator_is_a_call_until_that_ends(events):
    """Sync and async."""

    async def words():
        yield "a"

    steps = track()(lambda: (number for number in range(2)))()
    assert next(steps) == 0
    assert events == []
    assert list(steps) == [1]
    assert [word async for word in track()(lambda: words())()] == ["a"]  # noqa: PLW0108
    assert [event.status for event in events] == ["SUCCESS", "SUCCESS"]


def test_static_and_class_methods_may_be_decorated_from_outside(events):
    """As with `feature`: in either order."""
    assert Service.static() == Service().static() == "static"
    assert Service.of_class() is Service().of_class() is Service
    assert len(events) == 4


def test_nested_calls_are_events_of_their_own(events):
    """Also of one shared instance: the inner one ends first."""
    shared = track()
    with shared as outer:
        outer.usage(**CLAUDE, input_tokens=1)
        with shared as inner:
            inner.usage(**CLAUDE, input_tokens=2)
        with track() as other:
            other.usage(**CLAUDE, input_tokens=3)
    assert [event.input_tokens for event in events] == [2, 3, 1]


@pytest.mark.anyio
async def test_one_instance_serves_many_tasks(events):
    """Whatever the order in which they end, each ends its own call with its own error."""
    shared = track()
    ends = [asyncio.Event() for _ in range(4)]

    async def ask(number: int) -> None:
        async with shared as call:
            call.usage(**CLAUDE, input_tokens=number)
            await ends[number].wait()
            if number % 2:
                raise ValueError(str(number))

    tasks = [asyncio.create_task(ask(number)) for number in range(4)]
    await asyncio.sleep(0)
    for number in (1, 0, 3, 2):
        ends[number].set()
        await asyncio.wait([tasks[number]])
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [(event.input_tokens, event.error_message) for event in events] == [(1, "1"), (0, None), (3, "3"), (2, None)]


def test_one_instance_serves_many_threads(events):
    """As with tasks."""
    shared = track()
    together = threading.Barrier(4)

    def ask(number: int) -> None:
        with shared as call:
            call.usage(**CLAUDE, input_tokens=number)
            together.wait(10)
            call.usage(**CLAUDE, input_tokens=number, output_tokens=number)
            together.wait(10)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted((event.input_tokens, event.output_tokens) for event in events) == [(n, n) for n in range(4)]


def test_left_in_another_order_or_context(events):
    """An exit stack that is closed elsewhere ends what it opened."""
    shared, other = track(), track()
    stack = ExitStack()
    call = stack.enter_context(shared)
    with other as inner:
        inner.usage(**CLAUDE, input_tokens=2)
        call.usage(**CLAUDE, input_tokens=1)
        stack.close()
    assert [event.input_tokens for event in events] == [1, 2]
    with ExitStack() as outer:
        thread = threading.Thread(target=lambda: outer.enter_context(shared).usage(**CLAUDE, input_tokens=7))
        thread.start()
        thread.join(10)
    assert [event.input_tokens for event in events] == [1, 2, 7]


@pytest.mark.parametrize("count", [-1, 1.5, "12", True, 2**53 + 1, float("nan"), [1]])
def test_bad_counts_are_unknown(events, count):
    """They never raise, are counted, and what is told beside them is kept; the event can be delivered."""
    with track() as call:
        call.usage(**CLAUDE, input_tokens=count, output_tokens=3)
    (event,) = events
    assert (event.input_tokens, event.output_tokens) == (None, 3)
    assert diagnostics.counts()["track_usage"] == 1
    assert decode_event(encode_event(event)) == event


def test_a_rejected_count_leaves_the_cost_unknown(events):
    """What cannot be counted is not priced as if it were 0, nor by rates of one's own."""
    rates = {"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}
    for own in (None, rates):
        with context(cost_override=own), track() as call:
            call.usage(**CLAUDE, input_tokens=1000, output_tokens=-5)
    with track() as call:
        call.usage(**CLAUDE, input_tokens=1000, output_tokens=5, cache_read_input_tokens=0.5)
    assert {(event.cost_nanos, event.unpriced_reason) for event in events} == {(None, "the usage is incomplete")}


def test_whole_floats_are_counts(events):
    """Some JSON readers give every number as a float."""
    with track() as call:
        call.usage(**CLAUDE, input_tokens=12.0, output_tokens=0)
    assert [(event.input_tokens, event.output_tokens) for event in events] == [(12, 0)]


def test_an_own_price_wins(events):
    """`cost_override` of the surroundings prices a call of any provider."""
    rates = {"input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 2}
    with context(cost_override=rates), track() as call:
        call.usage(provider="in-house", model="m", input_tokens=10, output_tokens=5)
    assert [(event.cost_nanos, event.price_version) for event in events] == [(20_000, "cost_override")]


def test_switched_off_it_is_silent(events):
    """The block runs, nothing is recorded."""
    FluxGate(enabled=False)
    with track() as call:
        call.usage(**CLAUDE, input_tokens=1)
    assert (events, call.tracking, tracking(call)) == ([], None, None)


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        ("claude-sonnet-4-5", {"input_tokens": 1000}),
        ("claude-sonnet-4-5", {"output_tokens": 10}),
        ("claude-sonnet-4-5", {"input_tokens": 1000, "cache_read_input_tokens": 1000}),
    ],
)
def test_half_a_usage_has_no_cost(events, model, counts):
    """What is not told of a half that costs something is not 0; what was told is kept."""
    with track() as call:
        call.usage(provider="anthropic", model=model, **counts)
    [event] = events
    assert (event.cost_nanos, event.unpriced_reason) == (None, "the usage is incomplete")
    assert {name: getattr(event, name) for name in counts} == counts


@pytest.mark.parametrize(
    ("provider", "model", "nanos"),
    [
        ("openai", "text-embedding-3-small", 20_000),
        ("mistral", "mistral-embed", 100_000),
        ("openrouter", "mistralai/mistral-7b-instruct:free", 0),
    ],
)
def test_half_a_usage_is_whole_where_the_other_half_costs_nothing(events, provider, model, nanos):
    """An embedding has no output, though a table may have a rate for it; a model that is free costs 0."""
    with track() as call:
        call.usage(provider=provider, model=model, input_tokens=1000)
    assert [(event.cost_nanos, event.unpriced_reason) for event in events] == [(nanos, None)]


def test_half_a_usage_costs_what_the_users_own_rates_say(tmp_path):
    """They are for the counts that he gives, by an override and by a price list."""
    path = tmp_path / "prices.toml"
    path.write_text("[[prices]]\nmodel = 'claude-sonnet-4-5'\ninput_cost_per_1m_tokens = 2\n")
    FluxGate(price_file=path)
    with capture_events() as events:
        with track() as call:
            call.usage(provider="anthropic", model="claude-sonnet-4-5", input_tokens=1000)
        with context(cost_override={"input_cost_per_1m_tokens": 1}), track() as call:
            call.usage(provider="anthropic", model="claude-sonnet-4-5", input_tokens=1000)
    assert [event.cost_nanos for event in events] == [2_000_000, 1_000_000]
