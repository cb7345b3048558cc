"""What a flusher needs for a backlog: memory at its peak and events a second. Prints one JSON line.

    python benchmarks/bench_backlog.py [--quick] [--events N] [--growth] [--buffer spool|redis]

A backlog is put into a spool and into a real Valkey server, and the real `fluxgate flush --once` empties each into a
fresh SQLite file. `--events 5000000` is the long form; `--growth` runs a hundredth and a tenth of it first. Ends with 1
where an event is missing or doubled, or a flusher took more than 150 MB.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import anyio
from measure import print_line
from redis_server import HOST, valkey

from fluxgate_mw import UsageEvent, User
from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import encode_event
from fluxgate_mw.settings import Settings
from fluxgate_mw.types import Buffer

PACK_EVENTS: Final = 250
MOST_MB: Final = 150.0
NO_CAP_BYTES: Final = 1 << 40
_RSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of `ru_maxrss`."""


def packed(first: int, events: int) -> bytes:
    """Return one entry of events like those of a web app."""
    numbers = range(first, first + events)
    return pack(
        [
            encode_event(
                UsageEvent(
                    provider_name="openai",
                    operation_name="chat",
                    request_model="gpt-4o-mini",
                    response_model="gpt-4o-mini-2024-07-18",
                    feature=f"feature-{number % 20}",
                    user=User(f"user-{number % 500}", email=f"user-{number % 500}@example.com"),
                    route="POST /summarize/{doc_id}",
                    http_method="POST",
                    latency_ms=612.5,
                    input_tokens=812,
                    output_tokens=164,
                    usage_source="provider",
                    cost_nanos=220_200,
                )
            )
            for number in numbers
        ]
    )


async def fill(buffer: Buffer, events: int) -> None:
    """Put so many events into a buffer."""
    for first in range(0, events, PACK_EVENTS):
        size = min(PACK_EVENTS, events - first)
        await buffer.append(packed(first, size), size)
    await buffer.aclose()


def unbounded(settings: Settings) -> Buffer:
    """Return the buffer of these settings, without a cap."""
    if settings.redis_url is None:
        return Spool(settings.spool_path, max_bytes=NO_CAP_BYTES)
    return RedisStream(
        settings.redis_url,
        stream_key=settings.stream_key,
        consumer_group=settings.consumer_group,
        max_bytes=NO_CAP_BYTES,
    )


def flushed(folder: Path, redis_url: str | None, events: int) -> dict[str, float]:
    """Fill a buffer, empty it with the real command, and return what that took."""
    settings = Settings.load({"data_dir": folder, "redis_url": redis_url}, environ={})

    async def filled() -> None:
        await fill(unbounded(settings), events)

    anyio.run(filled)
    environ = os.environ | {"FLUXGATE_DATA_DIR": str(folder), "FLUXGATE_REDIS_URL": redis_url or ""}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxgate_mw.cli", "flush", "--once"], env=environ, stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    with closing(sqlite3.connect(folder / "fluxgate.sqlite3")) as connection:
        stored, sums = connection.execute(
            "SELECT (SELECT COUNT(*) FROM events), (SELECT SUM(calls) FROM daily_costs WHERE dimension = 'feature')"
        ).fetchone()
    return {
        "events": events,
        "peak_mb": round(usage.ru_maxrss * _RSS_UNIT / 1e6, 1),
        "events_a_second": round(events / took_s),
        "lost_or_doubled": abs(stored - events) + abs((sums or 0) - events) + process.returncode,
    }


def one_backlog(buffer: str, events: int) -> dict[str, float]:
    """Run one backlog in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="backlog") as folder:
        if buffer == "spool":
            return flushed(Path(folder), None, events)
        with valkey(Path(folder) / "server") as port:
            return flushed(Path(folder), f"redis://{HOST}:{port}/0", events)


def main() -> int:
    """Run it as the arguments say."""
    parser = argparse.ArgumentParser(description="memory and speed of a flusher with a backlog")
    parser.add_argument("--quick", action="store_true", help="a small backlog, for CI: says that it works, no more")
    parser.add_argument("--events", type=int, default=500_000, help="of the backlog (default: %(default)s)")
    parser.add_argument("--growth", action="store_true", help="a hundredth and a tenth of it too")
    parser.add_argument("--buffer", choices=("spool", "redis"), action="append", help="only this one")
    arguments = parser.parse_args()
    events = 20_000 if arguments.quick else arguments.events
    sizes = [events // 100, events // 10, events] if arguments.growth else [events]
    found: dict[str, Any] = {
        buffer: [one_backlog(buffer, size) for size in sizes] for buffer in arguments.buffer or ("spool", "redis")
    }
    runs = [run for runs in found.values() for run in runs]
    print_line("bench_backlog", found)
    return int(any(run["lost_or_doubled"] or run["peak_mb"] > MOST_MB for run in runs))


if __name__ == "__main__":
    sys.exit(main())
