"""Helpers for users' own tests: assert on the events that code under test recorded, not on mocks."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fluxgate_mw.event import UsageEvent
from fluxgate_mw.recorder import capturing

__all__ = ["capture_events"]


def capture_events() -> AbstractContextManager[list[UsageEvent]]:
    """Give the list of events that are recorded while inside: of every thread and every `FluxGate` of this process.

    Returns:
        A context manager; its value is a plain list, empty at first.

    Guarantees: an event is in the list before the call returns, a stream's at the stream's end. Nothing is delivered
    elsewhere meanwhile. Nested captures each get every event.

    Example:
        >>> from fluxgate_mw import feature, track
        >>> with capture_events() as events, feature("search"), track():
        ...     pass
        >>> [event.feature for event in events]
        ['search']
    """
    return capturing()
