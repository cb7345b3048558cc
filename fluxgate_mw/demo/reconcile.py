"""Hold what the provider wrote down against what the store holds, row by row. Pure: no files, no clock.

An event is one logical call, a ledger row one HTTP call: a call that was tried three times is three rows and one
event with two retries. Answers with an id are matched by it; answers without one (embeddings) and errors by user,
feature and what else both sides know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from fluxgate_mw.demo.ledger import LedgerRow

__all__ = ["Accounts", "Finding", "Losses", "StoredCall", "reconcile"]

_ERROR: Final = 400
_MOST_TRIES: Final = 3


class Losses(msgspec.Struct, frozen=True, kw_only=True):
    """Events that were counted on their way and are not in the store.

    Args:
        dropped: Refused and counted by an emitter.
        dead_lettered: Put aside by a flusher.
        buffered: Still in memory, in the stream or on disk.
    """

    dropped: int = 0
    dead_lettered: int = 0
    buffered: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.dropped + self.dead_lettered + self.buffered


class StoredCall(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the store's table `events`: the columns that the ledger can speak to, and the cost in nano-USD."""

    response_id: str | None
    api_path: str | None
    stream: bool
    http_status: int | None
    user_id: str | None
    feature: str | None
    input_tokens: int | None
    output_tokens: int | None
    usage_source: str | None
    retries: int
    cost_nanos: int | None


class Finding(msgspec.Struct, frozen=True):
    """One difference, in words; `absent` says how many answers have no event, which counted losses may explain."""

    text: str
    absent: int = 0


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the comparison.

    Args:
        http_calls: Rows of the ledger; None where nobody kept one.
        retries: How many of them were tries after the first, as the stored events say.
        emitted: Events that the apps' emitters took in, refused ones too; None where not known.
        stored: Events in the store.
        losses: Events that were counted and are not in the store.
        findings: Every difference between both sides.
    """

    http_calls: int | None
    retries: int
    emitted: int | None
    stored: int
    losses: Losses
    findings: tuple[Finding, ...]

    @property
    def calls(self) -> int | None:
        """Logical calls that the provider saw, else those that the apps say they made; None where neither is known."""
        return self.emitted if self.http_calls is None else self.http_calls - self.retries

    @property
    def problems(self) -> list[str]:
        """Every difference, in words, but calls without an event where as many losses were counted."""
        absent = sum(finding.absent for finding in self.findings)
        explained = absent <= self.losses.total * _MOST_TRIES
        return [finding.text for finding in self.findings if not (finding.absent and explained)]

    @property
    def holds(self) -> bool:
        """Whether every call that was answered is stored or counted, and every stored one was answered."""
        return not self.problems


def reconcile(
    rows: Sequence[LedgerRow] | None,
    events: Sequence[StoredCall],
    losses: Losses,
    emitted: int | None,
) -> Accounts:
    """Compare both sides; a call without an event is a problem unless a loss was counted for it.

    Args:
        rows: The provider's ledger; None where it kept none, and only the apps' own figures can be compared.
        events: What is stored.
        losses: What was counted on the way.
        emitted: How many events the apps say that they took in; None where one did not say.
    """
    findings = list(_conservation(emitted, len(events), losses))
    if rows is not None:
        findings += [
            *_doubled(rows, events),
            *_identified(rows, events),
            *_unidentified(rows, events),
            *_failed(rows, events),
        ]
    return Accounts(
        http_calls=None if rows is None else len(rows),
        retries=sum(event.retries for event in events),
        emitted=emitted,
        stored=len(events),
        losses=losses,
        findings=tuple(findings),
    )


def _doubled(rows: Iterable[LedgerRow], events: Iterable[StoredCall]) -> Iterator[Finding]:
    for side, ids in (("ledger", [r.response_id for r in rows]), ("store", [e.response_id for e in events])):
        for response_id, times in Counter(filter(None, ids)).items():
            if times > 1:
                yield Finding(f"{response_id} is {times} times in the {side}")


def _identified(rows: Iterable[LedgerRow], events: Iterable[StoredCall]) -> Iterator[Finding]:
    stored = {event.response_id: event for event in events if event.response_id}
    for row in rows:
        if row.response_id is None:
            continue
        event = stored.pop(row.response_id, None)
        if event is None:
            yield Finding(f"{row.response_id} ({row.path}, {row.user}, {row.feature}) is not stored", absent=1)
        else:
            yield from _differences(row, event)
    yield from (Finding(f"{response_id} is stored, but was never answered") for response_id in stored)


def _differences(row: LedgerRow, event: StoredCall) -> Iterator[Finding]:
    pairs = [
        ("user", row.user, event.user_id),
        ("feature", row.feature, event.feature),
        ("path", row.path, event.api_path),
        ("stream", row.stream, event.stream),
        ("status", row.http_status, event.http_status),
    ]
    if row.prompt_tokens is not None:
        pairs.append(("input tokens", row.prompt_tokens, event.input_tokens))
    if row.completion_tokens is not None:
        pairs.append(("output tokens", row.completion_tokens, event.output_tokens))
    for name, answered, stored in pairs:
        if answered != stored:
            yield Finding(f"{row.response_id}: {name} was {answered!r}, stored {stored!r}")
    if row.prompt_tokens is None and event.usage_source == "provider":
        yield Finding(f"{row.response_id}: carried no usage, stored as reported")


def _unidentified(rows: Iterable[LedgerRow], events: Iterable[StoredCall]) -> Iterator[Finding]:
    answered: Counter[Any] = Counter(
        (row.path, row.user, row.feature, row.prompt_tokens)
        for row in rows
        if row.response_id is None and row.http_status < _ERROR
    )
    stored: Counter[Any] = Counter(
        (event.api_path, event.user_id, event.feature, event.input_tokens)
        for event in events
        if event.response_id is None and event.http_status is not None and event.http_status < _ERROR
    )
    yield from _counted(answered - stored, "answered without an id are not stored", absent=True)
    yield from _counted(stored - answered, "without an id are stored, but were never answered")


def _failed(rows: Iterable[LedgerRow], events: Iterable[StoredCall]) -> Iterator[Finding]:
    refused: Counter[Any] = Counter()
    explained: Counter[Any] = Counter()
    for row in rows:
        refused[row.path, row.user, row.feature] += row.http_status >= _ERROR
    for event in events:
        failed = event.response_id is None and (event.http_status is None or event.http_status >= _ERROR)
        explained[event.api_path, event.user_id, event.feature] += event.retries + failed
    yield from _counted(refused - explained, "refused tries are not stored", absent=True)
    yield from _counted(explained - refused, "failed tries are stored, but were never refused")


def _counted(counter: Counter[Any], what: str, *, absent: bool = False) -> Iterator[Finding]:
    for key, times in counter.items():
        yield Finding(f"{times} {what}: {', '.join(map(str, key))}", absent=times if absent else 0)


def _conservation(emitted: int | None, stored: int, losses: Losses) -> Iterator[Finding]:
    if emitted is None:
        yield Finding("an app did not say how many events it emitted")
    elif emitted != stored + losses.total:
        yield Finding(
            f"{emitted} emitted are not {stored} stored + {losses.dropped} dropped"
            f" + {losses.dead_lettered} dead-lettered + {losses.buffered} buffered",
        )
