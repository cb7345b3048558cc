"""What went wrong inside us, said once and counted always; the host application never hears of it otherwise.

One process-wide table of counters by kind. A kind is logged when it first happens, then at most once a minute with
its total. `reset()` is for tests.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

__all__ = ["counts", "note", "reset", "safe_message"]

QUIET_S: Final = 60.0
MESSAGE_CHARS: Final = 300
_KEY: Final = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|xai|hf|key)[-_]|AIza|eyJ|(?i:Bearer\s+))[^\s,;'\"]{6,}"
    r"|\b(?:pplx-|fw_|AQ\.|nvapi-|r8_|csk-)[^\s,;'\"]{16,}"
)
_NAMED_SECRET: Final = re.compile(
    r"([?&](?:api[-_]?key|key|token|access_token|sig|signature|secret)=|"
    r"\b(?:api[-_ ]?key(?: provided)?|password|secret)['\"]?\s*[=:]\s*['\"]?|"
    r"\bauthorization['\"]?\s*[=:]\s*['\"]?\w+\s+)[^\s&,;'\"]{4,}",
    re.IGNORECASE,
)
_URL_CREDENTIALS: Final = re.compile(r"//(?:[^\s/@:'\"]*:(?!\d+/)[^\s'\"]*|[^\s/@]+)@")
"""A password may hold slashes and @ itself; what begins as a port does is none."""
_LONG_QUOTE: Final = re.compile(
    r"'(?:[^']|(?<=\w)'(?=\w)){40,}'|\"[^\"]{40,}\"|`[^`]{40,}`|“[^”]{40,}”|\u2018[^\u2019]{40,}\u2019|«[^»]{40,}»"
)
"""Of single quotes, one between two letters is an apostrophe."""

_log = logging.getLogger("fluxgate_mw")
_counts: dict[str, int] = {}
_said_at: dict[str, float] = {}


def note(kind: str, message: str, *, level: int = logging.WARNING, error: BaseException | None = None) -> None:
    """Count one occurrence of `kind`, and log `message` unless this kind was logged in the last minute.

    Args:
        kind: A closed vocabulary of ours (`identify_outside_request`), never a value from outside.
        message: What happened and what follows from it; no secrets, no prompts, no user ids.
        level: Of `logging`.
        error: Logged with its traceback; its message may hold anything, so pass only errors of our own making.

    Guarantees: no `Exception` leaves it, whatever the host's log handlers do.

    Concurrency: any thread.
    """
    total = _counts[kind] = _counts.get(kind, 0) + 1
    now = time.monotonic()
    said_at = _said_at.get(kind)
    if said_at is not None and now - said_at < QUIET_S:
        return
    _said_at[kind] = now
    repeated = f" ({total} times so far)" if total > 1 else ""
    extra = {"fluxgate_kind": kind, "fluxgate_total": total}
    with suppress(Exception):  # a handler or a filter of the host's that raises is not to end his call
        _log.log(level, "%s%s", message, repeated, exc_info=error, extra=extra)


def counts() -> Mapping[str, int]:
    """Return a copy of the counters: how often each kind happened in this process."""
    return dict(_counts)


def reset() -> None:
    """Forget every count and when it was last said."""
    _counts.clear()
    _said_at.clear()


def safe_message(text: str) -> str:
    """Return an error's text fit to be kept: short, with keys, credentials and long quotations taken out."""
    text = text[: MESSAGE_CHARS * 10].encode("utf-8", "replace").decode()
    text = _URL_CREDENTIALS.sub("//***@", _NAMED_SECRET.sub(r"\1***", _KEY.sub("***", text)))
    text = _LONG_QUOTE.sub("'…'", text)
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"
