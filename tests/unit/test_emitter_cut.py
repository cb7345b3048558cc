"""Events that have no wire form, or too long a one: cut down, marked, readable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.buffer.cut import TRUNCATED, cut_down, encode_within
from fluxgate_mw.event import UsageEvent, User, decode_event, encode_event

TEXT = st.text(st.characters(), max_size=30) | st.just("x" * 5000) | st.just("\ud800")
NUMBER = st.none() | st.integers() | st.just(2**70)


class Odd:
    """A value that raises when it is looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_keys_that_are_no_text_are_made_text():
    """Metadata with keys that could not be read back keeps its values."""
    read = decode_event(encode_within(UsageEvent(metadata={1: "a", "b": 2}), 10_000))
    assert read.metadata == {"1": "a", "b": 2}


def test_an_ordinary_event_is_left_as_it_is():
    """Within its bound an event is encoded as it is, unmarked."""
    event = UsageEvent(metadata={"a": 1})
    assert encode_within(event, 10_000) == encode_event(event)


def test_an_oversized_event_keeps_what_identifies_and_prices_it():
    """Ids, user, model, tokens and cost outlive the cut; metadata is replaced by the mark."""
    event = UsageEvent(
        provider_name="openai",
        request_model="gpt-4o-mini",
        user=User(id="u1", email="a@b.c"),
        feature="summarizer",
        input_tokens=7,
        cost_nanos=42,
        error_message="e" * 100_000,
        metadata={"big": "x" * 1_000_000},
    )
    cut = decode_event(encode_within(event, 1000))
    assert (cut.event_id, cut.occurred_at, cut.user, cut.feature) == (
        event.event_id,
        event.occurred_at,
        event.user,
        "summarizer",
    )
    assert (cut.input_tokens, cut.cost_nanos, cut.request_model) == (7, 42, "gpt-4o-mini")
    assert cut.metadata == {TRUNCATED: True}
    assert len(cut.error_message) == 512


@given(name=TEXT, message=TEXT, tokens=NUMBER, reasons=st.lists(TEXT, max_size=40), user=TEXT)
def test_whatever_is_in_it_it_can_be_written_and_read(name, message, tokens, reasons, user):
    """Any text, lone surrogates too, and any number: an event always has a wire form, and it decodes."""
    event = UsageEvent(
        feature=name,
        error_message=message,
        input_tokens=tokens,
        finish_reasons=tuple(reasons),
        user=User(id=user, name=name),
        metadata={"odd": Odd()},
    )
    read = decode_event(encode_within(event, 100_000))
    assert read.event_id == event.event_id
    assert read.metadata == {TRUNCATED: True}


def test_a_text_that_was_cut_in_the_middle_of_a_character_costs_no_more_than_that_character():
    """JavaScript cuts an emoji in two halves, of which UTF-8 has neither; the rest of the event is as it was."""
    event = UsageEvent(
        feature="summarizer \ud83d",
        user=User(id="u1", name="Ann \ud83d"),
        finish_reasons=("stop",),
        input_tokens=7,
        metadata={"title": "a \ud83d", "tags": ["b\ude00", {"c\ud83d\ude00": 1}], "pair": ("\ud83d", 2)},
    )
    read = decode_event(encode_within(event, 10_000))
    assert read.metadata == {"title": "a \ufffd", "tags": ["b\ufffd", {"c\U0001f600": 1}], "pair": ["\ufffd", 2]}
    assert (read.event_id, read.occurred_at) == (event.event_id, event.occurred_at)
    assert (read.feature, read.user) == ("summarizer \ufffd", User(id="u1", name="Ann \ufffd"))
    assert (read.finish_reasons, read.input_tokens) == (("stop",), 7)


def test_a_user_without_a_usable_id_is_left_out():
    """A user whose id is no text cannot be billed: the event is kept without it."""
    assert cut_down(UsageEvent(user=User(id=object()))).user is None
