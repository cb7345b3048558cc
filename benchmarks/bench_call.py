"""What tracking adds to a call of the OpenAI client: time, memory, import. Prints one JSON line.

    python benchmarks/bench_call.py [--quick] [--rounds N] [--peers [NAME ...]] [--peers-dir FOLDER]

The client is the installed one, its network taken out (see `openai_mock`). Ours is a whole `FluxGate` with prices and
a live delivery to a spool on disk, inside a `context` with user and feature.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from call_peers import PEERS, Tracker
from environments import ROOT, Peer, add_options, run_peers
from measure import CLOCKS, added_over, against, interleaved, microseconds, options, print_line, print_table, summary
from openai_mock import CHUNKS, HTTP_LIBRARY, async_client, client
from switch import Switch

from fluxgate_mw import FluxGate, User, context, instrument_openai

Contender = Callable[[], AbstractContextManager[None]]
"""In force inside the block; at its end all that was recorded is delivered."""

Run = Callable[[int], None]

ASKED: Final[dict[str, Any]] = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant. " * 8},
        {"role": "user", "content": "Summarize the following document. " * 12},
    ],
}
USER: Final = User("u-1", email="ann@example.com", name="Ann")

IMPORT: Final = """
import sys
{beforehand}
import os, time
def rss():
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
bytes_before, start = rss(), time.perf_counter()
import openai
{statement}
print((time.perf_counter() - start) * 1000, (rss() - bytes_before) / 1e6)
"""


@contextmanager
def bare() -> Iterator[None]:
    """Leave the client as it is."""
    yield


@contextmanager
def ours(fg: FluxGate) -> Iterator[None]:
    """Track every call, as an application does."""
    undo = instrument_openai(fg)
    try:
        with context(user=USER, feature="summarizer"):
            yield
    finally:
        undo()
        fg.flush(10)


@contextmanager
def theirs(peer: Switch[Tracker]) -> Iterator[None]:
    """Track every call as the peer does."""
    with peer.on(), peer.started.request():
        yield
    peer.started.flush()


def _runs(runner: asyncio.Runner) -> dict[str, Run]:
    plain, aplain = client(), async_client()

    def call(count: int) -> None:
        for _ in range(count):
            plain.chat.completions.create(**ASKED)

    def stream(count: int) -> None:
        for _ in range(count):
            for _chunk in plain.chat.completions.create(**ASKED, stream=True):
                pass

    async def acall(count: int) -> None:
        for _ in range(count):
            await aplain.chat.completions.create(**ASKED)

    async def astream(count: int) -> None:
        for _ in range(count):
            async for _chunk in await aplain.chat.completions.create(**ASKED, stream=True):
                pass

    return {
        "plain": call,
        "plain_async": lambda count: runner.run(acall(count), context=copy_context()),
        "stream": stream,
        "stream_async": lambda count: runner.run(astream(count), context=copy_context()),
    }


def _timed(contender: Contender, run: Run, count: int, clock: str) -> tuple[float, float]:
    """Return what one call takes, and the processor time of it until all of them are delivered; in microseconds."""
    with contender():
        run(1)
        start = CLOCKS["cpu"]()
        taken = microseconds(run, count, clock)
    return taken, (CLOCKS["cpu"]() - start) / count / 1_000


def _times(
    contenders: Mapping[str, Contender], runs: Mapping[str, Run], calls: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind, run in runs.items():
        count, parts = (calls, 1) if kind.startswith("plain") else (calls // 5, CHUNKS)
        taking_turns = {
            name: partial(_timed, contender, run, count, arguments.clock) for name, contender in contenders.items()
        }
        both = interleaved(taking_turns, arguments.rounds)
        samples, delivered = ({name: [pair[half] for pair in pairs] for name, pairs in both.items()} for half in (0, 1))
        cpu = against(delivered, per=parts, unit="delivered_cpu_us")
        figures[kind] = {name: cpu[name] | row for name, row in against(samples, per=parts).items()}
        if "peer" in samples:
            figures[kind]["peer"]["added_over_ours"] = added_over(samples, "peer", "ours")
    return figures


def _retained_bytes(contender: Contender, run: Run, calls: int) -> float:
    """Return the bytes that a call leaves behind once it is delivered and the garbage is collected."""
    with contender():
        run(max(20, calls // 10))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    with contender():
        run(calls)
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - before) / calls


def _peak_bytes(contender: Contender, run: Run) -> float:
    with contender():
        run(1)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run(1)
        return tracemalloc.get_traced_memory()[1] - before


def _memory(contenders: Mapping[str, Contender], runs: Mapping[str, Run], calls: int, rounds: int) -> dict[str, Any]:
    tracemalloc.start()
    try:
        retained = {name: round(_retained_bytes(c, runs["plain"], calls)) for name, c in contenders.items()}
        turns = {name: partial(_peak_bytes, contender, runs["stream"]) for name, contender in contenders.items()}
        peaks = interleaved(turns, rounds)
    finally:
        tracemalloc.stop()
    return {
        "calls": calls,
        "retained_bytes_a_call": retained,
        "stream_peak_bytes": {name: summary(values, 0) for name, values in peaks.items()},
        "stream_extra_peak_bytes": {
            name: summary([a - b for a, b in zip(values, peaks["bare"], strict=True)], 0)
            for name, values in peaks.items()
            if name != "bare"
        },
    }


def _import(beforehand: str, statement: str, compiled: str) -> tuple[float, float]:
    """Return milliseconds and megabytes of one process; modules are compiled, as an installed package has them."""
    code = IMPORT.format(beforehand=beforehand, statement=statement)
    folders = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    milliseconds, megabytes = done.stdout.split()
    return float(milliseconds), float(megabytes)


def _imports(folder: str, peer_name: str | None, rounds: int) -> dict[str, Any]:
    """Return the milliseconds and megabytes of fresh processes, in turns; the peer's helpers are loaded beforehand."""
    statements = {"bare": "", "ours": f"import fluxgate_mw; fluxgate_mw.FluxGate(data_dir={folder!r})"}
    if peer_name is not None:
        statements["peer"] = f"call_peers.PEERS[{peer_name!r}].start()"
    beforehand = "" if peer_name is None else "import call_peers"
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in statements}
    with tempfile.TemporaryDirectory() as compiled:
        for number in range(-1, rounds):
            for name, statement in statements.items():
                figures = _import(beforehand, statement, compiled)
                if number >= 0:
                    taken[name].append(figures)
    return {
        unit: against({name: [pair[index] for pair in pairs] for name, pairs in taken.items()}, unit=unit)
        for index, unit in enumerate(("ms", "mb"))
    }


