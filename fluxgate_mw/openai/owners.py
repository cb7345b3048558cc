"""Which classes have a `request` of their own, what on them is ours, and how that is taken away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["MARK", "VIEW", "is_bypassed", "marked", "owners_of_request", "put_back"]

VIEW: Final = "__fluxgate_view__"
"""The attribute of client classes that track by themselves: the explicit tracker's views."""

MARK: Final = "__fluxgate_patch__"
"""The attribute of our wrappers. Who wraps them in good manners hands it on: `functools.wraps` copies it."""


def marked(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Return the wrapper, known as ours from now on."""
    setattr(wrapper, MARK, True)
    return wrapper


def is_bypassed(client: Any) -> bool:
    """Say whether a request of the client need not have passed ours: an undo took it, or the client has its own."""
    kind = type(client)
    return not hasattr(kind, VIEW) and ("request" in vars(client) or not hasattr(kind.request, MARK))


def owners_of_request(client: type) -> Iterator[type]:
    """Yield the class and every subclass that has a `request` of its own, but for our views."""
    if "request" in client.__dict__ and VIEW not in client.__dict__:
        yield client
    subclasses: list[type] = client.__subclasses__()
    for subclass in subclasses:
        yield from owners_of_request(subclass)


def put_back(owner: type, name: str, original: Any, replacement: Any) -> bool:
    """Put the original back (None for nothing) if ours is what is there; return whether it was."""
    if owner.__dict__.get(name) is not replacement:
        return False
    if original is None:
        delattr(owner, name)
    else:
        setattr(owner, name, original)
    return True
