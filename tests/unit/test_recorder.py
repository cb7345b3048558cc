"""What is kept of an error's message, the guard over our own failures, and where events go."""

from __future__ import annotations

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw import FluxGate, ambient, diagnostics
from fluxgate_mw.call import Call
from fluxgate_mw.diagnostics import MESSAGE_CHARS
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.recorder import Outcome, capturing, choose, finished, guarded, safe_message


def call_of(fg: FluxGate, **fields: object) -> Call:
    return Call(fg.recorder, ambient.get(), **{"provider": "openai", "model": "gpt-4o-mini", **fields})


@pytest.fixture
def fg() -> FluxGate:
    return FluxGate(instrument=False)


def explode(*args: object, **kwargs: object) -> object:
    raise OSError(28, "No space left on device", "/secret/path")


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
        "pplx-0123456789abcdef0123456789",
        "fw_3ZabcdefGHIJKLM12345678",
        "AQ.Ab8RN6Kabcdef0123456789",
    ],
)
def test_a_message_shows_no_key(secret):
    """Keys are taken out wherever they stand."""
    kept = safe_message(f"Incorrect API key provided: {secret}. You can find it at https://example.test")
    assert secret not in kept
    assert secret[-8:] not in kept
    assert kept.startswith("Incorrect API key provided: ")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("cannot reach https://me:hunter2@proxy.test:8080/v1", "cannot reach https://***@proxy.test:8080/v1"),
        ("cannot reach https://hunter2@proxy.test", "cannot reach https://***@proxy.test"),
        ("https://me:hun/ter2@proxy.test/x", "https://***@proxy.test/x"),
        ("postgresql://me:hun@ter2@db/x", "postgresql://***@db/x"),
        ("https://proxy.test:8080/of/me@example.test", "https://proxy.test:8080/of/me@example.test"),
        ("no such url: /v1?api_key=hunter2&x=1", "no such url: /v1?api_key=***&x=1"),
        ("GET https://x.test/v1?key=hunter2", "GET https://x.test/v1?key=***"),
        ("headers: Authorization: Basic aHVudGVyMg==", "headers: Authorization: Basic ***"),
        ("{'password': 'hunter2'}", "{'password': '***'}"),
        ("Incorrect API key provided: hunter2", "Incorrect API key provided: ***"),
        ("Basic authentication is required: no token", "Basic authentication is required: no token"),
        ("Unknown key: temperature", "Unknown key: temperature"),
    ],
)
def test_a_message_shows_no_credentials(said, kept):
    """User and password of an address, and what is named as a secret, are taken out; the rest stays."""
    assert safe_message(said) == kept


def test_a_message_is_text_that_can_be_written():
    """Half a pair of surrogates, which a JSON answer may hold, is none."""
    assert safe_message("unexpected: ab\ud83d") == "unexpected: ab?"


@pytest.mark.parametrize("quote", ["'", '"', "`"])
def test_a_message_shows_no_long_quotation(quote):
    """What a message quotes at length may be a prompt; short names stay."""
    kept = safe_message(f"The model {quote}gpt-5{quote} refused {quote}{'tell me a secret ' * 5}{quote}")
    assert "secret" not in kept
    assert "gpt-5" in kept


@pytest.mark.parametrize("quotes", ["\u201c\u201d", "\u2018\u2019", "\u00ab\u00bb", "''"])
def test_a_message_shows_no_long_quotation_in_other_quotes(quotes):
    """Nor what stands between other quotes, or has apostrophes in it."""
    kept = safe_message(
        f"The prompt {quotes[0]}It's Ann's secret that I'm Bob's sister, isn't it{quotes[1]} was refused"
    )
    assert kept == "The prompt '\u2026' was refused"


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


class _TimeLimit(Exception):
    """As celery's `SoftTimeLimitExceeded` and RQ's `JobTimeoutException`: an `Exception`, out of a signal handler."""


class _Penalty:
    def handle(self, *_):
        raise _TimeLimit

    def __call__(self, *_):
        raise _TimeLimit


def _raises(*_):
    raise _TimeLimit


@pytest.fixture(
    params=[_raises, _Penalty().handle, _Penalty(), partial(_raises, "x")], ids=["def", "method", "object", "partial"]
)
def alarm(request):
    """The process's SIGALRM, whose handler raises."""
    before = signal.signal(signal.SIGALRM, request.param)
    yield signal.SIGALRM
    signal.signal(signal.SIGALRM, before)


def test_the_guard_lets_a_time_limit_pass(alarm):
    """What a signal handler raises while we are at work is the host's: held back, a job would have no limit."""
    with pytest.raises(_TimeLimit):
        guarded("unit", signal.raise_signal, alarm)
    assert diagnostics.counts() == {}


def test_the_guard_holds_our_bugs_beside_a_time_limit(alarm):
    """That there is a handler makes no bug of ours a signal, in whatever thread."""
    assert guarded("unit", explode, "prompt") is None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(guarded, "unit", _raises).result() is None
    assert diagnostics.counts() == {"bug_unit": 2}


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


class _Keeping:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.emitted, self.deferred = [], []
        self.emit, self.defer = self.emitted.append, self.deferred.append


class _Interrupted(Call):
    """Its event is made at the second attempt: over the first comes Ctrl-C."""

    interrupts: int = 1

    def made(self):
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return super().made()


def test_an_interrupt_over_making_an_event_at_once_loses_none(fg):
    """Where it was to be made in the caller's thread, it is made at its delivery instead."""
    sink = fg.recorder.sink = _Keeping()
    with pytest.raises(KeyboardInterrupt):
        fg.recorder.take(_Interrupted(fg.recorder, ambient.get()), now=True)
    assert sink.emitted == []
    assert len(sink.deferred) == 1


# The end


@pytest.mark.anyio
async def test_a_sink_that_fails_at_the_end_stops_nobody(fg):
    """A server's shutdown goes on; what happened is counted."""

    class Failing:
        async def aflush(self):
            raise OSError(28, "No space left on device")

    fg.recorder.sink = Failing()
    await finished(fg.recorder)
    assert diagnostics.counts()["failed_shutdown"] == 1
