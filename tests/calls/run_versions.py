"""Run the tests of calls on each supported generation of the OpenAI client: `python tests/calls/run_versions.py`.

Each version goes into a folder of its own, in front of the environment's packages; the folders are kept in
`FLUXGATE_TEST_VERSIONS_DIR` (else a temporary one), so that a second run installs nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("1.66.0", "2.54.0")
ROOT = Path(__file__).parents[2]


def installed(version: str, folder: Path) -> Path:
    """Return the folder that holds this version, filling it where it is not there yet."""
    target = folder / f"openai-{version}"
    if not (target / "openai").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), f"openai=={version}"]
        subprocess.run(command, check=True)
    return target


def tested(version: str, target: Path, arguments: list[str]) -> int:
    """Return pytest's exit status with this version."""
    found = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if found != version:
        sys.exit(f"openai {version} was to be tested, but {found} is what is imported")
    sys.stdout.write(f"openai {version}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/calls", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(target)}, check=False).returncode


def main() -> None:
    """Run every version and leave with 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", action="append", help="only this one; may be given several times")
    given, rest = parser.parse_known_args()
    kept = os.environ.get("FLUXGATE_TEST_VERSIONS_DIR")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept) if kept else Path(temporary)
        statuses = [tested(v, installed(v, folder), rest) for v in given.version or VERSIONS]
    sys.exit(1 if any(statuses) else 0)


if __name__ == "__main__":
    main()
