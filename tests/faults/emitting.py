"""Programs that emit numbered events, for tests that kill, fork, freeze and starve them.

Run as `python -m tests.faults.emitting <program> <spool folder> <redis url or -> <stream key>`.
"""

from __future__ import annotations

import sys

if "greenlets" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import contextlib
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import gevent

from fluxgate_mw.buffer.emitter import Emitter
from fluxgate_mw.buffer.redis_stream import RedisStream
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import UsageEvent
from tests.buffers import assert_conserved, numbered, wait_until
from tests.flushing import stored_numbers

LATE_S = 30.0
"""An interval that no program lives to see twice: what is delivered meanwhile was delivered on purpose."""


class Program:
    """What every program is given."""

    def __init__(self, folder: str, url: str, stream_key: str) -> None:
        self.folder, self.url, self.stream_key = Path(folder), url, stream_key

    def emitter(self, **options) -> Emitter:
        """Return an emitter over the spool, and the stream where there is a server."""
        stream = None if self.url == "-" else self._stream
        return Emitter(spool=lambda: Spool(self.folder), stream=stream, **options)

    def _stream(self) -> RedisStream:
        return RedisStream(self.url, stream_key=self.stream_key, consumer_group="flushers")


def say(*words: object) -> None:
    """Tell the test something."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def until_killed(program: Program) -> None:
    """Emit about four thousand events a second, each with its time, for ever."""
    emitter = program.emitter()
    number = 0
    while True:
        for _ in range(4):
            emitter.emit(UsageEvent(metadata={"number": number, "at": time.time()}))
            number += 1
        if number == 400:
            say("running")
        time.sleep(0.001)


def durably_until_killed(program: Program) -> None:
    """Emit durable events and say the number of each after `emit` returned."""
    emitter = program.emitter(durable=True)
    for number in range(1_000_000):
        emitter.emit(numbered(number))
        say(number)


def to_the_end(program: Program) -> None:
    """Emit, and end without stopping anything."""
    emitter = program.emitter(shutdown_timeout_s=2.0)
    for number in range(1000):
        emitter.emit(numbered(number))


def fork(program: Program) -> None:
    """Fork with events queued; parent and child go on emitting, and end in the ordinary way."""
    emitter = program.emitter(interval_s=0.2)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    for number in range(1, 10):
        emitter.emit(numbered(number))
    child = os.fork()
    first = 10 if child else 100
    if not child:
        assert_conserved(emitter.statistics(), 0)
    for number in range(first, first + 10):
        emitter.emit(numbered(number))
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 20 if child else 10)
    emitter.emit(numbered(first + 10))
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0
    sys.exit(0)


def fork_while_emitting(program: Program) -> None:
    """Fork again and again while a burst is on its way; every child emits and ends by itself."""
    emitter = program.emitter()
    children = []
    for turn in range(10):
        for number in range(200):
            emitter.emit(numbered(turn * 200 + number))
        child = os.fork()
        if not child:
            emitter.emit(numbered(10_000 + turn))
            os._exit(0 if emitter.stop(5) else 1)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 2000)


def _emit_in_child(emitter: Emitter, first: int) -> None:
    for number in range(first, first + 10):
        emitter.emit(numbered(number))


def multiprocess(program: Program) -> None:
    """Have `multiprocessing` children (which end without `atexit`) emit with the emitter they inherited."""
    emitter = program.emitter()
    emitter.emit(numbered(0))
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_emit_in_child, args=(emitter, first)) for first in (100, 200, 300)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0


def _emit_in_a_new_process(folder: str, url: str, stream_key: str, first: int) -> None:
    _emit_in_child(Program(folder, url, stream_key).emitter(interval_s=LATE_S), first)


def _multiprocess_anew(program: Program, method: str) -> None:
    """Have children that inherit nothing make their own emitters; only their ends deliver, beside the parent's own."""
    emitter = program.emitter()
    emitter.emit(numbered(0))
    context = multiprocessing.get_context(method)
    given = (str(program.folder), program.url, program.stream_key)
    children = [context.Process(target=_emit_in_a_new_process, args=(*given, first)) for first in (100, 200, 300)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0


def spawn(program: Program) -> None:
    """As `multiprocessing` does by default on macOS."""
    _multiprocess_anew(program, "spawn")


def forkserver(program: Program) -> None:
    """As `multiprocessing` does by default on Linux from Python 3.14 on."""
    _multiprocess_anew(program, "forkserver")


def orphans(program: Program) -> None:
    """Fork with events queued, and leave without any exit hook while the child still works."""
    emitter = program.emitter(interval_s=LATE_S)
    _emit_in_child(emitter, 0)
    assert emitter.flush(5)
    _emit_in_child(emitter, 10)
    reading, writing = os.pipe()
    if not os.fork():
        _emit_in_child(emitter, 100)
        assert os.read(reading, 1) == b"."
        sys.exit(0)
    assert emitter.flush(5)
    os.write(writing, b".")
    os._exit(0)


def import_nothing(program: Program) -> None:
    """Say which modules the delivery imported by itself."""
    emitter = program.emitter()
    before = set(sys.modules)
    emitter.emit(numbered(0))
    assert emitter.flush(5)
    assert emitter.stop()
    say(sorted(set(sys.modules) - before))


def greenlets(program: Program) -> None:
    """Emit from greenlets of a patched process: the delivery neither stops them nor waits for them."""
    emitter = program.emitter()
    ticks = []

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks.append(1)

    gevent.spawn(tick)
    some = [gevent.spawn(_emit_in_child, emitter, first) for first in (0, 10, 20)]
    gevent.joinall(some)
    assert emitter.flush(5)
    assert ticks
    assert_conserved(emitter.statistics(), 30)
    assert emitter.stop()
    _emit_in_child(emitter, 30)


def starved(program: Program) -> None:
    """Emit while no file may grow, say so, and go on when files may grow again."""
    emitter = program.emitter()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    for number in range(500):
        emitter.emit(numbered(number))
    assert not emitter.flush(0.2)
    assert_conserved(emitter.statistics(), 500)
    assert emitter.statistics().queued == 500
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    wait_until(lambda: emitter.statistics().spooled > 0 or emitter.statistics().queued == 500)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert emitter.flush(5)
    assert_conserved(emitter.statistics(), 500)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def full_disk(program: Program) -> None:
    """Fill the small disk that holds spool and store while a flusher runs and events come; then make room.

    The disk is the folder's parent: mounted for this process and its children alone, so the store is looked at here.
    """
    disk = program.folder.parent
    environ = os.environ | {"FLUXGATE_DATA_DIR": str(disk), "FLUXGATE_SPOOL_DIR": str(program.folder)}
    store, emitter = disk / "fluxgate.sqlite3", program.emitter()
    flusher = subprocess.Popen([sys.executable, "-m", "fluxgate_mw.cli", "flush"], env=environ, stdout=sys.stderr)
    emitter.emit(numbered(0))
    wait_until(lambda: _count(store) == 1, 20)
    _fill(disk / "ballast")
    for number in range(1, 2001):
        emitter.emit(numbered(number))
    assert not emitter.flush(0.5)
    assert_conserved(emitter.statistics(), 2001)
    assert emitter.statistics().queued > 0
    assert flusher.poll() is None
    (disk / "ballast").unlink()
    assert emitter.flush(10)
    assert_conserved(emitter.statistics(), 2001)
    wait_until(lambda: _count(store) == 2001, 30)
    flusher.terminate()
    assert flusher.wait(30) == 0
    assert not list(program.folder.glob("*.bad"))
    say(stored_numbers(store) == list(range(2001)))


def _count(store: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(store)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    return 0


def terminated(program: Program) -> None:
    """Emit, and end by a handler of SIGTERM as a server does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    emitter = program.emitter(shutdown_timeout_s=2.0)
    for number in range(1000):
        emitter.emit(numbered(number))
    say("running")
    while True:
        time.sleep(1)


PROGRAMS: dict[str, Callable[[Program], None]] = {
    function.__name__: function
    for function in (
        until_killed,
        durably_until_killed,
        to_the_end,
        fork,
        fork_while_emitting,
        multiprocess,
        spawn,
        forkserver,
        orphans,
        import_nothing,
        greenlets,
        starved,
        full_disk,
        terminated,
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Program(*sys.argv[2:5]))
