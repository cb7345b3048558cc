"""The demo's two apps as child processes, of which none outlives the demo, however it ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from fluxgate_mw.demo.statement import WORD_VARIABLE, AppStatistics, read_word
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.serving import HOST, bound_socket

__all__ = ["APPS", "Child", "running_apps"]

APPS: Final = ("fastapi", "flask")
_START_S: Final = 30.0
_ASK_S: Final = 5.0


class Child:
    """One app in a process, and a session, of its own: Ctrl-C reaches the demo alone, which ends its children.

    Args:
        name: `fastapi` or `flask`.
        environ: The process's whole environment.
        folder: Where its output goes, as `NAME.log`.
    """

    def __init__(self, name: str, environ: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._word = folder / f"{name}-statistics.json"
        self._word.unlink(missing_ok=True)
        listener = bound_socket()
        self.netloc = f"{HOST}:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "fluxgate_mw.demo.child", name, str(listener.fileno())]
        with listener, self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own module)
                command,
                env={**environ, WORD_VARIABLE: str(self._word)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{self.netloc}"

    async def started(self, stopped: anyio.Event) -> None:
        """Return when it answers, or when nobody waits for it any more.

        Raises:
            FluxGateError: It ended instead, or took too long.
        """
        deadline = time.monotonic() + _START_S
        while not stopped.is_set():
            if await self._answers(stopped):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FluxGateError(f"the {self.name} app did not start; its output is in {self.log}")
            await anyio.sleep(0.05)

    async def _answers(self, stopped: anyio.Event) -> bool:
        """Return whether it answers, as soon as it does or can not, or nobody waits any more."""
        answers = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when, stopped, tasks.cancel_scope)
            answers = await anyio.to_thread.run_sync(_healthz, self.netloc, abandon_on_cancel=True)
            tasks.cancel_scope.cancel()
        return answers

    def statistics(self) -> AppStatistics | None:
        """Return what it said of its events when it ended; None before, and where it ended in no order."""
        return read_word(self._word)

    def tell_to_end(self, *, in_order: bool) -> None:
        """Tell it to end: after what it is doing, or, where it has not begun to serve, at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM if in_order else signal.SIGINT)

    async def ended(self, patience_s: float) -> None:
        """Return when it has ended; after `patience_s` seconds it and what it started are killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await anyio.to_thread.run_sync(partial(self._process.wait, patience_s))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _healthz(netloc: str) -> bool:
    connection = http.client.HTTPConnection(netloc, timeout=_ASK_S)
    try:
        connection.request("GET", "/healthz", headers={"connection": "close"})
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@asynccontextmanager
async def running_apps(
    environs: Mapping[str, Mapping[str, str]],
    folder: Path,
    stopped: anyio.Event,
    patience_s: Callable[[], float],
) -> AsyncIterator[dict[str, Child]]:
    """Run one child for each named environment while inside; yields them when all of them answer.

    Args:
        environs: Each app's whole environment, by its name.
        folder: Where their output goes.
        stopped: When it is set before they all answer, none is yielded.
        patience_s: Asked at the end: how many seconds an app may take to end.

    Raises:
        FluxGateError: One did not start.
    """
    children: dict[str, Child] = {}
    serving = False
    try:
        for name, environ in environs.items():
            children[name] = Child(name, environ, folder)
        for child in children.values():
            await child.started(stopped)
        serving = not stopped.is_set()
        yield children if serving else {}
    finally:
        with anyio.CancelScope(shield=True):
            for child in children.values():
                child.tell_to_end(in_order=serving)
            for child in children.values():
                await child.ended(patience_s())
