"""The demo's two apps as child processes, of which none outlives the demo, however it ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from fluxgate_mw.demo.serving import HOST, bound_socket
from fluxgate_mw.errors import FluxGateError

__all__ = ["APPS", "AppStatistics", "Child", "running_apps"]

APPS: Final = ("fastapi", "flask")
_START_S: Final = 30.0
_STOP_S: Final = 4.0
_ASK_S: Final = 5.0


class AppStatistics(msgspec.Struct, frozen=True):
    """What an app says of its own events: taken in, refused by reason, and still waiting in memory."""

    emitted: int
    dropped: dict[str, int] = {}
    queued: int = 0


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
        listener = bound_socket()
        self.netloc = f"{HOST}:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "fluxgate_mw.demo.child", name, str(listener.fileno())]
        with listener, self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own module)
                command,
                env=dict(environ),
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
            with contextlib.suppress(OSError, http.client.HTTPException):
                await self.statistics()
                answers = True
            tasks.cancel_scope.cancel()
        return answers

    async def statistics(self) -> AppStatistics:
        """Have it hand over what it has queued, and return its figures.

        Raises:
            OSError: It does not answer.
            http.client.HTTPException: It answers something else.
        """
        return await anyio.to_thread.run_sync(partial(_statistics, self.netloc), abandon_on_cancel=True)

    def terminate(self) -> None:
        """Tell it to end in order."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def ended(self) -> None:
        """Return when it has ended; after a while it and what it started are killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await anyio.to_thread.run_sync(partial(self._process.wait, _STOP_S))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _statistics(netloc: str) -> AppStatistics:
    connection = http.client.HTTPConnection(netloc, timeout=_ASK_S)
    try:
        connection.request("GET", "/demo/statistics", headers={"connection": "close"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    try:
        return msgspec.json.decode(body, type=AppStatistics)
    except msgspec.MsgspecError as error:
        raise http.client.HTTPException(f"status {response.status}") from error


@asynccontextmanager
async def running_apps(
    environs: Mapping[str, Mapping[str, str]],
    folder: Path,
    stopped: anyio.Event,
) -> AsyncIterator[dict[str, Child]]:
    """Run one child for each named environment while inside; yields them when all of them answer.

    Args:
        environs: Each app's whole environment, by its name.
        folder: Where their output goes.
        stopped: When it is set before they all answer, none is yielded.

    Raises:
        FluxGateError: One did not start.
    """
    children: dict[str, Child] = {}
    try:
        for name, environ in environs.items():
            children[name] = Child(name, environ, folder)
        for child in children.values():
            await child.started(stopped)
        yield {} if stopped.is_set() else children
    finally:
        with anyio.CancelScope(shield=True):
            for child in children.values():
                child.terminate()
            for child in children.values():
                await child.ended()
