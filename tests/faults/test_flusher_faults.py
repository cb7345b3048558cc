"""Flushers that are killed for real: nothing is lost, nothing is stored twice, what kills is set aside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from fluxgate_mw.buffer.pack import pack
from fluxgate_mw.event import encode_event
from tests.buffers import numbered
from tests.flusher_process import POISON, open_buffer
from tests.flushing import append_numbered, stored_numbers

pytestmark = [pytest.mark.faults, pytest.mark.redis]

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["spool", "redis"])
def address(request, tmp_path, stream_key):
    """A buffer that outlives the processes that read it."""
    if request.param == "spool":
        return str(tmp_path / "spool")
    return f"{request.getfixturevalue('redis_url')}#{stream_key}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite3"


def start_flusher(address, path, kill_at="never", max_deliveries=3):
    """Start a flusher process that dies at this place."""
    command = [sys.executable, "-m", "tests.flusher_process", address, str(path), kill_at, str(max_deliveries)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def flush(address, path, kill_at="never", max_deliveries=3):
    """Run a flusher process to its end and return its status."""
    return start_flusher(address, path, kill_at, max_deliveries).wait(timeout=50)


def with_buffer(address, use):
    """Run an async function of the buffer and return its answer."""

    async def main():
        buffer = open_buffer(address)
        try:
            return await use(buffer)
        finally:
            await buffer.aclose()

    return anyio.run(main)


def assert_all_stored_once(address, path, count):
    """The law: stored (distinct) + dead-lettered + still buffered is what was accepted, here all stored."""
    assert stored_numbers(path) == list(range(count))
    backlog = with_buffer(address, lambda buffer: buffer.backlog())
    assert (backlog["entries"], backlog["pending"], backlog["dead_letters"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "kill_at",
    ["after:read:1", "before:insert:2", "after:insert:2", "before:ack:1", "after:ack:1", "before:ack:2"],
)
def test_killed_between_any_two_steps_stores_everything_once(address, path, kill_at):
    """Between read and commit, commit and acknowledge, and after it: the next flusher finishes the work.

    BerriAI/litellm#33872, rq/rq#580, taskiq-redis#130: taken before it was stored, or never claimed, and lost.
    vector#25570: a file deleted before the ledger knew; here the folder is the whole state.
    """
    with_buffer(address, lambda buffer: append_numbered(buffer, range(60), per_entry=5))
    assert flush(address, path, kill_at) == -signal.SIGKILL
    assert flush(address, path) == 0
    assert_all_stored_once(address, path, 60)


def test_an_entry_that_kills_its_reader_is_set_aside_and_the_rest_stored(address, path):
    """pipeshub-ai/pipeshub-ai#2992, MemTensor/MemOS#2403: the count is the buffer's, so dying does not reset it."""
    poison = pack([encode_event(numbered(666)), b"\xc4" + bytes((len(POISON),)) + POISON])

    async def append(buffer):
        await append_numbered(buffer, range(30), per_entry=5)
        await buffer.append(poison, 2)
        await append_numbered(buffer, range(30, 60), per_entry=5)

    with_buffer(address, append)
    deaths = 0
    while flush(address, path, "decode:poison") == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10
    assert deaths >= 1
    assert stored_numbers(path) == list(range(60))
    (letter,) = with_buffer(address, lambda buffer: buffer.dead_letters(10))
    assert letter.payload == poison


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_at_random_steps(address, path, seed):
    """However often and wherever flushers die, the last one ends with every event stored once."""
    chance = random.Random(seed)
    with_buffer(address, lambda buffer: append_numbered(buffer, range(400), per_entry=5))
    for _ in range(6):
        flush(address, path, f"{chance.choice(['before', 'after'])}:any:{chance.randint(4, 14)}", max_deliveries=9)
    assert flush(address, path, max_deliveries=9) == 0
    assert_all_stored_once(address, path, 400)


def test_several_flusher_processes_at_once_store_everything_once(address, path):
    """Two at work and one that dies in between harm nothing: shared streams are shared out, a spool has one reader.

    BerriAI/litellm PR#30600.
    """
    with_buffer(address, lambda buffer: append_numbered(buffer, range(600), per_entry=5))
    processes = [start_flusher(address, path, kill_at) for kill_at in ("before:ack:3", "never", "never")]
    statuses = [process.wait(timeout=50) for process in processes]
    assert statuses[1:] == [0, 0]
    assert flush(address, path) == 0
    assert_all_stored_once(address, path, 600)
