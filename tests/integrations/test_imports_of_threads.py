"""The delivery's thread imports nothing: a process that forks while a thread imports has a child that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.calls.mocks import CHAT

CALLS = """
import json, sys, threading, time

class Noting:
    found = []
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            self.found.append(name)

from fluxgate_mw import FluxGate, context
import openai, httpx2
answer = lambda request: httpx2.Response(200, json=json.loads(sys.argv[1]))
client = openai.OpenAI(api_key="sk-test", http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
fg = FluxGate()
sys.meta_path.insert(0, Noting())
with context(user="u", feature="f", cost_override={"input_cost_per_1m_tokens": 1}):
    client.chat.completions.create(model="gpt-4o-mini", messages=[])
client.chat.completions.create(model="gpt-4o-mini", messages=[])
assert fg.flush(10)
def waits():
    flusher = fg.statistics().flusher
    return fg.settings.flusher == "background" and (flusher is None or flusher.stored < 2)

while waits():
    time.sleep(0.01)
assert fg.stop()
assert fg.statistics().emitted == 2, fg.statistics()
print(json.dumps(Noting.found))
"""


def imported(**settings: str) -> str:
    """Return what threads but the main one imported while two calls were made and delivered."""
    return subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(CHAT)],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_with_a_spool(tmp_path):
    """Prices, event ids, packs and files need no further module."""
    assert imported(FLUXGATE_DATA_DIR=str(tmp_path)) == "[]"


def test_with_a_flusher_in_the_background(tmp_path):
    """Nor does storing."""
    assert imported(FLUXGATE_DATA_DIR=str(tmp_path), FLUXGATE_FLUSHER="background") == "[]"


@pytest.mark.redis
def test_with_redis(tmp_path, redis_url, stream_key):
    """Nor do connecting, authenticating and appending."""
    assert (
        imported(FLUXGATE_DATA_DIR=str(tmp_path), FLUXGATE_REDIS_URL=redis_url, FLUXGATE_STREAM_KEY=stream_key) == "[]"
    )
