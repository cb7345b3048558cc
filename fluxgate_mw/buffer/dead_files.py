"""Dead letters of the spool: one file each, written whole or not at all."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fluxgate_mw.buffer.dead_letters import DeadLetter
from fluxgate_mw.types import Entry

__all__ = ["DeadFiles"]

_SUFFIX: Final = ".dead"
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(DeadLetter)


class DeadFiles:
    """The dead letters of one folder, which is made by the first. Concurrency: any process, any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def add(self, entry: Entry, payload: bytes, reason: str) -> None:
        """Keep a payload with its reason.

        Raises:
            OSError: It is not kept.
        """
        letter_id = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unborn = self._folder / f"{letter_id}.new"
        try:
            with open(os.open(unborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
                file.write(_ENCODER.encode(DeadLetter.of(letter_id, entry, payload, reason)))
            unborn.rename(self._folder / f"{letter_id}{_SUFFIX}")
        except OSError:
            unborn.unlink(missing_ok=True)
            raise

    def letters(self, letter_ids: Collection[str] | None) -> Iterator[DeadLetter]:
        """Yield dead letters, oldest first; None means all. An unreadable file is left where it is."""
        for path in self._paths():
            if letter_ids is None or path.stem in letter_ids:
                try:
                    yield _DECODER.decode(path.read_bytes())
                except (FileNotFoundError, msgspec.MsgspecError):
                    continue

    def remove(self, letter_id: str) -> None:
        """Delete one dead letter; a no-op where it is gone."""
        (self._folder / f"{letter_id}{_SUFFIX}").unlink(missing_ok=True)

    def remove_all(self, letter_ids: Collection[str] | None) -> int:
        """Delete dead letters and return how many; None means all."""
        doomed = [path for path in self._paths() if letter_ids is None or path.stem in letter_ids]
        for path in doomed:
            path.unlink(missing_ok=True)
        return len(doomed)

    def count(self) -> int:
        """Return how many there are."""
        return len(self._paths())

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_SUFFIX}"))
