"""The public interface as a type checker sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["tracker.py"])
def test_a_type_checker_accepts_it(name, tmp_path):
    """Mypy in strict mode agrees with every `assert_type`, and needs every `type: ignore`."""
    path = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parents[2])
    assert checked.returncode == 0, checked.stdout
