"""Everything that goes wrong, at random and at once, over real processes; and then the accounts.

Run as `python -m tests.faults.chaos --seconds 60 --seed 1`: several web workers emit numbered events through the public
API; a flusher is the real command, another dies between commit and acknowledgement; one Valkey server keeps its
data (AOF). Workers, flushers and server are killed by SIGKILL and started again; the server is frozen, starved of
memory and emptied; the store is locked, and read by others; the spool's disk is filled, where root may mount a small
one. Then everything is mended, and every event that was emitted is looked for.

The law: an event is stored once, or a dead letter, or was in the server when it was emptied, or was counted as
dropped by its process, or was emitted less than the stated bound before its process was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.event import decode_event
from tests.faults.chaos_parts import RECORD, journal
from tests.servers import RedisServer, valkey_binary

ROOT = Path(__file__).resolve().parents[2]
STREAM, GROUP = "chaos:events", "flushers"
LOST_AT_MOST_S = 0.05
"""What a kill may cost: an interval of 20 ms and the time of a drain."""
LOST_WHILE_FROZEN_S = 0.6
"""The same while a stream that just froze is given up."""
SCHEDULING_S = 0.25
"""What a crowded machine adds to both; to the first, more where a server that nothing was done to answers later."""
ROOM_IS_SEEN_S = 0.25 + LOST_WHILE_FROZEN_S + SCHEDULING_S
"""How long after a full disk has room again events may still wait in memory: a pause of the delivery, and a drain whose
stream is given up first where it froze meanwhile."""
DISK = "64m"
MOST_TIMES_LONGER = 4

Event = tuple[str, int]


@dataclass
class Worker:
    """One life of a web worker."""

    name: str
    process: subprocess.Popen[bytes]
    killed_at: float | None = None
    disturbed: bool = False
    slowest_answer_s: float = 0.0
    in_memory_since: float | None = None


class Pulse(threading.Thread):
    """Ask the server without end, to know how long it took to answer of late."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.ended, self.asked_at = port, threading.Event(), time.monotonic()
        self.answers: deque[tuple[float, float]] = deque(maxlen=200)

    def run(self) -> None:
        """Note when it answered, and how long that took."""
        with redis.Redis("127.0.0.1", self.port, protocol=2) as client:
            while not self.ended.wait(0.01):
                self.asked_at = time.monotonic()
                with suppress(redis.RedisError):
                    client.ping()
                now = time.monotonic()
                self.answers.append((now, now - self.asked_at))

    def slowest_s(self) -> float:
        """Return the longest that an answer took within the last second, or that the next one has taken so far."""
        now = time.monotonic()
        return max([now - self.asked_at, *(took for at, took in list(self.answers) if at > now - 1)])


