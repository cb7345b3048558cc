"""What `fluxgate_mw` exports, and what importing it brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fluxgate_mw

CONTRACT = {
    "FluxGate",
    "FluxGateError",
    "FluxGateMiddleware",
    "FluxGateWSGIMiddleware",
    "Tracking",
    "UsageEvent",
    "User",
    "context",
    "create_openai_cost_tracker",
    "current",
    "feature",
    "identify",
    "instrument_openai",
    "track",
    "tracking",
    "uninstrument_openai",
}
HEAVY = ["openai", "redis", "starlette", "fastapi", "flask", "jinja2", "uvicorn", "pydantic", "genai_prices", "sqlite3"]


def test_exported_names_are_the_contract():
    """Every name of the contract can be imported, and no other is exported."""
    assert set(fluxgate_mw.__all__) == CONTRACT
    assert all(getattr(fluxgate_mw, name).__doc__ for name in CONTRACT)


def test_unknown_names_are_attribute_errors():
    """A typo is what it is for any module."""
    with pytest.raises(AttributeError, match="no attribute 'FluxGait'"):
        _ = fluxgate_mw.FluxGait


def test_import_is_light():
    """Importing the package imports no client, no server, no framework and no page."""
    program = f"import sys, fluxgate_mw; print([name for name in {HEAVY} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_making_one_does_nothing_yet(tmp_path):
    """Neither a file nor a thread before the first event."""
    program = (
        "import threading; from fluxgate_mw import FluxGate;"
        f"FluxGate(data_dir={str(tmp_path / 'd')!r}); print(threading.active_count())"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "1"
    assert not (tmp_path / "d").exists()
