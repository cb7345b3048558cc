"""What the opt-ins that carry the ambient context share: a function that runs under a frame, and a counted patch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fluxgate_mw.ambient import Ambient, enter, get

__all__ = ["Carried", "CountedPatch"]


class Carried:
    """A function that runs under the frame of where it was handed over.

    Only our own variable is set, in whatever context the function is run in, and put back afterwards.
    """

    __slots__ = ("_ambient", "_function")

    def __init__(self, ambient: Ambient, function: Callable[..., Any]) -> None:
        self._ambient = ambient
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function under its frame."""
        covered = get()
        enter(self._ambient)
        try:
            return self._function(*args, **kwargs)
        finally:
            enter(covered)


class CountedPatch:
    """Patches that are put in place when first asked for, and taken back when the last who asked has undone it.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[object] = []
        self._put: list[tuple[Any, str, Any, Any]] = []

    def ask(self, *patches: tuple[Any, str, Callable[[Any], Any]]) -> Callable[[], None]:
        """Put `patches` in place unless some are, and return the undo of this very request.

        Args:
            patches: Each an object, the name of its attribute, and what makes the new function from the one found.
        """
        token = object()
        with self._lock:
            if not self._asked:
                for owner, name, made_from in patches:
                    self._replace(owner, name, made_from)
            self._asked.append(token)

        def undo() -> None:
            with self._lock:
                if token in self._asked:
                    self._asked.remove(token)
                    if not self._asked:
                        self._restore()

        return undo

    def _replace(self, owner: Any, name: str, made_from: Callable[[Any], Any]) -> None:
        found = getattr(owner, name)
        made = made_from(found)
        setattr(owner, name, made)
        self._put.append((owner, name, found, made))

    def _restore(self) -> None:
        """Put back what was found, unless somebody else has patched over it meanwhile: then it stays."""
        for owner, name, found, made in self._put:
            if getattr(owner, name) is made:
                setattr(owner, name, found)
        self._put.clear()
