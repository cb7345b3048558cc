"""Fixtures that every test may use."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxgate_mw import FluxGate, ambient, diagnostics, uninstrument_openai
from fluxgate_mw.recorder import set_default
from tests.servers import RedisServer, valkey_binary

NO_BROWSER = pytest.StashKey[bool]()
"""Whether browser tests were left out for want of a browser."""


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of it from a worker of `pytest -n`."""
    if getattr(node, "workeroutput", {}).get("no_browser"):
        node.config.stash[NO_BROWSER] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    if config.stash.get(NO_BROWSER, False):
        terminalreporter.write_line("NOT RUN: browser (no chromium)", yellow=True)


@pytest.fixture
def anyio_backend() -> str:
    """Hosts run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test, and no test writes into the user's folders."""
    for name in [name for name in os.environ if name.startswith(("FLUXGATE_", "OPENAI_"))]:
        if not name.startswith("FLUXGATE_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLUXGATE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def _own_default() -> Iterator[None]:
    """No test sees another's default `FluxGate`, patch or notes, and none leaves a frame on the context."""
    yield
    for fg in FluxGate._default:
        fg.stop()
    FluxGate._default.clear()
    set_default(None)
    uninstrument_openai()
    diagnostics.reset()
    assert ambient.get() is ambient.NOTHING, "a frame was left on the ambient context"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Valkey server for the whole run; tests keep apart by their stream keys."""
    server = RedisServer(valkey_binary(), tmp_path_factory.mktemp("valkey"), "--save", "")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of a real server: `FLUXGATE_TEST_REDIS_URL`, else the run's own."""
    return os.environ.get("FLUXGATE_TEST_REDIS_URL") or redis_server.url


@pytest.fixture
def stream_key() -> str:
    """A stream key that no other test uses."""
    return f"test:{uuid.uuid4().hex}"
