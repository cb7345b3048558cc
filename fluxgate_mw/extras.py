"""The one place that imports by name what is chosen at run time, and says which extra is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fluxgate_mw.errors import MissingExtraError

__all__ = ["load"]


def load(target: str, *, extra: str, needed_for: str) -> Any:
    """Return the object that `target` names, importing its module.

    Args:
        target: `package.module:attribute`, always one of this package's own modules.
        extra: The extra whose dependencies that module imports.
        needed_for: What the reader asked for, for the message.

    Raises:
        MissingExtraError: A dependency of the module is not installed.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith(f"{__package__}."):
            raise
        raise MissingExtraError(extra, needed_for) from error
    return getattr(module, attribute)
