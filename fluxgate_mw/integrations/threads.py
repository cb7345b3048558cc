"""Threads: carry the ambient context into `ThreadPoolExecutor.submit` and `threading.Thread`, where Python does not.

Without this, one line does it for one call: `executor.submit(contextvars.copy_context().run, function, argument)`.
`asyncio.to_thread`, `anyio.to_thread` and tasks need neither.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fluxgate_mw.ambient import NOTHING, Ambient, enter, get

__all__ = ["carry_context"]

_lock = threading.Lock()
_asked: list[object] = []
_found: dict[str, Any] = {}


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
    token = object()
    with _lock:
        if not _asked:
            _patch(threads=threads)
        _asked.append(token)

    def undo() -> None:
        with _lock:
            if token in _asked:
                _asked.remove(token)
                if not _asked:
                    _unpatch()

    return undo


def _patch(*, threads: bool) -> None:
    submit: Any = ThreadPoolExecutor.submit
    start: Any = threading.Thread.start
    _found.update(submit=submit, start=start)

    @functools.wraps(submit)
    def carrying_submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        # A worker thread may be started here, and must not keep this request for its whole life.
        return _Carried(NOTHING, submit)(self, _Carried(get(), fn), *args, **kwargs)

    @functools.wraps(start)
    def carrying_start(self: Any) -> None:
        if get() is not NOTHING:
            _carry(self)
        start(self)

    _found.update(carrying_submit=carrying_submit, carrying_start=carrying_start)
    ThreadPoolExecutor.submit = carrying_submit  # type: ignore[method-assign]
    if threads:
        threading.Thread.start = carrying_start  # type: ignore[method-assign]


def _carry(thread: Any) -> None:
    run = _Carried(get(), thread.run)

    def carried_run() -> None:
        del thread.run
        run()

    thread.run = carried_run


def _unpatch() -> None:
    """Put back what was found, unless somebody else has patched over it meanwhile: then it stays, and does nothing."""
    if ThreadPoolExecutor.submit is _found["carrying_submit"]:
        ThreadPoolExecutor.submit = _found["submit"]  # type: ignore[method-assign]
    if threading.Thread.start is _found["carrying_start"]:
        threading.Thread.start = _found["start"]  # type: ignore[method-assign]


class _Carried:
    """A function that runs under the frame of where it was handed over."""

    __slots__ = ("_ambient", "_function")

    def __init__(self, ambient: Ambient, function: Callable[..., Any]) -> None:
        self._ambient = ambient
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        covered = get()
        enter(self._ambient)
        try:
            return self._function(*args, **kwargs)
        finally:
            enter(covered)
