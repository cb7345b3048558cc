"""The circuit breaker before the stream."""

from __future__ import annotations

from fluxgate_mw.buffer.breaker import CircuitBreaker


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_at_the_first_failure_and_asks_later():
    """One failure opens it; it is due after its pause and not before."""
    clock = Clock()
    breaker = CircuitBreaker(first_s=1.0, clock=clock)
    assert breaker.due_in_s() == float("inf")
    breaker.failed()
    assert breaker.state == "open"
    assert 0.8 <= breaker.due_in_s() <= 1.0
    clock.now += 1.0
    assert breaker.due_in_s() == 0


def test_its_pause_doubles_up_to_a_bound():
    """Each failure in a row doubles the pause, shortened by up to a fifth, up to the longest."""
    breaker = CircuitBreaker(first_s=1.0, longest_s=5.0, clock=Clock())
    pauses = []
    for _ in range(5):
        breaker.failed()
        pauses.append(breaker.due_in_s())
    for pause, longest in zip(pauses, [1, 2, 4, 5, 5], strict=True):
        assert 0.8 * longest <= pause <= longest


def test_a_success_closes_it_and_forgets():
    """After a success the next failure starts with the first pause again."""
    breaker = CircuitBreaker(first_s=1.0, clock=Clock())
    breaker.failed()
    breaker.failed()
    breaker.half_open()
    assert breaker.state == "half-open"
    breaker.succeeded()
    breaker.failed()
    assert breaker.due_in_s() <= 1.0
