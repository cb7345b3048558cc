"""Where a call's event is made: by the caller where that takes no longer than handing it on, else by the delivery."""

from __future__ import annotations

import pytest

from fluxgate_mw import FluxGate
from fluxgate_mw.pricing import table
from tests.calls.mocks import CHAT, MESSAGES, answer, chat_events, obliging, streamed, sync_client

CREATE = {"model": "gpt-4o-mini", "messages": MESSAGES}
STREAM = {**CREATE, "stream": True}
OBLIGING = obliging("Hello", " world")


class Told:
    """A sink that says what it was given: events, or what they are to be made of."""

    def __init__(self) -> None:
        self.made, self.later = [], []

    def emit(self, event):
        self.made.append(event)

    def defer(self, pending):
        self.later.append(pending)


@pytest.fixture
def told(monkeypatch):
    """The sink of the process's default, where no price is known yet."""
    monkeypatch.setattr(table, "_resolved", {})
    fg = FluxGate()
    sink = fg.recorder.sink = Told()
    yield sink
    fg.stop()


def _read(handler, **asked):
    for _ in sync_client(handler).chat.completions.create(**{**STREAM, **asked}):
        pass


def test_a_streams_event_is_made_by_the_caller_once_its_price_is_known(told):
    """The first of a model leaves the reading of tables to the delivery; the next are made at once, and as that one."""
    _read(OBLIGING)
    [first] = told.later
    expected = first.made()
    _read(OBLIGING)
    [event] = told.made
    assert len(told.later) == 1
    assert event.cost_nanos == expected.cost_nanos > 0
    assert (event.input_tokens, event.output_tokens) == (expected.input_tokens, expected.output_tokens) == (12, 3)


def test_what_has_to_be_estimated_is_made_later(told):
    """Counting the tokens of a prompt is not the caller's to wait for."""
    _read(OBLIGING)
    told.later.pop().made()
    stream = sync_client(OBLIGING).chat.completions.create(**STREAM)
    next(iter(stream))
    stream.close()
    [pending] = told.later
    assert pending.made().usage_source == "estimated"
    assert told.made == []


def test_what_nobody_reported_is_made_later(told):
    """Nor is anything made at once that may not have a price."""
    _read(OBLIGING)
    told.later.pop().made()
    _read(lambda _: streamed(chat_events("Hello")))
    [pending] = told.later
    assert pending.made().usage_source == "none"


def test_what_is_still_to_be_read_is_made_later(told):
    """An answer that came whole is decoded by the delivery."""
    sync_client(lambda _: answer(CHAT)).chat.completions.create(**CREATE)
    told.later.pop().made()
    sync_client(lambda _: answer(CHAT)).chat.completions.create(**CREATE)
    assert len(told.later) == 1
    assert told.made == []


def test_what_is_still_to_be_redacted_is_made_later(monkeypatch):
    """`redact` may take its time; it is not asked in the caller's thread."""
    monkeypatch.setattr(table, "_resolved", {})
    fg = FluxGate(capture_content=True, redact=pytest.fail)
    sink = fg.recorder.sink = Told()
    try:
        for _ in range(2):
            _read(OBLIGING)
            sink.later[-1].settle()
        assert len(sink.later) == 2
        assert sink.made == []
    finally:
        fg.stop()


def test_what_has_a_price_in_the_users_list_is_made_later(monkeypatch, tmp_path):
    """Such a list may be long."""
    path = tmp_path / "prices.json"
    path.write_text('{"prices": [{"model": "gpt-4o*", "input_cost_per_1m_tokens": 1, "output_cost_per_1m_tokens": 1}]}')
    monkeypatch.setattr(table, "_resolved", {})
    fg = FluxGate(price_file=path)
    sink = fg.recorder.sink = Told()
    try:
        for _ in range(2):
            _read(OBLIGING)
            assert sink.later[-1].tracking.cost_nanos == 15_000
    finally:
        fg.stop()
    assert len(sink.later) == 2
