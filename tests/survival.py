"""Make the survival table (place x framework) from what the tests found: `python -m tests.survival [FILE]`.

A test says with `@pytest.mark.survival(framework, place)` which cells stand on it. A cell holds `yes` where every such
test passed, `no` where one did not, and nothing where none says it. With a FILE the table is put between its lines
`<!-- survival -->` and `<!-- /survival -->`; else it is printed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

BEGIN, END = "<!-- survival -->", "<!-- /survival -->"
FRAMEWORKS = (
    "Starlette",
    "FastAPI",
    "Litestar",
    "Quart",
    "Django",
    "Flask",
    "Bottle",
    "Pyramid",
    "Falcon",
    "bare ASGI",
    "bare WSGI",
    "Celery",
    "arq",
)
ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/integrations", "tests/unit/test_asgi.py", "tests/unit/test_wsgi.py")


class Survival:
    """A pytest plugin that collects the outcome of each cell."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], bool] = {}
        self._cells: dict[str, list[tuple[str, str]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep only the tests that a cell stands on."""
        for item in items:
            self._cells[item.nodeid] = [(mark.args[0], mark.args[1]) for mark in item.iter_markers("survival")]
        items[:] = [item for item in items if self._cells[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what a test found."""
        if report.when == "call" or not report.passed:
            for cell in self._cells[report.nodeid]:
                self.passed[cell] = self.passed.get(cell, True) and report.passed

    def table(self) -> str:
        """Return the table as Markdown."""
        places: dict[str, dict[str, str]] = defaultdict(dict)
        for (framework, place), passed in self.passed.items():
            places[place][framework] = "yes" if passed else "no"
        named = [framework for framework in FRAMEWORKS if any(framework in cells for cells in places.values())]
        ordered = sorted(places.items(), key=lambda row: -len(row[1]))
        lines = [f"| where the call is made | {' | '.join(named)} |", f"|---|{':-:|' * len(named)}"]
        for place, cells in ordered:
            lines.append(f"| {place} | {' | '.join(cells.get(framework, '') for framework in named)} |")
        return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the tests, and print the table or put it into a file."""
    survival = Survival()
    options = ["-q", "--no-header", "-p", "no:randomly", f"--rootdir={ROOT}", *(str(ROOT / path) for path in TESTS)]
    status = pytest.main(options, plugins=[survival])
    if not survival.passed:
        return int(status) or 1
    if not arguments:
        print(survival.table())
        return int(status)
    page = Path(arguments[0])
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    if BEGIN not in text or END not in text:
        print(f"{page} has no lines {BEGIN} and {END}", file=sys.stderr)
        return 2
    page.write_text(f"{before}{BEGIN}\n{survival.table()}\n{END}{after}", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
