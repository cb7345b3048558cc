"""Browser tests run where Chromium is; elsewhere they are left out, and the summary says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import NO_BROWSER

CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of this folder out where there is no browser: they are neither passed nor skipped."""
    if CHROMIUM.exists():
        return
    ours = [item for item in items if item.get_closest_marker("browser")]
    if ours:
        config.stash[NO_BROWSER] = True
        getattr(config, "workeroutput", {})["no_browser"] = True
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]
