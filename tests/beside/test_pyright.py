"""The public interface as pyright sees it, beside mypy in `tests/typing`: what an editor completes and complains of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKER = ROOT / "tests" / "typing" / "tracker.py"

pytestmark = pytest.mark.timeout(300)


def _complaints(folder, path):
    """Return the rules that a file breaks, in pyright's own strict mode."""
    config = folder / "pyrightconfig.json"
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": True, "extraPaths": [str(ROOT)]}
    config.write_text(json.dumps({**settings, "include": [str(path)]}))
    command = [sys.executable, "-m", "basedpyright", "--project", str(config), "--outputjson"]
    done = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1, done.stdout
    return [each["rule"] for each in found["generalDiagnostics"]]


def test_it_agrees_with_every_type_and_needs_every_ignore(tmp_path):
    """A tracker is completed as the client that it wraps, sync, async and Azure."""
    assert _complaints(tmp_path, TRACKER) == []


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("assert_type(completion, ChatCompletion)", "assert_type(completion, str)", "reportAssertTypeFailure"),
        ("view.chat.completions.create", "view.chat.completions.creat", "reportAttributeAccessIssue"),
        ('with_context(step="s")', "with_context(step=1)", "reportArgumentType"),
    ],
)
def test_it_would_complain_of_a_wrong_type(tmp_path, right, wrong, rule):
    """A result, a method or an argument that the client does not have is an error."""
    text = TRACKER.read_text()
    assert right in text
    path = tmp_path / "wrong.py"
    path.write_text(text.replace(right, wrong))
    assert rule in _complaints(tmp_path, path)
