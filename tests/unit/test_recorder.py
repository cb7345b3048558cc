"""From a finished call to its event: exactly once, whatever fails on the way, and always readable again."""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxgate_mw import FluxGate, User, ambient, context, diagnostics, feature, pricing, track
from fluxgate_mw.buffer.cut import encode_within
from fluxgate_mw.diagnostics import MESSAGE_CHARS
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import TokenUsage, decode_event
from fluxgate_mw.recorder import Call, Outcome, capturing, choose, guarded, safe_message
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
        first = call.end(Outcome(usage=USAGE, usage_source="provider"))
        assert call.end(Outcome(status="ERROR")) is first
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


def test_pricing_that_fails_loses_no_event(fg, monkeypatch, caplog):
    """A table that cannot be read leaves the cost unknown, says why, and the event is there."""
    monkeypatch.setattr(pricing, "price", explode)
    with capture_events() as events, caplog.at_level(logging.ERROR, "fluxgate_mw"):
        told = call_of(fg).end(Outcome(usage=USAGE, usage_source="provider"))
    [event] = events
    assert (event.cost_nanos, event.price_version, event.unpriced_reason) == (None, None, "pricing failed")
    assert (event.input_tokens, event.output_tokens, event.usage_source) == (1000, 10, "provider")
    assert told.cost is None
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
@settings(max_examples=80, deadline=None)
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
@settings(max_examples=60, deadline=None)
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


# Messages


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop",
        "sk-ant-REDACTED",
        "Bearer abcdef0123456789",
        "pk-lf-0123456789abcdef",
        "gsk_0123456789abcdefghij",
        "xai-0123456789abcdefghij",
        "AIzaSyA-0123456789_abcdef",
        "sk-proj-ab**********************cdef",
    ],
)
def test_a_message_shows_no_key(secret):
    """Keys are taken out wherever they stand."""
    kept = safe_message(f"Incorrect API key provided: {secret}. You can find it at https://example.test")
    assert secret not in kept
    assert secret[-8:] not in kept
    assert kept.startswith("Incorrect API key provided: ")


def test_a_message_shows_no_credentials_of_an_address():
    """User and password of an address are taken out."""
    assert "hunter2" not in safe_message("cannot reach https://me:hunter2@proxy.example.test:8080/v1")


@pytest.mark.parametrize("quote", ["'", '"', "`"])
def test_a_message_shows_no_long_quotation(quote):
    """What a message quotes at length may be a prompt; short names stay."""
    kept = safe_message(f"The model {quote}gpt-5{quote} refused {quote}{'tell me a secret ' * 5}{quote}")
    assert "secret" not in kept
    assert "gpt-5" in kept


@given(st.text(max_size=5000))
def test_a_message_is_short(text):
    """No message is longer than its limit, whatever it is made of."""
    assert len(safe_message(text)) <= MESSAGE_CHARS


# The guard


def test_the_guard_counts_our_bugs_and_shows_no_message(caplog):
    """What fails in us is counted and logged by class and place, never by message."""
    with caplog.at_level(logging.ERROR, "fluxgate_mw"):
        assert guarded("unit", explode, "prompt") is None
    assert diagnostics.counts() == {"bug_unit": 1}
    assert "OSError" in caplog.text
    assert "test_recorder.py" in caplog.text
    assert "secret" not in caplog.text


def test_the_guard_tells_what_the_user_can_mend(caplog):
    """An error of our own making is logged with its message, as it tells the user what to do."""

    def misconfigured():
        raise ConfigurationError("FLUXGATE_PRICE_FILE: no such file")

    with caplog.at_level(logging.ERROR, "fluxgate_mw"):
        assert guarded("unit", misconfigured) is None
    assert "FLUXGATE_PRICE_FILE" in caplog.text
    assert diagnostics.counts() == {"failed_unit": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_the_guard_lets_the_end_pass(error):
    """Cancellation and the end of the process are not ours to hold."""

    def ending():
        raise error

    with pytest.raises(error):
        guarded("unit", ending)
    assert diagnostics.counts() == {}


# Where events go


def test_captures_nest(fg):
    """Each capture gets every event, and nothing goes to the sink meanwhile."""
    with capturing() as outer, capturing() as inner:
        call_of(fg).end(Outcome())
    assert len(outer) == len(inner) == 1
    assert fg.statistics().emitted == 0


def test_who_records():
    """The explicit recorder, else the fallback, else the default; none where it is switched off."""
    one, two = FluxGate(instrument=False), FluxGate(instrument=False)
    off = FluxGate(instrument=False, enabled=False)
    nothing = ambient.NOTHING
    assert choose(one.recorder, nothing, two.recorder) is one.recorder
    assert choose(None, nothing, two.recorder) is two.recorder
    assert choose(off.recorder, nothing) is None
    assert choose(None, nothing) is None


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
