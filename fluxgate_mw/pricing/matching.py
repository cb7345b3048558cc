"""Which row of a price table a model's name means: the same answer as `genai-prices` gives, only sooner.

Names that a row spells out are looked up in a dictionary; only the rows that match by prefix, substring or regular
expression are tried, in the table's order.

Source: `genai_prices.types` (Provider.find_model, Clause*), version 0.2.3.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Final

__all__ = ["Clause", "dashed_dates", "matches"]

Clause = tuple[str, Any]
"""A test of a lower-case name: `=` equals, `^` starts with, `$` ends with, `*` contains, `~` regular expression,
`|` any of, `&` all of, each followed by its text or its list of clauses."""

_COMPACT_DATE: Final = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def matches(clause: Clause, name: str) -> bool:  # noqa: PLR0911  (one return a kind)
    """Say whether the clause holds for a name in lower case."""
    kind, value = clause
    match kind:
        case "=":
            return bool(name == value)
        case "^":
            return name.startswith(value)
        case "$":
            return name.endswith(value)
        case "*":
            return value in name
        case "~":
            return re.search(value, name) is not None
        case "|":
            return any(matches(part, name) for part in value)
        case _:
            return all(matches(part, name) for part in value)


def dashed_dates(name: str) -> str:
    """Return the name with every compact date in it spelled with dashes, as LiteLLM and OpenRouter do not.

    >>> dashed_dates("gpt-5.2-20251211"), dashed_dates("gpt-5.2-20250230")
    ('gpt-5.2-2025-12-11', 'gpt-5.2-20250230')
    """
    return _COMPACT_DATE.sub(_dashed, name)


def _dashed(match: re.Match[str]) -> str:
    try:
        return f"-{date(*map(int, match.groups())).isoformat()}"
    except ValueError:
        return match.group()
