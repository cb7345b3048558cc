"""Say which feature and which user your LLM money goes to.

Add one middleware to a Python web application; every call that its handlers make through the `openai` client is
attributed, with no argument passed, to the signed-in user and the feature, priced, delivered and shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxgate_mw.ambient import current, identify
from fluxgate_mw.asgi import FluxGateMiddleware
from fluxgate_mw.errors import FluxGateError
from fluxgate_mw.event import Tracking, UsageEvent, User
from fluxgate_mw.extras import load
from fluxgate_mw.frames import context, feature
from fluxgate_mw.openai.tracking import tracking
from fluxgate_mw.runtime import FluxGate
from fluxgate_mw.track import track
from fluxgate_mw.wsgi import FluxGateWSGIMiddleware

if TYPE_CHECKING:
    from fluxgate_mw.openai.patch import instrument_openai, uninstrument_openai
    from fluxgate_mw.openai.tracker import create_openai_cost_tracker

__all__ = [
    "FluxGate",
    "FluxGateError",
    "FluxGateMiddleware",
    "FluxGateWSGIMiddleware",
    "Tracking",
    "UsageEvent",
    "User",
    "context",
    "create_openai_cost_tracker",
    "current",
    "feature",
    "identify",
    "instrument_openai",
    "track",
    "tracking",
    "uninstrument_openai",
]

_NEED_OPENAI = {
    "create_openai_cost_tracker": "fluxgate_mw.openai.tracker",
    "instrument_openai": "fluxgate_mw.openai.patch",
    "uninstrument_openai": "fluxgate_mw.openai.patch",
}


def __getattr__(name: str) -> Any:
    """Import what needs `openai` when it is first asked for."""
    module = _NEED_OPENAI.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(f"{module}:{name}", extra="all", needed_for=name)
