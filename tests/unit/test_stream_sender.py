"""What lets go of the stream at the end of a delivery."""

from __future__ import annotations

import anyio
import pytest

from fluxgate_mw.buffer.memory import MemoryBuffer
from fluxgate_mw.buffer.spool import Spool
from fluxgate_mw.buffer.stream_sender import StreamSender
from fluxgate_mw.errors import BackendUnavailable, ClosedError


def test_a_spool_that_cannot_be_let_go_keeps_no_client_open(tmp_path, monkeypatch):
    """The folder may be gone by then; the stream's client is closed all the same."""
    stream, spool = MemoryBuffer(), Spool(tmp_path)
    sender = StreamSender(lambda: stream, spool)
    sender.open()

    def stop_reading() -> None:
        raise BackendUnavailable("spool", "gone")

    monkeypatch.setattr(spool, "stop_reading", stop_reading)
    anyio.run(sender.aclose)
    with pytest.raises(ClosedError):
        anyio.run(stream.append, b"", 0)
