"""The documentation is true: its generated parts, its commands, its links and its examples."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
import tomllib

import pytest

import fluxgate_mw
from tests.docs import README, ROOT, rendered

TEXT = README.read_text()
SHOWN = [path.relative_to(ROOT) for path in ROOT.glob("fluxgate_mw/**/*.py") if ">>> " in path.read_text()]


def test_generated_parts_are_what_the_code_says():
    """Run `python -m tests.docs` after a change of the settings."""
    assert rendered(TEXT) == TEXT


def test_the_test_command_is_the_one_that_ci_runs():
    """A newcomer who copies it does what CI does."""
    command = re.search(r"^(python3 -m venv .*/pytest.*)$", TEXT, re.MULTILINE)[1]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("path", SHOWN, ids=str)
def test_the_examples_in_docstrings_are_true(path):
    """Each is run as it stands."""
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_links_into_the_repository_lead_somewhere():
    """Every relative link and image of the README is a file."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_version_stands_in_the_changelog():
    """What is released is described."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("command", [[], ["demo"], ["serve"], ["flush"], ["doctor"], ["dead-letters", "replay"]])
def test_every_command_explains_itself(command):
    """`--help` answers without reading a setting."""
    program = [sys.executable, "-m", "fluxgate_mw.cli", *command, "--help"]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("usage: fluxgate")


def test_every_exported_name_is_in_the_readme():
    """What can be imported is shown."""
    assert [name for name in fluxgate_mw.__all__ if name not in TEXT] == []
