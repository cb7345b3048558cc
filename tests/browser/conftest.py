"""Browser tests run where Chromium is; elsewhere they are left out, and the summary says so."""

from __future__ import annotations

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_LEFT_OUT = pytest.StashKey[bool]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of this folder out where there is no browser: they are neither passed nor skipped."""
    if CHROMIUM.exists():
        return
    ours = [item for item in items if item.get_closest_marker("browser")]
    if ours:
        config.stash[_LEFT_OUT] = True
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    if config.stash.get(_LEFT_OUT, False):
        terminalreporter.write_line("NOT RUN: browser (no chromium)", yellow=True)
