"""An event loop of ours, and how it sleeps, without the locks that asyncio keeps for a whole process.

asyncio takes one lock when it first makes a loop by the policy, and another when a primitive is first waited for. A
process that forks while our thread is inside of either has children in which every event loop hangs.
Source: `asyncio.events._init_event_loop_policy`, `asyncio.mixins._LoopBoundMixin`, CPython 3.11 to 3.14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

__all__ = ["LOOP_FACTORY", "Wakeup", "run"]

LOOP_FACTORY: Final[Callable[[], asyncio.AbstractEventLoop]] = asyncio.SelectorEventLoop


def run(main: Coroutine[Any, Any, None]) -> None:
    """Do as `asyncio.run` in a thread of ours, whatever loop the application's policy makes."""
    with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
        runner.run(main)


class Wakeup:
    """A flag that one task waits for. Concurrency: one event loop; others by its `call_soon_threadsafe`."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """End the wait of now, or else the next."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float, worth_it: Callable[[], bool] | None = None) -> None:
        """Return when it is set, or that many seconds later, and unset it.

        Args:
            seconds: How long.
            worth_it: Asked then whether to return; if not, the wait begins anew. Costs less than to return for nothing.
                What it raises is the event loop's, and ends the wait.
        """
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()

        def look() -> None:
            returns = True
            try:
                returns = self._is_set or worth_it is None or worth_it()
            finally:
                if returns:
                    self.set()
                else:
                    self._timer = loop.call_later(seconds, look)

        self._timer = loop.call_later(0 if self._is_set else seconds, look)
        try:
            await self._waiter
        finally:
            self._timer.cancel()
            self._is_set, self._waiter = False, None
