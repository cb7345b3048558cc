"""The composition root: settings in, every stage made and joined, started and stopped together.

Nothing here does I/O or starts a thread before something is recorded or `start` is called.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from fluxgate_mw import diagnostics
from fluxgate_mw.buffer.emitter import Emitter, EmitterStatistics
from fluxgate_mw.buffer.pack import pack, unpack
from fluxgate_mw.buffer.spool import TRUSTED_S, Spool
from fluxgate_mw.errors import BackendError
from fluxgate_mw.event import UsageEvent, decode_event
from fluxgate_mw.extras import load
from fluxgate_mw.recorder import Recorder, end_open_calls, guarded, set_default, set_default_factory
from fluxgate_mw.settings import NO_HTTP_API, Settings, mask_url
from fluxgate_mw.stores import open_store
from fluxgate_mw.types import ASGIApp, Buffer, Pending, Store

if TYPE_CHECKING:
    from fluxgate_mw.background import BackgroundFlusher
    from fluxgate_mw.flusher import Flusher, FlusherStatistics
    from fluxgate_mw.health import Health

__all__ = ["FluxGate", "Statistics", "make_buffers", "make_emitter", "make_flusher", "opened_flusher"]

_log = logging.getLogger(__name__)

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class Statistics(EmitterStatistics, frozen=True, kw_only=True):
    """What became of the events of one `FluxGate` in this process.

    Args:
        notes: How often something was noted in this process, by kind: mistakes in use, bugs of ours, drops.
        flusher: Of the background flusher; None where this process runs none.
    """

    notes: Mapping[str, int]
    flusher: FlusherStatistics | None


class FluxGate:
    """One delivery of events with its settings, and the process's default until the next one is made.

    Settings are keywords of `fluxgate_mw.settings.Settings`; they beat `FLUXGATE_<NAME>`, which beats the default.
    With `instrument` (the default) the OpenAI client is patched for the whole process. `redact` is called with each
    text of a prompt or an answer that `capture_content` would keep, and returns what to keep of it: in the delivery's
    thread, but in the caller's with `durable`, with metadata that can change, where the queue is full, and at the end.

    Raises:
        ConfigurationError: A setting is wrong; the message says which, where it came from, and what is allowed.
        InstrumentationError: The installed `openai` is of unknown shape; nothing was patched.

    Guarantees: making one does no I/O and starts no thread; the first event starts the delivery. No signal handler is
    installed. After a fork the child starts a delivery of its own.

    Concurrency: any thread.

    Example:
        >>> fg = FluxGate(service="shop", instrument=False)
        >>> fg.statistics().emitted
        0
    """

    _default: list[FluxGate] = []  # noqa: RUF012  (the one slot, shared on purpose)

    def __init__(self, *, redact: Callable[[str], str] | None = None, **settings: Any) -> None:
        self.settings = Settings.load(settings)
        self._emitter = make_emitter(self.settings)
        self._flusher_wanted = self.settings.flusher == "background"
        self.recorder: Recorder = Recorder(self.settings, _Sink(self), redact=redact)
        self._undo: Callable[[], None] | None = None
        if self._flusher_wanted:
            _ = self._flusher  # imported now: an event may be made by a `__del__` in the middle of an import
        self._instrument()
        FluxGate._default[:] = [self]
        set_default(self.recorder)

    @classmethod
    def default(cls) -> FluxGate:
        """Return the last one made, making one from the environment when there is none.

        Raises:
            ConfigurationError: A `FLUXGATE_*` variable is wrong.
        """
        return cls._default[0] if cls._default else cls()

    @cached_property
    def store(self) -> Store:
        """The store that the settings name, for reading; opened at its first use."""
        return open_store(self.settings.effective_store_url)

    @cached_property
    def _flusher(self) -> BackgroundFlusher:
        """The one in the background; most web workers run none, and import nothing of it."""
        make = load("fluxgate_mw.background:BackgroundFlusher", extra="all", needed_for="FLUXGATE_FLUSHER=background")
        guarded("flusher", open_store, self.settings.effective_store_url)  # imports what the thread will need
        flusher: BackgroundFlusher = make(partial(opened_flusher, self.settings))
        return flusher

    def record(self, event: UsageEvent) -> None:
        """Deliver an event that you made yourself. Never raises; what cannot be taken is counted.

        An event with a field of the wrong type is set aside by the flusher, as a dead letter with the reason.
        """
        if not isinstance(event, UsageEvent):
            diagnostics.note("record_no_event", f"record() was given a {type(event).__name__}, not a UsageEvent")
        elif self.settings.enabled:
            guarded("record", self.recorder.record, event)

    def start(self) -> None:
        """Start the delivery now instead of with the first event, and patch again after a `stop`. Idempotent."""
        if not self.settings.enabled:
            return
        self._instrument()
        self._emitter.start()
        if self._flusher_wanted:
            self._flusher.start()

    def stop(self) -> bool:
        """Undo this one's own instrumentation and deliver what is queued, within `shutdown_timeout_s`.

        Returns:
            Whether everything was accepted in time; what was not is counted as queued or dropped.
        """
        self._uninstrument()
        accepted = self._emitter.stop(self.settings.shutdown_timeout_s)
        if self._flusher_wanted:
            self._flusher.stop(self.settings.shutdown_timeout_s)
        return accepted

    async def astop(self) -> bool:
        """Do what `stop` does without blocking the event loop."""
        self._uninstrument()
        accepted = await self._emitter.astop(self.settings.shutdown_timeout_s)
        if self._flusher_wanted:
            await self._flusher.astop(self.settings.shutdown_timeout_s)
        return accepted

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return whether everything queued now was accepted (not: stored) within `timeout_s` seconds.

        Args:
            timeout_s: None = `shutdown_timeout_s`.

        Blocks the calling thread; in an event loop use `aflush`.
        """
        return self._emitter.flush(timeout_s)

    async def aflush(self, timeout_s: float | None = None) -> bool:
        """Return whether everything queued now was accepted (not: stored) within `timeout_s` seconds."""
        return await self._emitter.aflush(timeout_s)

    def statistics(self) -> Statistics:
        """Return a snapshot of what became of the events. Concurrency: any thread."""
        emitter = msgspec.structs.asdict(self._emitter.statistics())
        flusher = self._flusher.statistics() if self._flusher_wanted else None
        return Statistics(**emitter, notes=diagnostics.counts(), flusher=flusher)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:  # noqa: ARG002  (the framework's signature)
        """Start with the application; then end every open call and deliver: `FastAPI(lifespan=fg.lifespan)`."""
        async with self, AsyncExitStack() as stack:
            stack.callback(end_open_calls)
            yield

    def lifespan_with(self, theirs: Lifespan) -> Lifespan:
        """Return a lifespan that runs `theirs` inside ours, for an application that has one already."""

        @asynccontextmanager
        async def both(app: Any) -> AsyncIterator[Any]:
            async with self.lifespan(app), theirs(app) as state:
                yield state

        return both

    def dashboard(self, **options: Any) -> ASGIApp:
        """Return the dashboard as an ASGI app to mount in yours; this process then also flushes to the store.

        Below its mount are also `/healthz`, `/readyz` and `/metrics` of this very process, the last two for loopback
        peers and holders of the settings' token alone.

        Args:
            **options: `authorize=` (a callable of the request) or `public=True`, as in
                `fluxgate_mw.dashboard.app.make_dashboard`; the token of the settings serves too.

        Raises:
            ConfigurationError: Nobody is named who may look: the pages show names and e-mails.
            MissingExtraError: The extra `dashboard` is not installed.
        """
        make = load("fluxgate_mw.dashboard.app:make_dashboard", extra="dashboard", needed_for="FluxGate.dashboard()")
        if options.get("public"):
            options.setdefault("allowed_hosts", ("*",))
        else:
            options.setdefault("token", self.settings.dashboard_token)
        probes = load("fluxgate_mw.probes:Probes", extra="dashboard", needed_for="FluxGate.dashboard()")
        health = self._health()
        page = make(self.store, trust=health.trust, **options)
        self._flusher_wanted = self.settings.flusher != "none"
        app: ASGIApp = probes(page, health, token=self.settings.dashboard_token or secrets.token_urlsafe())
        return app

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.astop()

    def _health(self) -> Health:
        make = load("fluxgate_mw.health:Health", extra="all", needed_for="FluxGate.dashboard()")
        health: Health = make(
            store=self.store,
            buffers=partial(make_buffers, self.settings),
            flusher=self._flusher.statistics,
            emitter=self._emitter.statistics,
        )
        return health

    def _instrument(self) -> None:
        if self._undo is None and self.settings.enabled and self.settings.instrument:
            instrument = load("fluxgate_mw.openai.patch:instrument_openai", extra="all", needed_for="instrument=True")
            self._undo = instrument()

    def _uninstrument(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class _Sink:
    """The emitter, and with the first event what else has to be running by then."""

    __slots__ = ("_begun", "_fg", "aflush")

    def __init__(self, fg: FluxGate) -> None:
        self._fg, self.aflush = fg, fg.aflush
        self._begun = False

    def emit(self, event: UsageEvent, /) -> None:
        fg = self._fg
        fg._emitter.emit(event)  # noqa: SLF001
        if fg._flusher_wanted or not self._begun:  # noqa: SLF001
            guarded("delivery", self._begin, fg)

    def defer(self, pending: Pending, /) -> None:
        fg = self._fg
        fg._emitter.defer(pending)  # noqa: SLF001
        if fg._flusher_wanted or not self._begun:  # noqa: SLF001
            guarded("delivery", self._begin, fg)

    def _begin(self, fg: FluxGate) -> None:
        if fg._flusher_wanted:  # noqa: SLF001
            fg._flusher.start()  # noqa: SLF001
        if not self._begun:
            self._begun = True
            _say_where(fg.settings)


def make_emitter(settings: Settings) -> Emitter:
    """Return the emitter that the settings describe; it opens nothing before its first event."""
    _prepare_streams(settings)
    return Emitter(
        spool=partial(
            Spool,
            settings.spool_path,
            max_bytes=settings.spool_max_bytes,
            trusted_s=0 if settings.durable else TRUSTED_S,
        ),
        stream=None if settings.redis_url is None else partial(_any_stream, settings),
        max_events=settings.queue_max_events,
        max_bytes=settings.queue_max_bytes,
        interval_s=settings.emit_interval_s,
        shutdown_timeout_s=settings.shutdown_timeout_s,
        durable=settings.durable,
    )


def make_buffers(settings: Settings) -> Sequence[Buffer]:
    """Return what a flusher reads: the stream where there is one, and the spool of this machine.

    Raises:
        ConfigurationError: The stream's address has an option that nobody knows.
    """
    _prepare_streams(settings)
    spool = Spool(settings.spool_path, max_bytes=settings.spool_max_bytes)
    return [*(_stream(settings, key) for key in _stream_keys(settings)), spool]


@asynccontextmanager
async def opened_flusher(settings: Settings, store: Store | None = None) -> AsyncIterator[Flusher]:
    """Give a flusher from the settings' buffers to their store, and close both at the end.

    Args:
        settings: Of the whole process.
        store: Opened already, and not closed here; None opens the settings' own.

    Raises:
        ConfigurationError: The store's address names none, or the stream's has an option that nobody knows.

    Concurrency: one event loop.
    """
    async with AsyncExitStack() as stack:
        if store is None:
            store = open_store(settings.effective_store_url)
            stack.push_async_callback(store.aclose)
        buffers = make_buffers(settings)
        for buffer in buffers:
            stack.push_async_callback(_closed, buffer)
        yield make_flusher(settings, store, buffers)


def make_flusher(settings: Settings, store: Store, buffers: Sequence[Buffer]) -> Flusher:
    """Return a flusher from these buffers to this store, as the settings describe it; it closes neither."""
    make = load("fluxgate_mw.flusher:Flusher", extra="all", needed_for="the flusher")
    flusher: Flusher = make(
        buffers=buffers,
        store=store,
        unpack=unpack,
        pack=pack,
        decode=decode_event,
        claim_min_idle_s=settings.claim_min_idle_s,
    )
    return flusher


async def _closed(buffer: Buffer) -> None:
    try:
        await buffer.aclose()
    except BackendError as error:
        _log.warning("closing a buffer failed: %s", error)


def _stream_keys(settings: Settings) -> Sequence[str]:
    if settings.redis_url is None:
        return ()
    keys = load("fluxgate_mw.buffer.redis_clients:stream_keys", extra="all", needed_for="FLUXGATE_REDIS_URL")
    found: Sequence[str] = keys(settings.redis_url, settings.stream_key)
    return found


def _prepare_streams(settings: Settings) -> None:
    """Check the address, and import now what the delivery's thread needs: a fork while it imports hangs the child."""
    if settings.redis_url is not None:
        stream = load("fluxgate_mw.buffer.redis_stream:RedisStream", extra="all", needed_for="FLUXGATE_REDIS_URL")
        stream.check_options(settings.redis_url)


def _any_stream(settings: Settings) -> Buffer:
    """Return one of the streams, which this process keeps: the order of its events holds."""
    return _stream(settings, random.choice(_stream_keys(settings)))  # noqa: S311  (spreads the load)


def _stream(settings: Settings, stream_key: str) -> Buffer:
    make = load("fluxgate_mw.buffer.redis_stream:RedisStream", extra="all", needed_for="FLUXGATE_REDIS_URL")
    stream: Buffer = make(settings.redis_url, stream_key=stream_key, consumer_group=settings.consumer_group)
    return stream


def _say_where(settings: Settings) -> None:
    if settings.api_key is not None:
        _log.warning(NO_HTTP_API)
    if settings.redis_url is not None:
        _log.info("events go to the stream %s at %s", settings.stream_key, mask_url(settings.redis_url))
    else:
        url = mask_url(settings.effective_store_url)
        _log.info("events go to the spool at %s; `fluxgate serve` stores and shows them (%s)", settings.spool_path, url)


def _default_recorder() -> Recorder:
    """Return the default's recorder; one that is made for a call alone asks for no patch: who calls has his own."""
    return (FluxGate._default[0] if FluxGate._default else FluxGate(instrument=False)).recorder  # noqa: SLF001


set_default_factory(_default_recorder)
