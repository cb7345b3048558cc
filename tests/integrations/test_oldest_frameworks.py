"""The same tests of Starlette, FastAPI, Flask and Litestar on the oldest releases that are declared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.layers import ROOT, layer, run_on

OLDEST = {
    "starlette and fastapi": (("starlette==0.40.0", "fastapi==0.115.3"), ("test_starlette.py", "test_fastapi.py")),
    "flask": (("flask==2.3.0", "werkzeug==2.3.8", "flask-login==0.6.3"), ("test_flask.py",)),
    "django": (("django==5.0.14",), ("test_django.py",)),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", OLDEST)
def test_the_oldest_declared_releases_pass_the_same_tests(name: str, pytestconfig: pytest.Config) -> None:
    """Their own deprecations, under newer releases of what they stand on, are theirs."""
    requirements, modules = OLDEST[name]
    layered = layer(Path(pytestconfig.cache.mkdir("layers")), *requirements)  # type: ignore[union-attr]
    paths = [str(ROOT / "tests" / "integrations" / module) for module in modules]
    options = ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=", "-W", "ignore::DeprecationWarning"]
    printed = run_on(layered, "-m", "pytest", *options, *paths)
    assert re.search(r"^\d+ passed", printed, re.MULTILINE), printed
