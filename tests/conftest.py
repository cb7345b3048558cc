"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from fluxgate_mw import FluxGate, ambient, diagnostics, uninstrument_openai
from fluxgate_mw.recorder import set_default
from tests import newest_redis
from tests.servers import SERVER_BINARIES, RedisServer, valkey_binary

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NOT_RUN = pytest.StashKey[set[str]]()
"""What was left out for want of something on this machine, as the summary says it."""

NO_NEWEST_REDIS = f"Redis {newest_redis.VERSION.partition('.')[0]} (python -m tests.newest_redis builds one)"


def leave_out(config: pytest.Config, items: list[pytest.Item], marker: str, what: str) -> None:
    """Leave the tests with this marker out, which are then neither passed nor skipped; the summary names `what`."""
    ours = [item for item in items if item.get_closest_marker(marker)]
    if ours:
        config.stash.setdefault(NOT_RUN, set()).add(what)
        getattr(config, "workeroutput", {})["not_run"] = sorted(config.stash[NOT_RUN])
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a server that has not been built."""
    if not newest_redis.BINARY.exists():
        leave_out(config, items, "newest_redis", NO_NEWEST_REDIS)


def pytest_collection_finish() -> None:
    """Let no test's `gc.collect()` look through the thousands of tests themselves, which took a third of all time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of it from a worker of `pytest -n`."""
    node.config.stash.setdefault(NOT_RUN, set()).update(getattr(node, "workeroutput", {}).get("not_run", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    for what in sorted(config.stash.get(NOT_RUN, ())):
        terminalreporter.write_line(f"NOT RUN: {what}", yellow=True)


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


@pytest.fixture(scope="session")
def redis_servers(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RedisServer]]:
    """Every real server there is, by name: what `SERVERS` has as parameters."""
    others = {name: path for name, path in SERVER_BINARIES.items() if path.exists()}
    running = {
        name: RedisServer(str(path), tmp_path_factory.mktemp(name), "--save", "") for name, path in others.items()
    }
    for server in running.values():
        server.start()
    yield {"valkey": redis_server, **running}
    for server in running.values():
        server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of a real server: `FLUXGATE_TEST_REDIS_URL`, else the run's own."""
    return os.environ.get("FLUXGATE_TEST_REDIS_URL") or redis_server.url


@pytest.fixture
def stream_key() -> str:
    """A stream key that no other test uses."""
    return f"test:{uuid.uuid4().hex}"
