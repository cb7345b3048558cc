"""How the delivery's loop sleeps."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from fluxgate_mw.buffer.wakeup import LOOP_FACTORY, Wakeup, run

LONG_S = 30


def slept(main):
    """Return the seconds that it takes in a loop of ours, which hangs for no more than 10."""
    began = time.monotonic()

    async def bounded():
        with anyio.fail_after(10):
            await main()

    run(bounded())
    return time.monotonic() - began


@pytest.mark.parametrize("worth_it", [None, lambda: False], ids=["plain", "never-worth-it"])
def test_what_was_set_before_the_wait_ends_it(worth_it):
    """A wake-up that comes while nobody waits is not lost, whatever is asked beside it."""

    async def main():
        wakeup = Wakeup()
        wakeup.set()
        await wakeup.wait(LONG_S, worth_it)

    assert slept(main) < LONG_S


def test_it_ends_each_wait_once():
    """A wake-up ends one wait; the next one lasts as long as it is told to."""

    async def main():
        wakeup = Wakeup()
        asyncio.get_running_loop().call_soon(wakeup.set)
        await wakeup.wait(LONG_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wakeup.wait(LONG_S)

    slept(main)


def test_it_looks_again_until_it_is_worth_it():
    """The wait goes on while nothing is found, and ends with the first look that finds something."""
    looks = iter([False, False, True])

    async def main():
        await Wakeup().wait(0.001, lambda: next(looks))
        assert next(looks, None) is None

    slept(main)


def test_what_a_look_raises_ends_the_wait():
    """A look that fails, by whatever, does not leave the wait without an end."""

    def fail():
        raise asyncio.CancelledError

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await Wakeup().wait(0.001, fail)

    slept(main)


def test_the_loop_is_of_no_policy(monkeypatch):
    """An application's policy, which may be another library's, makes no loop of ours."""
    loops = []

    async def main():
        loops.append(asyncio.get_running_loop())

    monkeypatch.setattr(asyncio.events, "new_event_loop", lambda: pytest.fail("the policy was asked"))
    slept(main)
    assert type(loops[0]) is LOOP_FACTORY