def _figures(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    peer_name, calls = arguments.only, 10 if arguments.quick else 100
    with FluxGate(instrument=False, data_dir=folder) as fg, asyncio.Runner() as runner:
        runs = _runs(runner)
        contenders: dict[str, Contender] = {"bare": bare, "ours": partial(ours, fg)}
        peer = None if peer_name is None else _peer(peer_name, runs)
        if peer is not None:
            contenders["peer"] = partial(theirs, peer)
        figures: dict[str, Any] = {"rounds": arguments.rounds, "calls_a_round": calls, "chunks": CHUNKS}
        figures |= _times(contenders, runs, calls, arguments)
        sizes = (100, 2) if arguments.quick else (1_000, 7)
        figures["memory"] = _memory(contenders, runs, *sizes)
    figures["import"] = _imports(folder, peer_name, 2 if arguments.quick else 9)
    statistics = fg.statistics()
    figures["events"] = {"emitted": statistics.emitted, "dropped": sum(statistics.dropped.values())}
    return figures | ({} if peer is None else {"exported": peer.started.exported()})


def _peer(name: str, runs: Mapping[str, Run]) -> Switch[Tracker]:
    """Start the peer once the client has loaded all that it loads when first used."""
    for run in runs.values():
        run(1)
    return Switch(PEERS[name].start, ("openai", HTTP_LIBRARY))


def _tables(figures: dict[str, Any], peers: dict[str, Any]) -> None:
    for kind in ("plain", "plain_async", "stream", "stream_async"):
        rows = figures[kind] | {name: found[kind]["peer"] for name, found in peers.items() if kind in found}
        part = "call" if kind.startswith("plain") else "chunk"
        columns = ["us", "added_us", "added_delivered_cpu_us", "added_over_ours"]
        print_table(f"{kind}: us of a call, added of a {part}", rows, columns)
    for name, found in peers.items():
        if "error" in found:
            print(f"  {name}: {found['error']}", file=sys.stderr)


def _arguments(peers: Mapping[str, Peer]) -> argparse.Namespace:
    parser = options("What tracking adds to a call of the OpenAI client.", rounds=31)
    add_options(parser, peers)
    arguments: argparse.Namespace = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 5)
    return arguments


def main() -> None:
    """Run the rounds and print the figures."""
    arguments = _arguments(PEERS)
    for name in [name for name in os.environ if name.startswith("FLUXGATE_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="fluxgate-bench-") as folder:
        figures = _figures(arguments, folder)
    figures = {"openai": version("openai"), "http": HTTP_LIBRARY, "clock": arguments.clock, **figures}
    if arguments.only is not None:
        library = PEERS[arguments.only].requirements[0]
        print_line("call", {"peer_name": arguments.only, "version": version(library), **figures})
        return
    peers = {} if arguments.peers is None else run_peers(__file__, PEERS, arguments)
    _tables(figures, peers)
    print_line("call", figures | ({"peers": peers} if peers else {}))


if __name__ == "__main__":
    main()
