"""From a finished call to its event: exactly once, whatever fails on the way, and always readable again."""

from __future__ import annotations

import enum
import logging
import threading
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxgate_mw import FluxGate, User, ambient, context, current, diagnostics, feature, pricing, track
from fluxgate_mw.ambient import Ambient
from fluxgate_mw.buffer.cut import encode_within
from fluxgate_mw.call import Call
from fluxgate_mw.event import TokenUsage, UsageEvent, decode_event
from fluxgate_mw.recorder import Outcome
from fluxgate_mw.request import RequestContext
from fluxgate_mw.resolvers import ASGISources
from fluxgate_mw.testing import capture_events

USAGE = TokenUsage(input_tokens=1000, output_tokens=10)


def call_of(fg: FluxGate, **fields: object) -> Call:
    return Call(fg.recorder, ambient.get(), **{"provider": "openai", "model": "gpt-4o-mini", **fields})


@pytest.fixture
def fg() -> FluxGate:
    return FluxGate(instrument=False)


def explode(*args: object, **kwargs: object) -> object:
    raise OSError(28, "No space left on device", "/secret/path")


# Ending a call


def test_a_call_ends_once(fg):
    """The first end makes the event; what comes later changes nothing and is told the same."""
    call = call_of(fg)
    with capture_events() as events:
        assert call.tracking is None
        call.end(Outcome(usage=USAGE, usage_source="provider"))
        first = call.tracking
        call.end(Outcome(status="ERROR"))
        assert call.tracking is first
    [event] = events
    assert (event.status, event.cost_nanos) == ("SUCCESS", 156_000)
    assert (first.tracking_id, first.cost_nanos, first.cost) == (event.event_id, 156_000, Decimal("0.000156"))
    assert first.created_at == event.occurred_at


def test_a_call_ends_once_from_whatever_thread(fg):
    """A call may end in another thread than the one that began it."""
    call = call_of(fg)
    with capture_events() as events:
        thread = threading.Thread(target=call.end, args=(Outcome(),))
        thread.start()
        thread.join()
        call.end(Outcome())
    assert len(events) == 1


