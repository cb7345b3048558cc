"""The delivery over a long time and over much: is memory flat, and do the figures hold? Prints one JSON line.

    python benchmarks/bench_delivery_long.py --soak 300            a steady stream of events for five minutes
    python benchmarks/bench_delivery_long.py --rows 10000000       storing on top of ten million rows
    python benchmarks/bench_delivery_long.py --growth              at 1, 10 and 100 times the backlog

Several may be given, and `--quick` does a little of each. Ends with 1 where an event is lost or doubled, or the soak's
memory is not flat: the least of its last third more than a tenth above the least of its middle third.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
from bench_backlog import fill, unbounded
from bench_delivery import PACK_EVENTS, Way, deliver, make_event, settings_for
from measure import print_line
from redis_server import HOST, valkey

from fluxgate_mw import FluxGate
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import encode_event
from fluxgate_mw.runtime import make_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store
from fluxgate_mw.stores.sqlite_schema import COLUMNS

RATE: Final = 5_000
"""Events a second of the soak: far above any web process, far below what the store takes."""

FLAT: Final = 1.1
"""A burst or a busy machine takes memory for a while; what leaks raises the least that is taken, too."""
SEEDS: Final = 1_000
BLOCK: Final = 1_000_000
DAYS: Final = 90
MULTIPLES: Final = (1, 10, 100)

Figures = dict[str, Any]


def soak(seconds: float, folder: Path) -> Figures:
    """Emit steadily through Valkey while this process flushes to SQLite; say what memory that takes along the way."""
    with valkey(folder / "valkey") as port:
        fg = FluxGate(
            redis_url=f"redis://{HOST}:{port}/0",
            data_dir=folder,
            instrument=False,
            flusher="background",
            log_level="ERROR",
        )
        with fg:
            samples, emitted = _steadily(fg, seconds)
            fg.flush(60)
            deadline = time.monotonic() + 120
            while _stored(fg) < emitted and time.monotonic() < deadline:
                time.sleep(0.1)
            stored = _stored(fg)
    third = len(samples) // 3
    middle, last = (min(part) for part in (samples[third : 2 * third], samples[2 * third :]))
    print(f"  at least {middle:.1f} MB in the middle third, {last:.1f} MB in the last", file=sys.stderr)
    return {
        "seconds": seconds,
        "emitted": emitted,
        "lost_or_doubled": abs(emitted - stored),
        "rss_mb": samples,
        "flat": last <= middle * FLAT,
    }


def _stored(fg: FluxGate) -> int:
    flusher = fg.statistics().flusher
    return 0 if flusher is None else flusher.stored


def _steadily(fg: FluxGate, seconds: float) -> tuple[list[float], int]:
    """Return the resident megabytes, thirty times along the way, and how many events were emitted."""
    process, emitted = psutil.Process(), 0
    samples: list[float] = []
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        while emitted < elapsed * RATE:
            fg.record(make_event(emitted))
            emitted += 1
        if elapsed >= (len(samples) + 1) * seconds / 31:
            samples.append(round(process.memory_info().rss / 1e6, 1))
            print(f"  {elapsed:6.0f} s {emitted:>10,} emitted {samples[-1]:8.1f} MB", file=sys.stderr)
        time.sleep(0.01)
    return samples, emitted


def rows(count: int, events: int, folder: Path) -> Figures:
    """Fill a SQLite file, then store on top of it from a spool; return the events a second of each round."""
    settings = Settings.load({"data_dir": folder}, environ={})
    began = time.perf_counter()
    asyncio.run(_seed(settings))
    _in_a_process_of_its_own(_multiply, folder / "fluxgate.sqlite3", count)
    print(f"  {count:,} rows in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    peak = 0.0
    rates = []
    for number in range(5):
        rates.append(round(asyncio.run(_store_on_top(settings, number, events))))
        peak = max(peak, psutil.Process().memory_info().rss / 1e6)
        print(f"  {rates[-1]:,} events/s stored", file=sys.stderr)
    with contextlib.closing(sqlite3.connect(folder / "fluxgate.sqlite3")) as connection:
        found = connection.execute("SELECT COUNT(*) FROM events").fetchone()[0]
    size = (folder / "fluxgate.sqlite3").stat().st_size
    return {
        "rows_before": count,
        "file_mb": size // 1_000_000,
        "events_a_round": events,
        "stored_per_s": rates,
        "median_stored_per_s": statistics.median(rates),
        "rss_mb": round(peak, 1),
        "lost_or_doubled": abs(found - count - 5 * events),
    }


async def _seed(settings: Settings) -> None:
    store = open_store(settings.effective_store_url)
    await store.insert([make_event(number) for number in range(SEEDS)])
    await store.aclose()


def _in_a_process_of_its_own(work: Callable[[Path, int], None], path: Path, count: int) -> None:
    """Do it where its memory is not ours.

    Raises:
        RuntimeError: It failed.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=(path, count))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the rows were not made")


