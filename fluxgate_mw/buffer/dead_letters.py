"""What was given up, kept whole for a person: the value that every buffer's dead letters are shown as."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from fluxgate_mw.types import Entry

__all__ = ["DeadLetter", "DeadLetters", "now_ms"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One payload that no store will ever accept, with why.

    Args:
        letter_id: The buffer's key for it: what `replay` and `drop` take.
        payload: The original bytes.
        reason: Why it was given up; holds no data of the events.
        entry_id: The entry that it was, or was a part of.
        delivery_count: How often that entry had been handed out.
        at_ms: When, in Unix milliseconds.
    """

    letter_id: str
    payload: bytes
    reason: str
    entry_id: str
    delivery_count: int
    at_ms: int

    @classmethod
    def of(cls, letter_id: str, entry: Entry, payload: bytes, reason: str) -> DeadLetter:
        """Return the letter of a payload, all of `entry` or a part of it, that is given up now."""
        return cls(
            letter_id=letter_id,
            payload=payload,
            reason=reason,
            entry_id=entry.entry_id,
            delivery_count=entry.delivery_count,
            at_ms=now_ms(),
        )


@runtime_checkable
class DeadLetters(Protocol):
    """A buffer whose dead letters a person can list, send again and delete.

    Concurrency: one event loop; any number of processes.
    """

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """Return at most `limit` dead letters, oldest first.

        Raises:
            BackendUnavailable: They cannot be had now.
        """
        ...

    async def replay(self, letter_ids: Collection[str] | None = None) -> int:
        """Append dead letters to the live stream again and return how many. None means all that are there now.

        Guarantees: a letter leaves the dead letters only after it is in the live stream.

        Raises:
            BackendUnavailable: Some may have been replayed.
            BufferFull: The live stream is at its cap; the rest stays.
        """
        ...

    async def drop(self, letter_ids: Collection[str] | None = None) -> int:
        """Delete dead letters for good and return how many. None means all that are there now.

        Raises:
            BackendUnavailable: Some may have been deleted.
        """
        ...


def now_ms() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000