def test_a_call_that_many_threads_end_is_one_event(fg):
    """A reader and the collector may end a stream at the same time."""
    calls = [call_of(fg) for _ in range(500)]
    barrier = threading.Barrier(4)

    def end_all() -> None:
        barrier.wait()
        for call in calls:
            call.end(Outcome())

    with capture_events() as events:
        threads = [threading.Thread(target=end_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(events) == len({event.event_id for event in events}) == 500


def test_pricing_that_fails_loses_no_event(fg, monkeypatch, caplog):
    """A table that cannot be read leaves the cost unknown, says why, and the event is there."""
    monkeypatch.setattr(pricing, "price", explode)
    with capture_events() as events, caplog.at_level(logging.ERROR, "fluxgate_mw"):
        call = call_of(fg)
        call.end(Outcome(usage=USAGE, usage_source="provider"))
    [event] = events
    assert (event.cost_nanos, event.price_version, event.unpriced_reason) == (None, None, "pricing failed")
    assert (event.input_tokens, event.output_tokens, event.usage_source) == (1000, 10, "provider")
    assert call.tracking.cost is None
    assert diagnostics.counts()["bug_pricing"] == 1
    assert "/secret/path" not in caplog.text


def test_a_cost_override_that_is_not_valid(fg):
    """Rates that cannot be leave the cost unknown and are counted."""
    with context(cost_override={"input_cost_per_1m_tokens": "free"}), capture_events() as events:
        call_of(fg).end(Outcome(usage=USAGE, usage_source="provider"))
    assert (events[0].cost_nanos, events[0].unpriced_reason) == (None, "invalid cost_override")
    assert diagnostics.counts()["cost_override"] == 1


def test_why_there_is_no_cost(fg):
    """An unknown cost says its reason, and is never 0."""
    with capture_events() as events:
        call_of(fg).end(Outcome())
        call_of(fg, model="no-such-model").end(Outcome(usage=USAGE))
        call_of(fg, model=None).end(Outcome(usage=USAGE))
        call_of(fg).end(Outcome(usage=USAGE))
    assert [event.cost_nanos for event in events] == [None, None, None, 156_000]
    assert all(event.unpriced_reason for event in events[:3])
    assert events[3].unpriced_reason is None


def test_the_asked_model_is_priced_where_the_answers_is_unknown(fg):
    """A gateway's own name for the model that answered does not lose the cost."""
    with capture_events() as events:
        call_of(fg).end(Outcome(response_model="gateway-name-1", usage=USAGE))
    assert (events[0].cost_nanos, events[0].response_model) == (156_000, "gateway-name-1")


# Values that the application gives


class Weird:
    """A value without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Label(enum.StrEnum):
    """Features as an enumeration."""

    SEARCH = "search"


def read_again(event):
    return decode_event(encode_within(event, 1_000_000))


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.builds(Weird),
    st.just(Label.SEARCH),
    st.just(object),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.booleans()), st.text(max_size=5), max_size=3),
    st.text(alphabet=st.characters(categories=["Cs"]), min_size=1, max_size=3),
)


@given(
    ids=st.lists(ANYTHING, min_size=5, max_size=5),
    metadata=st.dictionaries(
        ANYTHING_KEY := st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none()), ANYTHING, max_size=4
    ),
)
@settings(max_examples=80)
def test_whatever_is_given_the_event_can_be_read_again(ids, metadata):
    """No id, name or metadata of a wrong type makes an event that is written and never read again."""
    fg = FluxGate(instrument=False)
    session, conversation, step, name, model = ids
    fields = {"session_id": session, "conversation_id": conversation, "step": step, "feature": name}
    with capture_events() as events, context(**fields, metadata=metadata):
        call_of(fg, model=model).end(Outcome(usage=USAGE, response_model=model))
    [event] = events
    again = read_again(event)
    assert again.event_id == event.event_id
    assert (again.cost_nanos, again.input_tokens) == (event.cost_nanos, 1000)


@given(st.builds(User, ANYTHING, email=ANYTHING, name=ANYTHING, image=ANYTHING, monthly_revenue=ANYTHING))
@settings(max_examples=60)
def test_a_user_of_wrong_types_can_be_read_again(user):
    """A `User` made of an ORM's values is read as far as it makes sense."""
    fg = FluxGate(instrument=False)
    with capture_events() as events, context(user=user):
        call_of(fg).end(Outcome(usage=USAGE))
    assert read_again(events[0]).event_id == events[0].event_id


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (User(7), User("7")),
        (User(UUID(int=1)), User("00000000-0000-0000-0000-000000000001")),
        (User("u", monthly_revenue=Decimal("19.5")), User("u", monthly_revenue=19.5)),
        (User("u", monthly_revenue=20), User("u", monthly_revenue=20.0)),
        (User("u", email=3, name="Ada"), User("u", name="Ada")),
    ],
)
def test_a_user_with_an_orms_values(fg, user, expected):
    """Integer and UUID keys and `Decimal` revenues are taken as what they mean."""
    with capture_events() as events, context(user=user):
        call_of(fg).end(Outcome())
    assert read_again(events[0]).user == expected


def test_the_calls_own_user_outside_of_a_request(fg):
    """It is who is served where nobody else is known, and nobody where the call says none."""
    with capture_events() as events:
        call_of(fg, user_parameter="u-7").end(Outcome())
        call_of(fg, user_parameter="").end(Outcome())
        with context(user="u-1"):
            call_of(fg, user_parameter="u-7").end(Outcome())
    told = [(event.user and event.user.id, event.user_source) for event in events]
    assert told == [("u-7", "parameter"), (None, "none"), ("u-1", "context")]


