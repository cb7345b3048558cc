"""`fluxgate demo`: the provider, the two apps, the visitors, the flusher and the dashboard, and the judgement.

This process holds the provider, the dashboard, the flusher and the visitors; each app is a process of its own and is
given nothing but environment variables, as in any deployment.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from fluxgate_mw.demo.children import running_apps
from fluxgate_mw.demo.delivery import Delivery
from fluxgate_mw.demo.ledger import Ledger, read_ledger
from fluxgate_mw.demo.openai_server import OpenAIServer
from fluxgate_mw.demo.plan import DemoOptions, app_environments, data_folder, demo_settings, listen
from fluxgate_mw.demo.reconcile import Losses, reconcile
from fluxgate_mw.demo.statement import AppStatistics
from fluxgate_mw.demo.summary import read_stored, summary_lines
from fluxgate_mw.demo.traffic import ACTIONS, LIVE_ACTIONS, Traffic
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.extras import load
from fluxgate_mw.serving import serving
from fluxgate_mw.settings import Settings

__all__ = ["DemoOptions", "run_demo"]

_RATE: Final = 20.0
_LIVE_RATE: Final = 1.5
_LATENCY_S: Final = 0.06
_CHUNK_LATENCY_S: Final = 0.004
_INTERRUPTED_END_S: Final = 1.7
_LEAST_S: Final = 0.1
_TTY_PROGRESS_S: Final = 0.5
_PLAIN_PROGRESS_S: Final = 2.0


async def run_demo(options: DemoOptions) -> int:
    """Run the demo to its end and print its summary; return 0 where the accounts balance, else 1.

    Raises:
        ConfigurationError: An option is not allowed.
        BackendUnavailable: Redis does not answer.
        FluxGateError: An app did not start.

    Guarantees: no process that it started is left, however it ends.

    Concurrency: the main thread's event loop; takes SIGINT and SIGTERM while it runs.
    """
    folder = data_folder(options)
    settings = demo_settings(options, folder)
    with _ungrouped(), closing(listen(options)) as listener:
        delivery = Delivery(settings)
        try:
            await delivery.check()
            dashboard = load("fluxgate_mw.dashboard.app:make_dashboard", extra="demo", needed_for="fluxgate demo")
            page = dashboard(delivery.store, public=True, trust=delivery.figures)
            async with serving(page, listener) as address:
                model = "the real service" if options.live else "a loopback provider, which costs nothing"
                _say(f"Dashboard  {address}", f"Data       {folder}", f"Model      {model}")
                return await _Demo(options, settings, delivery).run()
        finally:
            with anyio.CancelScope(shield=True):
                await delivery.aclose()


class _Demo:
    """One run, from the provider's start to the verdict."""

    def __init__(self, options: DemoOptions, settings: Settings, delivery: Delivery) -> None:
        self._options = options
        self._settings = settings
        self._delivery = delivery
        self._stopped = anyio.Event()
        self._end_by = math.inf
        self._since_ms = time.time_ns() // 1_000_000
        self._ledger: Ledger | None = None

    @property
    def _folder(self) -> Path:
        return self._settings.data_dir

    async def run(self) -> int:
        """Run it, print the summary, and return the exit status."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._watch_signals)
            tasks.start_soon(self._delivery.run)
            async with self._provider() as provider:
                statistics = await self._visited(provider)
            left = await self._delivery.drained(self._patience(20.0, reserve_s=0.1))
            self._delivery.stop()
            tasks.cancel_scope.cancel()
        return self._judge(statistics, left)

    async def _watch_signals(
        self,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self._end_by = min(self._end_by, anyio.current_time() + _INTERRUPTED_END_S)
                self._stopped.set()

    def _patience(self, most_s: float, *, reserve_s: float) -> float:
        """Return how many seconds the next step of the end may take; after a signal, `reserve_s` stay for the rest."""
        return max(_LEAST_S, min(most_s, self._end_by - anyio.current_time() - reserve_s))

    @asynccontextmanager
    async def _provider(self) -> AsyncIterator[str | None]:
        """Serve the loopback provider while inside; yields its address, None for the real service."""
        if self._options.live:
            yield None
            return
        with closing(Ledger(self._folder / "ledger.jsonl")) as self._ledger:
            seed = time.time_ns()
            app = OpenAIServer(self._ledger, seed=seed, latency_s=_LATENCY_S, chunk_latency_s=_CHUNK_LATENCY_S)
            async with serving(app) as address:
                yield address

    async def _visited(self, provider: str | None) -> Mapping[str, AppStatistics | None]:
        """Run the apps and their visitors; return what each app says of its events, None where it says nothing."""
        environs = app_environments(self._settings, provider)
        async with running_apps(
            environs, self._folder, self._stopped, partial(self._patience, 8.0, reserve_s=0.2)
        ) as apps:
            if not apps:
                return {}
            addresses = {name: app.address for name, app in apps.items()}
            _say(f"Apps       {', '.join(f'{name} at {address}' for name, address in addresses.items())}")
            live = self._options.live
            traffic = Traffic(addresses, LIVE_ACTIONS if live else ACTIONS, rate=_LIVE_RATE if live else _RATE)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._show_progress, traffic)
                tasks.start_soon(self._stop_in_time)
                await traffic.run(self._stopped, partial(self._patience, 15.0, reserve_s=0.8))
                tasks.cancel_scope.cancel()
        return {name: app.statistics() for name, app in apps.items()}

    async def _stop_in_time(self) -> None:
        if self._options.seconds is not None:
            await anyio.sleep(self._options.seconds)
            self._stopped.set()

    async def _show_progress(self, traffic: Traffic) -> None:
        tty = sys.stdout.isatty()
        started = anyio.current_time()
        while True:
            answered = (
                f"{self._ledger.rows:>7,} calls answered" if self._ledger else f"{traffic.visits.made:>7,} visits"
            )
            stored = self._delivery.statistics().stored
            line = f"{anyio.current_time() - started:6.0f} s {answered} {stored:>7,} events stored"
            print(f"\r{line}" if tty else line, end="" if tty else "\n", flush=True)
            await anyio.sleep(_TTY_PROGRESS_S if tty else _PLAIN_PROGRESS_S)

    def _judge(self, statistics: Mapping[str, AppStatistics | None], left: int) -> int:
        ledger = self._ledger
        rows = None if ledger is None else read_ledger(ledger.path, offset_bytes=ledger.start_bytes)
        stored = read_stored(self._folder / "fluxgate.sqlite3", since_ms=self._since_ms)
        known = [said for said in statistics.values() if said is not None]
        emitted = sum(said.emitted for said in known) if len(known) == len(statistics) else None
        dropped = sum(sum(said.dropped.values()) for said in known)
        dead = self._delivery.statistics().dead_lettered
        waiting = (emitted or 0) - dropped - dead - len(stored) if left else sum(said.queued for said in known)
        losses = Losses(dropped=dropped, dead_lettered=dead, buffered=max(waiting, 0))
        accounts = reconcile(rows, stored, losses, emitted)
        _say(*summary_lines(accounts, stored), f"Data       {self._folder}")
        return 0 if accounts.holds else 1


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


@contextmanager
def _ungrouped() -> Iterator[None]:
    """Raise our own error itself, not the group that a task group makes of it."""
    try:
        yield
    except ExceptionGroup as group:
        error: Exception | None = group.subgroup(FluxGateError)
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise error from group
