"""The Redis stream between the emitters and the flushers. With `redis_pending`, all that names a stream's commands.

One entry is one pack. A consumer group made at `0` hands each entry to one consumer until it is acknowledged, and an
acknowledged entry is deleted at once. The live stream is never trimmed: the producer looks at its length and at the
server's memory instead, and says that it is full.

What Redis 7.0 and Valkey lack is used in `redis_pending` alone, beside what takes its place on them.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  (a thread that imports while another forks hangs the child)
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import DataError, NoPermissionError, RedisError, ResponseError, WatchError

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.dead_letters import DeadLetter, now_ms
from fluxgate_mw.buffer.redis_clients import RedisClients, check_options
from fluxgate_mw.buffer.redis_pending import PendingEntries, entry_of, mapping_of
from fluxgate_mw.errors import BackendRejected, BackendUnavailable, BufferFull, ClosedError
from fluxgate_mw.settings import mask_url
from fluxgate_mw.types import Entry

__all__ = ["RedisStream"]

_TIMEOUT_S: Final = 0.5
_LONGEST_BLOCK_S: Final = 5.0
_LOOK_EVERY_S: Final = 1.0
_LOOK_EVERY_ENTRIES: Final = 2_000
_FULL_MEMORY_SHARE: Final = 0.9
_BACKOFF_S: Final = (0.05, 5.0)
_LAST_ID: Final = "+"


class RedisStream:
    """One producer and one consumer of a Redis or Valkey stream.

    Args:
        url: In one of the forms of `redis_clients`; credentials in it appear in no message.
        stream_key: Key of the stream; dead letters are at `<stream_key>:dead`.
        consumer_group: Group of the flushers; made at `0` when first read.
        consumer_name: This reader's name in the group; None = host, process and a random part.
        max_entries: `append` says that the stream is full from this length on.
        max_bytes: The same from this size of the stream on, and where the server's `maxmemory` is nine tenths full.
            Looked at once a second or every 2,000 entries, so that producers can pass it by what they add meanwhile.
        timeout_s: For a connection and for a reply, except a blocking read's.

    Guarantees: no command is sent twice. What `append` could not confirm may have been added.

    Concurrency: one event loop, the one that used it first; after a fork make another.

    Source: redis.io commands XADD, XREADGROUP, XRANGE, read 2026-08.
    """

    name = "redis"
    check_options = staticmethod(check_options)

    def __init__(
        self,
        url: str,
        *,
        stream_key: str,
        consumer_group: str,
        consumer_name: str | None = None,
        max_entries: int = 1_000_000,
        max_bytes: int = 1 << 30,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._key, self._dead_key, self._group = stream_key, f"{stream_key}:dead", consumer_group
        self._consumer = consumer_name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._clients = RedisClients(url, stream_key, timeout_s)
        self._full = ""
        self._looked_at, self._since_look = float("-inf"), 0
        self._group_exists = self._was_reading = self._closed = False
        self._backoff_s = _BACKOFF_S[0]
        self._pending = PendingEntries(stream_key, consumer_group, self._consumer)

    @property
    def _client(self) -> Any:
        return self._clients.command

    async def append(self, payload: bytes, events: int, /) -> None:
        """See `Buffer`."""
        async with self._translated(self._timeout_s):
            if self._since_look >= _LOOK_EVERY_ENTRIES or time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
                await self._look()
            if self._full:
                raise BufferFull(self._full)
            self._since_look += 1
            await self._client.execute_command("XADD", self._key, "*", "payload", payload, "events", events)

    async def risks(self) -> Sequence[str]:
        """Return what could lose accepted events on this server as it is configured; empty for nothing that we know.

        Raises:
            BackendUnavailable: The server cannot be asked now.
        """
        async with self._translated():
            try:
                info = _fields(await self._client.execute_command("INFO"))
            except NoPermissionError:
                return ["its settings cannot be read by this user"]
        found = []
        policy = info.get("maxmemory_policy", "")
        if info.get("maxmemory", "0") != "0" and policy.startswith("allkeys-"):  # the others spare what never expires
            found.append(f"maxmemory-policy is {policy}: a full server deletes unread events")
        if info.get("aof_enabled") == "0":
            found.append("AOF is off: a restart of the server loses the events that were not flushed")
        return [*found, *await self._foreign_groups()]

    async def _foreign_groups(self) -> Sequence[str]:
        async with self._translated():
            try:
                groups = await self._client.execute_command("XINFO", "GROUPS", self._key)
            except ResponseError:
                return []
        names = [mapping_of(group)[b"name"].decode("utf-8", "replace") for group in groups]
        others = [name for name in names if name != self._group]
        return [f"consumer group {name} is not ours: entries are deleted without it" for name in others]

    async def _warn_of_risks(self) -> None:
        for risk in await self.risks():
            diagnostics.note(f"redis_{risk.partition(' ')[0]}", f"{mask_url(self._url)}: {risk}")

    async def _look(self) -> None:
        if self._looked_at == float("-inf"):
            await self._warn_of_risks()
        length, size, memory = await self._figures()
        limit, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
        self._full = ""
        if length >= self._max_entries:
            self._full = f"redis: the stream has {length} entries"
        elif size >= self._max_bytes:
            self._full = f"redis: the stream has {size} bytes"
        elif limit and used >= limit * _FULL_MEMORY_SHARE:
            self._full = f"redis: {used} of {limit} bytes of memory are used"
        self._looked_at, self._since_look = time.monotonic(), 0

    async def _figures(self) -> tuple[int, int, Mapping[str, str]]:
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("XLEN", self._key)
            pipeline.execute_command("MEMORY", "USAGE", self._key)
            pipeline.execute_command("INFO", "memory")
            length, size, memory = await pipeline.execute(raise_on_error=False)
        if isinstance(length, Exception):
            raise length
        known = {} if isinstance(memory, Exception) else _fields(memory)
        return int(length), 0 if isinstance(size, Exception) else int(size or 0), known

    async def read(self, *, max_entries: int, wait_s: float) -> Sequence[Entry]:
        """See `Buffer`. A group that is gone (server restarted empty, key deleted) is made again, with backoff."""
        async with self._translated():
            if not self._group_exists:
                await self._make_group()
            options = ["COUNT", max_entries]
            if wait_s > 0:
                options += ["BLOCK", max(1, int(min(wait_s, _LONGEST_BLOCK_S) * 1000))]
            try:
                streams = await self._clients.blocking.execute_command(
                    "XREADGROUP", "GROUP", self._group, self._consumer, *options, "STREAMS", self._key, ">"
                )
            except ResponseError as error:
                await self._group_lost(error, wait_s)
                return []
        self._was_reading = True
        if not streams:
            return []
        self._backoff_s = _BACKOFF_S[0]
        return [entry_of(entry_id, fields) for _, found in streams for entry_id, fields in found]

    async def _make_group(self) -> None:
        try:
            await self._client.execute_command("XGROUP", "CREATE", self._key, self._group, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._group_exists = True

    async def _group_lost(self, error: ResponseError, wait_s: float) -> None:
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
            raise error
        self._group_exists = False
        self._pending.expect_another_server()
        await asyncio.sleep(min(self._backoff_s, wait_s))
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])

    async def reclaim(self, *, min_idle_s: float, max_entries: int) -> Sequence[Entry]:
        """See `Buffer`. An entry that was deleted unread by somebody else is counted as `trimmed` in `backlog`."""
        async with self._translated():
            if not self._group_exists:
                await self._make_group()
            try:
                return await self._pending.claim(self._client, min_idle_s=min_idle_s, max_entries=max_entries)
            except ResponseError as error:
                await self._group_lost(error, 0)
                return []

    async def ack(self, entries: Sequence[Entry], /) -> None:
        """See `Buffer`."""
        if entries:
            async with self._translated():
                await self._pending.ack(self._client, [entry.entry_id for entry in entries])

    async def dead_letter(self, entry: Entry, payload: bytes, reason: str, /) -> None:
        """See `Buffer`."""
        fields: list[str | int | bytes] = ["payload", payload, "reason", reason, "entry_id", entry.entry_id]
        fields += ["delivery_count", entry.delivery_count, "at", now_ms()]
        async with self._translated():
            await self._client.execute_command("XADD", self._dead_key, "*", *fields)

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """See `DeadLetters`."""
        async with self._translated():
            return await self._dead("-", limit)

    async def _dead(self, after: str, limit: int) -> list[DeadLetter]:
        found = await self._client.execute_command("XRANGE", self._dead_key, after, _LAST_ID, "COUNT", limit)
        return [_letter(letter_id.decode(), mapping_of(fields)) for letter_id, fields in found]

    async def _dead_ids(self, wanted: Collection[str] | None) -> list[str]:
        """Return the ids of the dead letters that are there now, of those that are wanted; None means all."""
        found: list[str] = []
        after = "-"
        while letters := await self._dead(after, 100):
            found += [letter.letter_id for letter in letters if wanted is None or letter.letter_id in wanted]
            after = f"({letters[-1].letter_id}"
        return found

    async def replay(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`. Letters that come while it runs are not replayed again."""
        async with self._translated():
            chosen = await self._dead_ids(letter_ids)
            for letter_id in chosen:
                await self._replay_one(letter_id)
        return len(chosen)

    async def _replay_one(self, letter_id: str) -> None:
        found = await self._client.execute_command("XRANGE", self._dead_key, letter_id, letter_id)
        for _, fields in found:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.execute_command("XADD", self._key, "*", "payload", mapping_of(fields)[b"payload"])
                pipeline.execute_command("XDEL", self._dead_key, letter_id)
                await pipeline.execute()

    async def drop(self, letter_ids: Collection[str] | None = None) -> int:
        """See `DeadLetters`."""
        async with self._translated():
            doomed = await self._dead_ids(letter_ids)
            return int(await self._client.execute_command("XDEL", self._dead_key, *doomed)) if doomed else 0

    async def remove_if_empty(self) -> bool:
        """Delete the stream's key with its group where no entry is in it, pending or not; return whether it is gone.

        Readers make the group again when they find it gone; nothing that is appended meanwhile is lost.

        Raises:
            BackendUnavailable: The server cannot be asked now.
        """
        async with self._translated(), self._client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self._key)
            if await pipeline.execute_command("XLEN", self._key):
                return False
            pipeline.multi()
            pipeline.execute_command("DEL", self._key)
            try:
                await pipeline.execute()
            except WatchError:
                return False
        return True

    async def oldest(self) -> Entry | None:
        """See `Buffer`."""
        async with self._translated():
            found = await self._client.execute_command("XRANGE", self._key, "-", _LAST_ID, "COUNT", 1)
        return next((entry_of(entry_id, fields) for entry_id, fields in found), None)

    async def backlog(self) -> Mapping[str, int]:
        """See `Buffer`. Also `trimmed`: pending entries that somebody else deleted, as this reader met them."""
        async with self._translated():
            length, size, _ = await self._figures()
            dead = await self._client.execute_command("XLEN", self._dead_key)
            pending = await self._pending.count(self._client)
        return {
            "entries": length,
            "pending": pending,
            "dead_letters": int(dead),
            "bytes": size,
            "trimmed": self._pending.trimmed,
        }

    async def aclose(self) -> None:
        """See `Buffer`. The consumer is deleted from the group where nothing is pending for it."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._was_reading:
                await self._leave_group()
        except BackendUnavailable:
            pass
        finally:
            await self._clients.aclose()

    async def _leave_group(self) -> None:
        async with self._translated(self._timeout_s, closing=True):
            if not await self._pending.holds_any(self._client):
                try:
                    await self._client.execute_command("XGROUP", "DELCONSUMER", self._key, self._group, self._consumer)
                except ResponseError as error:
                    if not str(error).startswith(("NOGROUP", "ERR The XGROUP subcommand requires the key")):
                        raise

    @asynccontextmanager
    async def _translated(self, timeout_s: float | None = None, *, closing: bool = False) -> AsyncIterator[None]:
        if self._closed and not closing:
            raise ClosedError("the redis stream is closed")
        try:
            async with asyncio.timeout(timeout_s):
                if await self._clients.locate():
                    self._group_exists = False
                    self._pending.expect_another_server()
                yield
        except DataError as error:
            raise BackendRejected(self.name, "a value has no form in the protocol") from error
        except (RedisError, OSError, TimeoutError) as error:
            self._clients.doubt(error)
            if not isinstance(error, ResponseError):
                self._pending.expect_another_server()
            raise BackendUnavailable(self.name, f"{mask_url(self._url)}: {_what(error)}") from error


def _what(error: Exception) -> str:
    """Return the kind of the error, and the server's first word where it replied, or the operating system's reason."""
    reason = str(error).partition(" ")[0] if isinstance(error, ResponseError) else ""
    for cause in (error, error.__context__):
        if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
            reason = f"({os.strerror(cause.errno)})"
    return f"{type(error).__name__} {reason}".rstrip()


def _fields(info: bytes) -> dict[str, str]:
    """Return an INFO reply by name. Source: redis.io INFO, read 2026-08."""
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _letter(letter_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        letter_id=letter_id,
        payload=fields.get(b"payload", b""),
        reason=fields.get(b"reason", b"").decode("utf-8", "replace"),
        entry_id=fields.get(b"entry_id", b"").decode("utf-8", "replace"),
        delivery_count=int(fields.get(b"delivery_count", b"0")),
        at_ms=int(fields.get(b"at", b"0")),
    )
