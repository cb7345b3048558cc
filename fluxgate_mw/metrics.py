"""The figures of the delivery in Prometheus' text format. Knows how they are named there, and nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from fluxgate_mw.buffer.emitter import EmitterStatistics
from fluxgate_mw.flusher import FlusherStatistics
from fluxgate_mw.health import BufferHealth, Snapshot

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


_Samples = Iterable[tuple[Mapping[str, str], float]]


class _Metric(NamedTuple):
    name: str
    kind: str
    help: str
    samples: _Samples


_OF_BUFFERS: Final = {
    "entries": ("buffer_entries", "Packs of events that are not acknowledged, those given out included"),
    "pending": ("buffer_pending_entries", "Packs given to a flusher and not acknowledged yet"),
    "dead_letters": ("dead_letters", "Dead letters that wait for a person"),
    "bytes": ("buffer_bytes", "Size of the buffer"),
    "segments": ("spool_segments", "Files of the spool"),
    "quarantined": ("spool_quarantined_files", "Damaged parts of the spool set aside"),
}
_OF_FLUSHER: Final = {
    "stored": "Events stored that were new",
    "duplicates": "Events that the store had already",
    "dead_lettered": "Events set aside one by one",
    "dead_lettered_entries": "Whole packs set aside",
    "batches": "Commits",
    "store_errors": "Times that the store was unavailable",
    "buffer_errors": "Times that a buffer was unavailable",
}
_OF_EMITTER: Final = {
    "emitted": "Events emitted by this process",
    "sent": "Events that the stream took straight from the queue",
    "spooled": "Events written to the spool",
    "returned": "Events moved from the spool to the stream",
}


def render(snapshot: Snapshot) -> str:
    """Return the snapshot as one exposition. A figure that is not known is left out, never 0.

    Source: prometheus.io, exposition formats, text format 0.0.4 (read 2026-11).
    """
    lines: list[str] = []
    for metric in _metrics(snapshot):
        samples = [f"fluxgate_{metric.name}{_labels(labels)} {value:.17g}" for labels, value in metric.samples]
        if samples:
            lines += [f"# HELP fluxgate_{metric.name} {metric.help}.", f"# TYPE fluxgate_{metric.name} {metric.kind}"]
            lines += samples
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _alone(value: float) -> _Samples:
    return [({}, value)]


def _metrics(snapshot: Snapshot) -> Iterator[_Metric]:
    if snapshot.store_writable is not None:
        store = _alone(float(snapshot.store_writable))
        yield _Metric("store_up", "gauge", "Whether the store can be written", store)
    oldest = _alone(snapshot.oldest_age_s)
    yield _Metric("oldest_unstored_age_seconds", "gauge", "Age of the oldest event known not to be stored", oldest)
    yield from _buffer_metrics(snapshot.buffers)
    if snapshot.flusher is not None:
        yield from _flusher_metrics(snapshot.flusher)
    if snapshot.emitter is not None:
        yield from _emitter_metrics(snapshot.emitter)
    notes = [({"kind": kind}, count) for kind, count in sorted(snapshot.notes.items())]
    yield _Metric("notes_total", "counter", "What went wrong in this process, by kind", notes)


def _buffer_metrics(buffers: Iterable[BufferHealth]) -> Iterator[_Metric]:
    named = [({"buffer": buffer.name}, buffer) for buffer in buffers]
    answers = [(labels, float(buffer.answers)) for labels, buffer in named]
    yield _Metric("buffer_up", "gauge", "Whether the buffer answers", answers)
    ages = [(labels, buffer.oldest_age_s) for labels, buffer in named if buffer.oldest_age_s is not None]
    yield _Metric("buffer_oldest_age_seconds", "gauge", "Age of the buffer's first event", ages)
    for figure, (name, text) in _OF_BUFFERS.items():
        known = [(labels, buffer.figures[figure]) for labels, buffer in named if figure in buffer.figures]
        yield _Metric(name, "gauge", text, known)


def _flusher_metrics(flusher: FlusherStatistics) -> Iterator[_Metric]:
    for figure, text in _OF_FLUSHER.items():
        yield _Metric(f"flusher_{figure}_total", "counter", text, _alone(getattr(flusher, figure)))
    if flusher.last_stored_at is not None:
        last = _alone(flusher.last_stored_at.timestamp())
        yield _Metric("flusher_last_stored_timestamp_seconds", "gauge", "When a commit last succeeded", last)


def _emitter_metrics(emitter: EmitterStatistics) -> Iterator[_Metric]:
    for figure, text in _OF_EMITTER.items():
        yield _Metric(f"emitter_{figure}_total", "counter", text, _alone(getattr(emitter, figure)))
    dropped = [({"reason": reason}, count) for reason, count in sorted(emitter.dropped.items())]
    yield _Metric("emitter_dropped_total", "counter", "Events lost, by reason", dropped)
    yield _Metric("emitter_queued", "gauge", "Events that wait in memory", _alone(emitter.queued))
    size = _alone(emitter.queued_bytes)
    yield _Metric("emitter_queued_bytes", "gauge", "Size of the events that wait in memory", size)
