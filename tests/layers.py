"""Other releases of a library than the environment's own, each in a folder that is put before it on the path.

For what cannot be in one environment at once: the oldest releases that are declared, and what wants an older redis.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def layer(folder: Path, *requirements: str, dependencies: bool = False) -> Path:
    """Return a folder with these releases in it, installed there unless they are already.

    Args:
        folder: Where layers are kept, for as long as its owner likes.
        requirements: As pip takes them, pinned.
        dependencies: Install what they require, too.
    """
    digest = hashlib.sha256(repr((requirements, dependencies, sys.version_info[:2])).encode()).hexdigest()[:12]
    made = folder / digest
    if not (made / "done").exists():
        options = [] if dependencies else ["--no-deps"]
        command = [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(made), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        (made / "done").touch()
    return made


def run_on(layered: Path, *arguments: str, timeout_s: float = 300) -> str:
    """Run this Python with the layer first on its path, in the repository; return what it printed.

    Guarantees: an exit status other than 0 fails the test, with the output.
    """
    path = os.pathsep.join([str(layered), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout
