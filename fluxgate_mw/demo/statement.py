"""What an app says of its own events when it ends: a file that the demo reads after the process is gone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["WORD_VARIABLE", "AppStatistics", "leave_word", "read_word"]

WORD_VARIABLE: Final = "DEMO_STATISTICS_FILE"
"""Environment variable that names the file."""


class AppStatistics(msgspec.Struct, frozen=True):
    """The part of an app's statistics that the accounts need: events taken in, refused by reason, still in memory."""

    emitted: int
    dropped: Mapping[str, int]
    queued: int


def leave_word(statistics: Any) -> None:
    """Write the app's statistics, whole or not at all. Nothing is written where the environment names no file."""
    named = os.environ.get(WORD_VARIABLE)
    if named:
        part = Path(f"{named}.part")
        part.write_bytes(msgspec.json.encode(statistics))
        part.replace(named)


def read_word(path: Path) -> AppStatistics | None:
    """Return what an app left; None where it left nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=AppStatistics)
    except (OSError, msgspec.MsgspecError):
        return None
