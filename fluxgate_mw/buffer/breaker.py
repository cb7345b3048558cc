"""Whether it is worth trying Redis now. Knows nothing of Redis."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal

__all__ = ["BreakerState", "CircuitBreaker"]

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Open at the first failure, ask again after a pause that doubles, close at the first success.

    Args:
        first_s: Pause after the first failure, in seconds.
        longest_s: Bound of the pause, in seconds.
        clock: Monotonic seconds.

    Concurrency: one thread changes it; any thread may look at `state`.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.5,
        longest_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s, self._longest_s, self._clock = first_s, longest_s, clock
        self._pause_s = first_s
        self._retry_at = 0.0
        self.state: BreakerState = "closed"

    def due_in_s(self) -> float:
        """Return the seconds until it should be asked again, 0 when now; infinite where it is not open."""
        return max(0.0, self._retry_at - self._clock()) if self.state == "open" else float("inf")

    def failed(self) -> None:
        """Note a failure: open, with a pause that is shortened at random by up to a fifth."""
        self._pause_s = self._first_s if self.state == "closed" else min(self._longest_s, self._pause_s * 2)
        self._retry_at = self._clock() + self._pause_s * random.uniform(0.8, 1.0)  # noqa: S311  (jitter)
        self.state = "open"

    def half_open(self) -> None:
        """Note that the other side answers: the next real attempt decides."""
        self.state = "half-open"

    def succeeded(self) -> None:
        """Note a success: closed."""
        self.state = "closed"
