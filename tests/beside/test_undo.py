"""We and a peer that has an undo, turned on and off in any order around calls and streams in flight."""

from __future__ import annotations

import asyncio
import functools
import inspect

import openai
import openai.resources.beta
import openai.resources.images
import openai.resources.responses
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openai._base_client import BaseClient
from openai._resource import AsyncAPIResource, SyncAPIResource

from fluxgate_mw import FluxGate
from fluxgate_mw.testing import capture_events
from tests.beside.peers import MADE
from tests.beside.playing import ASKED
from tests.beside.served import served
from tests.calls.clients import httpx

WITH_UNDO = ("ddtrace", "logfire", "opentelemetry")
STEPS = ("us", "peer", "call", "acall", "open", "read")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def address():
    """One server for all, and the client warm."""
    with served() as (found, _):
        yield found


@functools.cache
def made(name, address):
    """Return the peer, off; its set-up is once a process."""
    return MADE[name](address)


def _with_all_below(*bases):
    for base in bases:
        yield base
        yield from _with_all_below(*base.__subclasses__())


def _surface():
    """Return what every attribute of the client's classes is found to be, by class and name."""
    roots = (BaseClient, SyncAPIResource, AsyncAPIResource, openai.Stream, openai.AsyncStream)
    owners = [*_with_all_below(*roots), openai.BaseModel, httpx.Client, httpx.AsyncClient]
    return {
        (owner, name): inspect.getattr_static(owner, name)
        for owner in owners
        for name in {name for base in owner.__mro__ for name in vars(base)}
        if name in ("__init__", "__iter__", "__aiter__", "__init_subclass__") or not name.startswith("__")
    }


def _changed(before):
    after = _surface()
    return {key: (was, after.get(key)) for key, was in before.items() if after.get(key) is not was}


def _put_back(found):
    """Set what is not as it was found, so that a failure is not the next one's too."""
    for (owner, name), was in found.items():
        if name in vars(owner) and vars(owner)[name] is not was:
            setattr(owner, name, was)


def _delta(chunk):
    """Return what a chunk says; ddtrace asks for usage itself, which is a field more."""
    return chunk.choices[0].delta.content, chunk.choices[0].finish_reason


class Scene:
    """Clients of the served service, we and a peer, both off, and what is expected to be seen.

    Args:
        address: The service's.
        peer: As `MADE` makes it.
    """

    def __init__(self, address, peer):
        self.address = address
        self.peer = peer
        options = {"api_key": "sk-unused", "base_url": f"{address}/v1", "max_retries": 0}
        self.client, self.aclient = openai.OpenAI(**options), openai.AsyncOpenAI(**options)
        self.runner = asyncio.Runner()
        self.fg = None
        self.peer_is_on = False
        self.streams = []
        self.expected = 0
        self.call()
        self.acall()
        self.whole = [_delta(chunk) for chunk in self._streamed()]

    def _streamed(self):
        return self.client.chat.completions.create(**ASKED, stream=True)

    def us(self):
        """Turn us on, or off."""
        if self.fg is None:
            self.fg = FluxGate(provider_hosts={self.address.removeprefix("http://"): "openai"})
        else:
            self.fg.stop()
            self.fg = None

    def turn_peer(self):
        """Turn the peer on, or off."""
        (self.peer.off if self.peer_is_on else self.peer.on)()
        self.peer_is_on = not self.peer_is_on

    def call(self):
        """Make a call."""
        assert self.client.chat.completions.create(**ASKED).usage.total_tokens == 27
        self.expected += self.fg is not None

    def acall(self):
        """Make a call of the asynchronous client."""
        found = self.runner.run(self.aclient.chat.completions.create(**ASKED))
        assert found.usage.total_tokens == 27
        self.expected += self.fg is not None

    def open(self):
        """Open a stream and read its first chunk."""
        stream = self._streamed()
        self.expected += self.fg is not None
        self.streams.append((stream, [_delta(next(stream))]))

    def read(self):
        """Read the stream that has been open longest to its end."""
        if self.streams:
            stream, got = self.streams.pop(0)
            got += [_delta(chunk) for chunk in stream]
            assert got == self.whole

    def play(self, steps):
        """Do the steps; each call is seen once by those that are on; then end all, both off."""
        for step in steps:
            seen = len(self.peer.seen())
            (self.turn_peer if step == "peer" else getattr(self, step))()
            if step in ("call", "acall"):
                assert len(self.peer.seen()) - seen == self.peer_is_on, (steps, step)

    def end(self, *, us_first):
        """Read what is open, and turn both off; the calls after that let each find the other gone."""
        while self.streams:
            self.read()
        for step in (self.us, self.turn_peer) if us_first else (self.turn_peer, self.us):
            if self.fg is not None if step == self.us else self.peer_is_on:
                step()
        self.call()
        self.acall()

    def close(self):
        """Close the clients; what a failure left on is turned off."""
        if self.fg is not None:
            self.us()
        if self.peer_is_on:
            self.turn_peer()
        self.client.close()
        self.runner.run(self.aclient.close())
        self.runner.close()


@pytest.mark.parametrize("name", WITH_UNDO)
@example(steps=["us", "peer"], us_first=True)
@example(steps=["peer", "us"], us_first=False)
@example(steps=["peer", "us", "peer", "call", "acall"], us_first=False)
@example(steps=["peer", "us", "peer", "open", "open"], us_first=False)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=14), us_first=st.booleans())
@settings(max_examples=30, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_interleaving_is_seen_once_by_each_and_restores_the_objects_found(name, address, steps, us_first):
    """Whatever the order, those that are on see each call once, streams go on, and all is as it was found."""
    scene = Scene(address, made(name, address))
    found = _surface()
    try:
        with capture_events() as events:
            scene.play(steps)
            scene.end(us_first=us_first)
        assert len(events) == scene.expected
        unknown = [event for event in events if event.usage_source == "none"]
        assert len(unknown) <= (steps.count("peer") if name == "logfire" else 0)  # streams that its undo let slip by us
        told = {(e.status, e.input_tokens, e.output_tokens) for e in events if e not in unknown}
        assert told <= {("SUCCESS", 20, 7)}
        assert _changed(found) == {}
    finally:
        scene.close()
        _put_back(found)


@pytest.mark.filterwarnings("ignore:Support for class-based `config`:DeprecationWarning")  # its own models
def test_openllmetry_has_no_undo_that_takes_it_off(address):
    """Its `uninstrument` leaves its wrappers where they are without us too: no order of ours could restore them."""
    found, peer = _surface(), made("openllmetry", address)
    peer.on()
    peer.off()
    assert (openai.resources.chat.completions.Completions, "create") in _changed(found)
    _put_back(found)


def test_the_others_have_no_undo():
    """What has one is in the tests above."""
    without = {name for name in MADE if made(name, "http://127.0.0.1:1").off is None}
    assert without == set(MADE) - {*WITH_UNDO, "openllmetry"}
