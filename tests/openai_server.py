"""The loopback OpenAI server for tests: a real server in a thread of its own, and what it wrote down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from fluxgate_mw.demo.ledger import Ledger, LedgerRow, read_ledger
from fluxgate_mw.demo.openai_server import OpenAIServer
from fluxgate_mw.serving import serving


class RunningOpenAI:
    """A running server: `base_url` for a client, `host` for `FLUXGATE_PROVIDER_HOSTS`, and its ledger's rows."""

    def __init__(self, address: str, ledger_path: Path) -> None:
        self.base_url = f"{address}/v1"
        self.host = address.removeprefix("http://")
        self.ledger_path = ledger_path

    def rows(self, at_least: int = 0) -> list[LedgerRow]:
        """Return the ledger, waiting until it has so many rows: a row is written after the answer's last byte."""
        deadline = time.monotonic() + 10
        while len(rows := read_ledger(self.ledger_path)) < at_least:
            assert time.monotonic() < deadline, f"{len(rows)} rows in the ledger, {at_least} expected"
            time.sleep(0.01)
        return rows


@contextmanager
def running_openai(
    folder: Path, *, seed: int = 0, latency_s: float = 0.0, chunk_latency_s: float = 0.0
) -> Iterator[RunningOpenAI]:
    """Serve while inside, on a free port, from a thread; the ledger is `folder/ledger.jsonl`."""
    ledger = Ledger(folder / "ledger.jsonl")
    app = OpenAIServer(ledger, seed=seed, latency_s=latency_s, chunk_latency_s=chunk_latency_s)
    try:
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(app)) as address:
            yield RunningOpenAI(address, ledger.path)
    finally:
        ledger.close()
