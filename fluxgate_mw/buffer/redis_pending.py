"""A consumer group's pending entries: how those of a reader that is gone are claimed, and how they are acknowledged.

`XACKDEL` (Redis 8.2) acknowledges and deletes in one command. A server that lacks it, a proxy that does not pass it on
and a user who may not send it are given the transaction of `XACK` and `XDEL` instead.

`XREADGROUP ... CLAIM` (Redis 8.4) would tell how often an entry was delivered in the same reply that claims it. The
transaction in `claim` does so too, on every server, and CLAIM cannot do what `Buffer.reclaim` promises: it fills its
count up with entries that nobody was given yet, so that one that ends its reader would have its neighbours counted up;
and an entry that somebody else deleted is neither named nor removed, so that it would be pending for ever, uncounted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from fluxgate_mw import diagnostics
from fluxgate_mw.types import Entry

__all__ = ["PendingEntries", "entry_of", "mapping_of"]

_FIRST_ID: Final = "0-0"
_SCANNED_PER_CLAIM: Final = 10
_NOT_PENDING: Final = -1


class PendingEntries:
    """The pending entries of one group, as one of its consumers claims and acknowledges them.

    Args:
        stream_key: Key of the stream.
        consumer_group: Name of the group.
        consumer_name: Who claims.

    Guarantees: each call is one round trip, save where the list is longer than what a command scans, an acknowledged
    entry was not pending, or `XACKDEL` is refused for the first time. A refused command did nothing.

    Source: redis.io commands XACKDEL, XACK, XDEL, XAUTOCLAIM (scans ten times its count), XPENDING, XREADGROUP, read
    2026-11; `t_stream.c` of Redis 8.10.2.
    """

    def __init__(self, stream_key: str, consumer_group: str, consumer_name: str) -> None:
        self._key, self._group, self._consumer = stream_key, consumer_group, consumer_name
        self._cursor = _FIRST_ID
        self._acks_and_deletes_at_once = True
        self.trimmed = 0
        """Entries that somebody else deleted while they were pending, as `claim` met them."""

    def expect_another_server(self) -> None:
        """Try again what was refused: a connection or the group is lost, and another version may answer next."""
        self._acks_and_deletes_at_once = True

    async def claim(self, client: Any, *, min_idle_s: float, max_entries: int) -> list[Entry]:
        """Claim entries that were delivered at least so long ago, in the order of their ids from where it last ended.

        Raises:
            RedisError: What was claimed before is pending for this consumer.
        """
        claimed: list[Entry] = []
        while len(claimed) < max_entries:
            claimed += await self._claim_some(client, int(min_idle_s * 1000), max_entries - len(claimed))
            if self._cursor == _FIRST_ID:
                break
        return claimed

    async def _claim_some(self, client: Any, min_idle_ms: int, most: int) -> list[Entry]:
        """Ask how often what will be scanned was delivered, and claim of that, in one transaction."""
        seen, (cursor, found, *deleted) = await _transaction(
            client,
            ("XPENDING", self._key, self._group, self._cursor, "+", most * _SCANNED_PER_CLAIM),
            ("XAUTOCLAIM", self._key, self._group, self._consumer, min_idle_ms, self._cursor, "COUNT", most),
        )
        self._cursor = cursor.decode()
        for _ in deleted[0] if deleted else ():
            self.trimmed += 1
            diagnostics.note("redis_trimmed", "a pack of events was deleted from the stream unread, by somebody else")
        before = {entry_id: int(deliveries) for entry_id, _, _, deliveries in seen}
        return [
            entry_of(entry_id, fields, before.get(entry_id, 1) + 1) for entry_id, fields in found if fields is not None
        ]

    async def ack(self, client: Any, entry_ids: Sequence[str]) -> None:
        """Take these entries off the list and delete them from the stream; those that are not pending are deleted too.

        Raises:
            RedisError: Not known to be done; doing it again is harmless.
        """
        if self._acks_and_deletes_at_once:
            try:
                outcomes = await client.execute_command(
                    "XACKDEL", self._key, self._group, "KEEPREF", "IDS", len(entry_ids), *entry_ids
                )
            except ResponseError as error:
                if not _is_refusal(error):
                    raise
                self._acks_and_deletes_at_once = False
            else:
                await self._delete(client, entry_ids, outcomes)
                return
        await _transaction(client, ("XACK", self._key, self._group, *entry_ids), ("XDEL", self._key, *entry_ids))

    async def _delete(self, client: Any, entry_ids: Sequence[str], outcomes: Sequence[int]) -> None:
        """Delete what `XACKDEL` left: a group that was lost and made again would hand it out once more."""
        left = [entry_id for entry_id, outcome in zip(entry_ids, outcomes, strict=True) if outcome == _NOT_PENDING]
        if left:
            await client.execute_command("XDEL", self._key, *left)

    async def count(self, client: Any) -> int:
        """Return how many entries are pending in the group; 0 where there is no group."""
        summary = await self._asked(client)
        return int(summary[0]) if summary else 0

    async def holds_any(self, client: Any) -> bool:
        """Return whether an entry is pending for this consumer."""
        return bool(await self._asked(client, "-", "+", 1, self._consumer))

    async def _asked(self, client: Any, *which: str | int) -> Sequence[Any]:
        try:
            found: Sequence[Any] = await client.execute_command("XPENDING", self._key, self._group, *which)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return ()
        return found


def entry_of(entry_id: bytes, fields: Sequence[bytes], delivery_count: int = 1) -> Entry:
    """Return an entry as the protocol has it; the payload is empty where somebody else added the entry."""
    return Entry(entry_id.decode(), mapping_of(fields).get(b"payload", b""), delivery_count)


def mapping_of(fields: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return what comes as names and values in turn."""
    return dict(zip(fields[::2], fields[1::2], strict=True))


async def _transaction(client: Any, *commands: Sequence[Any]) -> Sequence[Any]:
    """Send commands to be run together; raise the first error in the server's own words."""
    async with client.pipeline(transaction=True) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        replies: Sequence[Any] = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _is_refusal(error: ResponseError) -> bool:
    """Whether a command is unknown or forbidden here: `NOPERM`, or no code but `ERR`, which the driver takes off."""
    code = str(error).partition(" ")[0]
    is_plain = type(error) is ResponseError and (code == "ERR" or not code.isupper())
    return is_plain or isinstance(error, NoPermissionError)
