"""Run what delivers and shows, as a process of its own: `fluxgate serve` and `fluxgate flush`."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from fluxgate_mw.errors import BackendUnavailable, ConfigurationError
from fluxgate_mw.extras import load
from fluxgate_mw.flusher import Flusher
from fluxgate_mw.health import Health
from fluxgate_mw.probes import Probes
from fluxgate_mw.runtime import make_buffers, opened_flusher
from fluxgate_mw.settings import Settings
from fluxgate_mw.stores import open_store
from fluxgate_mw.types import Store

__all__ = ["LOOPBACK", "flush", "serve"]

LOOPBACK = "127.0.0.1"
_STOP_S = 3.0
"""What a batch in hand is given at the end: with a store that waits for a lock, less in all than orchestrators give."""

Say = Callable[[str], None]


async def serve(settings: Settings, *, host: str, port: int, flusher: bool, say: Say) -> None:
    """Serve the dashboard, and flush beside it, until SIGINT or SIGTERM.

    Args:
        settings: Of the whole process.
        host: Address to listen on; any but 127.0.0.1 needs the dashboard's token.
        port: To listen on; 0 takes a free one.
        flusher: Also move events from the buffers to the store.
        say: Called with each line for the person who started it.

    Raises:
        ConfigurationError: The port is in use, or the address needs a token.
        BackendUnavailable: The store cannot be opened.
        MissingExtraError: The extra `dashboard` is not installed.

    Concurrency: the main thread's event loop; takes SIGINT and SIGTERM while it runs.
    """
    _check_host(settings, host, "the dashboard shows names and e-mails")
    serving = load("fluxgate_mw.serving:serving", extra="dashboard", needed_for="fluxgate serve")
    make = load("fluxgate_mw.dashboard.app:make_dashboard", extra="dashboard", needed_for="fluxgate serve")
    listener = _listener(host, port, "fluxgate serve")
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        store = await stack.enter_async_context(_opened(settings))
        interrupted = stack.enter_context(_signals())
        worker = await stack.enter_async_context(_flushing(settings, store, say)) if flusher else None
        token, health = settings.dashboard_token, _health(settings, store, worker)
        page = make(store, public=token is None, token=token, trust=health.trust)
        address = await stack.enter_async_context(serving(Probes(page, health, token=token), listener))
        say(f"Dashboard  {address}")
        await interrupted()


async def flush(
    settings: Settings,
    *,
    once: bool,
    say: Say,
    host: str = LOOPBACK,
    port: int | None = None,
) -> None:
    """Move events from the buffers to the store: until SIGINT or SIGTERM, or once.

    Args:
        settings: Of the whole process.
        once: End when stream, pending list and spool are empty, which may mean to wait for other consumers' entries.
        say: Called with each line for the person who started it.
        host: Address for the probes; any but 127.0.0.1 needs the dashboard's token.
        port: For `/healthz`, `/readyz` and `/metrics` meanwhile; 0 takes a free one, None serves none.

    Raises:
        BackendUnavailable: The store cannot be opened; with `once`, a buffer cannot be read.
        ConfigurationError: The port is in use, or the address needs a token, or both `once` and a port are given.
        MissingExtraError: A port is given, and the extra `dashboard` is not installed.
    """
    if once and port is not None:
        raise ConfigurationError("flush --once --port: nothing is served by what ends by itself; leave one of them out")
    if once:
        await _flush_once(settings, say)
        return
    async with AsyncExitStack() as stack:
        listener = None
        if port is not None:
            _check_host(settings, host, "figures of your traffic are not for everybody")
            listener = _listener(host, port, "fluxgate flush --port")
            stack.callback(listener.close)
        store = await stack.enter_async_context(_opened(settings))
        interrupted = stack.enter_context(_signals())
        worker = await stack.enter_async_context(_flushing(settings, store, say))
        if listener is not None:
            serving = load("fluxgate_mw.serving:serving", extra="dashboard", needed_for="fluxgate flush --port")
            probes = Probes(None, _health(settings, store, worker), token=settings.dashboard_token)
            say(f"Health     {await stack.enter_async_context(serving(probes, listener))}/readyz")
        await interrupted()


async def _flush_once(settings: Settings, say: Say) -> None:
    async with _opened(settings) as store, opened_flusher(settings, store) as worker:
        await _check_buffers(settings)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_when_interrupted, worker)
            await worker.run_once(wait=True)
            tasks.cancel_scope.cancel()
    say(_summary(worker))


def _health(settings: Settings, store: Store, worker: Flusher | None) -> Health:
    figures = (lambda: None) if worker is None else worker.statistics
    return Health(store=store, buffers=lambda: make_buffers(settings), flusher=figures)


def _check_host(settings: Settings, host: str, why: str) -> None:
    if host != LOOPBACK and settings.dashboard_token is None:
        raise ConfigurationError(
            f"--host {host}: {why}, so any address but {LOOPBACK} needs a secret in FLUXGATE_DASHBOARD_TOKEN"
        )


def _listener(host: str, port: int, needed_for: str) -> Any:
    bound_socket = load("fluxgate_mw.serving:bound_socket", extra="dashboard", needed_for=needed_for)
    try:
        return bound_socket(port, host)
    except OverflowError as error:
        raise ConfigurationError(f"--port {port}: a port is a number up to 65535; 0 takes a free one") from error
    except socket.gaierror as error:
        raise ConfigurationError(f"--host {host}: {error.strerror}; give an address of this machine") from error
    except OSError as error:
        cure = "give an address of this machine" if error.errno == errno.EADDRNOTAVAIL else "choose another --port"
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; {cure}") from error


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Store]:
    store = open_store(settings.effective_store_url)
    try:
        await store.count()
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def _flushing(settings: Settings, store: Store, say: Say) -> AsyncIterator[Flusher]:
    try:
        await _check_buffers(settings)
    except BackendUnavailable as error:
        say(f"Waiting: {error}; `fluxgate doctor` says what to do")
    async with opened_flusher(settings, store) as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        try:
            yield worker
        finally:
            worker.stop(_STOP_S)
    say(_summary(worker))


async def _check_buffers(settings: Settings) -> None:
    """Return when every buffer answered.

    Raises:
        BackendUnavailable: One does not, or the spool is the buffer and cannot be made.
    """
    if settings.redis_url is None:
        _make_folder(settings.spool_path)
    for buffer in make_buffers(settings):
        try:
            await buffer.backlog()
        finally:
            await buffer.aclose()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendUnavailable("spool", f"{folder}: {error.strerror}") from error


@contextmanager
def _signals() -> Iterator[Callable[[], Awaitable[None]]]:
    """Hold SIGINT and SIGTERM back until the awaitable is asked for, which returns at the first; a second one kills."""
    with ExitStack() as receiving:
        signals = receiving.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))

        async def first() -> None:
            async for _ in signals:
                receiving.close()
                return

        yield first


async def _stop_when_interrupted(worker: Flusher) -> None:
    with _signals() as interrupted:
        await interrupted()
    worker.stop(_STOP_S)


def _summary(worker: Flusher) -> str:
    figures = worker.statistics()
    said = f"Stored {figures.stored} events, {figures.duplicates} seen before, {figures.dead_lettered} set aside"
    whole = figures.dead_lettered_entries
    return f"{said}; packs set aside whole: {whole}" if whole else said
