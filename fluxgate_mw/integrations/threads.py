"""Threads: carry the ambient context into `ThreadPoolExecutor.submit` and `threading.Thread`, where Python does not.

Without this, one line does it for one call: `executor.submit(contextvars.copy_context().run, function, argument)`.
`asyncio.to_thread`, `anyio.to_thread` and tasks need neither.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fluxgate_mw.ambient import NOTHING, get
from fluxgate_mw.integrations.carrying import Carried, CountedPatch

__all__ = ["carry_context"]

_patch: Final = CountedPatch()


def carry_context(*, threads: bool = True) -> Callable[[], None]:
    """Patch `ThreadPoolExecutor.submit` and `threading.Thread.start` so that what they run knows its request.

    Only our own variable is carried. What is submitted or started outside of a request runs with nothing, also in a
    worker thread that began inside one.

    Args:
        threads: Patch `threading.Thread.start` too. Switch it off where a library starts a thread inside a request
            that then works for other requests: it would keep the first one's user. The first request for the patch
            decides.

    Returns:
        The undo of this very request; the last one restores the very functions found.

    Guarantees: idempotent both ways. `run_in_executor` goes through `submit`, and is carried too.

    Concurrency: any thread.
    """
    patches: list[tuple[Any, str, Callable[[Any], Any]]] = [(ThreadPoolExecutor, "submit", _carrying_submit)]
    if threads:
        patches.append((threading.Thread, "start", _carrying_start))
    return _patch.ask(*patches)


def _carrying_submit(submit: Any) -> Any:
    @functools.wraps(submit)
    def carrying_submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # A worker thread may be started here, and must not keep this request for its whole life.
        return Carried(NOTHING, submit)(self, Carried(get(), fn), *args, **kwargs)

    return carrying_submit


def _carrying_start(start: Any) -> Any:
    @functools.wraps(start)
    def carrying_start(self: Any) -> None:
        if get() is not NOTHING:
            _carry(self)
        start(self)

    return carrying_start


def _carry(thread: Any) -> None:
    run = Carried(get(), thread.run)

    def carried_run() -> None:
        vars(thread).pop("run", None)  # gone already where the start failed, and was tried again
        run()

    thread.run = carried_run
