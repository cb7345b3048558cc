"""Beside the other instrumentations of the client, on before us or after us: everybody sees each call once."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.beside.peers import MADE
from tests.beside.playing import CALLS

ROOT = Path(__file__).resolve().parents[2]
UNSEEN = {"ddtrace": {"raw_streamed"}, "langfuse": {"raw_streamed", "streaming_response"}}
"""The calls that a peer passes over, without us too."""
COUNTED = {"embeddings": (20, None), "refused": (None, None)}
ORDERS = ("peer first", "us first")

pytestmark = pytest.mark.timeout(300)


@functools.cache
def rounds(*names):
    """Return the rounds that a process of its own played, each after turning on the next that is named."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", "tests.beside.playing", str(out), *names]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())


@pytest.fixture(scope="module", autouse=True)
def _all_played():
    """Every process has run, two at once: what they take is mostly their imports."""
    with ThreadPoolExecutor(2) as pool:
        for played in [pool.submit(rounds, *names) for peer in MADE for names in ((peer, "us"), ("us", peer))]:
            played.result()


def alone(peer):
    return rounds(peer, "us")[1]


def together(peer, order):
    return rounds(*((peer, "us") if order == "peer first" else ("us", peer)))[2]


@pytest.mark.parametrize("call", CALLS)
def test_we_alone_change_nothing_for_the_caller(call):
    """What a call gives over a real connection is the same with us and without."""
    bare, us = rounds("us", "sentry")[:2]
    assert us[call]["got"] == bare[call]["got"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("peer", MADE)
def test_the_caller_gets_what_the_peer_alone_gives(peer, order):
    """Every chunk, field and error is the same whether we are on or not."""
    both = together(peer, order)
    assert {call: both[call]["got"] for call in CALLS} == {call: alone(peer)[call]["got"] for call in CALLS}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("peer", MADE)
def test_the_peer_sees_each_call_once_and_as_it_does_alone(peer, order):
    """Beside us it sees the same calls, models and tokens: each call once, but for those that it never sees."""
    both = together(peer, order)
    assert {call: both[call]["seen"] for call in CALLS} == {call: alone(peer)[call]["seen"] for call in CALLS}
    assert {call for call in CALLS if len(both[call]["seen"]) != 1} == UNSEEN.get(peer, set())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("peer", MADE)
def test_ours_is_one_event_with_the_reported_tokens(peer, order):
    """Beside the peer each call is one event of the ambient user and feature, with what the service reported."""
    both = together(peer, order)
    for call in CALLS:
        (event,) = both[call]["events"]
        assert (event["user"], event["feature"]) == ("u-1", "beside"), call
        assert (event["input_tokens"], event["output_tokens"]) == COUNTED.get(call, (20, 7)), call
        assert event["status"] == ("ERROR" if call == "refused" else "SUCCESS"), call
        assert event["usage_source"] == ("none" if call == "refused" else "provider"), call
