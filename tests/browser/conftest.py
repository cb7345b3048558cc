"""Browser tests run where Chromium is; elsewhere they are left out, and the summary says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import leave_out

CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of this folder out where there is no browser: they are neither passed nor skipped."""
    if not CHROMIUM.exists():
        leave_out(config, items, "browser", "browser (no chromium)")
