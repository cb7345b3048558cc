"""The trackers of OpenAI calls that ours is measured beside, each as its documentation says.

Spans are recorded and handed to an exporter that counts and sends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from environments import Peer

__all__ = ["PEERS", "Count", "Tracker", "discarding_processor"]


class Tracker(NamedTuple):
    """A tracker at work.

    Args:
        flush: Waits until all it recorded is exported.
        exported: How many exports there were.
        request: What its middleware puts around a request, where a call outside of any would be something else.
    """

    flush: Callable[[], object]
    exported: Callable[[], int]
    request: Callable[[], AbstractContextManager[object]] = nullcontext


class Count:
    """Count what is exported, by whatever name the library calls its exporter."""

    def __init__(self) -> None:
        self.exported = 0

    def add(self, amount: int) -> None:
        """Count so many more."""
        self.exported += amount


def discarding_processor(count: Count) -> Any:
    """Return OpenTelemetry's BatchSpanProcessor in its default settings, over an exporter that counts and discards."""
    export = import_module("opentelemetry.sdk.trace.export")

    def exported(_self: object, spans: Sequence[object]) -> Any:
        count.add(len(spans))
        return export.SpanExportResult.SUCCESS

    exporter = type("Discarding", (export.SpanExporter,), {"export": exported, "shutdown": lambda _self: None})
    return export.BatchSpanProcessor(exporter())


def _provider(count: Count) -> Any:
    provider = import_module("opentelemetry.sdk.trace").TracerProvider()
    provider.add_span_processor(discarding_processor(count))
    return provider


def _opentelemetry(module: str) -> Callable[[], Tracker]:
    def start() -> Tracker:
        count = Count()
        provider = _provider(count)
        import_module(module).OpenAIInstrumentor().instrument(tracer_provider=provider)
        return Tracker(provider.force_flush, lambda: count.exported)

    return start


def _sentry() -> Tracker:
    count = Count()
    sentry_sdk = import_module("sentry_sdk")
    transport = import_module("sentry_sdk.transport").Transport
    methods = {"capture_envelope": lambda _self, _envelope: count.add(1)}
    discarding = type("Discarding", (transport,), methods)
    sentry_sdk.init(dsn="http://key@127.0.0.1/1", traces_sample_rate=1.0, transport=discarding)
    transaction = partial(sentry_sdk.start_transaction, op="http.server", name="POST /summarize/{doc_id}")
    return Tracker(sentry_sdk.flush, lambda: count.exported, transaction)


def _langfuse() -> Tracker:
    count = Count()
    provider = _provider(count)
    os.environ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"] = "1"
    langfuse = import_module("langfuse")
    langfuse.Langfuse(
        public_key="pk-bench", secret_key="sk-bench", base_url="http://127.0.0.1:9", tracer_provider=provider
    )
    import_module("langfuse.openai")
    return Tracker(provider.force_flush, lambda: count.exported)


def _logfire() -> Tracker:
    count = Count()
    logfire = import_module("logfire")
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[discarding_processor(count)])
    logfire.instrument_openai()
    return Tracker(logfire.force_flush, lambda: count.exported)


def _ddtrace() -> Tracker:
    count = Count()
    os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_REMOTE_CONFIGURATION_ENABLED="false")
    trace = import_module("ddtrace.trace")
    dropping = type("Dropping", (trace.TraceFilter,), {"process_trace": lambda _self, spans: count.add(len(spans))})
    trace.tracer.configure(trace_processors=[dropping()])
    import_module("ddtrace").patch(openai=True)
    return Tracker(trace.tracer.flush, lambda: count.exported)


PEERS = {
    "sentry": Peer(("sentry-sdk",), _sentry),
    "opentelemetry-genai-openai": Peer(
        ("opentelemetry-instrumentation-genai-openai", "opentelemetry-sdk"),
        _opentelemetry("opentelemetry.instrumentation.genai.openai"),
    ),
    "opentelemetry-openai-v2": Peer(
        ("opentelemetry-instrumentation-openai-v2", "opentelemetry-util-genai==0.4b0", "opentelemetry-sdk", "httpx"),
        _opentelemetry("opentelemetry.instrumentation.openai_v2"),
    ),
    "openllmetry": Peer(
        ("opentelemetry-instrumentation-openai", "opentelemetry-sdk"),
        _opentelemetry("opentelemetry.instrumentation.openai"),
    ),
    "langfuse": Peer(("langfuse",), _langfuse),
    "logfire": Peer(("logfire",), _logfire),
    "ddtrace": Peer(("ddtrace",), _ddtrace),
}
