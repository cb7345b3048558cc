"""What the loopback provider writes down by itself: one line for every call that it answered.

It must not know anything of our tracking: user and feature come from the text of the request, where the apps of the
demo put them as a witness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Ledger", "LedgerRow", "Witness", "read_ledger", "texts_of", "witness", "witness_in"]

_WITNESS = re.compile(r"\[demo user=(\S*) feature=([^\]\n]*)\]")


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP call as the provider saw it.

    Args:
        response_id: The id in the answer; None where the answer had none (errors, embeddings).
        path: What was asked for, without the base address: `/chat/completions`.
        stream: Whether a stream was asked for.
        http_status: The status that was answered.
        user: The user's id in the request's text; None for nobody.
        feature: The feature's name in the request's text; None for none.
        prompt_tokens: Input tokens in the answer; None where it carried no usage.
        completion_tokens: Output tokens in the answer; None where it carried none.
    """

    response_id: str | None
    path: str
    stream: bool
    http_status: int
    user: str | None
    feature: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Witness(msgspec.Struct, frozen=True):
    """Who made a call and for what, as its own text says; None for nobody and for nothing."""

    user: str | None = None
    feature: str | None = None


def witness(user: str | None, feature: str | None) -> str:
    """Return the words that an app puts into a prompt to say who asks and for what.

    >>> witness("u-ann", "summarizer")
    '[demo user=u-ann feature=summarizer]'
    """
    return f"[demo user={user or ''} feature={feature or ''}]"


def witness_in(body: Any) -> Witness:
    """Return what the last witness in a decoded JSON body says; an empty one where there is none."""
    found = [match for text in texts_of(body) for match in _WITNESS.finditer(text)]
    if not found:
        return Witness()
    user, feature = found[-1].groups()
    return Witness(user or None, feature or None)


def texts_of(value: Any) -> Iterator[str]:
    """Yield every string value in decoded JSON, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


class Ledger:
    """A file of `LedgerRow` lines, appended to. A row is in the file when `write` returns.

    `rows` counts what this instance wrote, from the offset `start_bytes` on.

    Concurrency: one thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._file = path.open("ab")
        self.start_bytes = self._file.tell()

    def write(self, row: LedgerRow) -> None:
        """Append one row and hand it to the operating system."""
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def read_ledger(path: Path, *, offset_bytes: int = 0) -> list[LedgerRow]:
    """Return the rows of a ledger file from an offset on; none where there is no file.

    Raises:
        msgspec.MsgspecError: A line is not a ledger row.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset_bytes)
        return [msgspec.json.decode(line, type=LedgerRow) for line in file if line.strip()]
