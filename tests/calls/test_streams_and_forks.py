"""A stream that is open when the process forks stays the call of the process that began it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxgate_mw import FluxGate
from fluxgate_mw.buffer.pack import unpack
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.event import decode_event
from tests.calls.clients import ASKED, SSE, Reply, Wire, dumped
from tests.calls.streaming import AS_ASKED, STREAM, WITHOUT

_HERE = Path(__file__).parents[2]
PARTS = [part + b"\n\n" for part in AS_ASKED.split(b"\n\n") if part]


def kept(folder: Path):
    return [decode_event(data) for entry in Spool(folder).read_nowait(100) for data in unpack(entry.payload)]


@pytest.mark.parametrize("read_on", [False, True], ids=["frees it", "reads on"])
def test_a_stream_open_at_a_fork_is_one_event(tmp_path, read_on):
    """The parent's: the child has a copy, not a call."""
    with FluxGate(spool_dir=tmp_path) as fg:
        stream = Wire(Reply(PARTS, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        chunks = iter(stream)
        next(chunks)
        child = os.fork()
        if child == 0:
            try:
                if read_on:
                    assert len(list(chunks)) == 5
                del chunks, stream
                gc.collect()
                os._exit(0 if fg.flush(5) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(chunks)) == 5
        assert fg.flush(5)
    assert [event.status for event in kept(tmp_path)] == ["SUCCESS"]


def test_a_forked_child_reads_what_it_would_read_without_us(tmp_path):
    """Who reads a stream that was opened before the fork reads the same chunks."""
    without = STREAM.plain(Wire(Reply(WITHOUT, headers=SSE)))
    with FluxGate(spool_dir=tmp_path / "spool"):
        stream = Wire(Reply(AS_ASKED, headers=SSE)).client().chat.completions.create(**ASKED, stream=True)
        child = os.fork()
        if child == 0:
            try:
                (tmp_path / "got").write_text(json.dumps([dumped(each) for each in stream]))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        stream.close()
    assert json.loads((tmp_path / "got").read_text()) == without


_FORKS_WHILE_A_CLASS_IS_COVERED = """
import os, threading
from fluxgate_mw import instrument_openai
from fluxgate_mw.openai import patch

held, forked = threading.Event(), threading.Event()
def cover():
    with patch._patch._lock:
        held.set()
        forked.wait()
threading.Thread(target=cover).start()
held.wait()
child = os.fork()
if child == 0:
    threading.Timer(5, os._exit, (1,)).start()
    instrument_openai()()
    os._exit(0)
forked.set()
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_waits_for_no_thread_of_its_parents():
    """A thread may be covering a class that was just imported when another one forks; it is not there in the child."""
    subprocess.run([sys.executable, "-c", _FORKS_WHILE_A_CLASS_IS_COVERED], check=True, timeout=30, cwd=_HERE)
