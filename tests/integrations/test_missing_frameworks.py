"""What an integration says whose framework is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTING = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[2]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    importlib.import_module(f"fluxgate_mw.integrations.{sys.argv[1]}")
except ModuleNotFoundError as error:
    print(error, type(error.__cause__).__name__)
else:
    print("imported")
"""


def said(integration: str, absent: str) -> str:
    """Return what importing an integration says in a process that has everything but one package."""
    command = [sys.executable, "-c", IMPORTING, integration, absent]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout.strip()


@pytest.mark.parametrize(
    ("integration", "package"),
    [("celery", "celery"), ("django", "asgiref"), ("litestar", "litestar"), ("quart", "quart")],
)
def test_an_integration_without_its_framework_names_the_extra(integration: str, package: str) -> None:
    """It is still the error that whoever tries an import expects, and the import's own is its cause."""
    name = f"fluxgate_mw.integrations.{integration}"
    command = f"pip install 'fluxgate-mw[{integration}]'"
    assert said(integration, package) == f"{name} needs an extra: {command} ModuleNotFoundError"


@pytest.mark.parametrize("integration", ["arq", "falcon", "fastapi", "flask"])
def test_an_integration_that_needs_nothing_of_its_framework_imports_nothing_of_it(integration: str) -> None:
    """An application may import it before it knows what it runs on."""
    assert said(integration, integration) == "imported"
