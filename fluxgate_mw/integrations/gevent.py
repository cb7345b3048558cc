"""gevent: carry the ambient context into greenlets that are spawned, which begin with an empty one.

Without this, one line does it for one greenlet: `gevent.spawn(contextvars.copy_context().run, function, argument)`,
and for a raw one: `greenlet(contextvars.copy_context().run).switch(function, argument)`. Each greenlet needs a copy of
its own: a `Context` that two of them are in at once raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.pool

from fluxgate_mw.ambient import NOTHING, get
from fluxgate_mw.integrations.carrying import Carried, CountedPatch

__all__ = ["carry_context"]

_patch: Final = CountedPatch()


def carry_context() -> Callable[[], None]:
    """Patch `gevent.spawn`, `gevent.spawn_later` and the pools' `spawn` so that what they run knows its request.

    Only our own variable is carried, into each greenlet's own context; a pool's `apply` goes through its `spawn`. Not
    carried: a pool's `map`, which spawns from a greenlet of its own; `Greenlet.spawn` and `Greenlet(...).start()`,
    which cannot be patched; a `gevent.threadpool.ThreadPool`, whose `spawn` is not these pools'; a `spawn` that was
    imported by name before this was called. Under gevent's patches of the standard library, threads are greenlets too:
    for them there is `integrations.threads.carry_context()`.

    Returns:
        The undo of this very request; the last one restores the very functions found.

    Guarantees: idempotent both ways. What is spawned outside of a request runs as without it.

    Concurrency: any thread or greenlet.
    """
    return _patch.ask(
        (gevent, "spawn", functools.partial(_carrying, 0)),
        (gevent, "spawn_later", functools.partial(_carrying, 1)),
        (gevent.pool.Group, "spawn", functools.partial(_carrying, 1)),
    )


def _carrying(position: int, spawn: Any) -> Any:
    """Return `spawn` that carries the frame into the function at `position` of its arguments."""

    @functools.wraps(spawn)
    def carrying_spawn(*args: Any, **kwargs: Any) -> Any:
        ambient = get()
        if ambient is NOTHING or len(args) <= position or not callable(args[position]):
            return spawn(*args, **kwargs)
        carried = Carried(ambient, args[position])
        return spawn(*args[:position], carried, *args[position + 1 :], **kwargs)

    return carrying_spawn
