"""The parts of README.md that are made from the code; `python -m tests.docs` writes them."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from fluxgate_mw import settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def settings_table() -> str:
    """Return every setting as a row: its variable, its default, and what its docstring says."""
    documented = _attribute_docstrings(Path(settings.__file__).read_text(), "Settings")
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for field in fields(settings.Settings):
        default = _default(field)
        rows.append(f"| `{settings.PREFIX}{field.name.upper()}` | {default} | {documented[field.name]} |")
    return "\n".join(rows)


def _default(field) -> str:
    if field.default is MISSING or field.default is None:
        return ""
    if isinstance(field.default, bool):
        return "`1`" if field.default else "`0`"
    return f"`{field.default}`"


def _attribute_docstrings(source: str, name: str) -> dict[str, str]:
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name).body
    return {
        target.target.id: " ".join(text.value.value.split())
        for target, text in itertools.pairwise(body)
        if isinstance(target, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


GENERATED = {"settings": settings_table}


def rendered(text: str) -> str:
    """Return the README with every generated part made anew, between its markers."""
    for name, make in GENERATED.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        made = make()
        text, count = pattern.subn(lambda match, made=made: f"{match[1]}{made}{match[2]}", text)
        assert count == 1, f"README.md has {count} parts marked {name}"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
    sys.exit(0)
