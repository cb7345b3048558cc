"""From the store's values to what the templates show, row by row. Pure; every text is still unescaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import msgspec

from fluxgate_mw.dashboard import chart
from fluxgate_mw.dashboard import format as fmt
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.query import CostReport, CostRow
from fluxgate_mw.semconv import Status

__all__ = [
    "Amount",
    "CostLine",
    "RequestLine",
    "contents_of",
    "context_of",
    "cost_lines",
    "labels_of",
    "request_lines",
    "tokens_of",
    "with_values",
]

_TONES: Final[Mapping[Status, str]] = {"SUCCESS": "good", "CANCELLED": "warn", "MAX_TOKENS": "warn"}
_NAMELESS: Final = {"feature": "no feature", "user": "no user", "model": "no model"}
_TOKEN_BUCKETS: Final = (
    ("input_tokens", "Input", "input_tokens"),
    ("cache_read_input_tokens", "read from cache", "input_tokens"),
    ("cache_creation_input_tokens", "written to cache", "input_tokens"),
    ("input_audio_tokens", "audio", "input_tokens"),
    ("cache_read_input_audio_tokens", "audio read from cache", "input_tokens"),
    ("input_image_tokens", "image", "input_tokens"),
    ("output_tokens", "Output", "output_tokens"),
    ("reasoning_output_tokens", "reasoning", "output_tokens"),
    ("output_audio_tokens", "audio", "output_tokens"),
    ("output_image_tokens", "image", "output_tokens"),
)
_CONTEXT: Final = (
    ("Feature", "feature"),
    ("Feature from", "feature_source"),
    ("Step", "step"),
    ("User from", "user_source"),
    ("Session", "session_id"),
    ("Conversation", "conversation_id"),
    ("Route", "route"),
    ("Method", "http_method"),
    ("Web request", "request_id"),
    ("Service", "service"),
    ("Environment", "environment"),
    ("Provider", "provider_name"),
    ("Operation", "operation_name"),
    ("API path", "api_path"),
    ("Model asked for", "request_model"),
    ("Model that answered", "response_model"),
    ("Response", "response_id"),
    ("Service tier", "service_tier"),
    ("HTTP status", "http_status"),
    ("Retries", "retries"),
)


@dataclass(frozen=True)
class Amount:
    """Money ready to show: its text, every digit for the title, the nano-USD for copying.

    Args:
        badge: What is not known of it, in a word or two; None = all is known.
        note: The same in full.
    """

    text: str
    exact: str
    nanos: int | None
    badge: str | None = None
    note: str = ""

    @classmethod
    def of_call(cls, event: UsageEvent, text: str | None = None) -> Amount:
        """Return the cost of one call; `text` = how a column writes it, None = alone."""
        shown = fmt.call_cost(event.cost_nanos, estimated=event.usage_source == "estimated")
        badge = "unpriced" if event.cost_nanos is None else None
        note = event.unpriced_reason or "the price or the usage of this call is not known" if badge else ""
        return cls(shown if text is None else text, fmt.exact(event.cost_nanos), event.cost_nanos, badge, note)

    @classmethod
    def of_sum(cls, nanos: int, *, calls: int, unpriced: int) -> Amount:
        """Return a sum that may be partly (then `≥`) or wholly (then a dash) unknown."""
        if not unpriced:
            return cls(fmt.total_cost(nanos), fmt.exact(nanos), nanos)
        note = f"{fmt.count(unpriced)} of {fmt.count(calls)} calls unpriced"
        if unpriced >= calls and not nanos:
            return cls(fmt.UNKNOWN, fmt.UNKNOWN, None, "unpriced", note)
        badge = f"{fmt.tokens(unpriced)} unpriced"
        return cls(f"≥ {fmt.total_cost(nanos)}", f"at least {fmt.exact(nanos)}", nanos, badge, note)

    @classmethod
    def per_call(cls, nanos: int, *, calls: int) -> Amount:
        """Return the mean over the priced calls, in the style of one call; a dash where there is none."""
        mean = None if calls <= 0 else round(nanos / calls)
        return cls(fmt.call_cost(mean), fmt.exact(mean), mean)


@dataclass(frozen=True)
class RequestLine:
    """One row of the Requests Explorer."""

    event: UsageEvent
    cost: Amount
    tone: str
    word: str

    @property
    def person(self) -> tuple[str | None, str | None]:
        """The user's name, e-mail or id for the first line, and what else is known for the second."""
        user = self.event.user
        if user is None:
            return None, None
        first = user.name or user.email or user.id
        second = user.email or user.id
        return first, None if second == first else second


