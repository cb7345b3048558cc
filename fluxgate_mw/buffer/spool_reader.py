"""Reading the spool: one process at a time, segment after segment, oldest first.

How often a segment was opened for reading stands in its name, so that it outlives a reader that a poison kills. From
the third time on its entries are handed out one by one and the name says which, so that the count is that entry's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.segments import OPEN, SEALED, adopt, next_frame, try_lock
from fluxgate_mw.types import Entry

__all__ = ["SpoolReader"]

_CAREFUL_FROM: Final = 3
_BAD: Final = ".bad"
_UNREADABLE: Final = (PermissionError, IsADirectoryError)
"""What opening a segment raises that was made by another user, or that is none."""


class _Reading(msgspec.Struct, eq=False):
    """One segment that is being read, or that was read and waits for acknowledgements.

    Args:
        base: The name that it was written under, without a suffix.
        path: Where it is now.
        attempt: How often it was opened for reading, this time included.
        offset: Where in `data` the next frame is looked for.
        data: What is in it; empty once all was handed out.
        given: Entries that were handed out and not acknowledged, by their ids, with when in monotonic seconds.
    """

    base: str
    path: Path
    attempt: int
    offset: int
    data: bytes
    given: dict[str, tuple[Entry, float]] = msgspec.field(default_factory=dict)

    @property
    def careful(self) -> bool:
        """Whether it may have killed its readers, so that its entries are handed out one by one."""
        return self.attempt >= _CAREFUL_FROM

    @property
    def done(self) -> bool:
        """Whether all of it was handed out and acknowledged."""
        return not self.given and self.offset >= len(self.data)

    def name(self, attempt: int, offset: int) -> Path:
        """Return the path that tells of this attempt and offset; see `_parse`."""
        return self.path.with_name(f"{self.base}.{attempt}.{offset}{SEALED}")


def _parse(name: str) -> tuple[str, int, int]:
    base, *numbers = name.removesuffix(SEALED).split(".")
    attempt, offset = [*(int(number) for number in numbers if number.isdecimal()), 0, 0][:2]
    return base, attempt, offset


class SpoolReader:
    """The reading side of one folder. Every method may block on the disk and raise `OSError`.

    Concurrency: one user at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._listed: deque[str] = deque()
        self._current: _Reading | None = None
        self._readings: dict[str, _Reading] = {}

    @property
    def pending(self) -> int:
        """How many entries this reader gave out that were not acknowledged."""
        return sum(len(reading.given) for reading in self._readings.values())

    def read(self, max_entries: int) -> list[Entry]:
        """Return the next entries, taking the reader's lock first; empty where another process has it."""
        entries: list[Entry] = []
        if not self._hold_lock():
            return entries
        while len(entries) < max_entries:
            reading = self._current or self._open_next()
            if reading is None or (reading.careful and (entries or reading.given)):
                break
            entry = self._next_entry(reading)
            if entry is None:
                self._end(reading)
            else:
                entries.append(entry)
        return entries

    def _hold_lock(self) -> bool:
        if self._lock is None:
            try:
                descriptor = os.open(self._folder / "reader.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                return False
            if not try_lock(descriptor):
                os.close(descriptor)
                return False
            self._lock = descriptor
        return True

    def _open_next(self) -> _Reading | None:
        if not self._listed:
            self._listed.extend(self._unread())
        while self._listed:
            name = self._listed.popleft()
            try:
                self._current = self._open(name)
            except FileNotFoundError:
                continue
            except _UNREADABLE as error:
                (self._folder / name).rename(self._folder / f"{name}{_BAD}")
                diagnostics.note("spool_unreadable", f"the spool's {name} was set aside as {_BAD}: {error.strerror}")
            else:
                return self._current
        return None

    def _unread(self) -> list[str]:
        names: list[str] = []
        try:
            found = sorted(os.listdir(self._folder))  # noqa: PTH208  (names, and thousands of them)
        except FileNotFoundError:
            return names
        for name in found:
            if name.endswith(OPEN):
                sealed = adopt(self._folder / name)
                names.extend([sealed.name] if sealed else [])
            elif name.endswith(SEALED) and name.partition(".")[0] not in self._readings:
                names.append(name)
        return names

    def _open(self, name: str) -> _Reading:
        base, attempt, offset = _parse(name)
        path = self._folder / name
        reading = _Reading(base, path, attempt + 1, offset, path.read_bytes())
        self._rename(reading, reading.attempt, offset)
        self._readings[base] = reading
        return reading

    @staticmethod
    def _rename(reading: _Reading, attempt: int, offset: int) -> None:
        path = reading.name(attempt, offset)
        reading.path.rename(path)
        reading.path, reading.attempt = path, attempt

    def _next_entry(self, reading: _Reading) -> Entry | None:
        found = next_frame(reading.data, reading.offset)
        start, end, payload = found or (len(reading.data), len(reading.data), b"")
        if start > reading.offset:
            self._quarantine(reading, reading.offset, start)
        if found is None:
            return None
        if reading.careful:
            comes_again = start == _parse(reading.path.name)[2]
            self._rename(reading, reading.attempt if comes_again else _CAREFUL_FROM, start)
        entry = Entry(f"{reading.base}:{start}", payload, reading.attempt)
        reading.given[entry.entry_id] = (entry, time.monotonic())
        reading.offset = end
        return entry

    def _quarantine(self, reading: _Reading, start: int, end: int) -> None:
        path = self._folder / f"{reading.base}-{start}{_BAD}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
            file.write(reading.data[start:end])
        diagnostics.note(
            "spool_quarantined", f"{end - start:,} damaged bytes of the spool were set aside as {path.name}"
        )

    def _end(self, reading: _Reading) -> None:
        reading.data, self._current = b"", None
        self._forget_if_done(reading)

    def _forget_if_done(self, reading: _Reading) -> None:
        if reading.done:
            reading.path.unlink(missing_ok=True)
            del self._readings[reading.base]
            if self._current is reading:
                self._current = None

    def reclaim(self, min_idle_s: float, max_entries: int) -> list[Entry]:
        """Return entries that this reader gave out so long ago, again and with their count raised."""
        now = time.monotonic()
        entries: list[Entry] = []
        for reading in self._readings.values():
            for entry_id, (entry, since) in reading.given.items():
                if now - since >= min_idle_s and len(entries) < max_entries:
                    again = Entry(entry_id, entry.payload, entry.delivery_count + 1)
                    reading.given[entry_id] = (again, now)
                    entries.append(again)
        return entries

    def ack(self, entries: Sequence[Entry]) -> None:
        """Forget entries, and delete segments that have none left."""
        for entry in entries:
            reading = self._readings.get(entry.entry_id.rpartition(":")[0])
            if reading is not None:
                reading.given.pop(entry.entry_id, None)
                self._forget_if_done(reading)

    def count_entries(self, sizes: Mapping[str, int]) -> int:
        """Return how many intact entries the segments of these names and sizes hold and were not acknowledged here."""
        total = 0
        for name, size in sizes.items():
            reading = self._readings.get(name.partition(".")[0])
            if reading is not None:
                total += len(reading.given) + _count_frames(reading.data, reading.offset)
            else:
                with contextlib.suppress(FileNotFoundError):
                    total += self._waiting_in(name, size)
        return total

    def _waiting_in(self, name: str, size: int) -> int:
        try:
            return _frames_in(self._folder / name, size)
        except _UNREADABLE:
            return 1  # whatever it holds, until its turn comes and it is set aside

    def first_entry(self, names: Iterable[str]) -> Entry | None:
        """Return the first entry of these segments that was not acknowledged here, without giving it out."""
        for name in names:
            reading = self._readings.get(name.partition(".")[0])
            if reading is not None and reading.given:
                return next(entry for entry, _ in reading.given.values())
            with contextlib.suppress(FileNotFoundError, *_UNREADABLE):
                data, start = self._unread_part(name, reading)
                if found := next_frame(data, start):
                    return Entry(f"{name.partition('.')[0]}:{found[0]}", found[2])
        return None

    def _unread_part(self, name: str, reading: _Reading | None) -> tuple[bytes, int]:
        if reading is not None:
            return reading.data, reading.offset
        return (self._folder / name).read_bytes(), _parse(name)[2]

    def count_quarantined(self) -> int:
        """Return how many files hold damaged parts."""
        return sum(1 for _ in self._folder.glob(f"*{_BAD}"))

    def close(self) -> None:
        """Let go of the lock in good health: no attempt counts, and what was acknowledged does not come again."""
        for reading in self._readings.values():
            first = min((int(entry_id.rpartition(":")[2]) for entry_id in reading.given), default=reading.offset)
            with contextlib.suppress(FileNotFoundError):
                self._rename(reading, reading.attempt - 1, first)
        self.abandon()

    def abandon(self) -> None:
        """Close the lock's descriptor and touch nothing else."""
        self._readings.clear()
        self._listed.clear()
        self._current = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@lru_cache(maxsize=4096)
def _frames_in(path: Path, size: int) -> int:  # noqa: ARG001  (what was counted at this size need not be read again)
    return _count_frames(path.read_bytes(), _parse(path.name)[2])


def _count_frames(data: bytes, start: int) -> int:
    total = 0
    while found := next_frame(data, start):
        start = found[1]
        total += 1
    return total
