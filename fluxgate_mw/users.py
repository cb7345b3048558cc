"""Read a user out of whatever an application has for one. Nothing here raises, and nobody is ever guessed.

An ORM's attribute may query, raise, or answer with a coroutine; a placeholder for "nobody" is not a user.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import CoroutineType, NoneType
from typing import Any, Final
from uuid import UUID

from fluxgate_mw import diagnostics
from fluxgate_mw.event import User

__all__ = ["as_user", "signed_in"]

ID_CHARS: Final = 256
"""No user id is longer; what is, is something else."""


def as_user(value: object) -> User | None:
    """Return the user that `value` describes, or None where it describes none. Never raises.

    Args:
        value: A `str`, a `User`, a number or UUID, or any mapping or object with an `id` (and optionally `email`,
            `name`, `image`, `monthly_revenue`).
    """
    if type(value) is User and _sound(value):
        return value if value.id else None
    return _safely(_described, value)


def signed_in(value: Any) -> User | None:
    """Return the user in a framework's user object; None for nobody and for anonymous placeholders. Never raises.

    An object without an `id` is known by its `username`, `display_name` or `auth_id`.
    """
    return None if value is None else _safely(_authenticated, value)


def _safely(read: Callable[[Any], User | None], value: object) -> User | None:
    try:
        return read(value)
    except Exception as error:  # noqa: BLE001  (the application's own objects may raise anything)
        diagnostics.note(
            "user_attribute", f"reading a user from a {type(value).__name__} raised {type(error).__name__}"
        )
        return None


def _authenticated(value: Any) -> User | None:
    known = getattr(value, "is_authenticated", True)
    if type(known) is CoroutineType:
        known.close()  # Quart-Auth's must be awaited; its `auth_id` says the same
    elif known is False:
        return None
    user = as_user(value)
    if user is not None or isinstance(value, str | Mapping):
        return user
    for name in ("username", "display_name", "auth_id"):
        if isinstance(known := _attribute(value, name), str) and 0 < len(known) <= ID_CHARS:
            return User(known, name=None if name == "auth_id" else known)
    return None


def _sound(user: User) -> bool:
    """Say whether every field is of its kind: a wrong one could be written and never read again."""
    texts = (user.email, user.name, user.image)
    return (
        type(user.id) is str
        and type(user.monthly_revenue) in (float, NoneType)
        and all(text is None or type(text) is str for text in texts)
    )


def _described(value: Any) -> User | None:
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return _of_id(value)
    keyed = isinstance(value, Mapping)
    read = value.get if keyed else functools.partial(_attribute, value)
    known = _of_id(value.get("id") if keyed else getattr(value, "id", None))
    if known is None:
        return None
    return User(
        known.id,
        email=_text(read("email")),
        name=_text(read("name")),
        image=_text(read("image")),
        monthly_revenue=_amount(read("monthly_revenue")),
    )


def _of_id(key: object) -> User | None:
    """Return the user of that id; None where it is no id: nothing, a flag, a container, an object without a text."""
    if isinstance(key, bool | bytes | float | Mapping | list | tuple | set) or callable(key):
        return None
    if not isinstance(key, str | int | UUID) and type(key).__str__ is object.__str__:
        return None
    text = str(key)
    return User(text) if 0 < len(text) <= ID_CHARS else None


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception as error:  # noqa: BLE001  (as above; the rest of the user is still good)
        diagnostics.note("user_attribute", f"reading .{name} of a {type(value).__name__} raised {type(error).__name__}")
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
