"""The other instrumentations of the client, each set up as its documentation says, with what it saw kept in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple

Seen = tuple[str | None, int | None, int | None]
"""One generation as a peer saw it: the model that was asked for, input tokens, output tokens."""


class Peer(NamedTuple):
    """A peer that is set up, and off.

    Args:
        on: Turns it on.
        off: Takes it off; None where the library has no undo.
        seen: Returns all that it saw until now, after making it deliver.
        request: What its middleware puts around a request.
        close: Ends its delivery.
    """

    on: Callable[[], object]
    off: Callable[[], object] | None
    seen: Callable[[], list[Seen]]
    request: Callable[[], AbstractContextManager[object]] = nullcontext
    close: Callable[[], object] = lambda: None


class _Spans:
    """OpenTelemetry spans in memory, the generations among them.

    Args:
        read: Returns the generation that a span's attributes tell of; None where it is no generation.
    """

    def __init__(self, read: Callable[[Any], Seen | None]) -> None:
        export = import_module("opentelemetry.sdk.trace.export")
        memory = import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        self._read = read
        self._exporter = memory.InMemorySpanExporter()
        self.processor = export.SimpleSpanProcessor(self._exporter)

    def provider(self) -> Any:
        """Return a provider that records into these."""
        provider = import_module("opentelemetry.sdk.trace").TracerProvider()
        provider.add_span_processor(self.processor)
        return provider

    def seen(self) -> list[Seen]:
        """Return the generations; logfire logs the end of a stream apart, after the span of its call."""
        found: list[Seen] = []
        for span in self._exporter.get_finished_spans():
            each = self._read(span.attributes)
            if each is not None:
                found[len(found) - (span.attributes.get("logfire.span_type") == "log") :] = [each]
        return found


def _by_convention(attributes: Any) -> Seen | None:
    """Read a span of OpenTelemetry's conventions for generative AI."""
    if "gen_ai.request.model" not in attributes:
        return None
    names = ("gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    return tuple(attributes.get(name) for name in names)  # type: ignore[return-value]


def _of_langfuse(attributes: Any) -> Seen | None:
    if "langfuse.observation.model.name" not in attributes:
        return None
    usage = json.loads(attributes.get("langfuse.observation.usage_details", "{}"))
    first = [next((usage[name] for name in names if name in usage), None) for names in _LANGFUSE_NAMES]
    return attributes["langfuse.observation.model.name"], first[0], first[1]


_LANGFUSE_NAMES: Final = (("input", "prompt_tokens", "input_tokens"), ("output", "completion_tokens", "output_tokens"))


def _opentelemetry(module: str) -> Callable[[str], Peer]:
    def made(_address: str) -> Peer:
        spans = _Spans(_by_convention)
        instrumentor = import_module(module).OpenAIInstrumentor()
        on = partial(instrumentor.instrument, tracer_provider=spans.provider())
        return Peer(on, instrumentor.uninstrument, spans.seen)

    return made


def _logfire(_address: str) -> Peer:
    spans = _Spans(_by_convention)
    logfire = import_module("logfire")
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[spans.processor])
    undos: list[Any] = []

    def off() -> None:
        with undos.pop():
            pass

    return Peer(lambda: undos.append(logfire.instrument_openai()), off, spans.seen)


def _langfuse(address: str) -> Peer:
    spans = _Spans(_of_langfuse)
    langfuse = import_module("langfuse")
    theirs = langfuse.Langfuse(public_key="pk", secret_key="sk", base_url=address, tracer_provider=spans.provider())
    return Peer(partial(import_module, "langfuse.openai"), None, spans.seen, close=theirs.shutdown)


def _sentry(_address: str) -> Peer:
    sentry = import_module("sentry_sdk")
    kept: list[Any] = []
    transport = import_module("sentry_sdk.transport").Transport
    keeping = type("Keeping", (transport,), {"capture_envelope": lambda _self, envelope: kept.append(envelope)})

    def seen() -> list[Seen]:
        sentry.flush()
        batches = [item.payload.json for envelope in kept for item in envelope.items if item.type == "span"]
        spans = [span["attributes"] for batch in batches for span in batch["items"]]
        plain = [{name: attribute["value"] for name, attribute in span.items()} for span in spans]
        return [each for each in map(_by_convention, plain) if each is not None]

    on = partial(sentry.init, dsn="http://key@127.0.0.1/1", traces_sample_rate=1.0, transport=keeping)
    return Peer(on, None, seen, lambda: sentry.start_transaction(op="http.server", name="POST /"))


def _ddtrace(_address: str) -> Peer:
    os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_REMOTE_CONFIGURATION_ENABLED="false")
    finished: list[Any] = []
    trace = import_module("ddtrace.trace")
    dropping = type("Dropping", (trace.TraceFilter,), {"process_trace": lambda _self, _spans: None})
    trace.tracer.configure(trace_processors=[dropping()])
    methods = {"on_span_start": lambda *_: None, "on_span_finish": lambda _self, span: finished.append(span)}
    type("Keeping", (import_module("ddtrace._trace.processor").SpanProcessor,), methods)().register()
    patch = import_module("ddtrace.contrib.internal.openai.patch")

    def seen() -> list[Seen]:
        return [_of_datadog(span) for span in finished if span.name == "openai.request"]

    return Peer(patch.patch, patch.unpatch, seen)


def _of_datadog(span: Any) -> Seen:
    counts = [span.get_metric(f"gen_ai.usage.{kind}_tokens") for kind in ("input", "output")]
    return span.get_tag("openai.request.model"), counts[0], counts[1]


MADE: Final[dict[str, Callable[[str], Peer]]] = {
    "ddtrace": _ddtrace,
    "langfuse": _langfuse,
    "logfire": _logfire,
    "openllmetry": _opentelemetry("opentelemetry.instrumentation.openai"),
    "opentelemetry": _opentelemetry("opentelemetry.instrumentation.genai.openai"),
    "sentry": _sentry,
}
"""Peer to what sets it up, given the address that takes what it delivers."""