def request_lines(events: Sequence[UsageEvent]) -> list[RequestLine]:
    """Return the rows of a list of calls, with their costs aligned at the decimal point."""
    texts = fmt.aligned([Amount.of_call(event).text for event in events])
    return [
        RequestLine(event, Amount.of_call(event, text), _TONES.get(event.status, "bad"), _word(event.status))
        for event, text in zip(events, texts, strict=True)
    ]


def _word(status: str) -> str:
    return status.replace("_", " ").capitalize()


@dataclass(frozen=True)
class CostLine:
    """One row of the cost table. `bar` is its share of the whole spend in per cent, for the small bar."""

    row: CostRow
    label: str
    css: str
    spend: Amount
    per_call: Amount
    share: str
    bar: float
    spark: str


def with_values(report: CostReport, keys: Iterable[str | None]) -> CostReport:
    """Return the report with these keys, those without a call among its rows too: what is chosen stays to be seen."""
    known = {row.key for row in report.rows}
    empty = CostRow(key=None, calls=0, cost_nanos=0, unpriced=0, errors=0, input_tokens=0, output_tokens=0)
    absent = [msgspec.structs.replace(empty, key=key) for key in keys if key not in known]
    return msgspec.structs.replace(report, rows=(*report.rows, *absent))


def labels_of(report: CostReport) -> dict[str | None, str]:
    """Return how to name each value of the report's dimension."""
    nameless = _NAMELESS.get(report.dimension, "none")
    return {row.key: nameless if row.key is None else row.label or row.key for row in report.rows}


def cost_lines(
    report: CostReport,
    most: int,
    days: Sequence[date] = (),
    days_per_bar: int = 1,
) -> list[CostLine]:
    """Return the dearest rows of the cost table, each with its spend over the days as a small picture."""
    shown = report.rows[:most]
    labels = labels_of(report)
    position = {day: n // days_per_bar for n, day in enumerate(days)}
    bars = -(-len(days) // days_per_bar)
    daily: dict[str | None, list[int]] = {row.key: [0] * bars for row in shown}
    for point in report.days:
        if point.day in position and point.key in daily:
            daily[point.key][position[point.day]] += point.cost_nanos
    lines = [_cost_line(n, row, report, labels, daily[row.key]) for n, row in enumerate(shown)]
    spends = fmt.aligned([line.spend.text for line in lines])
    means = fmt.aligned([line.per_call.text for line in lines])
    return [
        replace(line, spend=replace(line.spend, text=spend), per_call=replace(line.per_call, text=mean))
        for line, spend, mean in zip(lines, spends, means, strict=True)
    ]


def _cost_line(n: int, row: CostRow, report: CostReport, labels: dict[str | None, str], daily: list[int]) -> CostLine:
    total = report.total.cost_nanos
    return CostLine(
        row=row,
        label=labels[row.key],
        css=f"s{n + 1}" if n < chart.SERIES else "other",
        spend=Amount.of_sum(row.cost_nanos, calls=row.calls, unpriced=row.unpriced),
        per_call=Amount.per_call(row.cost_nanos, calls=row.calls - row.unpriced),
        share=fmt.share(row.cost_nanos, total),
        bar=round(100 * row.cost_nanos / total, 1) if total > 0 else 0.0,
        spark=chart.spark(daily),
    )


def tokens_of(event: UsageEvent) -> list[tuple[str, int, bool]]:
    """Return the reported token counts as name, count and whether it is part of the total above it."""
    return [
        (name, number, part and getattr(event, total) is not None)
        for field, name, total in _TOKEN_BUCKETS
        for part in [field != total]
        if (number := getattr(event, field)) is not None and (number or not part)
    ]


def context_of(event: UsageEvent) -> list[tuple[str, str]]:
    """Return what is known of a call as names and texts, its metadata last."""
    known = [(name, getattr(event, field)) for name, field in _CONTEXT]
    facts = [(name, str(value)) for name, value in known if value not in (None, "none", "")]
    if event.finish_reasons:
        facts.append(("Finished by", ", ".join(event.finish_reasons)))
    return facts + [(f"metadata.{key}", _plain(value)) for key, value in _sorted(event.metadata.items())]


def contents_of(event: UsageEvent) -> list[tuple[str, str]]:
    """Return what was captured of a call as names and texts; JSON is indented, and what was cut is as it was kept."""
    kept = (("Prompt", event.input_content), ("Answer", event.output_content))
    return [(name, _indented(text)) for name, text in kept if text is not None]


def _indented(text: str) -> str:
    try:
        return msgspec.json.format(text, indent=2)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text


def _sorted(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted(items, key=lambda item: str(item[0]))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