@dataclass
class Report:
    """What happened, and what was lost to which cause."""

    seed: int
    emitted: int = 0
    stored: int = 0
    dead_lettered: int = 0
    emptied_server_lost: int = 0
    dropped: int = 0
    lost_to_kills: int = 0
    longest_loss_ms: float = 0.0
    longest_loss_while_disturbed_ms: float = 0.0
    small_disk: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many processes were killed by SIGKILL."""
        return sum(count for name, count in self.faults.items() if name.startswith("kill"))


class Chaos:
    """One run in one folder.

    Args:
        folder: Everything is in it.
        seed: Of every choice made here; what the processes do meanwhile is the machine's.
        workers: How many emit at once.
        rate: Events a second of each.
        pace_s: Mean seconds between two faults.
        durable: The workers write each event to the spool before `emit` returns: a kill then costs at most the one
            event that was in the journal and not emitted yet.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        workers: int = 4,
        rate: float = 600.0,
        pace_s: float = 0.8,
        durable: bool = False,
    ) -> None:
        self.folder, self.rate, self.pace_s, self.durable = folder, rate, pace_s, durable
        self.chance = random.Random(seed)
        self.report = Report(seed)
        self.store = folder / "fluxgate.sqlite3"
        options = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self.server = RedisServer(valkey_binary(), folder / "server", *options)
        self.pulse = Pulse(self.server.port)
        self.lives: list[Worker] = []
        self.slots: list[Worker | None] = [None] * workers
        self.flushers: list[subprocess.Popen[bytes] | None] = [None, None]
        self.pending: list[tuple[float, Callable[[], None]]] = []
        self.emptied: set[Event] = set()
        self.server_busy = self.store_busy = False
        self.disturbed_until = 0.0
        self.disk_filled_at: float | None = None
        self.disk_filled_at_last: float | None = None
        self.disk_had_room_at = 0.0

    def run(self, seconds: float, *, least_events: int = 0, least_kills: int = 0) -> Report:
        """Let things go wrong for so long, mend everything, and do the accounts.

        On a slow machine it goes on until so many events are emitted and processes killed, four times as long at most.
        """
        try:
            self.report.small_disk = self._mount_small_disk()
            self.server.start()
            self.pulse.start()
            began, next_at = time.monotonic(), time.monotonic() + 1.0
            while (now := time.monotonic()) < began + seconds or (
                now < began + seconds * MOST_TIMES_LONGER
                and (self.report.kills < least_kills or self._emitted_so_far() < least_events)
            ):
                self._keep_running()
                self._mend(now)
                if now >= next_at:
                    self._fault()
                    next_at = now + self.chance.uniform(0.2, 1.8) * self.pace_s
                time.sleep(0.02)
            self._end()
            self._account()
        finally:
            self._clean_up()
        return self.report

    def _mount_small_disk(self) -> bool:
        if os.geteuid() != 0:
            return False
        spool = self.folder / "spool"
        spool.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "chaos", str(spool)]
        return subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def _emitted_so_far(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.journal")) // RECORD.size

    def _environ(self) -> dict[str, str]:
        return os.environ | {
            "FLUXGATE_DATA_DIR": str(self.folder),
            "FLUXGATE_REDIS_URL": self.server.url,
            "FLUXGATE_STREAM_KEY": STREAM,
            "FLUXGATE_CONSUMER_GROUP": GROUP,
            "FLUXGATE_CLAIM_MIN_IDLE_S": "3",
            "FLUXGATE_LOG_LEVEL": "ERROR",
            "FLUXGATE_DURABLE": "yes" if self.durable else "no",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *map(str, arguments)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self._environ(), stdout=log, stderr=log)

    def _keep_running(self) -> None:
        for slot, living in enumerate(self.slots):
            if living is None:
                name = f"w{slot}-{len(self.lives)}"
                arguments = ("tests.faults.chaos_parts", "worker", self.folder, name, self.rate, len(self.lives))
                self.slots[slot] = Worker(name, self._start(*arguments))
                self.lives.append(self.slots[slot])
        for place, flusher in enumerate(self.flushers):
            if flusher is None or flusher.poll() is not None:
                if flusher is not None and place == 1 and flusher.returncode == -signal.SIGKILL:
                    self.report.faults["kill flusher between commit and ack"] += 1
                acks = self.chance.randint(1, 60)
                doomed = ("tests.faults.chaos_parts", "doomed", acks)
                self.flushers[place] = self._start(*(doomed if place else ("fluxgate_mw.cli", "flush")))

    def _mend(self, now: float) -> None:
        due = [mend for at, mend in self.pending if at <= now]
        self.pending = [(at, mend) for at, mend in self.pending if at > now]
        for mend in due:
            mend()

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        self.pending.append((time.monotonic() + seconds, mend))

    def _fault(self) -> None:
        faults: list[tuple[Callable[[], None], int]] = [(self._kill_worker, 6), (self._kill_flusher, 3)]
        if not self.server_busy:
            faults += [(self._kill_server, 2), (self._freeze_server, 2), (self._starve_server, 2)]
            faults += [(self._empty_server, 1)]
        if self.report.small_disk and self.disk_filled_at is None:
            faults += [(self._fill_disk, 2)]
        if not self.store_busy and self.store.exists():
            faults += [(self._lock_store, 2), (self._look_at_store, 2)]
        actions, weights = zip(*faults, strict=True)
        self.chance.choices(actions, weights)[0]()

    def _count(self, fault: str) -> None:
        self.report.faults[fault] += 1

    def _kill_worker(self) -> None:
        slot = self.chance.randrange(len(self.slots))
        victim = self.slots[slot]
        if victim is not None and (self.folder / f"{victim.name}.journal").exists():
            victim.slowest_answer_s, victim.disturbed = self.pulse.slowest_s(), self._is_disturbed()
            victim.killed_at = time.time()
            victim.process.kill()
            victim.process.wait()
            victim.in_memory_since = self._in_memory_since(victim.killed_at)
            self.slots[slot] = None
            self._count("kill worker")

    def _kill_flusher(self) -> None:
        flusher = self.flushers[0]
        if flusher is not None:
            flusher.kill()
            flusher.wait()
            self._count("kill flusher")

    def _disturb_server(self) -> None:
        self.server_busy = True

    def _is_disturbed(self) -> bool:
        return self.server_busy or time.monotonic() < self.disturbed_until

    def _server_is_well(self) -> None:
        self.server_busy, self.disturbed_until = False, time.monotonic() + 1.5

    def _kill_server(self) -> None:
        self._disturb_server()
        self.server.kill()
        self._later(self.chance.uniform(0.05, 2.0), self._restart_server)
        self._count("kill server")

    def _restart_server(self) -> None:
        self.server.start()
        self._server_is_well()

    def _freeze_server(self) -> None:
        self._disturb_server()
        self._signal_server(signal.SIGSTOP)
        self._later(self.chance.uniform(0.2, 3.0), self._thaw_server)
        self._count("freeze server")

    def _thaw_server(self) -> None:
        self._signal_server(signal.SIGCONT)
        self._server_is_well()

    def _signal_server(self, number: int) -> None:
        assert self.server.process is not None
        self.server.process.send_signal(number)

    def _client(self) -> Any:
        return redis.Redis.from_url(self.server.url, protocol=2, socket_timeout=10)

    def _starve_server(self) -> None:
        self._disturb_server()
        self._limit_memory("1mb")
        self._later(self.chance.uniform(0.5, 2.5), self._feed_server)
        self._count("starve server")

    def _feed_server(self) -> None:
        self._limit_memory("0")
        self._server_is_well()

    def _limit_memory(self, limit: str) -> None:
        with closing(self._client()) as client:
            client.config_set("maxmemory", limit)

    def _empty_server(self) -> None:
        """Empty the server in one transaction with a look at what is in it: that much the server lost, not we."""
        with closing(self._client()) as client, client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(STREAM).xrange(f"{STREAM}:dead").flushall()
            live, dead, _ = pipeline.execute()
        self.emptied |= events_of(fields[b"payload"] for _, fields in [*live, *dead])
        self._count("empty server")

    def _fill_disk(self) -> None:
        """Leave no room on the spool's disk: where the server takes nothing either, events wait in memory."""
        now = time.time()
        self.disk_filled_at = self._in_memory_since(now) or now
        with (self.folder / "spool" / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(65_536))
        self._later(self.chance.uniform(0.2, 2.0), self._empty_disk)
        self._count("fill disk")

    def _empty_disk(self) -> None:
        (self.folder / "spool" / "ballast").unlink()
        self.disk_had_room_at, self.disk_filled_at_last = time.time(), self.disk_filled_at
        self.disk_filled_at = None

    def _in_memory_since(self, now: float) -> float | None:
        """Since when a process that ends now may have had to keep its events to itself; None where it had not."""
        if self.disk_filled_at is not None:
            return self.disk_filled_at
        return self.disk_filled_at_last if now - self.disk_had_room_at < ROOM_IS_SEEN_S else None

    def _lock_store(self) -> None:
        self.store_busy = True
        connection = sqlite3.connect(self.store, timeout=10, isolation_level=None)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
        self._later(self.chance.uniform(0.5, 7.0), lambda: self._unlock_store(connection))
        self._count("lock store")

    def _look_at_store(self) -> None:
        """Read the store from this process and leave, as any tool may."""
        with closing(sqlite3.connect(self.store, timeout=10)) as connection, suppress(sqlite3.OperationalError):
            connection.execute("SELECT COUNT(*) FROM events").fetchone()
        self._count("look at store")

    def _unlock_store(self, connection: sqlite3.Connection) -> None:
        connection.close()
        self.store_busy = False

    def _end(self) -> None:
        """Mend everything, let the workers end in order, and flush what is left."""
        self._mend(float("inf"))
        living = [worker for worker in self.slots if worker is not None]
        wait_for(lambda: all((self.folder / f"{worker.name}.journal").exists() for worker in living))
        for worker in living:
            worker.process.terminate()
        for worker in living:
            self._expect(worker.process.wait(30) == 0, f"{worker.name} ended with {worker.process.returncode}")
        for flusher in self.flushers:
            if flusher is not None:
                flusher.kill()
                flusher.wait()
        status = self._start("fluxgate_mw.cli", "flush", "--once").wait(120)
        self._expect(status == 0, f"flush --once ended with {status}")

    def _expect(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001
        if not holds:
            self.report.wrong.append(otherwise)

    def _account(self) -> None:
        self._expect_empty_buffers()
        stored, dead = self._stored(), self._dead_letters()
        self.report.stored, self.report.dead_lettered = len(stored), len(dead - stored)
        self.report.emptied_server_lost = len(self.emptied - stored - dead)
        known = stored | dead | self.emptied
        emitted: set[Event] = set()
        for worker in self.lives:
            emitted |= self._account_worker(worker, known)
        self.report.emitted = len(emitted)
        self._expect(known <= emitted, f"{len(known - emitted)} events that nobody emitted")

    def _account_worker(self, worker: Worker, known: set[Event]) -> set[Event]:
        emissions = list(journal(self.folder, worker.name))
        missing = [(number, at) for number, at in emissions if (worker.name, number) not in known]
        if worker.killed_at is None:
            self._account_ended(worker, len(emissions), len(missing))
        elif missing:
            self._account_killed(worker, worker.killed_at, emissions, missing)
        return {(worker.name, number) for number, _ in emissions}

    def _account_ended(self, worker: Worker, emitted: int, missing: int) -> None:
        said = json.loads((self.folder / f"{worker.name}.json").read_text())
        dropped = sum(said["dropped"].values())
        self.report.dropped += dropped
        self._expect(said["emitted"] == emitted, f"{worker.name} emitted {emitted} and says {said['emitted']}")
        self._expect(said["queued"] == 0, f"{worker.name} ended with {said['queued']} events queued")
        self._expect(missing == dropped, f"{worker.name} lost {missing} and says {dropped}")

    def _account_killed(
        self, worker: Worker, killed_at: float, emissions: list[tuple[int, float]], missing: list[tuple[int, float]]
    ) -> None:
        report, lost_s = self.report, max(killed_at, emissions[-1][1]) - missing[0][1]
        report.lost_to_kills += len(missing)
        undisturbed_s = LOST_AT_MOST_S + max(SCHEDULING_S, worker.slowest_answer_s)
        allowed_s = LOST_WHILE_FROZEN_S + SCHEDULING_S if worker.disturbed else undisturbed_s
        if worker.in_memory_since is not None:
            self._account_waited(worker, killed_at, allowed_s, emissions, missing)
            return
        if worker.disturbed:
            report.longest_loss_while_disturbed_ms = max(report.longest_loss_while_disturbed_ms, lost_s * 1000)
        else:
            report.longest_loss_ms = max(report.longest_loss_ms, lost_s * 1000)
        self._expect(not self.durable or len(missing) == 1, f"{worker.name} lost {len(missing)} durable events")
        self._expect(lost_s <= allowed_s, f"{worker.name} lost what was emitted {lost_s:.3f} s before its end")
        self._expect(missing == emissions[-len(missing) :], f"{worker.name} lost more than its last events")

    def _account_waited(
        self,
        worker: Worker,
        killed_at: float,
        allowed_s: float,
        emissions: list[tuple[int, float]],
        missing: list[tuple[int, float]],
    ) -> None:
        """Judge a death with the disk full: what was emitted since may be lost, and nothing from before."""
        full_since = worker.in_memory_since or killed_at
        self._expect(
            missing[0][1] >= min(full_since, killed_at) - allowed_s,
            f"{worker.name} lost what was emitted {full_since - missing[0][1]:.3f} s before the disk was full",
        )
        self._expect(set(missing) <= set(emissions), f"{worker.name} lost what it never emitted")

    def _stored(self) -> set[Event]:
        with closing(sqlite3.connect(self.store)) as connection:
            rows = connection.execute("SELECT service, json_extract(metadata, '$.n') FROM events").fetchall()
            calls = connection.execute("SELECT SUM(calls) FROM daily_costs WHERE dimension = 'feature'").fetchone()[0]
        self._expect(len(set(rows)) == len(rows), f"{len(rows) - len(set(rows))} events are stored twice")
        self._expect((calls or 0) == len(rows), f"the sums hold {calls} calls, the table {len(rows)}")
        return set(rows)

    def _dead_letters(self) -> set[Event]:
        with closing(self._client()) as client:
            return events_of(fields[b"payload"] for _, fields in client.xrange(f"{STREAM}:dead"))

    def _expect_empty_buffers(self) -> None:
        with closing(self._client()) as client:
            length, pending = client.xlen(STREAM), client.xpending(STREAM, GROUP)["pending"]
        self._expect((length, pending) == (0, 0), f"the stream has {length} entries, {pending} of them pending")
        left = [path.name for path in (self.folder / "spool").rglob("*") if path.suffix in (".seg", ".open", ".bad")]
        self._expect(not left, f"the spool still has {left[:3]}")

    def _clean_up(self) -> None:
        for _, mend in self.pending:
            mend()
        self.pulse.ended.set()
        if self.pulse.is_alive():
            self.pulse.join()
        for process in [worker.process for worker in self.lives] + [one for one in self.flushers if one]:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.server.kill()
        if self.report.small_disk:
            subprocess.run(["umount", str(self.folder / "spool")], check=True)


def events_of(payloads: Iterable[bytes]) -> set[Event]:
    """Return the events in these packs, by worker and number."""
    events = (decode_event(data) for payload in payloads for data in unpack(payload))
    return {(event.service or "", event.metadata["n"]) for event in events}


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition; go on without it in the end, for the accounts will tell."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def main() -> int:
    """Run it as the arguments say, print the report as JSON, and return 0 where the law held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="3600 is an hour")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=600, help="events a second of each worker")
    parser.add_argument("--pace", type=float, default=0.8, help="mean seconds between two faults")
    parser.add_argument("--durable", action="store_true", help="the workers spool each event before emit returns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        chaos = Chaos(
            Path(folder),
            seed=arguments.seed,
            workers=arguments.workers,
            rate=arguments.rate,
            pace_s=arguments.pace,
            durable=arguments.durable,
        )
        report = chaos.run(arguments.seconds)
        sys.stdout.write(json.dumps(vars(report) | {"kills": report.kills}) + "\n")
        if report.wrong:
            sys.stderr.write((Path(folder) / "log").read_text()[-5000:])
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
