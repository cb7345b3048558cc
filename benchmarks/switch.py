"""Turn another library's patch of the OpenAI client on and off, where the library itself has no undo.

What its start changed on the classes and modules of the client is noted once, and set or set back around each batch:
so that the bare client, ours and the peer can take turns in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, TypeVar

__all__ = ["Switch"]

_T = TypeVar("_T")
_MISSING = object()
_Seen = dict[int, tuple[Any, dict[str, Any]]]


class Switch(Generic[_T]):
    """The patch that `start` applies to the loaded modules of these packages; off once this is made.

    Args:
        start: Applies the patch; its result is kept as `started`.
        packages: Top-level names. What shall be found patched must be imported already.
    """

    def __init__(self, start: Callable[[], _T], packages: Sequence[str]) -> None:
        before = _attributes(packages)
        self.started = start()
        self._changes = list(_changes(before, _attributes(packages)))
        self._set(new=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have the patch in force inside the block."""
        self._set(new=True)
        try:
            yield
        finally:
            self._set(new=False)

    def _set(self, *, new: bool) -> None:
        for owner, name, was, is_now in self._changes:
            value = is_now if new else was
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _attributes(packages: Sequence[str]) -> _Seen:
    seen: _Seen = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in packages:
            seen[id(module)] = (module, dict(vars(module)))
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__.partition(".")[0] in packages:
                    seen[id(value)] = (value, dict(vars(value)))
    return seen


def _changes(before: _Seen, after: _Seen) -> Iterator[tuple[Any, str, Any, Any]]:
    for key, (owner, old) in before.items():
        for name, value in after[key][1].items():
            was = old.get(name, _MISSING)
            loaded_meanwhile = was is _MISSING and isinstance(owner, ModuleType)
            if value is not was and not name.startswith("__") and not loaded_meanwhile:
                yield owner, name, was, value
