"""What a process does to the emitter: threads, forks and exits. The one module here with process-wide state.

Nothing registered here keeps a delivery alive, and nothing starts before the first event.

uWSGI forks its workers without Python's fork hooks (unless told `--py-call-osafterfork`): a copied delivery would wait
in them for a thread that was not copied, and a thread that waits for the interpreter's lock at that moment would have
a worker wait for ever. So its master starts no thread and queues nothing, and its own hook stands in for Python's.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import contextvars
import importlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from fluxgate_mw import diagnostics
from fluxgate_mw.recorder import at_first_open, end_open_calls

__all__ = ["forks_unseen", "register", "start_thread"]


class _Living(Protocol):
    """A delivery, as its process's forks and exit concern it."""

    def after_fork_in_child(self) -> None: ...

    def after_unseen_fork(self) -> None: ...

    def at_exit(self) -> None: ...


_living: Final[weakref.WeakSet[_Living]] = weakref.WeakSet()
_finalized_in: Final[set[int]] = set()
_celery_joined_in: Final[set[int]] = set()
_HOSTS_SIGNALS: Final = signal.valid_signals() - {
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
}
"""What a thread of ours leaves to the host's own: a server's handler in C (uWSGI's) ends the process where it runs."""

_put_off: Final[list[tuple[int, Callable[[], object]]]] = []
_hooks: Final[list[Callable[[], object] | None]] = []
"""Whose place in uWSGI we took, once we did."""


def register(delivery: _Living) -> None:
    """Tell it of forks and of this process's exit, for as long as something else keeps it alive."""
    _living.add(delivery)
    _join_celery()
    if forks_unseen():
        _hook_uwsgi()


def _join_celery() -> None:
    """Have Celery's prefork workers call the exit hook: they end by `os._exit`, whoever stops them.

    Source: `billiard.pool.Worker._do_exit`, `celery.signals.worker_process_shutdown`, Celery 5.3 to 5.7.
    """
    signals = sys.modules.get("celery.signals")
    if signals is not None and os.getpid() not in _celery_joined_in:
        _celery_joined_in.add(os.getpid())
        signals.worker_process_shutdown.connect(_at_exit_of_celery, weak=False, dispatch_uid="fluxgate-emitter")


def _at_exit_of_celery(**_: object) -> None:
    _at_exit()


def forks_unseen() -> bool:
    """Return whether this process is uWSGI's own, before the workers are forked: no place for a thread or a queue.

    Source: uwsgi-docs, the uwsgi Python module (`worker_id` and `mule_id` are 0 in the master), read 2026-11.
    """
    uwsgi = sys.modules.get("uwsgi")
    asked = [getattr(uwsgi, name, None) for name in ("worker_id", "mule_id")]
    return all(callable(ask) and ask() == 0 for ask in asked)


def _hook_uwsgi() -> None:
    """Have every forked process tell us, by the list of `uwsgidecorators` where that is in use, else by uWSGI's hook.

    The decorators' module takes the hook for itself when it is imported, so it is imported here where it can be.
    """
    uwsgi = sys.modules["uwsgi"]
    with contextlib.suppress(Exception):
        importlib.import_module("uwsgidecorators")
    chain = getattr(sys.modules.get("uwsgidecorators"), "postfork_chain", None)
    if chain is not None:
        if _after_unseen_fork not in chain:
            chain.append(_after_unseen_fork)
        return
    theirs = getattr(uwsgi, "post_fork_hook", None)
    if theirs is _after_unseen_fork or _hooks:
        return
    _hooks.append(theirs)
    setattr(uwsgi, "post_fork_hook", _after_unseen_fork)  # noqa: B010  (a module that only uWSGI has)


def _after_unseen_fork() -> None:
    for theirs in _hooks:
        if theirs is not None:
            theirs()
    for delivery in list(_living):
        delivery.after_unseen_fork()
    put_off, _put_off[:] = list(_put_off), []
    for pid, run in put_off:
        if pid == os.getpid():
            start_thread(run)


def _note_if_threads_sleep() -> None:
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    if uwsgi is not None and not {"enable-threads", "threads"} & options.keys():
        diagnostics.note(
            "uwsgi_without_threads",
            "uWSGI runs without --enable-threads: usage events are delivered during requests and at the end only",
        )


def start_thread(run: Callable[[], object]) -> None:
    """Run this in a real operating system's thread that no exit waits for, in an empty context.

    Guarantees: returns at once and takes none of Python's locks, so that it may be called in a signal handler or a
    `__del__`. Under gevent's patches it is a real thread too, not a greenlet. Before uWSGI forks, nothing is started:
    where this process is to be a worker itself, it is started then.

    Raises:
        RuntimeError: The process can start no thread any more.
    """
    if forks_unseen():
        _put_off.append((os.getpid(), run))
        return
    _finalize_in_child_process()
    _note_if_threads_sleep()
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_object_patched("_thread", "start_new_thread"):
        monkey.get_original("_thread", "start_new_thread")(_run, (run,))
    else:
        _thread.start_new_thread(_start_named, (run,))


def _start_named(run: Callable[[], object]) -> None:
    """Make the thread that others see from a nameless one: `Thread.start` waits for locks, the caller must not."""
    _join_celery()
    try:
        threading.Thread(target=_run, args=(run,), name="fluxgate-emitter", daemon=True).start()
    except RuntimeError:
        _run(run)


def _run(run: Callable[[], object]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _HOSTS_SIGNALS)
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
    end_open_calls()
    for delivery in list(_living):
        delivery.at_exit()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
at_first_open.append(_finalize_in_child_process)
