"""The spool: a buffer made of files in one folder, for the time without Redis and for hosts that have none.

The folder is the whole state; there is no ledger that could disagree with it:

    <time>-<pid>-<n>.open          being written by a living process, which holds its `flock`
    <time>-<pid>-<n>.seg           sealed: to be read
    <...>.<attempt>[.<offset>].seg   being read for the n-th time, by whoever holds `reader.lock`
    <...>-<offset>.bad             bytes that were no intact frame, kept for a person
    dead/<...>.dead                dead letters

Many processes write, one reads. A segment is deleted when all its entries are acknowledged. Writing is in
`segments`, reading in `spool_reader`; this module joins them to the `Buffer` Protocol.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from fluxgate_mw.buffer.dead_files import DeadFiles
from fluxgate_mw.buffer.dead_letters import DeadLetter
from fluxgate_mw.buffer.segments import OPEN, SEALED, SegmentWriter
from fluxgate_mw.buffer.spool_reader import SpoolReader
from fluxgate_mw.errors import BackendUnavailable, BufferFull, ClosedError
from fluxgate_mw.types import Entry

__all__ = ["TRUSTED_S", "Spool"]

TRUSTED_S: Final = 0.05
_T = TypeVar("_T")
_POLL_S: Final = 0.05
_LOOK_EVERY_S: Final = 1.0
_LOOK_WHEN_FULL: Final = 0.05
_LOOK_PART: Final = 0.02
_LONGEST_OPEN_S: Final = 10.0
_CROWDED_FILES: Final = 100


class Spool:
    """One process's hold on a spool folder, which is made (0700) by the first write.

    Args:
        folder: Where the files are; every process that shares it shares the spool.
        max_bytes: Cap of all segments together. The newest are refused. Each writing process looks at the folder
            once a second, so that several at once can pass the cap by what they write in that second; less often
            where it holds so many files that looking would take more than a fiftieth of the time.
        segment_bytes: A segment is sealed past this size.
        seal_after_s: A segment is sealed after this age at the latest, as far as `seal_due` is called; later, up to
            ten seconds, where hundreds of files show that nobody reads.
        trusted_s: How long a file that is being written is taken to be there before it is looked for again. What was
            written to one that somebody removed is written again, unless the process is killed before.

    Guarantees: what `append` accepted survives a kill -9 of the process; it is not synced to the device, so a power
    cut can lose the last seconds. Entries of one process come in order, unless `append_nowait` is called by several
    threads at once. A damaged part is set aside and counted, and the rest is read.

    Concurrency: `append_nowait`, `seal_due`, `seal` from any thread and inside a signal handler; the rest one task
    at a time. After a fork call `abandon` in the child, and make another.
    """

    name = "spool"

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 1 << 30,
        segment_bytes: int = 4 << 20,
        seal_after_s: float = 0.25,
        trusted_s: float = TRUSTED_S,
    ) -> None:
        self._folder, self._trusted_s = Path(folder), trusted_s
        self._max_bytes, self._segment_bytes, self._seal_after_s = max_bytes, segment_bytes, seal_after_s
        self._writers: deque[SegmentWriter] = deque()
        self._reader = SpoolReader(self._folder)
        self._dead = DeadFiles(self._folder / "dead")
        self._numbers, self._named_at = itertools.count(), 0
        self._used_bytes, self._files, self._looked_at = 0, 0, float("-inf")
        self._look_every_s = _LOOK_EVERY_S
        self._closed = False

    def append_nowait(self, payload: bytes) -> None:
        """Write one pack, blocking for the operating system's write and nothing else; no lock is taken.

        Raises:
            BackendUnavailable: Disk full, folder not writable, ...; nothing was written.
            BufferFull: The cap is reached.
            ClosedError: After `aclose`.
        """
        self._check_open()
        with _translated(), self._checked_out(self._writers.pop) as writer:
            self._check_room(len(payload))
            self._used_bytes += writer.append(payload, self._new_name())
            if writer.size >= self._segment_bytes:
                with contextlib.suppress(OSError):
                    writer.seal()

    @contextlib.contextmanager
    def _checked_out(self, take: Callable[[], SegmentWriter]) -> Iterator[SegmentWriter]:
        """Lend a writer that nobody else has meanwhile: one of those that `take` takes from, or a new one."""
        try:
            writer = take()
        except IndexError:
            writer = SegmentWriter(self._folder, self._trusted_s)
        try:
            yield writer
        finally:
            self._writers.append(writer)

    def _new_name(self) -> str:
        """Return a name that sorts after all earlier ones of this process, even where the clock was set back."""
        self._named_at = max(self._named_at + 1, time.time_ns())
        return f"{self._named_at:020d}-{os.getpid()}-{next(self._numbers):06d}"

    def _check_room(self, size: int) -> None:
        age = time.monotonic() - self._looked_at
        full = self._used_bytes + size > self._max_bytes
        if age > self._look_every_s * (_LOOK_WHEN_FULL if full else 1):
            self._look()
            full = self._used_bytes + size > self._max_bytes
        if full:
            raise BufferFull(f"spool: {self._max_bytes} bytes")

    def _look(self) -> None:
        began = time.monotonic()
        sizes = [size for _, size in self._segments()]
        self._used_bytes, self._files, self._looked_at = sum(sizes), len(sizes), time.monotonic()
        self._look_every_s = max(_LOOK_EVERY_S, (self._looked_at - began) / _LOOK_PART)

    def _segments(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self._folder) as found:
                for item in found:
                    if item.name.endswith((OPEN, SEALED)):
                        try:
                            yield item.name, item.stat().st_size
                        except FileNotFoundError:
                            continue
        except FileNotFoundError:
            return

    def seal_due(self) -> float | None:
        """Seal segments that are old enough for readers; return the seconds until the next is, None where none is open.

        Raises:
            BackendUnavailable: The folder cannot be used now.
        """
        crowded = (self._files / _CROWDED_FILES) ** 2
        return self._seal(min(_LONGEST_OPEN_S, self._seal_after_s * (1 + crowded)))

    def seal(self) -> None:
        """Seal every segment of this process now.

        Raises:
            BackendUnavailable: The folder cannot be used now.
        """
        self._seal(float("-inf"))

    def _seal(self, age_s: float) -> float | None:
        due = []
        with _translated():
            for _ in range(len(self._writers)):
                with self._checked_out(self._writers.popleft) as writer:
                    due_in_s = writer.opened_at + age_s - time.monotonic()
                    if writer.is_open and due_in_s <= 0:
                        writer.seal()
                    elif writer.is_open:
                        due.append(due_in_s)
        return min(due, default=None)

    def read_nowait(self, max_entries: int) -> list[Entry]:
        """Return entries that were not read yet; empty where there are none or another process reads.

        Raises:
            BackendUnavailable: The folder cannot be used now.
            ClosedError: After `aclose`.
        """
        self._check_open()
        with _translated():
            return self._reader.read(max_entries)

    def ack_nowait(self, entries: Sequence[Entry]) -> None:
        """Forget entries; a segment without any left is deleted.

        Raises:
            BackendUnavailable: They may come again.
        """
        with _translated():
            self._reader.ack(entries)

    def stop_reading(self) -> None:
        """Let another process read; what was read and not acknowledged comes again."""
        with _translated():
            self._reader.close()

    async def append(self, payload: bytes, events: int, /) -> None:  # noqa: ARG002  (the Protocol's)
        """See `Buffer`. The entry is sealed, so that it can be read at once."""
        await self._in_thread(lambda: self._append_sealed(payload))

    def _append_sealed(self, payload: bytes) -> None:
        self.append_nowait(payload)
        self.seal()

    async def read(self, *, max_entries: int, wait_s: float) -> Sequence[Entry]:
        """See `Buffer`. Empty where another process reads: one at a time does."""
        deadline = time.monotonic() + wait_s
        while not (entries := await self._in_thread(lambda: self.read_nowait(max_entries))):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await anyio.sleep(min(_POLL_S, left))
        return entries

    async def reclaim(self, *, min_idle_s: float, max_entries: int) -> Sequence[Entry]:
        """See `Buffer`. A living reader is not robbed; what a dead one had comes by `read`, its count raised."""
        self._check_open()
        return self._reader.reclaim(min_idle_s, max_entries)

    async def ack(self, entries: Sequence[Entry], /) -> None:
        """See `Buffer`."""
        await self._in_thread(lambda: self.ack_nowait(entries))

    async def dead_letter(self, entry: Entry, payload: bytes, reason: str, /) -> None:
        """See `Buffer`."""
        await self._in_thread(lambda: self._dead.add(entry, payload, reason))

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """See `DeadLetters`."""
        return await self._in_thread(lambda: list(itertools.islice(self._dead.letters(None), limit)))

    async def replay(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`."""
        return await self._in_thread(lambda: self._replay(letter_ids))

    def _replay(self, letter_ids: Collection[str] | None) -> int:
        replayed = 0
        for letter in self._dead.letters(letter_ids):
            self.append_nowait(letter.payload)
            self._dead.remove(letter.letter_id)
            replayed += 1
        self.seal()
        return replayed

    async def drop(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`."""
        return await self._in_thread(lambda: self._dead.remove_all(letter_ids))

    async def oldest(self) -> Entry | None:
        """See `Buffer`. Of every process's segments, those still being written among them."""
        return await self._in_thread(lambda: self._reader.first_entry(sorted(name for name, _ in self._segments())))

    async def backlog(self) -> Mapping[str, int]:
        """See `Buffer`. Also `segments`, and `quarantined`: the files that hold damaged parts."""
        return await self._in_thread(self._backlog)

    def _backlog(self) -> Mapping[str, int]:
        sizes = dict(self._segments())
        entries = self._reader.count_entries(sizes)
        return {
            "entries": entries,
            "pending": self._reader.pending,
            "dead_letters": self._dead.count(),
            "bytes": sum(sizes.values()),
            "segments": len(sizes),
            "quarantined": self._reader.count_quarantined(),
        }

    async def aclose(self) -> None:
        """See `Buffer`. Seals what was written."""
        if not self._closed:
            self._closed = True
            with _translated():
                self.seal()
                self._reader.close()

    def abandon(self) -> None:
        """Close inherited descriptors in a forked child, leaving the parent its locks and its files."""
        self._closed = True
        for writer in self._writers:
            writer.abandon()
        self._reader.abandon()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        with _translated():
            return await anyio.to_thread.run_sync(work)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the spool is closed")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendUnavailable("spool", error.strerror or type(error).__name__) from error
