"""The delivery's threads import nothing and take no lock of a whole process: a fork at that moment hangs the child.

The same with a spool, with Redis and with a flusher in the background.
"""

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


LOCKED = """
import asyncio.events, asyncio.mixins, time
from fluxgate_mw import FluxGate, UsageEvent

fg = FluxGate(instrument=False)
with asyncio.events._lock, asyncio.mixins._global_lock:
    fg.record(UsageEvent())
    assert fg.flush(10)
    stored = lambda: getattr(fg.statistics().flusher, "stored", 0)
    deadline = time.monotonic() + 10
    while fg.settings.flusher == "background" and not stored() and time.monotonic() < deadline:
        time.sleep(0.01)
    print(stored())
    assert fg.stop()
"""


@pytest.fixture(
    params=[{}, {"FLUXGATE_FLUSHER": "background"}, pytest.param("redis", marks=pytest.mark.redis)],
    ids=["spool", "background", "redis"],
)
def settings(request, tmp_path):
    """One way of delivery, as variables of the environment."""
    if request.param != "redis":
        return {"FLUXGATE_DATA_DIR": str(tmp_path), **request.param}
    url, key = request.getfixturevalue("redis_url"), request.getfixturevalue("stream_key")
    return {"FLUXGATE_DATA_DIR": str(tmp_path), "FLUXGATE_REDIS_URL": url, "FLUXGATE_STREAM_KEY": key}


def printed(program, settings, *arguments):
    """Run it with this configuration; return what it printed."""
    command = [sys.executable, "-c", program, *arguments]
    environ = {**os.environ, **settings}
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_nothing_is_imported(settings):
    """Prices, event ids, packs and files need no further module, nor do connecting, authenticating and storing."""
    assert printed(CALLS, settings, json.dumps(CHAT)) == "[]"


def test_no_lock_of_asyncio_is_waited_for(settings):
    """Events arrive while another thread holds the locks that asyncio keeps for the whole process."""
    assert printed(LOCKED, settings) == str(int("FLUXGATE_FLUSHER" in settings))
