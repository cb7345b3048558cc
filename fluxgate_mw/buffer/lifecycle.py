"""What a process does to the emitter: threads, forks and exits. The one module here with process-wide state.

Nothing registered here keeps a delivery alive, and nothing starts before the first event.
"""

from __future__ import annotations

import _thread
import atexit
import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = ["register", "start_thread"]


class _Living(Protocol):
    def after_fork_in_child(self) -> None: ...

    def at_exit(self) -> None: ...


_living: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_finalized_in: Final[set[int]] = set()


def register(delivery: _Living) -> None:
    """Tell it of forks and of this process's exit, for as long as something else keeps it alive."""
    _living.add(delivery)


def start_thread(run: Callable[[], object]) -> None:
    """Run this in a real operating system's thread that no exit waits for, in an empty context.

    Guarantees: returns at once and takes none of Python's locks, so that it may be called in a signal handler or a
    `__del__`. Under gevent's patches it is a real thread too, not a greenlet.

    Raises:
        RuntimeError: The process can start no thread any more.
    """
    _finalize_in_child_process()
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_object_patched("_thread", "start_new_thread"):
        monkey.get_original("_thread", "start_new_thread")(_run, (run,))
    else:
        _thread.start_new_thread(_start_named, (run,))


def _start_named(run: Callable[[], object]) -> None:
    """Make the thread that others see from a nameless one: `Thread.start` waits for locks, the caller must not."""
    try:
        threading.Thread(target=_run, args=(run,), name="fluxgate-emitter", daemon=True).start()
    except RuntimeError:
        _run(run)


def _run(run: Callable[[], object]) -> None:
    contextvars.Context().run(run)


def _finalize_in_child_process() -> None:
    """Have a `multiprocessing` child call the exit hook: it ends without running `atexit`.

    Source: `multiprocessing.process.BaseProcess._bootstrap`, CPython 3.11 to 3.13.
    """
    multiprocessing, pid = sys.modules.get("multiprocessing.util"), os.getpid()
    if (
        multiprocessing is None
        or pid in _finalized_in
        or sys.modules["multiprocessing.process"].parent_process() is None
    ):
        return
    _finalized_in.add(pid)
    multiprocessing.Finalize(None, _at_exit, exitpriority=100)


def _after_fork_in_child() -> None:
    for delivery in list(_living):
        delivery.after_fork_in_child()


def _at_exit() -> None:
    for delivery in list(_living):
        delivery.at_exit()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
