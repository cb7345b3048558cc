"""Check every configured part and say what is wrong and how to mend it: `fluxgate doctor`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from fluxgate_mw import pricing
from fluxgate_mw.errors import BackendError, ConfigurationError, FluxGateError
from fluxgate_mw.runtime import make_buffers
from fluxgate_mw.settings import NO_HTTP_API, Settings, mask_url
from fluxgate_mw.stores import open_store
from fluxgate_mw.types import Buffer

__all__ = ["Finding", "examine", "with_cure"]

Verdict = Literal["ok", "warning", "failed"]
LITTLE_BYTES: Final = 100_000_000

_CURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "redis": "start the server there, or mend the address (FLUXGATE_REDIS_URL, --redis-url)",
        "spool": "set FLUXGATE_SPOOL_DIR to a folder that this user may write to",
        "data folder": "set FLUXGATE_DATA_DIR to a folder that this user may write to",
        "sqlite": "set FLUXGATE_DATA_DIR or FLUXGATE_STORE_URL to a place that this user may write to",
    }
)
_OF_ITS_PLACE: Final = ("SQLITE_CANTOPEN", "SQLITE_NOTADB", "SQLITE_READONLY")
"""What SQLite calls an error that another file would not have."""


class Finding(msgspec.Struct, frozen=True):
    """What was found of one part.

    Args:
        part: Which.
        verdict: `ok`; `warning` = works, but read on; `failed` = does not work.
        detail: What was seen, and for anything but `ok` how to mend it; no secrets.
    """

    part: str
    verdict: Verdict
    detail: str


def with_cure(error: FluxGateError) -> str:
    """Return what the error says and, where its kind of part has one, what to do about it."""
    cure = _CURES.get(error.backend) if isinstance(error, BackendError) and _is_curable(error) else None
    return str(error) if cure is None else f"{error}; {cure}"


def _is_curable(error: BackendError) -> bool:
    """Say whether another setting mends it: of a store, where the error is its place's and not its state's."""
    if error.backend != "sqlite":
        return True
    cause = error.__cause__
    return isinstance(cause, OSError) or getattr(cause, "sqlite_errorname", "").startswith(_OF_ITS_PLACE)


async def examine(settings: Settings) -> list[Finding]:
    """Return what was found of every configured part. Writes nothing but missing folders, and a file that it deletes.

    Concurrency: event loop only.
    """
    findings = [_client(), _prices(settings), _folder("data folder", settings.data_dir)]
    for buffer in make_buffers(settings):
        findings += await _buffer(buffer, settings)
    findings.append(await _checked("store", mask_url(settings.effective_store_url), lambda: _store(settings)))
    if settings.api_key is not None:
        findings.append(Finding("HTTP API", "warning", NO_HTTP_API))
    return findings


def _client() -> Finding:
    version = metadata.version("openai")
    return Finding("openai client", "ok", f"openai {version}")


def _prices(settings: Settings) -> Finding:
    own, published = settings.price_file, pricing.table_version()
    if own is None:
        return Finding("prices", "ok", published)
    try:
        pricing.PriceFile(own)
    except ConfigurationError as error:
        return Finding("prices", "failed", f"{error}; mend the file, or name another")
    return Finding("prices", "ok", f"{own}, then {published}")


def _folder(part: str, folder: Path) -> Finding:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(part, "failed", f"{folder}: {error.strerror}; {_CURES[part]}")
    free = os.statvfs(folder)
    free_bytes = free.f_bavail * free.f_frsize
    verdict: Verdict = "ok" if free_bytes > LITTLE_BYTES else "warning"
    return Finding(part, verdict, f"{folder}: writable, {free_bytes // 1_000_000:,} MB free")


async def _buffer(buffer: Buffer, settings: Settings) -> list[Finding]:
    where = str(settings.spool_path) if buffer.name == "spool" else mask_url(settings.redis_url or "")
    findings = [await _checked(buffer.name, where, lambda: _backlog(buffer))]
    if findings[0].verdict == "ok" and buffer.name == "spool":
        folder = _folder("spool", settings.spool_path)
        findings = findings if folder.verdict == "ok" else [folder]
    if findings[0].verdict == "ok" and buffer.name == "redis":
        findings.append(await _checked("redis policy", where, lambda: _policy(buffer)))
    await buffer.aclose()
    return findings


async def _backlog(buffer: Buffer) -> Finding:
    backlog = await buffer.backlog()
    waiting = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in backlog.items())
    if backlog.get("dead_letters"):
        return Finding(buffer.name, "warning", f"{waiting}; see `fluxgate dead-letters list`")
    if backlog.get("quarantined"):
        return Finding(buffer.name, "warning", f"{waiting}; damaged parts lie there as *.bad: keep or delete them")
    return Finding(buffer.name, "ok", waiting)


async def _policy(buffer: Buffer) -> Finding:
    risks: list[str] = await buffer.risks()  # type: ignore[attr-defined]
    return Finding("redis policy", "warning" if risks else "ok", "; ".join(risks) or "nothing is evicted, persisted")


async def _store(settings: Settings) -> Finding:
    store = open_store(settings.effective_store_url)
    try:
        count = await store.count()
    finally:
        await store.aclose()
    return Finding("store", "ok", f"{mask_url(settings.effective_store_url)}: {count:,} events")


async def _checked(part: str, where: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await check()
    except FluxGateError as error:
        said = with_cure(error)
        return Finding(part, "failed", said if where in said else f"{where}: {said}")