def test_ids_that_are_no_text(fg):
    """Numbers, UUIDs and members of enumerations are kept as their text."""
    with capture_events() as events, context(session_id=7, conversation_id=UUID(int=2), feature=Label.SEARCH):
        call_of(fg).end(Outcome())
    [event] = map(read_again, events)
    assert (event.session_id, event.feature) == ("7", "search")
    assert event.conversation_id == "00000000-0000-0000-0000-000000000002"
    assert type(events[0].feature) is str


def test_a_status_that_there_is_not():
    """It is recorded as an error and counted; the event can be read again."""
    with capture_events() as events, track() as call:
        call.usage(provider="anthropic", model="claude", input_tokens=1, status="fine")
    assert read_again(events[0]).status == "ERROR"
    assert diagnostics.counts()["unknown_status"] == 1


def test_the_ambient_fields_of_an_event(fg):
    """An event carries the frame that the call was made under, not the one it ended under."""
    with capture_events() as events:
        with feature("search", step="rerank", lang="de"), context(user="u-1", session_id="s-1"):
            call = call_of(fg)
        with feature("other"):
            call.end(Outcome())
    [event] = events
    assert (event.feature, event.feature_source, event.step) == ("search", "context", "rerank")
    assert (event.user, event.user_source, event.session_id) == (User("u-1"), "context", "s-1")
    assert event.metadata == {"lang": "de"}


# What is found out later


class Late(Call, eq=False):
    """A call whose outcome is found out when somebody asks."""

    asked: int = 0

    def outcome(self) -> Outcome:
        """Say what it used, and count the question."""
        self.asked += 1
        return Outcome(usage=USAGE, usage_source="provider")


class Waiting:
    """A sink that takes events to be made, and makes none by itself."""

    def __init__(self) -> None:
        self.pending = []
        self.events = []

    def emit(self, event) -> None:
        """Take an event."""
        self.events.append(event)

    def defer(self, pending) -> None:
        """Take one that is to be made."""
        self.pending.append(pending)


@pytest.fixture
def sink(fg) -> Waiting:
    """The sink of `fg`."""
    fg.recorder.sink = Waiting()
    return fg.recorder.sink


def late(fg: FluxGate, **fields: object) -> Late:
    return Late(fg.recorder, ambient.get(), provider="openai", model="gpt-4o-mini", **fields)


def test_the_outcome_is_found_out_when_the_event_is_made(fg, sink):
    """The thread that ends the call neither reads nor prices; who makes the event does, once."""
    call = late(fg)
    call.end()
    assert (call.asked, sink.events) == (0, [])
    event = sink.pending[0].made()
    assert (call.asked, event.cost_nanos, event.event_id) == (1, 156_000, call.tracking.tracking_id)
    assert call.ambient is ambient.NOTHING


def test_who_asks_for_the_tracking_finds_out_what_the_event_will_say(fg, sink):
    """Asking first changes nothing of the event, and nothing is found out twice."""
    call = late(fg)
    call.end()
    told = call.tracking
    event = sink.pending[0].made()
    assert (told.tracking_id, told.cost_nanos, told.created_at) == (event.event_id, 156_000, event.occurred_at)
    assert call.asked == 1


def test_the_figures_of_a_request_are_right_before_anything_is_delivered(fg, sink):
    """`current()` counts every call that has ended, and what it cost."""
    request = RequestContext({"type": "http"}, ASGISources(fg.recorder))
    ambient.enter(Ambient(request=request))
    try:
        for number in range(3):
            late(fg).end()
            assert (current().calls, current().cost_nanos) == (number + 1, (number + 1) * 156_000)
    finally:
        ambient.enter(ambient.NOTHING)
    for pending in sink.pending:
        pending.made()
    assert (request.calls, request.cost_nanos, request.found.unsettled) == (3, 468_000, {})