def _multiply(path: Path, count: int) -> None:
    """Copy the seeds under ids and times of their own, spread over three months, without the care of a real insert.

    The daily sums stay those of the seeds: they are small at any number of events.
    """
    copied = ", ".join(column for column in COLUMNS if column not in ("event_id", "occurred_at"))
    start, step = time.time() - DAYS * 86_400, DAYS * 86_400 / count
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("synchronous = OFF", "journal_mode = MEMORY", "cache_size = -1000000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TEMP TABLE seeds AS SELECT * FROM events")
        for first in range(0, count - SEEDS, BLOCK):
            last = min(first + BLOCK, count - SEEDS) - 1
            connection.execute(
                f"""
                WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})
                INSERT INTO events (event_id, occurred_at, {copied})
                SELECT printf('%08x-%04x-7000-8000-%012x', (start_ms >> 16), (start_ms & 65535), n), at || '000+00:00',
                       {copied}
                FROM (SELECT n, CAST(({start} + n * {step}) * 1000 AS INTEGER) AS start_ms,
                             strftime('%Y-%m-%dT%H:%M:%f', {start} + n * {step}, 'unixepoch') AS at FROM numbers)
                JOIN seeds ON seeds.rowid = n % {SEEDS} + 1
                """
            )
        connection.execute("PRAGMA journal_mode = WAL")


async def _store_on_top(settings: Settings, number: int, events: int) -> float:
    spool, store = Spool(settings.spool_path), open_store(settings.effective_store_url)
    first = (number + 1) * 10_000_000
    for start in range(first, first + events, PACK_EVENTS):
        part = [encode_event(make_event(each)) for each in range(start, min(start + PACK_EVENTS, first + events))]
        spool.append_nowait(pack(part))
    spool.seal()
    flusher = make_flusher(settings, store, [spool])
    await store.insert(())
    began = time.perf_counter()
    await flusher.run_once(wait=True)
    took_s = time.perf_counter() - began
    await spool.aclose()
    await store.aclose()
    return flusher.statistics().stored / took_s


def growth(events: int, folder: Path) -> list[Figures]:
    """Emit on top of a backlog of 1, 10 and 100 times as many events, then store them all; spool and Valkey."""
    found = []
    for multiple in MULTIPLES:
        for name in ("spool", "redis"):
            place = folder / f"{name}-{multiple}"
            with valkey(place / "valkey") as port:
                settings = settings_for(place, events, port if name == "redis" else None)
                asyncio.run(fill(unbounded(settings), multiple * events))
                figures = _on_top(Way(settings), multiple * events, events)
            found.append({"buffer": name, "backlog": multiple * events, **figures})
            print(f"  {found[-1]}", file=sys.stderr)
    return found


def _on_top(way: Way, backlog: int, events: int) -> Figures:
    way.ledger.emitted = backlog
    figures = deliver(way, events)
    figures["lost_or_doubled"] = 0 if way.ledger.holds else 1
    return {name: round(value, 2) for name, value in figures.items()}


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The delivery over a long time and over much.")
    parser.add_argument("--quick", action="store_true", help="a little of each, for CI: says that it works, no more")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="emit so long; 300 is the long form")
    parser.add_argument("--rows", type=int, metavar="N", help="store on top of so many rows; 10000000 is the long form")
    parser.add_argument("--growth", action="store_true", help="at 1, 10 and 100 times the backlog")
    parser.add_argument("--events", type=int, default=20_000, help="of one round (default: %(default)s)")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.soak, arguments.rows, arguments.growth, arguments.events = 6.0, 20_000, True, 500
    if not (arguments.soak or arguments.rows or arguments.growth):
        parser.error("give --soak, --rows, --growth or --quick")
    return arguments


def main() -> int:
    """Run what the arguments ask for."""
    arguments = _arguments()
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="fluxgate-long-") as folder:
        if arguments.soak:
            found["soak"] = soak(arguments.soak, Path(folder) / "soak")
        if arguments.rows:
            found["rows"] = rows(arguments.rows, arguments.events, Path(folder) / "rows")
        if arguments.growth:
            found["growth"] = growth(arguments.events, Path(folder))
    print_line("delivery_long", found)
    parts = [found.get("soak", {}), found.get("rows", {}), *found.get("growth", [])]
    restless = not found.get("soak", {}).get("flat", True) and not arguments.quick
    return int(restless or any(part.get("lost_or_doubled") for part in parts))


if __name__ == "__main__":
    sys.exit(main())
