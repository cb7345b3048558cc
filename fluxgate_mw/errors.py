"""Every error that this package raises on purpose, and nothing else.

    FluxGateError
    ├── ConfigurationError(ValueError)     a setting is wrong
    │   └── MissingExtraError(ModuleNotFoundError)   an optional dependency is not installed
    ├── InstrumentationError               a patch target is missing or of unknown shape
    ├── EventDecodeError(ValueError)       a stream entry is not a usage event
    ├── BackendError                       Redis, the spool or a store failed
    │   ├── BackendUnavailable             retry later
    │   └── BackendRejected                this data will never be accepted
    ├── BufferFull                         the spool's cap is reached
    └── ClosedError                        used after it was closed

None of them reaches the code of the host application through a tracked call, a middleware or `emit`: they are for
start-up, for the command line and for whoever drives the parts directly.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendRejected",
    "BackendUnavailable",
    "BufferFull",
    "ClosedError",
    "ConfigurationError",
    "EventDecodeError",
    "FluxGateError",
    "InstrumentationError",
    "MissingExtraError",
]


class FluxGateError(Exception):
    """The root of this package's errors."""


class ConfigurationError(FluxGateError, ValueError):
    """A setting is wrong. The message names the key, where the value came from and what is allowed."""


class MissingExtraError(ConfigurationError, ModuleNotFoundError):
    """An optional dependency is not installed. The message gives the pip command.

    Args:
        extra: The name of the extra, as in `fluxgate-mw[extra]`.
        needed_for: What was asked for, in the reader's words.
    """

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an extra: pip install 'fluxgate-mw[{extra}]'")
        self.extra = extra


class InstrumentationError(FluxGateError):
    """A patch target is missing or of unknown shape; nothing was patched."""


class EventDecodeError(FluxGateError, ValueError):
    """The bytes of a stream entry are not a usage event.

    Args:
        message: What is wrong with the bytes; never the bytes themselves.
        entry_id: The entry they came from, or None where there is none.
    """

    def __init__(self, message: str, entry_id: str | None = None) -> None:
        super().__init__(message if entry_id is None else f"entry {entry_id}: {message}")
        self.entry_id = entry_id


class BackendError(FluxGateError):
    """A server or a disk behind a Protocol failed. Always raised `from` the driver's own error.

    Args:
        backend: `redis`, `spool`, `sqlite`, ...
        message: What failed, without credentials.
    """

    def __init__(self, backend: str, message: str) -> None:
        super().__init__(f"{backend}: {message}")
        self.backend = backend


class BackendUnavailable(BackendError):
    """The backend cannot serve now (connection, time-out, loading, failover, disk full): retry later."""


class BackendRejected(BackendError):
    """The backend will never accept this data, however often it is retried."""


class BufferFull(FluxGateError):
    """A bounded buffer is at its limit; the caller counts what it drops."""


class ClosedError(FluxGateError):
    """Used after it was closed."""
