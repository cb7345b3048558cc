"""What a call that waits for its delivery holds on to is what the bound of the queue counts."""

from __future__ import annotations

import gc
import json
import tracemalloc

from fluxgate_mw import FluxGate
from tests.calls.clients import ASKED, JSON, Reply, Wire, completion

HEADERS = {**JSON, **{f"x-ratelimit-of-a-kind-{n}": f"a value of some length, number {n}" for n in range(20)}}


class Waiting:
    """A sink that keeps what waits."""

    def __init__(self):
        self.pending = []

    def emit(self, event):
        raise AssertionError("made at once")

    def defer(self, pending):
        self.pending.append(pending)


def test_what_waits_is_counted_as_it_is():
    """The bound by bytes is one of memory, within a factor of two."""
    fg = FluxGate()
    sink = fg.recorder.sink = Waiting()
    wire = Wire(Reply(json.dumps(completion()).encode(), headers=HEADERS))
    client = wire.client()

    def ask(times: int) -> None:
        for _ in range(times):
            client.chat.completions.create(**ASKED)
            wire.requests.clear(), wire.sent.clear(), wire.bodies.clear()

    ask(20)
    sink.pending.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ask(200)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        fg.stop()
    counted = sum(pending.size_bytes for pending in sink.pending)
    assert len(sink.pending) == 200
    assert held < 2 * counted, f"{held // 200} bytes held, {counted // 200} counted"
