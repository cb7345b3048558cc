"""Segment files of the spool: frames of length, checksum and payload, and who may write to which file.

A segment is born under a name that readers ignore, locked by `flock`, and then named `.open`; sealed it is named
`.seg`. An `.open` file whose lock can be had belonged to a process that died. Knows nothing of events or readers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Final

__all__ = ["OPEN", "SEALED", "SegmentWriter", "adopt", "frame", "next_frame", "try_lock"]

OPEN: Final = ".open"
SEALED: Final = ".seg"
_MAGIC: Final = b"\xf5FG1"
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_HEADER: Final = struct.Struct(">4sII")


def frame(payload: bytes) -> bytes:
    """Return the payload as one frame: a mark, its length, a CRC-32 over both, and itself."""
    return _HEADER.pack(_MAGIC, len(payload), _checksum(payload)) + payload


def _checksum(payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, len(payload))


def next_frame(data: bytes, start: int) -> tuple[int, int, bytes] | None:
    """Return offset, end and payload of the first intact frame at or after `start`, or None.

    Guarantees: never raises, whatever the bytes are.
    """
    view = memoryview(data)
    offset = data.find(_MAGIC, start)
    while 0 <= offset <= len(data) - _HEADER.size:
        _, length, checksum = _HEADER.unpack_from(data, offset)
        body = offset + _HEADER.size
        if body + length <= len(data) and _checksum(view[body : body + length]) == checksum:
            return offset, body + length, data[body : body + length]
        offset = data.find(_MAGIC, offset + 1)
    return None


def try_lock(descriptor: int) -> bool:
    """Take the exclusive `flock` of an open file; return whether it was free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def adopt(path: Path) -> Path | None:
    """Seal an `.open` segment whose process is dead; return its new path, or None where it is alive or gone.

    Raises:
        OSError: The folder cannot be used.
    """
    sealed = path.with_suffix(SEALED)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not try_lock(descriptor) or not _is_at(descriptor, path):
            return None
        path.rename(sealed)
    finally:
        os.close(descriptor)
    return sealed


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class SegmentWriter:
    """Write frames to one segment at a time. Concurrency: one user at a time; its owner sees to that.

    Args:
        folder: Where the segments are.
        trusted_s: How long a segment's file is taken to be there before it is looked for again.

    Guarantees: `append` returns when the operating system has the frame, so that a kill -9 of this process cannot
    lose it. Nothing is synced to the device: a power cut can lose what the system had not written yet.
    """

    def __init__(self, folder: Path, trusted_s: float) -> None:
        self._folder, self._trusted_s = folder, trusted_s
        self._descriptor: int | None = None
        self._path = folder
        self.size = 0
        self.opened_at = self._seen_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a segment is being written."""
        return self._descriptor is not None

    def append(self, payload: bytes, name: str) -> int:
        """Write one frame, to a new segment called `name` where none is open; return its size in bytes.

        Raises:
            OSError: Nothing of the frame is left behind.
        """
        if self._is_removed():
            self.seal()
        descriptor = self._open(name) if self._descriptor is None else self._descriptor
        data = frame(payload)
        try:
            written = os.write(descriptor, data)
        except OSError:
            self._take_back()
            raise
        if written != len(data):
            self._take_back()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(data)
        return len(data)

    def _is_removed(self) -> bool:
        now = time.monotonic()
        if self._descriptor is None or now - self._seen_at < self._trusted_s:
            return False
        self._seen_at = now
        return os.fstat(self._descriptor).st_nlink == 0

    def _open(self, name: str) -> int:
        unborn = self._folder / f"{name}.new"
        self._path = self._folder / f"{name}{OPEN}"
        try:
            descriptor = os.open(unborn, _NEW, 0o600)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(unborn, _NEW, 0o600)
        try:
            try_lock(descriptor)
            unborn.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self.size = descriptor, 0
        self.opened_at = self._seen_at = time.monotonic()
        return descriptor

    def _take_back(self) -> None:
        """Remove a torn frame; where even that fails, end the segment, so that nothing follows the torn frame."""
        try:
            os.ftruncate(self._descriptor or -1, self.size)
        except OSError:
            with contextlib.suppress(OSError):
                self.seal()
        else:
            if self.size == 0:
                self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.abandon()

    def seal(self) -> None:
        """Give the segment to the readers, written again where somebody removed it. A no-op where none is open.

        Raises:
            OSError: It could not be renamed, and readers adopt it when this process ends; or not be written again, and
                stays open for another try.
        """
        if self._descriptor is None:
            return
        sealed = self._path.with_suffix(SEALED)
        try:
            self._path.rename(sealed)
        except (FileNotFoundError, NotADirectoryError):
            self._write_again(os.pread(self._descriptor, self.size, 0), sealed)
        except OSError:
            self.abandon()
            raise
        self.abandon()

    def _write_again(self, data: bytes, sealed: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unborn = sealed.with_suffix(".new")
        try:
            unborn.touch(0o600)
            unborn.write_bytes(data)
            unborn.rename(sealed)
        except OSError:
            unborn.unlink(missing_ok=True)
            raise

    def abandon(self) -> None:
        """Close the descriptor and touch nothing else: in a forked child the lock is still the parent's."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