def test_calls_that_are_settled_from_many_threads_at_once_count_once(fg, sink):
    """Who delivers and who asks may meet: one event a call, and the request's figures are those of its calls."""
    request = RequestContext({"type": "http"}, ASGISources(fg.recorder))
    frame = Ambient(request=request)
    barrier = threading.Barrier(4)
    made: list[UsageEvent] = []

    def end_and_ask() -> None:
        barrier.wait()
        for _ in range(500):
            call = Late(fg.recorder, frame, provider="openai", model="gpt-4o-mini")
            call.end()
            assert request.cost_nanos >= 156_000
            assert call.tracking is not None

    def deliver() -> None:
        barrier.wait()
        while len(made) < 1500:
            if sink.pending:
                made.append(sink.pending.pop(0).made())

    threads = [threading.Thread(target=end_and_ask) for _ in range(3)] + [threading.Thread(target=deliver)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({event.event_id for event in made}) == 1500
    assert (request.calls, request.cost_nanos, request.found.unsettled) == (1500, 1500 * 156_000, {})


def test_who_asks_while_the_application_is_asked_gets_no_answer_too_early(fg, sink):
    """A stream ends in one thread, whose resolver takes its time; what another is told then has nobody left out."""
    asked, answer = threading.Event(), threading.Event()

    def resolve(environ: object) -> str:
        asked.set()
        assert answer.wait(10)
        return "u-1"

    call = late(fg)
    call.ambient = Ambient(request=RequestContext({"type": "http"}, ASGISources(fg.recorder, resolve_user=resolve)))
    ending = threading.Thread(target=call.end)
    ending.start()
    assert asked.wait(10)
    told_early = call.tracking
    answer.set()
    ending.join()
    event = sink.pending[0].made()
    assert (told_early, call.tracking.tracking_id) == (None, event.event_id)
    assert (event.user, event.user_source) == (User("u-1"), "resolver")


def test_metadata_that_may_change_is_read_at_once(fg, sink):
    """Lists and objects of the application are read while they are what they were; plain values need no such haste."""
    with context(metadata={"tags": ["a"]}):
        late(fg).end()
    with context(metadata={"team": "search"}):
        late(fg).end()
    assert [event.metadata for event in sink.events] == [{"tags": ["a"]}]
    assert [pending.made().metadata for pending in sink.pending] == [{"team": "search"}]


def test_an_outcome_that_cannot_be_found_out_loses_no_event(fg, sink):
    """A bug of ours is counted, and the event says that there was a call."""

    class Broken(Call, eq=False):
        def outcome(self) -> Outcome:
            raise ValueError("a prompt")

    Broken(fg.recorder, ambient.get(), provider="openai").end()
    event = sink.pending[0].made()
    assert (event.provider_name, event.usage_source, event.cost_nanos) == ("openai", "none", None)
    assert diagnostics.counts() == {"bug_outcome": 1}


def test_a_request_that_cannot_be_asked_loses_no_event(fg, sink):
    """Whatever breaks over who is served, the call is counted in its request, and its event says the rest."""
    request = RequestContext({}, None)
    ambient.enter(Ambient(request=request, feature="search"))
    try:
        late(fg).end()
    finally:
        ambient.enter(ambient.NOTHING)
    event = sink.pending[0].made()
    assert (event.feature, event.user, event.cost_nanos) == ("search", None, 156_000)
    assert (request.calls, request.cost_nanos) == (1, 156_000)
    assert diagnostics.counts() == {"bug_ambient": 1}


def test_a_sink_that_defers_nothing_is_given_the_event(fg):
    """An extension's sink knows `emit` alone."""

    class Plain:
        def __init__(self) -> None:
            self.events = []

        def emit(self, event) -> None:
            self.events.append(event)

    fg.recorder.sink = Plain()
    late(fg).end()
    assert [event.cost_nanos for event in fg.recorder.sink.events] == [156_000]
